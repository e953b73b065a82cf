"""A folder of anybody's images: `config.data.name="folder"`, `config.data.path=DIR`.

DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/*.jpg without classes;
`folder_layout` says which is which.
"""
import functools
import logging
import os
from typing import NamedTuple

import numpy as np

from beit_jax.data import folder_files, folder_layout, image_table
from beit_jax.data.options import DataOptions
from beit_jax.data.source import MissingSplit, Source, held_out

log = logging.getLogger(__name__)


def load(options, split: str) -> Source:
    """Images of DIR/<split>, or, with `holdout_per_class`, of the one set of images there is.

    Files that are not whole images, folders that hold none, and what programs leave behind are left
    out, with their names in the log. Labels are the ranks of the class folders' names in sorted
    order; images without class folders have label -1.

    Raises:
      FileNotFoundError: no such folder. MissingSplit: no such split.
      ValueError: nothing in the folder is an image; it is not certain which folders are splits and
        which are classes; or the validation images have no classes, or others, where the training
        images have some.
    """
    if not options.path:
        raise ValueError('config.data.name="folder" needs config.data.path: '
                         "--config.data.path=DIR, with one sub-folder of images for each class")
    return _load(os.path.abspath(os.path.expanduser(options.path)), options.train_split,
                 options.eval_split, split, options.holdout_per_class)


@functools.lru_cache(maxsize=8)
def _load(root: str, train_split: str, eval_split: str, split: str,
          holdout_per_class: int) -> Source:
    layout = _layout(root, train_split, eval_split)
    files = _index(layout.train, layout.class_names)
    if split == train_split or (split not in layout.others
                                and folder_layout.kind_of(split) == folder_layout.TRAIN):
        is_chosen = np.ones(len(files.labels), bool)
        if holdout_per_class:
            is_chosen = ~held_out(files.labels, holdout_per_class, files.class_names)
        return _source(layout.train, files, files.class_names, is_chosen)
    if holdout_per_class and split in (eval_split, DataOptions.eval_split):
        _compare_with_holdout(layout, eval_split, holdout_per_class)
        is_chosen = held_out(files.labels, holdout_per_class, files.class_names)
        return _source(layout.train, files, files.class_names, is_chosen)
    found = folder_layout.find(layout, split)
    own = _index(found.path, tuple(folder_layout.classes_in(found.path)))
    if files.class_names and not own.class_names:
        _refuse_without_labels(layout, found)
    if found.is_substitute:
        log.warning("%s has no validation split: %s stands in for it", root, found.path)
    unknown = sorted(set(own.class_names) - set(files.class_names))
    if unknown:
        raise ValueError(f"{found.path} has classes that {layout.train} lacks: "
                         f"{', '.join(unknown[:5])}")
    rank = np.array([files.class_names.index(name) for name in own.class_names] + [-1])
    return _source(found.path, own._replace(labels=rank[own.labels]), files.class_names,
                   np.ones(len(own.labels), bool))


@functools.lru_cache(maxsize=4)
def _layout(root: str, train_split: str, eval_split: str) -> folder_layout.Layout:
    """`folder_layout.resolve`, with what it found in the log."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"config.data.path={root} is no folder: check the spelling")
    notes = {}
    layout = folder_layout.resolve(root, train_split, eval_split, notes)
    if notes:
        log.warning("%s: of what lies there: %s", root, folder_files.listed(notes))
    return layout


def _compare_with_holdout(layout, eval_split: str, holdout_per_class: int) -> None:
    """Says that a validation folder is not used. Raises: ValueError: it was asked for."""
    try:
        found = folder_layout.find(layout, eval_split)
    except MissingSplit:
        return
    if eval_split != DataOptions.eval_split:
        raise ValueError(f"config.data.eval_split={eval_split} is {found.path}, and config.data."
                         f"holdout_per_class={holdout_per_class} takes validation images from "
                         f"{layout.train}: set one of the two")
    log.warning("%s is not used: config.data.holdout_per_class=%d takes validation images from %s",
                found.path, holdout_per_class, layout.train)


def _refuse_without_labels(layout, found) -> None:
    """Of a split without classes while training images have them. Returns if it was asked for."""
    if found.is_stated:
        log.warning("%s has no class folders: its images have no labels", found.path)
    elif found.is_substitute:
        raise MissingSplit(f"{layout.root} has no validation split; {found.path}, which could be "
                           "taken for it, has no class folders, so that its images have no labels")
    else:
        name = os.path.basename(found.path)
        raise ValueError(f"{found.path} has no class folders, and {layout.train} has: sort its "
                         "images into classes, or set config.data.holdout_per_class=50; for a "
                         f"measure without labels say config.data.eval_split=./{name}")


def _source(folder, files, class_names, is_chosen) -> Source:
    labels = files.labels[is_chosen].astype(np.int32)
    return Source(len(labels), tuple(map(folder_files.shown, class_names)), folder, labels=labels,
                  **files.images.subset(is_chosen).fields())


class _Files(NamedTuple):
    """Whole images of a folder."""
    images: image_table.ImageTable
    labels: np.ndarray  # int [n]
    class_names: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def _index(folder: str, class_names: tuple[str, ...]) -> _Files:
    """Lists a folder, checks every file, and reports the ones left out.

    Classes of which no file is an image are left out too.
    """
    left_out = {}
    _, loose = folder_files.entries(folder, left_out)
    paths, labels = [], []
    for label, below in enumerate(_files_of_classes(folder, class_names, left_out)):
        paths += below
        labels += [label] * len(below)
    if not class_names:
        paths = [os.path.join(folder, name) for name in loose]
        labels = [-1] * len(paths)
    elif loose:
        log.warning("%s: %d files beside the class folders are not used, e.g. %s", folder,
                    len(loose), folder_files.shown(loose[0]))
    if left_out:
        log.warning("%s: left out: %s", folder, folder_files.listed(left_out))
    if not paths:
        raise ValueError(f"{folder} is empty: put images there, one sub-folder for each class")
    images, broken = image_table.check(paths)
    skipped = folder_files.listed(broken)
    if skipped:
        log.warning("%s: skipped %d of %d files: %s", folder, len(broken), len(paths), skipped)
    if not len(images.paths):
        raise ValueError(f"{folder} holds {len(paths)} files, but none of them is a whole image "
                         f"({skipped.split('; ')[0]}): JPEG, PNG, WebP, BMP and GIF can be read")
    labels = np.array([label for path, label in zip(paths, labels, strict=True)
                       if path not in broken])
    if not class_names:
        return _Files(images, labels, ())
    used, labels = np.unique(labels, return_inverse=True)
    if len(used) < len(class_names):
        log.warning("%s: folders without an image, which are no classes: %s", folder, ", ".join(
            folder_files.shown(name) for i, name in enumerate(class_names) if i not in used))
    return _Files(images, labels, tuple(class_names[i] for i in used))


def _files_of_classes(folder: str, class_names, left_out) -> list[list[str]]:
    """Paths of each class; a folder that several links lead to counts once, where it really is."""
    visited = folder_files.with_all_above(folder)
    places = {name: os.path.join(folder, name) for name in class_names}
    visited |= {folder_files.identity(path) for path in places.values()
                if not os.path.islink(path)}
    found = []
    for path in places.values():
        if os.path.islink(path) and (number := folder_files.identity(path)) in visited:
            left_out[path] = "leads to a folder that is here already"
            found.append([])
            continue
        if os.path.islink(path):
            visited.add(number)
        found.append(list(folder_files.files_below(path, visited, left_out)))
    return found
