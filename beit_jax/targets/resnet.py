"""DINO's ResNet-50 as a teacher: the target of Img2Vec."""

import dataclasses

import jax
import jax.numpy as jnp

from beit_jax import flops
from beit_jax.models.resnet import EXPANSION, STRIDE, ResNet
from beit_jax.options import Count, Dtype
from beit_jax.targets import preprocess


@dataclasses.dataclass(frozen=True)
class DinoResnet50:
    """The map of the last stage, after its ReLU. `variables` is {"params", "batch_stats"}.

    The mean of the tokens is the vector that DINO's head was trained on.

    Attributes:
      image_px: side of the images, a multiple of 32; a token stands for 32 x 32 pixels.
      layers, widths, stem_width: see models.resnet.ResNet; as published unless set.
      dtype: of convolutions, as a name ("float32", "bfloat16"); tokens are float32.
    Source: DINO (arXiv 2104.14294); facebookresearch/dino hubconf.py, dino_resnet50.
    """

    image_px: Count = 224
    layers: tuple[(Count,) * 4] = (3, 4, 6, 3)
    widths: tuple[(Count,) * 4] = (64, 128, 256, 512)
    stem_width: Count = 64
    dtype: Dtype = "float32"

    mean, std = preprocess.IMAGENET  # no fields, so that no config sets them
    has_weights = True

    def __post_init__(self):
        if self.image_px % STRIDE:
            raise ValueError(f"target.image_px={self.image_px} is no multiple of {STRIDE}, the "
                             f"pixels per token; nearest: "
                             f"{max(round(self.image_px / STRIDE), 1) * STRIDE}")

    @property
    def dim(self) -> int:
        return EXPANSION * self.widths[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the map (rows, columns)."""
        return (self.image_px // STRIDE,) * 2

    @property
    def flops(self) -> float:
        return flops.resnet(self.network, self.image_px)

    @property
    def network(self) -> ResNet:
        return ResNet(self.layers, self.widths, self.stem_width, jnp.dtype(self.dtype))

    def init(self, key: jax.Array) -> dict:
        return self.network.init(key, jnp.zeros((1, self.image_px, self.image_px, 3)))

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, 4 widths[-1]], row-major. Raises ValueError: another size of image."""
        preprocess.check_size(image01, self.image_px)
        image = preprocess.normalise(image01, self.mean, self.std)
        grid_map = self.network.apply(variables, image)
        return jax.lax.stop_gradient(grid_map.reshape(grid_map.shape[0], -1, self.dim))
