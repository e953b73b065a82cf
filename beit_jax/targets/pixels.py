"""Raw pixels of every patch as regression targets. Source: BEiT, Table 4 ("pixel recovery");
normalisation: MAE (arXiv 2111.06377), Sec. 3."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from beit_jax.models.layers import patchify
from beit_jax.targets import preprocess


def patch_pixels(image: jax.Array, patch_size: int, *, normalise: bool = False) -> jax.Array:
    """Cuts images into patches and lists each patch's pixels.

    Args:
      image: [b, h, w, 3], in whatever scale the loss is to see.
      patch_size: side p of a patch, in pixels.
      normalise: whether every patch is brought to mean 0 and variance 1 over its p * p * 3 values
        (unbiased variance, + 1e-6 under the root), as MAE does.
    Returns: float32 [b, n, p * p * 3], patches row-major, within a patch (row, column, channel).
    Raises: ValueError: patch_size does not divide the image.
    """
    _, h, w, _ = image.shape
    if h % patch_size or w % patch_size:
        raise ValueError(f"patch_size={patch_size} does not divide images of {h}x{w} pixels")
    patches = patchify(image.astype(jnp.float32), patch_size)
    if not normalise:
        return patches
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)


@dataclasses.dataclass(frozen=True)
class Pixels(preprocess.FromImage):
    """Pixels as a target.

    Attributes:
      image_px, patch_size, mean, std: see FromImage.
      normalise: see `patch_pixels`.
    """

    normalise: bool = True

    @property
    def dim(self) -> int:
        return 3 * self.patch_size**2

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, dim]. Raises ValueError: another size than `image_px`."""
        del variables
        return patch_pixels(self.normalised(image01), self.patch_size, normalise=self.normalise)

    def picture(self, tokens: jax.Array, image01: jax.Array) -> jax.Array:
        """The image in [0, 1] that tokens [b, n, dim] describe, [b, h, w, 3], not clipped.

        Normalised patches get mean and variance back from `image01`, which the network has not
        predicted: such a picture shows structure, not colour.
        """
        true = patch_pixels(preprocess.normalise(image01, self.mean, self.std), self.patch_size)
        if self.normalise:
            mean, variance = (statistic(true, axis=-1, keepdims=True) for statistic in
                              (jnp.mean, functools.partial(jnp.var, ddof=1)))
            tokens = tokens * jnp.sqrt(variance + 1e-6) + mean
        (rows, columns), p = self.grid, self.patch_size
        image = tokens.reshape(-1, rows, columns, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        image = image.reshape(-1, rows * p, columns * p, 3)
        return image * jnp.asarray(self.std) + jnp.asarray(self.mean)
