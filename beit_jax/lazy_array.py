"""Arrays that are made when they are asked for, and names of strangers' files, safe to print."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

_LONGEST_NAME = 300  # characters; the longest of a published network has under 100


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """What is known of an array before its numbers are: np.asarray(lazy) makes it, anew each time.

    Attributes:
      shape, dtype: of the array that `make` returns.
      make: reads or computes it; may raise ValueError or OSError.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.make()
        return array if dtype is None else array.astype(dtype, copy=False)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as its bits uint16, as float32: the same numbers."""
    wide = bits.astype(np.uint32, order="C")
    wide <<= 16
    return wide.view(np.float32)


def printable(text: str, most: int = 120) -> str:
    """A text of a stranger's file for a terminal: control characters escaped, cut if it is long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                    for c in text[:most])
    return shown + ("..." if len(text) > most else "")


def check_name(name: str) -> str:
    """The name of an array, unchanged. Raises ValueError where it cannot be printed as it is."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"an array is called '{printable(name)}': no name of a weight")
    return name
