"""What every teacher does to an image before it looks at it."""

import jax
import jax.numpy as jnp

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
