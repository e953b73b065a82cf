"""Rotation, shear and translation, resampled as PIL's `Image.transform` does: bicubic or bilinear.

TensorFlow's own projective transform knows no bicubic. Images are uint8 [h, w, 3]; `method` is
"bicubic" or "bilinear".
"""
import math

from beit_jax.data.host_tensorflow import tf


def translate_x(image, fraction, fill, method="bicubic"):
    """Moves the content left by a fraction of the width (right where negative)."""
    offset = fraction * tf.cast(tf.shape(image)[1], tf.float32)
    return _slide_rows(image, tf.zeros([tf.shape(image)[0]]) + offset, fill, method)


def translate_y(image, fraction, fill, method="bicubic"):
    """Moves the content up by a fraction of the height (down where negative)."""
    return _transposed(translate_x, image, fraction, fill, method)


def shear_x(image, level, fill, method="bicubic"):
    """Each row starts `level` pixels further right in the source than the row above it."""
    rows = tf.cast(tf.range(tf.shape(image)[0]), tf.float32) + 0.5
    return _slide_rows(image, level * rows, fill, method)


def shear_y(image, level, fill, method="bicubic"):
    """Each column starts `level` pixels further down in the source than the one left of it."""
    return _transposed(shear_x, image, level, fill, method)


def rotate(image, degrees, fill, method="bicubic"):
    """Turns counter-clockwise round the centre; corners that come from outside are filled."""
    shape = tf.shape(image)
    center_y, center_x = tf.unstack(tf.cast(shape[:2], tf.float32) / 2)
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y = tf.cast(tf.range(shape[0]), tf.float32)[:, None] + 0.5 - center_y
    x = tf.cast(tf.range(shape[1]), tf.float32) + 0.5 - center_x
    return _sample(image, center_y + sin * x + cos * y, center_x + cos * x - sin * y, fill,
                   method)


def _transposed(function, image, amount, fill, method):
    """A horizontal operation done vertically."""
    return tf.transpose(function(tf.transpose(image, [1, 0, 2]), amount, fill, method), [1, 0, 2])


def _slide_rows(image, offsets, fill, method):
    """Row y shows the source from x + offsets[y] on: samples of one row are enough."""
    width = tf.shape(image)[1]
    place = tf.cast(tf.range(width), tf.float32) + 0.5 + offsets[:, None]  # [h, w]
    first, weights = _taps(place, width, method)
    out = tf.zeros_like(image, tf.float32)
    for i in range(len(weights)):
        column = tf.clip_by_value(first + i, 0, width - 1)
        value = tf.gather(image, column, axis=1, batch_dims=1)
        out += weights[i][..., None] * tf.cast(value, tf.float32)
    return _finish(out, _is_inside(place, width), fill)


def _sample(image, y, x, fill, method):
    """Samples at source places (y, x), float32 [h, w] each, in pixels."""
    height, width = tf.unstack(tf.shape(image)[:2])
    top, row_weights = _taps(y, height, method)
    left, column_weights = _taps(x, width, method)
    pixels = tf.reshape(image, [-1, 3])
    columns = [tf.clip_by_value(left + i, 0, width - 1) for i in range(len(column_weights))]
    out = tf.zeros(tf.concat([tf.shape(y), [3]], 0))
    for j in range(len(row_weights)):
        row = tf.clip_by_value(top + j, 0, height - 1) * width
        for i in range(len(columns)):
            value = tf.cast(tf.gather(pixels, row + columns[i]), tf.float32)
            out += (row_weights[j] * column_weights[i])[..., None] * value
    return _finish(out, _is_inside(y, height) & _is_inside(x, width), fill)


def _taps(place, size, method):
    """Index of the first of four or two neighbours (may lie outside), and their weights.

    PIL's transforms use the cubic kernel with a = -1, unlike its resizing (a = -0.5).
    """
    # Places far outside are filled later; clipped here, so that they fit int32.
    place = tf.clip_by_value(place, -2.0, tf.cast(size, tf.float32) + 2.0) - 0.5
    base = tf.floor(place)
    d = place - base
    if method == "bilinear":
        return tf.cast(base, tf.int32), (1 - d, d)
    d2, d3 = d * d, d * d * d
    weights = (-d + 2 * d2 - d3, 1 - 2 * d2 + d3, d + d2 - d3, d3 - d2)
    return tf.cast(base, tf.int32) - 1, weights


def _is_inside(place, size):
    return (place >= 0) & (place < tf.cast(size, tf.float32))


def _finish(out, is_inside, fill):
    """Fraction cut off as PIL does, and the fill colour where the source has no pixel."""
    out = tf.cast(tf.clip_by_value(out + 1e-3, 0.0, 255.0), tf.uint8)  # 1e-3: 254.9999 is 255
    return tf.where(is_inside[..., None], out, tf.constant(fill, tf.uint8))
