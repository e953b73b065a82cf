"""What BEiT-3 does with images and positions before its blocks."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.multiway import normal_init


class Table(nn.Module):
    """A learned table "embedding" [rows, width]."""

    rows: int
    width: int
    init_std: float

    @nn.compact
    def __call__(self):
        return self.param("embedding", normal_init(self.init_std), (self.rows, self.width))


class PositionTables(nn.Module):
    """One position table per modality, {expert: float32 [rows, width]}."""

    rows: tuple[tuple[str, int], ...]
    width: int
    init_std: float

    @nn.compact
    def __call__(self):
        return {name: Table(rows, self.width, self.init_std, name=name)()
                for name, rows in self.rows}


class PatchProjection(nn.Module):
    """Linear map of each patch; the kernel has the shape of the convolution that it is.

    image [b, h, w, 3] -> float32 [b, n, d].
    """

    patch_size: int
    width: int
    init_std: float
    dtype: Any

    @nn.compact
    def __call__(self, image):
        p, c = self.patch_size, image.shape[-1]
        kernel = self.param("kernel", normal_init(self.init_std), (p, p, c, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = layers.patchify(image, p).astype(self.dtype)
        return layers.matmul(patches, kernel.reshape(p * p * c, -1)).astype(jnp.float32) + bias


class VisionEmbed(nn.Module):
    """image [b, h, w, 3], is_masked bool [b, n] or None -> float32 [b, n + 1, d], class first."""

    patch_size: int
    width: int
    init_std: float
    dtype: Any

    @nn.compact
    def __call__(self, image, is_masked=None):
        x = PatchProjection(self.patch_size, self.width, self.init_std, self.dtype,
                            name="proj")(image)
        mask_token, cls_token = (
            self.param(name, normal_init(self.init_std), (1, 1, self.width))
            for name in ("mask_token", "cls_token"))
        if is_masked is not None:
            x = jnp.where(is_masked[..., None], mask_token, x)
        cls = jnp.broadcast_to(cls_token, (x.shape[0], 1, self.width))
        return jnp.concatenate([cls, x], axis=1)
