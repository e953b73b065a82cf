"""Raw pixels of every patch as regression targets. Source: BEiT, Table 4 ("pixel recovery");
normalisation: MAE (arXiv 2111.06377), Sec. 3."""

import jax
import jax.numpy as jnp


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
    b, h, w, c = image.shape
    p = patch_size
    if h % p or w % p:
        raise ValueError(f"patch_size={p} does not divide images of {h}x{w} pixels")
    patches = image.astype(jnp.float32).reshape(b, h // p, p, w // p, p, c)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // p) * (w // p), p * p * c)
    if not normalise:
        return patches
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)
