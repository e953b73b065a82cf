"""Batches of examples, in an order that depends on the seed and the step alone.

Example g of a run (g = step * global batch + row) is a function of (seed, g): which picture, which
crop, which colours. A run that is resumed, or spread over other processes, therefore sees the same
examples. Nothing here imports TensorFlow before the first batch is asked for.
"""
import contextlib
import functools
import itertools

import numpy as np

from beit_jax import token_ids
from beit_jax.data import SOURCES, attach, mixture
from beit_jax.data.options import DataInfo, DataOptions, SplitInfo
from beit_jax.data.source import (
    MissingSplit,
    Source,
    digest,
    each_text,
    few,
    few_per_class,
    subset,
    with_labels,
)

__all__ = ["DataInfo", "DataOptions", "SplitInfo", "batch_sizes", "describe", "eval_batches",
           "num_labelled", "split_info", "steps_per_epoch", "train_batches"]


def describe(options: DataOptions) -> DataInfo:
    """Numbers of examples, classes and tokens of a source.

    Raises: ValueError: the source is missing, empty or unknown, or too small for one batch, or it
      lacks an evaluation split that was asked for by name.
    """
    if options.streams:
        _tokenizer_of_mixture(options)
        streams = mixture.streams(options)
        info = mixture.joined_info([_describe(stream, True) for stream in streams.values()])
        if not info.num_eval and options.eval_split != DataOptions.eval_split:
            raise MissingSplit(f"config.data.eval_split={options.eval_split}: none of the streams "
                               f"{', '.join(streams)} has this split")
        return info
    return _describe(options, options.eval_split == DataOptions.eval_split)


def _describe(options: DataOptions, may_lack_eval: bool) -> DataInfo:
    """`describe` of one source."""
    train, chosen = _train_source(options)
    try:
        num_eval = load(options, options.eval_split).num_examples
    except MissingSplit:
        if not may_lack_eval:
            raise
        num_eval = 0
    pieces = train.tokenizer.num_pieces if train.tokenizer else token_ids.RELEASED_PIECES
    vocab_size = 0 if train.texts is None else token_ids.table_rows(pieces)
    return DataInfo(len(chosen) if chosen is not None else train.num_examples, num_eval,
                    len(train.class_names), train.class_names, vocab_size,
                    digest(train, chosen))


def num_labelled(options: DataOptions, split: str, limit: int = 0) -> int:
    """How many examples with a label `eval_batches` gives for the same arguments.

    All, where labels are known only once their records are read. Raises: ValueError: no such split.
    """
    if options.streams:
        counts = []
        for stream in mixture.streams(options).values():
            with contextlib.suppress(MissingSplit):
                counts.append(num_labelled(stream, split, limit))
        if not counts:
            raise MissingSplit(f"none of the streams {', '.join(options.streams)} has a split "
                               f"{split!r}")
        return sum(counts)
    source = _eval_source(options, split, limit)
    return source.num_examples if source.labels is None else int(np.sum(source.labels >= 0))


def split_info(options: DataOptions, split: str = "validation", limit: int = 0) -> SplitInfo:
    """What is known of the examples that `eval_batches` gives for the same arguments.

    Of a mixture only the tokenizer.
    """
    if options.streams:
        return SplitInfo(None, (), _tokenizer_of_mixture(options))
    source = _eval_source(options, split, limit)
    return SplitInfo(source.records, source.class_names, source.tokenizer)


def batch_sizes(options: DataOptions) -> dict[str, int]:
    """{how the config calls it: rows of a global batch}, of training and evaluation.

    Raises: ValueError: a mixture whose shares do not divide its batches.
    """
    if options.streams:
        return {f"{key} (share of {name})": rows
                for name, stream in mixture.streams(options).items()
                for key, rows in batch_sizes(stream).items()}
    return {"config.data.global_batch_size": options.global_batch_size,
            "config.data.eval_batch_size": options.eval_batch_size or options.global_batch_size}


def steps_per_epoch(info: DataInfo, options: DataOptions) -> int:
    """Whole batches in one pass over the training examples; the rest of a pass is left out.

    Raises: ValueError: a global batch has more examples than there are.
    """
    steps = info.num_train // options.global_batch_size
    if not steps:
        raise ValueError(f"config.data.global_batch_size={options.global_batch_size} is larger "
                         f"than the {info.num_train} training examples of {options.name}: "
                         "make it smaller")
    return steps


def train_batches(options: DataOptions, *, seed: int, start_step: int = 0, process_index: int = 0,
                  process_count: int = 1):
    """Training batches without end, from the one of `start_step` on.

    Args:
      seed: of order and augmentation.
      start_step: steps that are already done.
      process_index, process_count: this process gets rows i * B / n to (i + 1) * B / n.
    Returns: iterator of dicts of numpy arrays, b = B / n rows: image uint8 [b, s, s, 3] (0..255,
      RGB), image_for_target uint8 [b, t, t, 3] where target_px > 0, label int32 [b] (-1 = none),
      index int32 [b] (example number in the split), is_example bool [b] (all True). Of two images
      an example image is [b, 2, s, s, 3]; texts are text int32 [b, l] and text_is_valid bool [b, l]
      (True = a real token), without images where there are none; answers to questions are
      answer_labels int32 [b, k] (-1 = none) and answer_scores float32 [b, k]. A mixture gives a
      dict of such batches, a stream's part of the global batch each.
    Raises: ValueError: a missing or broken source, a batch that the processes cannot divide or
      that is larger than the data.
    """
    process = dict(process_index=process_index, process_count=process_count)
    if options.streams:
        return mixture.joined_train({
            name: train_batches(stream, seed=mixture.seed_of(seed, name), start_step=start_step,
                                **process)
            for name, stream in mixture.streams(options).items()})
    source, chosen = _train_source(options)
    num_train = source.num_examples if chosen is None else len(chosen)
    info = DataInfo(num_train, 0, len(source.class_names), source.class_names)
    plan = dict(steps=steps_per_epoch(info, options), chosen=chosen, num_train=num_train,
                batch=options.global_batch_size, seed=seed, start_step=start_step,
                rows=_rows(options, "global_batch_size", **process))
    if source.views is not None:
        batches = _finished_train_batches(source, **plan)
    else:
        from beit_jax.data import tf_pipeline  # TensorFlow: seconds to import
        batches = tf_pipeline.train_batches(source, options, **plan)
    # Drawn for the global batch, then cut, as all random numbers of the views are.
    choices = (np.random.default_rng([seed, step]).random(options.global_batch_size)[plan["rows"]]
               for step in itertools.count(start_step))
    return attach.attached(source, batches, choices)


def eval_batches(options: DataOptions, split: str = "validation", *, limit: int = 0,
                 process_index: int = 0, process_count: int = 1):
    """One pass over a split, in order; the same number of full batches in every process.

    Args:
      split: "validation" and "train" stand for `eval_split` and `train_split`; another name is the
        source's own.
      limit: at most so many examples, evenly spaced over the split, whose order is often that of
        its classes; `index` then numbers these. 0: all.
      process_index, process_count: as for `train_batches`.
    Returns: iterator of dicts as of `train_batches`. Filler rows that complete the last batch have
      is_example False, label -1, index -1, answers -1 with scores 0, and a text of <s> alone.
      Captions are text int32 [b, r, l], all that an image has, r = most captions of an image; rows
      without a valid token are none. A mixture goes on until its longest stream ends.
    Raises: ValueError: as `train_batches`, or the source has no such split.
    """
    process = dict(process_index=process_index, process_count=process_count)
    if options.streams:
        return _eval_mixture(options, split, limit, process)
    source = _eval_source(options, split, limit)
    key = "eval_batch_size" if options.eval_batch_size else "global_batch_size"
    batch = getattr(options, key)
    rows = _rows(options, key, **process)
    if source.views is not None:
        batches = _finished_eval_batches(source, batch, rows)
    else:
        from beit_jax.data import tf_pipeline
        batches = tf_pipeline.eval_batches(source, options, batch=batch, rows=rows)
    return attach.attached(source, batches, itertools.repeat(None))


def _eval_mixture(options: DataOptions, split: str, limit: int, process: dict):
    """`eval_batches` of a mixture."""
    batches, patterns = {}, {}
    for name, stream in mixture.streams(options).items():
        try:
            batches[name] = eval_batches(stream, split, limit=limit, **process)
        except MissingSplit:
            patterns[name] = next(eval_batches(stream, "train", limit=1, **process))
    return mixture.joined_eval(batches, patterns)


def load(options: DataOptions, split: str) -> Source:
    """The source that `options.name` means; any name outside `SOURCES` is one of TFDS."""
    kind = options.name.partition("/")[0]
    loader = SOURCES[kind if kind in SOURCES else "tfds"]
    return loader(options, split)


def _train_source(options: DataOptions) -> tuple[Source, np.ndarray | None]:
    """The training split, and the example numbers to use of it (None = all)."""
    source = load(options, options.train_split)
    if options.examples_per_class:
        source = with_labels(source, "examples_per_class")
    if source.texts is not None and source.texts.are_captions and options.captions == "each":
        source = each_text(source)
    if options.train_examples:
        return source, few(source, options.train_examples, options.subset_seed)
    if not options.examples_per_class:
        return source, None
    return source, few_per_class(source.labels, options.examples_per_class, options.subset_seed,
                                 source.class_names)


def _tokenizer_of_mixture(options: DataOptions):
    return mixture.shared_tokenizer({name: load(stream, stream.train_split).tokenizer
                                     for name, stream in mixture.streams(options).items()})


def _eval_source(options: DataOptions, split: str, limit: int) -> Source:
    """What evaluation goes through; see `eval_batches`."""
    name = {"validation": options.eval_split, "train": options.train_split}.get(split, split)
    source = load(options, name)
    if 0 < limit < source.num_examples:
        source = subset(source, np.arange(limit) * source.num_examples // limit)
    return source


def _rows(options: DataOptions, key: str, process_index: int, process_count: int) -> np.ndarray:
    """Rows of the global batch that belong to this process."""
    batch = getattr(options, key)
    if batch % process_count:
        raise ValueError(f"config.data.{key}={batch} is no multiple of {process_count} processes "
                         f"(data {options.name})")
    local = batch // process_count
    return np.arange(process_index * local, (process_index + 1) * local)


@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def _finished_train_batches(source, *, steps, chosen, num_train, batch, seed, start_step, rows):
    """Order only, for sources whose views need no work: without TensorFlow."""
    step = start_step
    while True:
        order = _permutation(num_train, seed, step // steps)
        index = order[(step % steps) * batch + rows]
        index = index if chosen is None else chosen[index]
        yield _finished_batch(source, index, np.ones(len(index), bool))
        step += 1


def _finished_eval_batches(source, batch, rows):
    for start in range(0, source.num_examples, batch):
        is_example = start + rows < source.num_examples
        yield _finished_batch(source, np.where(is_example, start + rows, 0), is_example)


def _finished_batch(source, index, is_example):
    pictures = index if source.image_of is None else source.image_of[index]
    views = {key: view[pictures] for key, view in source.views.items()}
    label = np.where(is_example, source.labels[index], -1).astype(np.int32)
    index = np.where(is_example, index, -1).astype(np.int32)
    return views | {"label": label, "index": index, "is_example": is_example}
