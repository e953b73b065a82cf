"""Several streams in one batch, `config.data.name="mixture"`: {"images": ..., "pairs": ...}.

Each stream is a section of data keys of its own; this page says what it reads, how much of the
batch is its, and how finished streams are joined.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from beit_jax import options as config_options
from beit_jax.data.attach import with_fillers
from beit_jax.data.options import DataInfo, DataOptions
from beit_jax.data.source import MissingSplit
from beit_jax.data.text_ops import Tokenizer

_OWN = ("streams", "global_batch_size", "eval_batch_size")  # of the mixture, given to no stream


def streams(options: DataOptions) -> dict[str, DataOptions]:
    """What each stream reads: its own keys, all others from the mixture, its share of the batches.

    Raises: ValueError: a key that no stream has, a stream without name, a mixture in a mixture, or
      batches that the shares do not divide.
    """
    for name, section in options.streams.items():
        config_options.read_section(section, f"config.data.streams.{name}")
    shares = {name: _share(name, section) for name, section in options.streams.items()}
    inherited = {field.name: getattr(options, field.name)
                 for field in dataclasses.fields(options) if field.name not in (*_OWN, "name")}
    made = {}
    for name, section in options.streams.items():
        where = f"config.data.streams.{name}"
        own = {key: value for key, value in section.items() if key != "share"}
        for key in set(_OWN) & own.keys():
            raise ValueError(f"{where}.{key} cannot be set: a stream gets its share of "
                             "config.data.global_batch_size")
        batches = {key: _part(options, key, shares, name) for key in _OWN[1:]}
        try:
            made[name] = config_options.build(DataOptions, inherited | own, where, **batches)
        except ValueError as error:  # what DataOptions says of itself names config.data alone
            raise ValueError(str(error).replace("config.data.", f"{where}.", 1)
                             if where not in str(error) else str(error)) from error
    return made


def seed_of(seed: int, name: str) -> int:
    """The seed of one stream: streams of one data set do not go in step."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0]) // 2


def joined_info(infos: Sequence[DataInfo]) -> DataInfo:
    """Sums over the streams."""
    return DataInfo(sum(info.num_train for info in infos), sum(info.num_eval for info in infos),
                    0, (), max(info.vocab_size for info in infos),
                    " ".join(info.digest for info in infos))


def shared_tokenizer(tokenizers: Mapping[str, Tokenizer | None]) -> Tokenizer | None:
    """The one tokenizer of the streams that have texts.

    Raises: ValueError: there are several: the same number would stand for different pieces.
    """
    found = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}
    if len({tokenizer.sha256 for tokenizer in found.values()}) > 1:
        raise ValueError(f"the streams {', '.join(found)} have different tokenizers: set one "
                         "config.data.tokenizer for all of them")
    return next(iter(found.values()), None)


def joined_train(batches: Mapping[str, Iterator[dict]]) -> Iterator[dict]:
    """One batch of each stream at a time."""
    for parts in zip(*batches.values(), strict=True):
        yield dict(zip(batches, parts, strict=True))


def joined_eval(batches: Mapping[str, Iterator[dict]],
                patterns: Mapping[str, dict]) -> Iterator[dict]:
    """Goes on until the longest stream ends; streams that have ended give fillers.

    Args:
      batches: one pass over each stream that has the split.
      patterns: a batch of each stream that has not, to make fillers of.
    Raises: MissingSplit: no stream has the split.
    """
    if not batches:
        raise MissingSplit(f"none of the streams {', '.join(patterns)} has this split: set "
                           "config.data.eval_split")
    last = dict(patterns)
    for parts in itertools.zip_longest(*batches.values()):
        found = {name: part for name, part in zip(batches, parts, strict=True) if part is not None}
        last |= found
        yield found | {name: with_fillers(batch, np.zeros_like(batch["is_example"]))
                       for name, batch in last.items() if name not in found}


def _share(name: str, section) -> int:
    share = section.get("share", 1)
    if config_options.fault(config_options.Count, share):
        raise ValueError(f"config.data.streams.{name}.share={share!r} is no part of a batch: 1, 2, "
                         "...")
    return share


def _part(options: DataOptions, key: str, shares: Mapping[str, int], name: str) -> int:
    """One stream's part of a batch size."""
    size, total = getattr(options, key), sum(shares.values())
    if size % total:
        raise ValueError(f"config.data.{key}={size} cannot be divided into {total} shares "
                         f"({', '.join(f'{n}: {share}' for n, share in shares.items())}): nearest "
                         f"{max(size // total, 1) * total}")
    return size // total * shares[name]
