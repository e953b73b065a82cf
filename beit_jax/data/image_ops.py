"""Image functions for `tf.data`: crops, resizing, flips, colour. Images are uint8 [h, w, 3].

Every random function takes a seed, int [2], and nothing else that changes: the same seed gives the
same result on every machine. Rounding follows PIL, which the original recipes run on;
`docs/data.md` lists the measured differences.
"""
import math

from beit_jax.data.host_tensorflow import tf

FILTERS = ("bilinear", "bicubic", "lanczos3")


def resize(image, height, width, method: str = "bicubic", antialias: bool = True):
    """Resizes images uint8 [..., h, w, 3] to [..., height, width, 3], rounded and clipped to uint8.

    method: one of `FILTERS`; with antialias they are PIL's BILINEAR, BICUBIC and LANCZOS within
      one grey level almost everywhere.
    """
    out = tf.image.resize(image, [height, width], method, antialias=antialias)
    return to_uint8(out)


def to_uint8(image):
    """float32 to uint8: round, then clip, because bicubic filters overshoot."""
    return tf.saturate_cast(tf.round(image), tf.uint8)


def sample_crop(height, width, draws, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """Chooses the box of a random resized crop.

    Args:
      height, width: int [...], size of the image in pixels.
      draws: float32 [..., 22], independent draws of [0, 1).
      scale: smallest and largest fraction of the image's area.
      ratio: smallest and largest width over height; its logarithm is uniform.
    Returns: int32 [..., 4]: top, left, height, width. Of ten tries the first that fits; else the
      largest central box whose aspect lies within `ratio`, its corner at (size - box) // 2.
    Source: BEiT's released pre-training code, after torchvision's RandomResizedCrop.
      `tf.image.sample_distorted_bounding_box` is another distribution.
    """
    height, width = (tf.cast(size, tf.float32)[..., None] for size in (height, width))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[..., :10])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(log_low + (log_high - log_low) * draws[..., 10:20])
    w, h = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))  # [..., 10]
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = tf.argmax(tf.cast(fits, tf.int32), -1)
    found = tf.reduce_any(fits, -1)
    height, width = height[..., 0], width[..., 0]
    # Where nothing fits: the whole image, cut to the nearest allowed aspect.
    whole_w = tf.maximum(tf.minimum(width, tf.round(height * ratio[1])), 1.0)
    whole_h = tf.maximum(tf.minimum(height, tf.round(width / ratio[0])), 1.0)
    batch_dims = first.shape.rank
    w = tf.where(found, tf.gather(w, first, batch_dims=batch_dims), whole_w)
    h = tf.where(found, tf.gather(h, first, batch_dims=batch_dims), whole_h)
    slack_y, slack_x = height - h, width - w
    top = tf.where(found, _uniform_int(draws[..., 20], slack_y), slack_y // 2)
    left = tf.where(found, _uniform_int(draws[..., 21], slack_x), slack_x // 2)
    return tf.cast(tf.stack([top, left, h, w], -1), tf.int32)


def sample_crop_once(height, width, draws, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """As `sample_crop`, of the same draws, but its first try is taken: cut to fit, never rejected.

    Source: facebookresearch/mae util/crop.py, for linear probes; after BYOL's code.
    """
    height, width = (tf.cast(size, tf.float32) for size in (height, width))
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(log_low + (log_high - log_low) * draws[..., 10])
    w = tf.minimum(tf.round(tf.sqrt(area * aspect)), width)
    h = tf.minimum(tf.round(tf.sqrt(area / aspect)), height)
    top, left = _uniform_int(draws[..., 20], height - h), _uniform_int(draws[..., 21], width - w)
    return tf.cast(tf.stack([top, left, h, w], -1), tf.int32)


def _uniform_int(draw, high):
    """A draw of [0, 1) as an integer of 0..high, both included, in float32."""
    return tf.minimum(tf.floor(draw * (high + 1)), high)


def crop(image, box):
    """Cuts box = (top, left, height, width) out of an image."""
    top, left, height, width = tf.unstack(box)
    return image[top:top + height, left:left + width]


def flip_if(image, is_flipped):
    """Mirrors [..., h, w, 3] left to right where is_flipped: a scalar, or bool [b] for a batch."""
    is_flipped = tf.reshape(is_flipped, tf.concat([tf.shape(is_flipped), [1, 1, 1]], 0))
    return tf.where(is_flipped, tf.reverse(image, [-2]), image)


def resize_and_center_crop(image, size: int, crop_ratio: float, method="bicubic", antialias=True):
    """Resizes the short side to int(size / crop_ratio), cuts out the middle [size, size, 3]."""
    short = int(size / crop_ratio)
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    smallest = tf.minimum(height, width)
    height, width = short * height // smallest, short * width // smallest
    image = resize(image, height, width, method, antialias)
    top = tf.cast(tf.round((height - size) / 2), tf.int32)
    left = tf.cast(tf.round((width - size) / 2), tf.int32)
    image = image[top:top + size, left:left + size]
    return tf.ensure_shape(image, [size, size, 3])


def tokenizer_crop(image, seed, size: int, method: str = "bicubic"):
    """The augmentation that the DALL-E tokenizer was trained with, but for its flip.

    A random square with the side of the short edge s, shrunk by area averaging to a side t drawn
    from min(s, 9/8 size)..min(s, 12/8 size), then a random [size, size, 3] of it. An image whose
    short edge is below `size` is enlarged to 9/8 size first: the paper does not say what was done.
    Source: Zero-Shot Text-to-Image Generation, appendix A, listing 1.
    """
    low, high = size * 9 // 8, size * 12 // 8
    shape = tf.shape(image)
    short = tf.minimum(shape[0], shape[1])

    def enlarged():
        return resize(image, low * shape[0] // short, low * shape[1] // short, method)

    image = tf.cond(short < size, enlarged, lambda: image)
    shape = tf.shape(image)
    short = tf.minimum(shape[0], shape[1])
    draws = tf.random.stateless_uniform([5], seed)
    square = _random_square(image, draws[:2], short)
    smallest, largest = tf.minimum(short, low), tf.minimum(short, high)
    span = tf.cast(largest - smallest, tf.float32)
    side = smallest + tf.cast(_uniform_int(draws[4], span), tf.int32)
    shrunk = to_uint8(tf.image.resize(square, [side, side], "area"))
    return tf.ensure_shape(_random_square(shrunk, draws[2:4], size), [size, size, 3])


def _random_square(image, draws, side):
    """A square of an image at a place given by two draws of [0, 1)."""
    slack = tf.cast(tf.shape(image)[:2] - side, tf.float32)
    top, left = tf.unstack(tf.cast(_uniform_int(draws, slack), tf.int32))
    return image[top:top + side, left:left + side]


def color_jitter(image, draws, strength: float):
    """Brightness, contrast and saturation, each by a factor of U(1 - strength, 1 + strength).

    The three come in random order and always; there is no change of hue.

    Args: image uint8 [..., h, w, 3]; draws float32 [..., 6], of [0, 1).
    Returns: uint8 [..., h, w, 3].
    Source: BEiT's released pre-training code, torchvision's ColorJitter on PIL images.
    """
    factors = tf.maximum(1 + strength * (2 * draws[..., :3] - 1), 0.0)
    order = tf.argsort(draws[..., 3:])
    image = tf.cast(image, tf.float32)
    for i in range(3):
        which = order[..., i, None, None, None]
        factor = tf.gather(factors, order[..., i], batch_dims=factors.shape.rank - 1)
        dull = grey(image)
        # All three mix the image with something: black, its mean grey, its grey copy.
        other = tf.where(which == 0, 0.0, tf.where(which == 1, _mean(dull), dull))
        image = blend(other, image, factor[..., None, None, None])
    return tf.cast(image, tf.uint8)


def brightness(image, factor):
    """f * x on float32 images of whole numbers 0..255; so are its results."""
    return blend(0.0, image, factor)


def contrast(image, factor):
    """f * x + (1 - f) * m, with m the rounded mean of the grey image."""
    return blend(_mean(grey(image)), image, factor)


def saturation(image, factor):
    """f * x + (1 - f) * grey(x)."""
    return blend(grey(image), image, factor)


def grey(image):
    """0.299 R + 0.587 G + 0.114 B, rounded, float32 [..., h, w, 1]."""
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return tf.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)


def blend(start, end, factor):
    """From start (factor 0) to end (1) and beyond; clipped, fractions cut off as PIL does."""
    return tf.floor(tf.clip_by_value(start + factor * (end - start), 0.0, 255.0))


def _mean(dull):
    return tf.floor(tf.reduce_mean(dull, [-3, -2], keepdims=True) + 0.5)
