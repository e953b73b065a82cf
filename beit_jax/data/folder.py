"""A folder of anybody's images: `config.data.name="folder"`, `config.data.path=DIR`.

DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/*.jpg without classes.
"""
import functools
import logging
import os
from typing import NamedTuple

import numpy as np

from beit_jax.data import image_table
from beit_jax.data.source import MissingSplit, Source, held_out

log = logging.getLogger(__name__)

_TRAIN = ("train", "training")
_VALIDATION = ("validation", "val", "valid", "test")
_NAMED = 50  # skipped files that the log names


def load(options, split: str) -> Source:
    """Images of DIR/<split>, or, with `holdout_per_class`, of the one set of images there is.

    Files that are not whole images are left out, with their names in the log. Labels are the ranks
    of the class folders' names in sorted order; images without class folders have label -1.

    Raises:
      FileNotFoundError: no such folder. MissingSplit: no validation images are set apart.
      ValueError: nothing in the folder is an image, or a validation class is not a training class.
    """
    if not options.path:
        raise ValueError('config.data.name="folder" needs config.data.path: '
                         "--config.data.path=DIR, with one sub-folder of images for each class")
    return _load(os.path.abspath(os.path.expanduser(options.path)), options.train_split, split,
                 options.holdout_per_class)


@functools.lru_cache(maxsize=8)
def _load(root: str, train_split: str, split: str, holdout_per_class: int) -> Source:
    if not os.path.isdir(root):
        raise FileNotFoundError(f"config.data.path={root} is no folder: check the spelling")
    is_training = split in (train_split, *_TRAIN)
    train_folder = _find(root, (train_split, *_TRAIN)) or root
    if is_training or holdout_per_class:
        files = _index(train_folder)
        is_chosen = np.ones(len(files.labels), bool)
        if holdout_per_class:
            is_chosen = held_out(files.labels, holdout_per_class) != is_training
        return _source(train_folder, files, files.class_names, is_chosen)
    folder = _find(root, (split,) if split not in _VALIDATION else (split, *_VALIDATION))
    if folder is None:
        raise MissingSplit(f"{root} has no sub-folder {split}: add one, or set apart some training "
                           "images with config.data.holdout_per_class=50")
    files, class_names = _index(folder), _class_names(train_folder)
    unknown = sorted(set(files.class_names) - set(class_names))
    if unknown:
        raise ValueError(f"{folder} has classes that {train_folder} lacks: "
                         f"{', '.join(unknown[:5])}")
    rank = np.array([class_names.index(name) for name in files.class_names] + [-1])
    return _source(folder, files._replace(labels=rank[files.labels]), class_names,
                   np.ones(len(files.labels), bool))


def _find(root: str, names) -> str | None:
    """The first of some sub-folders that exists."""
    paths = (os.path.join(root, name) for name in names)
    return next((path for path in paths if os.path.isdir(path)), None)


def _source(folder, files, class_names, is_chosen) -> Source:
    labels = files.labels[is_chosen].astype(np.int32)
    return Source(len(labels), class_names, folder, labels=labels,
                  **files.images.subset(is_chosen).fields())


class _Files(NamedTuple):
    """Whole images of a folder."""
    images: image_table.ImageTable
    labels: np.ndarray  # int [n]
    class_names: tuple[str, ...]


def _class_names(folder: str) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


@functools.lru_cache(maxsize=4)
def _index(folder: str) -> _Files:
    """Lists a folder, checks every file, and reports the ones left out."""
    class_names = _class_names(folder)
    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = _files_below(os.path.join(folder, name))
        paths += found
        labels += [label] * len(found)
    loose = [e.path for e in os.scandir(folder) if e.is_file() and not e.name.startswith(".")]
    if not class_names:
        paths = sorted(loose)
        labels = [-1] * len(paths)
    elif loose:
        log.warning("%s: %d files beside the class folders are not used, e.g. %s", folder,
                    len(loose), min(loose))
    if not paths:
        raise ValueError(f"{folder} is empty: put images there, one sub-folder for each class")
    images, broken = image_table.check(paths)
    skipped = [f"{path} ({reason})" for path, reason in broken.items()]
    if skipped:
        more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        log.warning("%s: skipped %d of %d files: %s%s", folder, len(skipped), len(paths),
                    "; ".join(skipped[:_NAMED]), more)
    if not len(images.paths):
        raise ValueError(f"{folder} holds {len(paths)} files, but none of them is a whole image "
                         f"({skipped[0]}): JPEG, PNG, WebP, BMP and GIF can be read")
    labels = [label for path, label in zip(paths, labels, strict=True) if path not in broken]
    return _Files(images, np.array(labels), class_names)


def _files_below(folder: str) -> list[str]:
    """Paths of all visible files in a folder and below it, sorted."""
    paths = []
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(base, name) for name in sorted(names) if name[0] != "."]
    return paths
