"""Image files that break while a run reads them: named, counted, left out; the run goes on.

Another example stands for one whose file is broken: the next in the order of the split (the first
after the last), or of the chosen ones, with the row's own random numbers. All other rows stay what
they were. In an evaluation the row does not count.
"""
import logging
from collections.abc import Callable, Iterator

import numpy as np

from beit_jax.data.folder_files import shown
from beit_jax.data.source import Source

log = logging.getLogger(__name__)

# path -> what is wrong. Of the whole process: training and every evaluation leave out the same
# files, and name them once. A new start looks at all files anew.
_BROKEN: dict[str, str] = {}
_NAMED = 5  # files that the error names


class Unreadable(ValueError):
    """A batch could not be read."""


def examples(source: Source) -> np.ndarray | None:
    """bool [n], True for examples of which a file is broken; None where none is."""
    if not _BROKEN or source.paths is None:
        return None
    is_broken = np.isin(source.paths, list(_BROKEN))
    if source.image_of is not None:
        is_broken = is_broken[source.image_of]
    is_broken = is_broken.reshape(source.num_examples, -1).any(axis=1)
    return is_broken if is_broken.any() else None


def stand_ins(is_broken: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """int64 [n]: for each example itself, for a broken one the next of `order` that is not.

    Args: order: example numbers that are used, sorted; None = all.
    Raises: ValueError: none is whole.
    """
    order = np.arange(len(is_broken)) if order is None else np.asarray(order)
    whole = order[~is_broken[order]]
    if not len(whole):
        raise ValueError("no example is left whose files can be read")
    following = whole[np.searchsorted(whole, np.arange(len(is_broken))) % len(whole)]
    return np.where(is_broken, following, np.arange(len(is_broken))).astype(np.int64)


def batches(build: Callable, source: Source, max_broken: int, start: int,
            defect_of: Callable[[int], str | None]) -> Iterator[dict]:
    """Goes through batches; where a file breaks, they are built anew from that batch on.

    Args:
      build: (step) -> (batches from `step` on, without the examples that are broken by then, and
        a function step -> numbers of the images that the batch of the step shows).
      max_broken: files of this source that may break.
      start: the first step.
      defect_of: (number of an image) -> what is wrong with its file, None if nothing is.
    Raises: ValueError: more files broke, by name; or a batch cannot be read although its files can.
    """
    step, tried = start, None
    while True:
        built, images_of = build(step)
        try:
            for batch in built:
                yield batch
                step += 1
            return
        except Unreadable:
            if source.paths is None or source.images is not None:  # in memory no file can break
                raise
            found = {source.paths[number]: reason for number in np.unique(images_of(step)).tolist()
                     if (reason := defect_of(number)) is not None}
            if not found and tried == step:
                raise
            tried = step
            _count(source, found, max_broken)


def _count(source: Source, found: dict[str, str], max_broken: int) -> None:
    """Adds to the broken files. Raises: ValueError: there are too many."""
    _BROKEN.update(found)
    said = [f"{shown(path)} ({reason})" for path, reason in found.items()]
    number = int(np.isin(source.paths, list(_BROKEN)).sum())
    if number > max_broken:
        more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        raise ValueError(f"{source.what}: {number} image files broke during the run, more than "
                         f"config.data.max_broken={max_broken}; the last: "
                         f"{'; '.join(said[:_NAMED])}{more}. Restore them and start again")
    if said:
        log.warning("%s: broken since the start, left out (%d of at most config.data.max_broken="
                    "%d): %s", source.what, number, max_broken, "; ".join(said))
    else:
        log.warning("%s: a batch could not be read, its files can: trying again", source.what)
