"""What teachers do to an image before they look at it."""

import dataclasses

import jax
import jax.numpy as jnp

from beit_jax.models.vit import patch_grid
from beit_jax.options import Count, Mean, Std

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std of red, green, blue
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def normalise(image01: jax.Array, mean, std) -> jax.Array:
    """(image - mean) / std per colour, float32. image01: [b, h, w, 3] in [0, 1]."""
    return (image01.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


def check_size(image: jax.Array, image_px: int) -> None:
    """For networks that would take any size: raises ValueError unless it is image_px squared."""
    if image.shape[1:3] != (image_px, image_px):
        raise ValueError(f"the image is {image.shape[1]}x{image.shape[2]}, the target is for "
                         f"{image_px}x{image_px}: set target.image_px")


@dataclasses.dataclass(frozen=True)
class FromImage:
    """What targets without weights have in common; `variables` is not looked at.

    Attributes:
      image_px, patch_size: sides in pixels.
      mean, std: of red, green and blue, by which images in [0, 1] are normalised first.
    Raises: ValueError: the patch does not divide the image.
    """

    image_px: Count = 224
    patch_size: Count = 16
    mean: Mean = IMAGENET[0]
    std: Std = IMAGENET[1]
    has_weights = False
    flops = 0.0  # neither products nor convolutions with weights, see flops.py

    def __post_init__(self):
        self.grid  # noqa: B018  raises

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    def init(self, key: jax.Array) -> dict:
        del key
        return {"params": {}}

    def normalised(self, image01: jax.Array) -> jax.Array:
        """float32 [b, h, w, 3], no gradient. Raises ValueError: another size than `image_px`."""
        check_size(image01, self.image_px)
        return normalise(jax.lax.stop_gradient(image01), self.mean, self.std)
