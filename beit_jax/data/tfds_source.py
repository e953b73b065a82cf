"""Any data set that TFDS has prepared on this disk, by its name. Nothing is ever downloaded."""
import functools
import os

import numpy as np

from beit_jax.data.source import Source, held_out, subset, with_labels

_IN_MEMORY_PIXELS = 2**30  # bytes of decoded pixels up to which a data set is held in memory
_IN_MEMORY_FILES = 2**30  # bytes of encoded images, for files without random access


def load(options, split: str) -> Source:
    """A split of the TFDS data set `options.name`, e.g. "cifar10" or "imagenet2012".

    Small data sets of one image size are held in memory; array_record files are read by example
    number; TFRecord files are held in memory up to 1 GiB, and read in a fixed order beyond.
    With `holdout_per_class` the last training examples of each class stand for every other split.

    Raises: FileNotFoundError: not prepared here. MissingSplit: no such split. ValueError: the
      examples have no field "image", or holding out needs labels of files that can only be read
      in sequence.
    """
    data_dir = _find(options.name, options.path)
    what = f"{options.name} in {data_dir}"
    if not options.holdout_per_class:
        return read_prepared(data_dir, split, what)
    source = read_prepared(data_dir, options.train_split, what)
    source = with_labels(source, "holdout_per_class")
    return _holdout(source, options.holdout_per_class, split == options.train_split)


@functools.lru_cache(maxsize=4)
def read_prepared(data_dir: str, split: str, what: str) -> Source:
    """A split of a prepared data set; `data_dir` is the folder with dataset_info.json."""
    from beit_jax.data import tfds_reader  # TensorFlow: seconds to import
    return tfds_reader.read(data_dir, split, what, _IN_MEMORY_PIXELS, _IN_MEMORY_FILES)


def _holdout(source: Source, per_class: int, is_training: bool) -> Source:
    """The kept or the held-out part of a source with known labels."""
    return subset(source, np.flatnonzero(held_out(source.labels, per_class) != is_training))


def _find(name: str, path: str) -> str:
    """The folder of the newest prepared version of a data set."""
    base = path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    base = os.path.abspath(os.path.expanduser(base))
    plain, _, version = name.partition(":")
    roots = [os.path.join(base, plain), base] if path else [os.path.join(base, plain)]
    for root in roots:
        if os.path.isfile(os.path.join(root, "dataset_info.json")):
            return root
        versions = _versions(root)
        if version in versions or (versions and not version):
            return os.path.join(root, version or max(versions, key=_number))
    raise FileNotFoundError(
        f"TFDS data set {name!r} is not prepared: looked in {' and '.join(roots)}. Prepare it with "
        f"`tfds build {plain} --data_dir={base} --file_format=array_record`, or set "
        "config.data.path to the data_dir; config.data.name may also be digit_scenes/plain, "
        "folder or synthetic")


def _versions(root: str) -> list[str]:
    if not os.path.isdir(root):
        return []
    return [name for name in os.listdir(root)
            if os.path.isfile(os.path.join(root, name, "dataset_info.json"))]


def _number(version: str) -> tuple:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))
