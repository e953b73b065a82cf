"""Reading of prepared TFDS files: by example number, or in a fixed order."""
import functools
import logging

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from beit_jax.data.host_tensorflow import tf
from beit_jax.data.source import MissingSplit, Source

_INTERLEAVED = 16  # files read at once where only a sequence is possible
_BUFFER = 2048  # encoded images shuffled among one another there
_PORTION = 512  # records read at once where all of them are
_LABEL = tf.io.FixedLenFeature([], tf.int64, -1)

log = logging.getLogger(__name__)


def read(data_dir: str, split: str, what: str, max_pixel_bytes: int, max_file_bytes: int) -> Source:
    """A split as a `Source`; see `tfds_source.load`."""
    builder = tfds.builder_from_directory(data_dir)
    num_examples = _check(builder, split, what)
    features = builder.info.features
    names = features["label"].names if "label" in features else None
    source = Source(num_examples, tuple(names or ()), what)
    shape = features["image"].shape
    is_random = builder.info.file_format.value == "array_record"
    if None not in shape and num_examples * np.prod(shape) <= max_pixel_bytes:
        return _in_memory(source, _portions(builder, split, is_random), shape)
    if is_random:
        return _by_number(source, builder.info.splits[split])
    if builder.info.splits[split].num_bytes <= max_file_bytes:
        return _encoded_in_memory(source, _portions(builder, split, is_random))
    return _in_sequence(source, builder, split)


def read_columns(data_dir: str, split: str, what: str, kinds: dict[str, type]) -> dict[str, list]:
    """Features other than the image, of all examples of a split, without decoding any image.

    Args: kinds: name of a feature -> str or int; a feature inside a sequence or a dict is
      "captions/text".
    Returns: {name: the values of each example, a list}.
    Raises: MissingSplit. ValueError: no such feature, or one of another kind.
    """
    builder = tfds.builder_from_directory(data_dir)
    _check(builder, split, what)
    stored = dict(_features(builder.info.features.get_serialized_info()))
    for name, kind in kinds.items():
        if name not in stored or (stored[name] == tf.string) != (kind is str):
            texts = [key for key, dtype in stored.items() if dtype == tf.string]
            raise ValueError(f"config.data.text={name!r} is no feature with texts of {what}; "
                             f"these are: {', '.join(texts)}")
    is_random = builder.info.file_format.value == "array_record"
    columns = {name: [] for name in kinds}
    for row in (_records_of if is_random else _sequence_of)(builder, split, kinds):
        for name, values in row.items():
            columns[name].append([value.decode() if kinds[name] is str else value
                                  for value in values])
    return columns


def _features(info, prefix: str = ""):
    """(name, dtype) of each stored feature; those inside others are "outer/inner"."""
    for name, inner in info.items():
        if isinstance(inner, dict):
            yield from _features(inner, f"{prefix}{name}/")
        else:
            yield prefix + name, tf.as_dtype(inner.np_dtype)


def _records_of(builder, split: str, kinds: dict[str, type]):
    """{name: list of values} of each example, read by number."""
    spec = {name: tf.io.RaggedFeature(tf.string if kind is str else tf.int64)
            for name, kind in kinds.items()}
    with ArrayRecordDataSource(builder.info.splits[split].file_instructions) as records:
        for numbers in _numbers(records):
            rows = tf.io.parse_example(records.__getitems__(list(numbers)), spec)
            columns = [values.to_list() for values in rows.values()]
            yield from (dict(zip(rows, row, strict=True)) for row in zip(*columns, strict=True))


def _sequence_of(builder, split: str, kinds: dict[str, type]):
    """The same out of TFRecord files, in the order of `_sequence`."""
    wanted = {}
    for name in kinds:
        *outer, inner = name.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), outer, wanted)[inner] = True
    for example in _examples(builder, split, None, wanted).as_numpy_iterator():
        yield {name: np.atleast_1d(functools.reduce(lambda at, key: at[key], name.split("/"),
                                                    example)).tolist() for name in kinds}


def _check(builder, split: str, what: str) -> int:
    """Number of examples of a split that is there and has images."""
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise MissingSplit(f"{what} has no split {split!r} (known: "
                           f"{', '.join(builder.info.splits)}): set config.data.eval_split, or "
                           "config.data.holdout_per_class=50") from None
    if not num_examples:
        raise ValueError(f"{what}: split {split!r} is empty: prepare the data set again")
    if "image" not in builder.info.features:
        raise ValueError(f'{what} has no field "image"; it has '
                         f"{', '.join(builder.info.features)}")
    return num_examples


def _parse(records):
    """Serialised records, string [b], to encoded images and labels."""
    parsed = tf.io.parse_example(records, {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": _LABEL})
    return {"encoded": parsed["image"], "label": tf.cast(parsed["label"], tf.int32)}


def _portions(builder, split: str, is_random: bool):
    """All examples in their order on disk, many at a time."""
    if not is_random:
        yield from _sequence(builder, split, None).batch(_PORTION)
        return
    with ArrayRecordDataSource(builder.info.splits[split].file_instructions) as records:
        for numbers in _numbers(records):
            yield _parse(tf.constant(records.__getitems__(list(numbers))))


def _numbers(records):
    """All record numbers in order, `_PORTION` at a time."""
    for start in range(0, len(records), _PORTION):
        yield range(start, min(start + _PORTION, len(records)))


def _examples(builder, split: str, seed: int | None, wanted: dict, **decoders):
    """Some features of TFRecord files, in their order on disk or in the shuffled one of a seed."""
    shuffled = {} if seed is None else {"shuffle_seed": seed, "interleave_cycle_length":
                                        _INTERLEAVED}
    return builder.as_dataset(
        split=split, shuffle_files=seed is not None,
        decoders=tfds.decode.PartialDecoding(wanted, decoders=decoders),
        read_config=tfds.ReadConfig(try_autocache=False, enable_ordering_guard=False, **shuffled))


def _sequence(builder, split: str, seed: int | None):
    """Encoded images and labels of TFRecord files."""
    wanted = {name: True for name in ("image", "label") if name in builder.info.features}
    dataset = _examples(builder, split, seed, wanted, image=tfds.decode.SkipDecoding())
    none = tf.constant(-1, tf.int64)
    return dataset.map(lambda example: {
        "encoded": example["image"], "label": tf.cast(example.get("label", none), tf.int32)})


def _in_memory(source: Source, portions, shape) -> Source:
    """All pixels, decoded once."""
    images = np.empty((source.num_examples, *shape[:2], 3), np.uint8)
    labels = np.empty(source.num_examples, np.int32)

    @tf.function
    def decode(encoded):
        return tf.map_fn(
            lambda one: tf.ensure_shape(tf.io.decode_image(one, 3, expand_animations=False),
                                        (*shape[:2], 3)), encoded, fn_output_signature=tf.uint8)

    at = 0
    for portion in portions:
        end = at + len(portion["label"])
        images[at:end], labels[at:end] = decode(portion["encoded"]), portion["label"]
        at = end
    return source._replace(images=images, labels=labels)


def _by_number(source: Source, split_info) -> Source:
    """Records fetched by number, a batch at a time: the one call of Python in the graph."""
    # The same instructions that TFDS itself reads by: they know slices such as "train[:90%]".
    records = ArrayRecordDataSource(split_info.file_instructions)

    def fetch(numbers):
        return np.array(records.__getitems__(numbers.tolist()), object)

    def read_many(index):
        found = tf.numpy_function(fetch, [index], tf.string, stateful=False)
        return _parse(tf.ensure_shape(found, index.shape))

    @functools.cache
    def read_labels():
        log.info("%s: reading all %d records once for their labels", source.what, len(records))
        only = {"label": _LABEL}
        parts = [tf.io.parse_example(records.__getitems__(list(numbers)), only)["label"]
                 for numbers in _numbers(records)]
        return np.concatenate(parts).astype(np.int32)

    return source._replace(read_many=read_many, read_labels=read_labels)


def _encoded_in_memory(source: Source, portions) -> Source:
    """Encoded bytes of all images, for small data sets without random access."""
    encoded, labels = [], []
    for portion in portions:
        encoded.append(portion["encoded"])
        labels.append(portion["label"])
    table = tf.concat(encoded, 0)
    return source._replace(read=lambda index: tf.gather(table, index),
                           labels=np.concatenate(labels))


def _in_sequence(source: Source, builder, split: str) -> Source:
    """Shuffled by a seed: the order of files, then of examples within a buffer; None = neither.

    `index` is then the place in that order before the buffer, not an example number.
    """
    def sequence(seed):
        dataset = _sequence(builder, split, seed).enumerate()
        dataset = dataset.map(lambda number, example: example | {"index": number})
        return dataset if seed is None else dataset.shuffle(_BUFFER, seed)

    return source._replace(sequence=sequence)
