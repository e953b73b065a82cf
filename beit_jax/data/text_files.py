"""What sources out of files of texts have in common: which files a split means, the tokenizer."""

import os

from beit_jax.data import text_ops
from beit_jax.data.source import MissingSplit

_SPLIT = "{split}"


def require(options, *keys: str) -> None:
    """Raises: ValueError: one of some keys of config.data is not set."""
    for key in keys:
        if not getattr(options, key):
            raise ValueError(f"config.data.name={options.name!r} needs config.data.{key}: see "
                             "docs/data.md")


def parts_of(split: str) -> list[str]:
    """The splits that "train+val" joins."""
    return split.split("+")


def is_training(options, part: str) -> bool:
    """Whether one split is among those that are trained on."""
    return part in parts_of(options.train_split)


def file_of(options, key: str, part: str) -> str:
    """The file of one split that `config.data.<key>` means.

    A name without "{split}" is that of the training split alone.
    Raises: MissingSplit: no such file. FileNotFoundError: it is a training split's.
    """
    pattern = getattr(options, key)
    path = os.path.expanduser(pattern.replace(_SPLIT, part))
    if is_training(options, part):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"config.data.{key}={pattern}: {path} is no file; {_SPLIT} "
                                    f"stands for config.data.train_split={options.train_split}")
        return path
    if _SPLIT not in pattern:
        raise MissingSplit(f"config.data.{key}={pattern} has no split {part!r}: write {_SPLIT} "
                           "into the name where the splits differ")
    if not os.path.isfile(path):
        raise MissingSplit(f"config.data.{key}={pattern} has no split {part!r}, {path} is no "
                           "file: set config.data.eval_split")
    return path


def folder_of(options, part: str) -> str:
    """The folder of images of one split."""
    return os.path.expanduser(options.path.replace(_SPLIT, part))


def tokenizer_of(options) -> text_ops.Tokenizer:
    """Raises: ValueError: no tokenizer, or no length of text."""
    require(options, "tokenizer", "text_length")
    return text_ops.load(options.tokenizer)
