"""METEOR, where its program is installed: pip install pycocoevalcap, and Java."""

import shutil

import pytest

from beit_jax import caption_java


def test_meteor_is_left_out_without_java_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(caption_java.shutil, "which", lambda name: None)
    caption_java._tell_once.cache_clear()
    with caplog.at_level("INFO", logger="beit_jax"):
        assert caption_java.scores({1: "a cat"}, {1: ["a cat"]}) == {}
        assert caption_java.scores({1: "a cat"}, {1: ["a cat"]}) == {}
    assert caplog.messages == ["no METEOR: it needs pycocoevalcap and java"]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_of_the_original_program():
    pytest.importorskip("pycocoevalcap", reason="needs the package pycocoevalcap")
    references = {1: ["a red cat sits", "a cat"], "x": ["two dogs run fast"]}
    assert caption_java.scores({1: "A red cat sits.", "x": "two dogs run fast"},
                               references) == {"METEOR": pytest.approx(1.0)}
    assert caption_java.scores({1: "", "x": ""}, references) == {"METEOR": 0.0}
