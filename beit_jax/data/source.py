"""The form in which every data set reaches the pipeline, and the choice of examples from it."""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class MissingSplit(ValueError):
    """The source is there, but not this split of it."""


class Source(NamedTuple):
    """One split. Exactly one of `images`, `views`, `read`, `read_many` and `sequence` is there.

    num_examples: examples in the split. class_names: () where there are no classes.
    labels: int32 [n], -1 = none; or None where a label is known only once its record is read.
    images: uint8 [n, h, w, 3], all in memory.
    views: {"image": uint8 [n, s, s, 3], ...}: finished; nothing is cropped or resized any more.
    read: (int64 scalar tensor) -> encoded image, in TensorFlow.
    read_many: (int64 tensor [b]) -> {"encoded": [b], "label": int32 [b]}, in TensorFlow.
    sequence: (seed) -> tf.data.Dataset of {"encoded", "label"}: one epoch, no random access.
    needs_pil: bool [n], True where TensorFlow's decoders would give wrong pixels; None = nowhere.
    what: for messages: where the data come from.
    """
    num_examples: int
    class_names: tuple[str, ...]
    what: str
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    views: dict[str, np.ndarray] | None = None
    read: Callable | None = None
    read_many: Callable | None = None
    sequence: Callable | None = None
    needs_pil: np.ndarray | None = None


def held_out(labels: np.ndarray, per_class: int) -> np.ndarray:
    """bool [n]: True for the last `per_class` examples of each class.

    Raises: ValueError: a class would keep nothing for training.
    """
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) <= per_class:
            raise ValueError(f"config.data.holdout_per_class={per_class} leaves nothing to train "
                             f"on: class {label} has {len(members)} examples")
        is_held_out[members[-per_class:]] = True
    return is_held_out


def few_per_class(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Example numbers, sorted: `per_class` of each class, chosen by the seed.

    A larger `per_class` with the same seed contains the smaller choice.
    Raises: ValueError: examples without labels, or a class with fewer.
    """
    if np.any(labels < 0):
        raise ValueError("config.data.examples_per_class needs labels, and there are examples "
                         "without: put images into one sub-folder for each class")
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(f"config.data.examples_per_class={per_class}, but class {label} has "
                             f"only {len(members)} examples")
        chosen.append(np.random.default_rng([seed, label]).permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))
