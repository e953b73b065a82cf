"""The same image operations on whole batches of small images of one size, [b, h, w, 3].

An op of TensorFlow costs some ten microseconds whatever its size: at 32 px that is more than the
work, so whole batches go through one graph. Resampling is a product with PIL's own weights.
"""
import math

from beit_jax.data import image_ops
from beit_jax.data.host_tensorflow import tf

MAX_SIDE = 96  # pixels; larger images are cheaper one by one: the products grow with the cube


def crop_and_resize(images, boxes, size: int, method: str = "bicubic"):
    """Cuts a box out of each image and resizes it with PIL's antialiased filters.

    Args:
      images: uint8 [b, h, w, 3]. boxes: int32 [b, 4]: top, left, height, width.
      size: side of the results in pixels. method: one of `image_ops.FILTERS`.
    Returns: uint8 [b, size, size, 3].
    """
    top, left, height, width = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    across = _weights(left, width, images.shape[2], size, method)  # [b, size, w]
    down = _weights(top, height, images.shape[1], size, method)  # [b, size, h]
    images = tf.cast(images, tf.float32)
    # Rows first, and whole numbers in between: PIL keeps 8 bits between its two passes.
    narrow = _whole(tf.einsum("bow,bhwc->bhoc", across, images))
    return tf.cast(_whole(tf.einsum("boh,bhwc->bowc", down, narrow)), tf.uint8)


def _whole(images):
    return tf.clip_by_value(tf.floor(images + 0.5), 0.0, 255.0)


def _weights(start, length, size_in: int, size_out: int, method: str):
    """Weights [b, size_out, size_in] that resample samples start..start + length to size_out."""
    kernel, support = _KERNELS[method]
    scale = (length / size_out)[:, None, None]
    stretch = tf.maximum(scale, 1.0)  # antialiasing: the kernel widens where samples are lost
    place = start[:, None, None] + (tf.range(size_out, dtype=tf.float32)[:, None] + 0.5) * scale
    sample = tf.range(size_in, dtype=tf.float32) + 0.5
    x = (sample - place) / stretch
    is_used = (tf.abs(x) < support) & (sample > start[:, None, None])
    is_used &= sample < (start + length)[:, None, None]
    weights = tf.where(is_used, kernel(tf.abs(x)), 0.0)
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


def _triangle(x):
    return 1 - x


def _cubic(x):
    """Keys' kernel with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, far)


def _lanczos3(x):
    angle = math.pi * tf.maximum(x, 1e-6)
    return 3 * tf.sin(angle) * tf.sin(angle / 3) / (angle * angle)


_KERNELS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos3": (_lanczos3, 3.0)}


def pad_and_crop(images, offsets, padding: int = 4):
    """Crops of black-bordered images at given places: shifts by up to `padding` pixels.

    Args: images uint8 [b, s, s, 3]; offsets int [b, 2] (top, left), 0..2 * padding.
    Returns: uint8 [b, s, s, 3].
    """
    size = images.shape[1]
    edges = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    padded = tf.pad(images, edges)
    steps = tf.range(size)
    rows = tf.gather(padded, offsets[:, :1] + steps, axis=1, batch_dims=1)
    columns = (offsets[:, 1:] + steps)[:, None, :] + tf.zeros([1, size, 1], tf.int32)
    return tf.gather(rows, columns, axis=2, batch_dims=2)


def whole_box(images):
    """Boxes [b, 4] of whole images."""
    height, width = images.shape[1:3]
    return tf.tile(tf.constant([[0, 0, height, width]]), [tf.shape(images)[0], 1])


def fit(images, size: int, crop_ratio: float, method: str):
    """`image_ops.resize_and_center_crop` of a batch; nothing to do where the size is right."""
    height, width = images.shape[1:3]
    if height == width == size and crop_ratio == 1:
        return images
    if height == width:
        short = int(size / crop_ratio)
        resized = crop_and_resize(images, whole_box(images), short, method)
        start = round((short - size) / 2)
        return resized[:, start:start + size, start:start + size]
    return tf.map_fn(lambda image: image_ops.resize_and_center_crop(
        image, size, crop_ratio, method), images)
