"""Any data set that TFDS has prepared on this disk, by its name. Nothing is ever downloaded."""
import functools
import os

import numpy as np

from beit_jax.data import annotations, text_files, texts
from beit_jax.data.image_text import Captioned
from beit_jax.data.options import DataOptions
from beit_jax.data.source import Source, held_out, subset, with_labels

_IN_MEMORY_PIXELS = 2**30  # bytes of decoded pixels up to which a data set is held in memory
_IN_MEMORY_FILES = 2**30  # bytes of encoded images, for files without random access


def load(options, split: str) -> Source:
    """A split of the TFDS data set `options.name`, e.g. "cifar10" or "imagenet2012".

    Small data sets of one image size are held in memory; array_record files are read by example
    number; TFRecord files are held in memory up to 1 GiB, and read in a fixed order beyond.
    With `text` every example has the captions in the feature of this name. With
    `holdout_per_class` the last training examples of each class are the evaluation split.

    Raises: FileNotFoundError: not prepared here. MissingSplit: no such split. ValueError: the
      examples have no field "image", or holding out needs labels of files that can only be read
      in sequence; or the same of `text`, no such feature, or an example without text.
    """
    data_dir = _find(options.name, options.path)
    what = f"{options.name} in {data_dir}"
    held = (options.train_split, options.eval_split, DataOptions.eval_split)
    if not options.holdout_per_class or split not in held:
        return _read(data_dir, split, what, options)
    source = _read(data_dir, options.train_split, what, options)
    source = with_labels(source, "holdout_per_class")
    return _holdout(source, options.holdout_per_class, split == options.train_split)


@functools.lru_cache(maxsize=4)
def read_prepared(data_dir: str, split: str, what: str) -> Source:
    """A split of a prepared data set; `data_dir` is the folder with dataset_info.json."""
    from beit_jax.data import tfds_reader  # TensorFlow: seconds to import
    return tfds_reader.read(data_dir, split, what, _IN_MEMORY_PIXELS, _IN_MEMORY_FILES)


def _read(data_dir: str, split: str, what: str, options) -> Source:
    return (_read_captions(data_dir, split, what, options) if options.text else
            read_prepared(data_dir, split, what))


@functools.lru_cache(maxsize=4)
def _read_captions(data_dir: str, split: str, what: str, options) -> Source:
    """A prepared split with the texts of the feature `options.text`."""
    source = read_prepared(data_dir, split, what)
    if source.sequence is not None:
        raise ValueError(f"config.data.text={options.text!r} needs random access, and {what} can "
                         "only be read in sequence: prepare it as array_record")
    from beit_jax.data import tfds_reader
    column = tfds_reader.read_columns(data_dir, split, what, {options.text: str})[options.text]
    captions = [tuple(said for said in record if said.strip()) for record in column]
    annotations.settle(what, [f"example {number} has no text in {options.text}"
                              for number, said in enumerate(captions) if not said],
                       options.skip_defects)
    if not all(captions):
        numbers = np.flatnonzero([bool(said) for said in captions])
        source, captions = subset(source, numbers), [captions[number] for number in numbers]
    tokenizer = text_files.tokenizer_of(options)
    rows = texts.encode(captions, tokenizer, options.text_length, what, are_captions=True)
    records = [Captioned(number, f"example {number}", said)
               for number, said in enumerate(captions)]
    return source._replace(texts=rows, records=records, tokenizer=tokenizer)


def _holdout(source: Source, per_class: int, is_training: bool) -> Source:
    """The kept or the held-out part of a source with known labels."""
    chosen = held_out(source.labels, per_class, source.class_names) != is_training
    return subset(source, np.flatnonzero(chosen))


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
