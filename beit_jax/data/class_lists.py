"""Lists of class names, one a line: which of a classifier's classes a data set has."""

import os
from pathlib import Path

import numpy as np

from beit_jax.data import annotations

_FOLDER = Path(__file__).with_suffix("")  # class_lists/*.txt beside this file


def read(name: str) -> tuple[str, ...]:
    """The classes of a list, sorted, as image folders and TFDS number them.

    Args: name: a file of `data/class_lists` without its ending ("imagenet_a"), or the path of
      another one. Empty lines and lines that begin with "#" are skipped.
    Raises: FileNotFoundError: no such list. ValueError: it is empty, not UTF-8, or names a class
      twice.
    """
    shipped = _FOLDER / f"{name}.txt"
    path = shipped if shipped.is_file() else Path(os.path.expanduser(name))
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.txt")))
        raise FileNotFoundError(f"class list {name!r} is neither a file nor one of {known}")
    lines = (line.strip() for line in annotations.read_text(str(path)).splitlines())
    classes = sorted(line for line in lines if line and not line.startswith("#"))
    if not classes:
        raise ValueError(f"class list {path} is empty: write one class name a line")
    twice = [one for one, other in zip(classes[:-1], classes[1:], strict=True) if one == other]
    if twice:
        raise ValueError(f"class list {path} names {twice[0]} twice")
    return tuple(classes)


def positions(part: tuple[str, ...], whole: tuple[str, ...]) -> np.ndarray:
    """Where the classes of a list stand in a longer one: int32 [len(part)], increasing.

    Args: part, whole: as `read` gives them.
    Raises: ValueError: a class is missing in the longer list.
    """
    place = {name: number for number, name in enumerate(whole)}
    unknown = [name for name in part if name not in place]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(part)} classes are not among the {len(whole)} of "
                         f"the model, e.g. {unknown[0]}")
    return np.array([place[name] for name in part], np.int32)
