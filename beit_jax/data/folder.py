"""A folder of anybody's images: `config.data.name="folder"`, `config.data.path=DIR`.

DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/*.jpg without classes.
"""
import concurrent.futures
import functools
import os
from typing import NamedTuple

import numpy as np
from absl import logging

from beit_jax.data import image_file
from beit_jax.data.source import MissingSplit, Source, held_out

_TRAIN = ("train", "training")
_VALIDATION = ("validation", "val", "valid", "test")
_DECODE_UP_TO = 100_000  # files; in larger folders only heads and tails are looked at
_NAMED = 50  # skipped files that the log names
_IN_MEMORY = 2**29  # bytes of pixels up to which small images of one size are kept in memory
_SMALL = 96  # pixels, the longer side: what whole batches are cropped and resized at


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
        is_chosen = np.ones(len(files.paths), bool)
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
                   np.ones(len(files.paths), bool))


def _find(root: str, names) -> str | None:
    """The first of some sub-folders that exists."""
    paths = (os.path.join(root, name) for name in names)
    return next((path for path in paths if os.path.isdir(path)), None)


def _source(folder, files, class_names, is_chosen) -> Source:
    paths, labels = files.paths[is_chosen], files.labels[is_chosen].astype(np.int32)
    if files.pixels is not None:
        return Source(len(paths), class_names, folder, labels=labels,
                      images=files.pixels[is_chosen])

    def read(index):
        from beit_jax.data.host_tensorflow import tf
        return tf.io.read_file(tf.gather(paths_in_graph(), index))

    @functools.cache
    def paths_in_graph():
        from beit_jax.data.host_tensorflow import tf
        with tf.init_scope():  # one constant for all graphs, not one inside each
            return tf.constant(paths.tolist())

    return Source(len(paths), class_names, folder, read=read, labels=labels,
                  needs_pil=files.needs_pil[is_chosen])


class _Files(NamedTuple):
    """Whole images of a folder. pixels uint8 [n, h, w, 3]: only if small and all of one size."""
    paths: np.ndarray  # str [n]
    labels: np.ndarray  # int [n]
    needs_pil: np.ndarray  # bool [n]
    class_names: tuple[str, ...]
    pixels: np.ndarray | None


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
        logging.warning("%s: %d files beside the class folders are not used, e.g. %s", folder,
                        len(loose), min(loose))
    if not paths:
        raise ValueError(f"{folder} is empty: put images there, one sub-folder for each class")
    answers = _check(paths)
    is_good = np.array([answer.reason is None for answer in answers])
    skipped = [f"{path} ({answer.reason})" for path, answer in zip(paths, answers, strict=True)
               if answer.reason is not None]
    if skipped:
        more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        logging.warning("%s: skipped %d of %d files: %s%s", folder, len(skipped), len(paths),
                        "; ".join(skipped[:_NAMED]), more)
    if not is_good.any():
        raise ValueError(f"{folder} holds {len(paths)} files, but none of them is a whole image "
                         f"({skipped[0]}): JPEG, PNG, WebP, BMP and GIF can be read")
    good = [answer for answer in answers if answer.reason is None]
    pixels = None
    if all(answer.pixels is not None for answer in good):
        pixels = np.stack([answer.pixels for answer in good])
    return _Files(np.array(paths)[is_good], np.array(labels)[is_good],
                  np.array([answer.needs_pil for answer in good]), class_names, pixels)


def _files_below(folder: str) -> list[str]:
    """Paths of all visible files in a folder and below it, sorted."""
    paths = []
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(base, name) for name in sorted(names) if name[0] != "."]
    return paths


class _Answer(NamedTuple):
    """What `image_file.inspect` says of a file; reason: why it is unusable."""
    needs_pil: bool = False
    pixels: np.ndarray | None = None
    reason: str | None = None


def _check(paths: list[str]) -> list[_Answer]:
    """Looks at every file. Small images of one size are decoded for good on this occasion."""
    decode = len(paths) <= _DECODE_UP_TO
    keep = next(filter(None, map(image_file.size_of, paths)), None)
    if keep and (max(keep) > _SMALL or len(paths) * 3 * keep[0] * keep[1] > _IN_MEMORY):
        keep = None
    lost = False  # an image of another size has turned up: pixels are of no use any more

    def answer(path):
        nonlocal lost
        try:
            needs_pil, pixels = image_file.inspect(path, decode, None if lost else keep)
        except ValueError as error:
            return _Answer(reason=str(error))
        right = pixels is not None and pixels.shape[1::-1] == keep  # EXIF may have turned it
        lost = lost or not right
        return _Answer(needs_pil, pixels if right else None)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        # In portions: a task for each of a million files would cost more than the check.
        portions = [paths[i:i + 256] for i in range(0, len(paths), 256)]
        return [a for part in pool.map(lambda p: [answer(x) for x in p], portions) for a in part]
