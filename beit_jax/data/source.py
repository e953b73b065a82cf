"""The form in which every data set reaches the pipeline, and the choice of examples from it."""
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from beit_jax.data.text_ops import Tokenizer
from beit_jax.data.texts import Texts


class MissingSplit(ValueError):
    """The source is there, but not this split of it."""


class Source(NamedTuple):
    """One split. Exactly one of `images`, `views`, `read`, `read_many` and `sequence` is there.

    num_examples: n, examples in the split. class_names: () where there are no classes.
    labels: int32 [n], -1 = none; or None where a label is known only once its record is read.
    read_labels: () -> labels, by reading every record once; None where `labels` is there, or where
      records come in sequence only.
    images: uint8 [n, h, w, 3], all in memory.
    views: {"image": uint8 [n, s, s, 3], ...}: finished; nothing is cropped or resized any more. {}:
      examples without images.
    read: (int64 scalar tensor) -> encoded image, in TensorFlow.
    read_many: (int64 tensor [b]) -> {"encoded": [b], "label": int32 [b]}, in TensorFlow.
    sequence: (seed) -> tf.data.Dataset of {"encoded", "label"}: one epoch, no random access.
    needs_pil: bool [n], True where TensorFlow's decoders would give wrong pixels; None = nowhere.
    paths: str [n], the files of `images` or of what `read` reads; None where they are not files of
      one image each.
    what: for messages: where the data come from.
    images_per_example: k; with more than one there is an `image_of`.
    image_of: int64 [n * k]: picture j = example * k + side is number image_of[j] of `images`,
      `needs_pil`, `paths`, `read` or `read_many`, several may be the same; None: example i shows
      number i.
    texts: of the examples. tokenizer: what made their tokens; None where they came as ids.
    arrays: name -> [n, ...], joined to a batch as they are.
    records: what else is known of each example, [n], for measures that need more than numbers.
    """
    num_examples: int
    class_names: tuple[str, ...]
    what: str
    labels: np.ndarray | None = None
    read_labels: Callable | None = None
    images: np.ndarray | None = None
    views: dict[str, np.ndarray] | None = None
    read: Callable | None = None
    read_many: Callable | None = None
    sequence: Callable | None = None
    needs_pil: np.ndarray | None = None
    paths: np.ndarray | None = None
    images_per_example: int = 1
    image_of: np.ndarray | None = None
    texts: Texts | None = None
    tokenizer: Tokenizer | None = None
    arrays: Mapping[str, np.ndarray] = {}
    records: Sequence[Any] | None = None


def digest(source: Source, chosen: np.ndarray | None = None) -> str:
    """Equal for two lists of the same examples in the same order, wherever they lie.

    Of their number, class names, labels, texts and whatever else comes in arrays; of image files
    the names below their common folder, and sizes. Pixels are not looked at.

    Args: chosen: numbers of the examples that are used; None: all.
    """
    found = hashlib.blake2b(digest_size=16)

    def add(*values) -> None:
        for value in values:
            if value is not None:
                found.update(np.ascontiguousarray(value).tobytes())
            found.update(b"|")

    found.update(json.dumps([source.num_examples, source.class_names]).encode())
    add(source.labels, source.image_of, chosen)
    if source.texts is not None:
        add(source.texts.ids, source.texts.start, source.texts.count, source.texts.first)
    for name in sorted(source.arrays):
        add(source.arrays[name])
    if source.paths is not None:
        found.update(_names_and_sizes(source.paths.tolist()))
    return found.hexdigest()


def _names_and_sizes(paths: Sequence[str]) -> bytes:
    """Names below their common folder, and sizes; -1 of a file that is gone."""
    def size(path):
        try:
            return os.stat(path).st_size
        except OSError:
            return -1

    below = len(os.path.dirname(os.path.commonprefix(paths)))
    return (os.fsencode("\n".join(path[below:] for path in paths))
            + np.array([size(path) for path in paths], np.int64).tobytes())


def subset(source: Source, numbers: np.ndarray) -> Source:
    """Some of the examples, numbered anew from 0; a sequence keeps them in its unshuffled order.

    Args: numbers: int [m], increasing; with an `image_of` they may occur several times.
    """
    def chosen(values):
        return None if values is None else values[numbers]

    records = source.records
    changes = dict(num_examples=len(numbers), read_labels=None, labels=chosen(source.labels),
                   texts=None if source.texts is None else source.texts.subset(numbers),
                   arrays={key: rows[numbers] for key, rows in source.arrays.items()},
                   records=None if records is None else [records[i] for i in numbers])
    if source.image_of is not None:
        pictures = source.image_of.reshape(source.num_examples, -1)
        return source._replace(**changes, image_of=pictures[numbers].reshape(-1))
    changes |= {key: chosen(getattr(source, key)) for key in ("images", "needs_pil", "paths")}
    if source.views is not None:
        changes["views"] = {key: view[numbers] for key, view in source.views.items()}
    for key in ("read", "read_many"):
        if getattr(source, key) is not None:
            changes[key] = _renumbered(getattr(source, key), numbers)
    if source.sequence is not None:
        is_chosen = np.isin(np.arange(source.num_examples), numbers)
        changes["sequence"] = lambda seed: _filtered(source.sequence(seed), is_chosen)
    return source._replace(**changes)


def each_text(source: Source) -> Source:
    """Every text as an example; those of one image share it."""
    example = np.repeat(np.arange(source.num_examples), np.diff(source.texts.first))
    image_of = np.arange(source.num_examples) if source.image_of is None else source.image_of
    return subset(source._replace(texts=None, image_of=image_of), example)._replace(
        texts=source.texts.each())


def _renumbered(read: Callable, numbers: np.ndarray) -> Callable:
    """`read` of the new numbers."""
    from beit_jax.data.host_tensorflow import tf
    return lambda index: read(tf.gather(numbers, index))


def _filtered(dataset, is_chosen: np.ndarray):
    """The elements of a tf.data set whose place is chosen."""
    from beit_jax.data.host_tensorflow import tf
    dataset = dataset.enumerate().filter(lambda place, _: tf.gather(is_chosen, place))
    return dataset.map(lambda _, example: example)


def with_labels(source: Source, key: str) -> Source:
    """The same source with all its labels beforehand, read if need be.

    Raises: ValueError: they cannot be had; `key` is the option of config.data that asks for them.
    """
    if source.labels is not None:
        return source
    if source.read_labels is None:
        raise ValueError(f"config.data.{key} needs all labels beforehand, and {source.what} can "
                         "only be read in sequence: prepare it as array_record")
    return source._replace(labels=source.read_labels(), read_labels=None)


def class_name(label: int, class_names: Sequence[str]) -> str:
    """"cat", for messages; the number where classes have no names, "without a label" for -1."""
    if label < 0:
        return "without a label"
    return class_names[label] if label < len(class_names) else str(label)


def held_out(labels: np.ndarray, per_class: int, class_names: Sequence[str] = ()) -> np.ndarray:
    """bool [n]: True for the last `per_class` examples of each class.

    Raises: ValueError: a class would keep nothing for training.
    """
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) <= per_class:
            raise ValueError(f"config.data.holdout_per_class={per_class} leaves nothing to train "
                             f"on: class {class_name(label, class_names)} has {len(members)} "
                             "examples")
        is_held_out[members[-per_class:]] = True
    return is_held_out


def few_per_class(labels: np.ndarray, per_class: int, seed: int,
                  class_names: Sequence[str] = ()) -> np.ndarray:
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
            raise ValueError(f"config.data.examples_per_class={per_class}, but class "
                             f"{class_name(label, class_names)} has only {len(members)} examples")
        chosen.append(np.random.default_rng([seed, label]).permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def few(source: Source, wanted: int, seed: int) -> np.ndarray:
    """Example numbers, sorted: `wanted` of the source's, chosen by the seed.

    A larger `wanted` with the same seed contains the smaller choice.
    Raises: ValueError: fewer examples, or records that come in sequence.
    """
    if source.sequence is not None:
        raise ValueError(f"config.data.train_examples needs records by number, and {source.what} "
                         "can only be read in sequence: prepare it as array_record")
    if wanted > source.num_examples:
        raise ValueError(f"config.data.train_examples={wanted}, but {source.what} has only "
                         f"{source.num_examples} examples")
    return np.sort(np.random.default_rng(seed).permutation(source.num_examples)[:wanted])
