"""Histograms of oriented gradients, what MaskFeat predicts. Source: MaskFeat (arXiv 2112.09133),
Sec. 3; facebookresearch/SlowFast slowfast/models/operators.py, HOGLayerC."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.options import Natural
from beit_jax.targets import preprocess

CELL_PX = 8
BINS = 9  # orientations of half a turn: opposite gradients fall into one bin


@dataclasses.dataclass(frozen=True)
class Hog(preprocess.FromImage):
    """Histograms as a target.

    Attributes:
      patch_size: a multiple of the cell of 8 px.
      window_px: side of a Gaussian window by which gradients weigh, laid over the image like
        tiles; 0: none, as the authors' code has it. open-mmlab/mmpretrain takes 16.
      image_px, mean, std: see FromImage.
    """

    window_px: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        if self.window_px and self.image_px % self.window_px:
            raise ValueError(f"target.window_px={self.window_px} does not divide target.image_px="
                             f"{self.image_px}")
        if self.patch_size % CELL_PX:
            raise ValueError(f"target.patch_size={self.patch_size} of hog is no multiple of its "
                             f"cells of {CELL_PX} px")

    @property
    def dim(self) -> int:
        return 3 * BINS * (self.patch_size // CELL_PX) ** 2

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, dim], see `hog`. Raises ValueError: another size than `image_px`."""
        del variables
        return hog(self.normalised(image01), self.patch_size, window_px=self.window_px)


def hog(image: jax.Array, patch_size: int, *, window_px: int = 0) -> jax.Array:
    """Histograms of the gradients' directions in cells of 8 x 8 pixels, each colour for itself.

    Every pixel adds the length of its Sobel gradient to the one bin of its direction; every
    histogram is brought to length 1 (a flat cell's stays 0).

    Args:
      image: float [b, h, w, 3], normalised.
      patch_size: side p of a patch, in pixels, a multiple of 8.
      window_px: see Hog.
    Returns: float32 [b, n, 27 (p / 8)^2], patches row-major, within a patch (colour, bin, cell
      row, cell column), the last one fastest.
    Raises: ValueError: sizes that do not divide.
    """
    b, h, w, c = image.shape
    cells = patch_size // CELL_PX  # per patch and side
    if patch_size % CELL_PX or h % patch_size or w % patch_size:
        raise ValueError(f"patch_size={patch_size} must be a multiple of {CELL_PX} and divide "
                         f"images of {h}x{w} pixels")
    gx, gy = _sobel(image.astype(jnp.float32))
    length = jnp.sqrt(jnp.square(gx) + jnp.square(gy))
    if window_px:
        length *= _tiled_window(window_px, h, w)[..., None]
    angle = jnp.arctan2(gx, gy) / jnp.pi * BINS  # in this order, as the original has it
    is_bin = jnp.floor(angle).astype(jnp.int32)[..., None] % BINS == jnp.arange(BINS)
    votes = jnp.where(is_bin, length[..., None], 0.0)  # [b, h, w, c, bins]
    votes = votes.reshape(b, h // CELL_PX, CELL_PX, w // CELL_PX, CELL_PX, c, BINS)
    histograms = jnp.sum(votes, axis=(2, 4))
    norm = jnp.sqrt(jnp.sum(jnp.square(histograms), axis=-1, keepdims=True))
    histograms /= jnp.maximum(norm, 1e-12)
    grid = (h // patch_size, w // patch_size)
    patches = histograms.reshape(b, grid[0], cells, grid[1], cells, c, BINS)
    return patches.transpose(0, 1, 3, 5, 6, 2, 4).reshape(b, grid[0] * grid[1], -1)


def _sobel(image):
    """(left minus right, above minus below), each smoothed across; borders are mirrored."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def taps(x, axis):
        size = x.shape[axis] - 2
        return [jax.lax.slice_in_dim(x, start, start + size, axis=axis) for start in range(3)]

    def smoothed(x, axis):
        first, middle, last = taps(x, axis)
        return first + 2.0 * middle + last

    def difference(x, axis):
        first, _, last = taps(x, axis)
        return first - last

    return difference(smoothed(padded, 1), 2), difference(smoothed(padded, 2), 1)


def _tiled_window(side: int, h: int, w: int) -> np.ndarray:
    """A Gaussian of standard deviation side / 2 that sums to 1, repeated over [h, w].

    Source: open-mmlab/mmpretrain mmpretrain/models/utils, HOGGenerator.
    """
    if h % side or w % side:
        raise ValueError(f"window_px={side} does not divide images of {h}x{w} pixels")
    axis = np.exp(-0.5 * np.square((np.arange(side) - (side - 1) / 2) / (side / 2)))
    window = np.outer(axis, axis) / axis.sum() ** 2
    return np.tile(window, (h // side, w // side)).astype(np.float32)
