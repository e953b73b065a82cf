"""What a run does where its data are at fault. On the toy task of tests/toy.py."""

import pytest

from beit_jax.data import pipeline
from beit_jax.training import loop


def test_a_classifier_is_not_trained_without_any_label(toy, tmp_path, monkeypatch):
    """Its loss would be 0, and its accuracy too."""
    monkeypatch.setattr(pipeline, "num_labelled",
                        lambda options, split, limit=0: 0 if split == "train" else 9)
    with pytest.raises(ValueError, match="model.num_classes=4, but no training example of .*'toy'"):
        loop.run(toy.get_config(total_steps=1), tmp_path)
    assert not any(tmp_path.iterdir())
