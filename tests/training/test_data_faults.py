"""What a run does where its data are at fault. On the toy task of tests/toy.py."""

import itertools

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


@pytest.mark.parametrize("where", ["train_batches", "eval_batches"])
def test_an_error_of_the_data_leaves_once_the_newest_state_is_saved(
        toy, tmp_path, monkeypatch, where):
    """The same command goes on from there, as if nothing had been."""
    config = toy.get_config(total_steps=7, checkpoint__every_steps=6, eval__every_steps=4)
    expected = loop.run(config, tmp_path / "whole")
    whole = getattr(toy, where)

    def failing(options, *split, **kwargs):
        """Four batches to train on, or none to measure."""
        if where == "train_batches":
            yield from itertools.islice(whole(options, **kwargs), 4)
        raise ValueError("cat/1.jpg broke")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, where, failing)
        with pytest.raises(ValueError, match="cat/1.jpg broke"):
            loop.run(config, tmp_path / "broken")
    steps = [int(path.name) for path in (tmp_path / "broken" / "checkpoints").iterdir()]
    assert steps == [4]
    assert loop.run(config, tmp_path / "broken") == expected
