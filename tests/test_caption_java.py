"""METEOR, where its program is installed: pip install pycocoevalcap, and Java."""

import shutil

import pytest

from beit_jax import caption_java


def test_meteor_is_left_out_without_java(monkeypatch):
    monkeypatch.setattr(caption_java.shutil, "which", lambda name: None)
    assert caption_java.scores({1: "a cat"}, {1: ["a cat"]}) == {}


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_of_the_original_program():
    pytest.importorskip("pycocoevalcap", reason="needs the package pycocoevalcap")
    references = {1: ["a red cat sits", "a cat"], "x": ["two dogs run fast"]}
    assert caption_java.scores({1: "A red cat sits.", "x": "two dogs run fast"},
                               references) == {"METEOR": pytest.approx(1.0)}
    assert caption_java.scores({1: "", "x": ""}, references) == {"METEOR": 0.0}
