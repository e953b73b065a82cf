"""Many image files: which of them are whole, and how a `Source` reads them."""
import concurrent.futures
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from beit_jax.data import annotations, image_file
from beit_jax.data.source import Source, subset

_DECODE_UP_TO = 100_000  # files; of more only heads and tails are looked at
_IN_MEMORY = 2**29  # bytes of pixels up to which small images of one size are kept in memory
_SMALL = 96  # pixels, the longer side: what whole batches are cropped and resized at


class ImageTable(NamedTuple):
    """Whole image files.

    paths: str [n]. needs_pil: bool [n], True where TensorFlow's decoders would go wrong.
    pixels: uint8 [n, h, w, 3], only if all are small and of one size.
    """
    paths: np.ndarray
    needs_pil: np.ndarray
    pixels: np.ndarray | None

    def subset(self, chosen: np.ndarray) -> "ImageTable":
        """Some of the files: bool [n] or int [k]."""
        return ImageTable(self.paths[chosen], self.needs_pil[chosen],
                          None if self.pixels is None else self.pixels[chosen])

    def fields(self) -> dict[str, Any]:
        """The fields of a `Source` that shows these images."""
        if self.pixels is not None:
            return {"images": self.pixels, "paths": self.paths}

        def read(index):
            from beit_jax.data.host_tensorflow import tf
            return tf.io.read_file(tf.gather(paths_in_graph(), index))

        @functools.cache
        def paths_in_graph():
            from beit_jax.data.host_tensorflow import tf
            with tf.init_scope():  # one constant for all graphs, not one inside each
                # bytes: a name on the disk need not be UTF-8
                return tf.constant([os.fsencode(path) for path in self.paths.tolist()])

        return {"read": read, "needs_pil": self.needs_pil, "paths": self.paths}


def check(paths: Sequence[str]) -> tuple[ImageTable, dict[str, str]]:
    """Looks at every file. Small images of one size are decoded for good on this occasion.

    Returns: (the files that are whole images, in their order; path -> reason of all others).
    """
    answers = _answers(list(paths))
    good = [answer for answer in answers if answer.reason is None]
    pixels = None
    if good and all(answer.pixels is not None for answer in good):
        pixels = np.stack([answer.pixels for answer in good])
    whole = [path for path, answer in zip(paths, answers, strict=True) if answer.reason is None]
    table = ImageTable(np.array(whole), np.array([answer.needs_pil for answer in good]), pixels)
    return table, {path: answer.reason for path, answer in zip(paths, answers, strict=True)
                   if answer.reason is not None}


def with_images(source: Source, paths: Sequence[str], skip_defects: bool) -> Source:
    """A source whose picture j is in the file paths[j]; several may be in one.

    Raises: ValueError: a file is no whole image, unless `skip_defects` leaves out its examples; or
      none is.
    """
    distinct = list(dict.fromkeys(paths))
    table, broken = check(distinct)
    annotations.settle(source.what, [f"image {path} is broken ({reason})"
                                     for path, reason in broken.items()], skip_defects)
    if not len(table.paths):
        raise ValueError(f"{source.what}: none of its {len(distinct)} images can be read")
    is_whole = np.array([path not in broken for path in distinct])
    number = {path: i for i, path in enumerate(distinct)}
    pictures = np.array([number[path] for path in paths])
    source = source._replace(image_of=np.cumsum(is_whole)[pictures] - 1, **table.fields())
    has_images = is_whole[pictures].reshape(source.num_examples, -1).all(axis=1)
    return source if has_images.all() else subset(source, np.flatnonzero(has_images))


class _Answer(NamedTuple):
    """What `image_file.inspect` says of a file; reason: why it is unusable."""
    needs_pil: bool = False
    pixels: np.ndarray | None = None
    reason: str | None = None


def _answers(paths: list[str]) -> list[_Answer]:
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
