"""What happens to images on the device: normalisation, random erasing, mixup and cutmix."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from beit_jax.options import Count, NonNegative, Share

_ERASING_ATTEMPTS = 10
_ERASING_AREA = (0.02, 1.0 / 3.0)
_ERASING_LOG_ASPECT = math.log(1.0 / 0.3)


def normalise(image, mean, std):
    """uint8 [b, h, w, 3] -> float32, (image / 255 - mean) / std per channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (image.astype(jnp.float32) / 255.0 - mean) / std


@dataclasses.dataclass(frozen=True)
class MixOptions:
    """Device-side augmentation of fine-tuning (config.augment).

    Attributes:
      random_erasing: probability that an image loses one rectangle; 0 is off.
      mixup, cutmix: alphas of the Beta distributions; 0 is off; with both on, each group of
        images takes cutmix with probability `switch_probability`.
      group_size: images that share one draw (kind, lambda, box). The original draws once per
        GPU batch of 64 to 128 images.
    """

    random_erasing: Share = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    switch_probability: Share = 0.5
    group_size: Count = 128


def random_erasing(key, image, probability: float):
    """Fills one random rectangle of some images with N(0, 1) noise per pixel and channel.

    Args:
      image: float [b, h, w, 3], normalised.
      probability: that an image loses a rectangle.
    Returns: float [b, h, w, 3]. Area fraction U(0.02, 1/3), aspect log-uniform in [0.3, 1/0.3];
      the first of ten draws that fits strictly is used, and none if none fits.
    Source: Zhong et al. 2020, as in timm 0.3.2, mode "pixel".
    """
    b, h, w, _ = image.shape
    apply_key, area_key, aspect_key, top_key, left_key, noise_key = jax.random.split(key, 6)
    draws = (b, _ERASING_ATTEMPTS)
    area = h * w * jax.random.uniform(area_key, draws, minval=_ERASING_AREA[0],
                                      maxval=_ERASING_AREA[1])
    aspect = jnp.exp(jax.random.uniform(aspect_key, draws, minval=-_ERASING_LOG_ASPECT,
                                        maxval=_ERASING_LOG_ASPECT))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < h) & (widths < w)
    first = jnp.argmax(fits, axis=1)[:, None]
    height, width = (jnp.take_along_axis(side, first, 1)[:, 0] for side in (heights, widths))
    top = jnp.floor(jax.random.uniform(top_key, (b,)) * (h - height + 1)).astype(jnp.int32)
    left = jnp.floor(jax.random.uniform(left_key, (b,)) * (w - width + 1)).astype(jnp.int32)
    chosen = (jax.random.uniform(apply_key, (b,)) < probability) & jnp.any(fits, axis=1)
    inside = _boxes(h, w, top, top + height, left, left + width) & chosen[:, None, None]
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(inside[..., None], noise, image)


def check_groups(batch: int, options: MixOptions) -> None:
    """Refuses a batch that `mix` cannot divide into its groups. Raises: ValueError."""
    group = min(options.group_size, batch)
    if (options.mixup or options.cutmix) and batch % group:
        raise ValueError(f"a batch of {batch} images (data.global_batch_size over "
                         "optim.accumulation_steps) is no multiple of config.augment.group_size="
                         f"{group}")


def mix(key, image, target, options: MixOptions):
    """Mixup or cutmix of each image with its mirror partner in the group.

    Args:
      image: float [b, h, w, 3].
      target: float [b, C], smoothed one-hot.
      options: alphas and group size; sample k of a group of g is mixed with sample g - 1 - k.
    Returns: (image, target) of the same shapes.
    Raises: ValueError: the batch is no multiple of the group size.
    Source: timm 0.3.2 Mixup, mode "batch"; one draw per group, where the original has one per
      GPU batch.
    """
    if options.mixup <= 0 and options.cutmix <= 0:
        return image, target
    b, h, w, c = image.shape
    check_groups(b, options)
    group = min(options.group_size, b)
    # the group axis comes second: splitting a batch-sharded axis this way moves no data
    images = image.reshape(group, b // group, h, w, c).swapaxes(0, 1)
    targets = target.reshape(group, b // group, -1).swapaxes(0, 1)
    keys = jax.random.split(key, b // group)
    images, targets = jax.vmap(_mix_group, in_axes=(0, 0, 0, None))(keys, images, targets, options)
    return (images.swapaxes(0, 1).reshape(image.shape),
            targets.swapaxes(0, 1).reshape(target.shape))


def _mix_group(key, image, target, options: MixOptions):
    _, h, w, _ = image.shape
    kind_key, mixup_key, cutmix_key, y_key, x_key = jax.random.split(key, 5)
    if options.mixup > 0 and options.cutmix > 0:
        is_cutmix = jax.random.uniform(kind_key) < options.switch_probability
    else:
        is_cutmix = jnp.asarray(options.cutmix > 0)
    mixup_share = jax.random.beta(mixup_key, options.mixup or 1.0, options.mixup or 1.0)
    cutmix_share = jax.random.beta(cutmix_key, options.cutmix or 1.0, options.cutmix or 1.0)
    side = jnp.sqrt(1.0 - cutmix_share)
    height, width = (jnp.floor(n * side).astype(jnp.int32) for n in (h, w))
    y = jax.random.randint(y_key, (), 0, h)
    x = jax.random.randint(x_key, (), 0, w)
    top, bottom = jnp.clip(y - height // 2, 0, h), jnp.clip(y + height // 2, 0, h)
    left, right = jnp.clip(x - width // 2, 0, w), jnp.clip(x + width // 2, 0, w)
    inside = _boxes(h, w, top[None], bottom[None], left[None], right[None])[0]  # [h, w]
    kept = 1.0 - (bottom - top) * (right - left) / (h * w)
    partner, partner_target = image[::-1], target[::-1]
    cut = jnp.where(inside[None, :, :, None], partner, image)
    blended = mixup_share * image + (1.0 - mixup_share) * partner
    share = jnp.where(is_cutmix, kept, mixup_share)
    return (jnp.where(is_cutmix, cut, blended),
            share * target + (1.0 - share) * partner_target)


def _boxes(h: int, w: int, top, bottom, left, right):
    """bool [b, h, w], True inside rows top..bottom-1 and columns left..right-1; each int [b]."""
    row, column = jnp.arange(h)[None, :, None], jnp.arange(w)[None, None, :]
    top, bottom, left, right = (side[:, None, None] for side in (top, bottom, left, right))
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)
