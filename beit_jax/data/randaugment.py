"""RandAugment on uint8 images [h, w, 3], with one of two sets of operations.

"rand": the fifteen of the "increasing" set; "vl": ten for images with a text, no changes of hue.
Source: BEiT fine-tuning, whose table of strengths is timm's rand_augment with inc=1, bicubic; of
  "vl" microsoft/unilm beit3/randaug.py, whose shears, shifts and rotations are OpenCV's bilinear
  ones. Ours are PIL's bilinear ones: OpenCV counts places from the middle of the first pixel, so
  that a shear of 0.21 lies a tenth of a pixel further, and mixes the fill colour into the edge.
  Its sharpness wraps round at 0 and 255; ours stops there.
"""
import re
from typing import NamedTuple

from beit_jax.data import geometric, image_ops
from beit_jax.data.host_tensorflow import tf


class Policy(NamedTuple):
    """Numbers of a policy such as "rand-m9-mstd0.5-inc1" or "vl-m7".

    kind: "rand" or "vl".
    magnitude, magnitude_std: mean and standard deviation of M, which is clipped to 0..10.
    num_ops: operations drawn for an image, with replacement. probability: of doing each.
    """
    kind: str = "rand"
    magnitude: float = 9.0
    magnitude_std: float = 0.0
    num_ops: int = 2
    probability: float = 0.5


def parse(text: str) -> Policy:
    """Reads timm's notation "rand-m9-mstd0.5-inc1", or "vl-m7"; n and p are known too.

    Raises: ValueError: another notation, or a policy whose strengths are not the increasing ones.
    """
    parts = text.split("-")
    known = {"m": "magnitude", "mstd": "magnitude_std", "n": "num_ops", "p": "probability"}
    values, is_increasing = {}, False
    for part in parts[1:]:
        match = re.fullmatch(r"([a-z]+)([0-9.]+)", part)
        if match is None or match[1] not in (*known, "inc"):
            raise ValueError(f"config.data.randaugment={text!r}: {part!r} is unknown; "
                             'write e.g. "rand-m9-mstd0.5-inc1"')
        if match[1] == "inc":
            is_increasing = float(match[2]) == 1
        else:
            values[known[match[1]]] = float(match[2])
    if parts[0] not in OPERATIONS or is_increasing != (parts[0] == "rand"):
        raise ValueError(f"config.data.randaugment={text!r} is not supported: "
                         'it must begin with "rand" and contain "inc1", or begin with "vl"')
    if "num_ops" in values:
        values["num_ops"] = int(values["num_ops"])
    return Policy(parts[0], **values)


def randaugment(image, seed, policy: Policy, fill):
    """Applies `policy.num_ops` operations in turn, each with its own kind, strength and sign.

    Args:
      image: uint8 [h, w, 3]. seed: int [2].
      fill: three whole numbers 0..255, the colour that geometric operations let in.
    Returns: uint8 [h, w, 3].
    """
    operations = OPERATIONS[policy.kind]

    @tf.function(autograph=False)  # traced once for all draws: sixteen branches take long to trace
    def apply(image, which, level, sign):
        # One more branch, "nothing", instead of a condition round the switch.
        branches = [_bind(operation, image, level, sign, fill) for operation in operations.values()]
        return tf.ensure_shape(tf.switch_case(which, [*branches, lambda: image]), image.shape)

    draws = tf.random.stateless_uniform([policy.num_ops, 3], seed)
    noise = tf.random.stateless_normal([policy.num_ops], tf.reverse(seed, [0]))
    for i in range(policy.num_ops):
        which = tf.minimum(tf.cast(draws[i, 0] * len(operations), tf.int32), len(operations) - 1)
        level = policy.magnitude + policy.magnitude_std * noise[i]
        level = tf.clip_by_value(level, 0.0, 10.0)
        sign = tf.where(draws[i, 1] < 0.5, -1.0, 1.0)
        which = tf.where(draws[i, 2] < policy.probability, which, len(operations))
        image = apply(image, which, level, sign)
    return image


def _bind(operation, image, level, sign, fill):
    return lambda: operation(image, level, sign, fill)


def autocontrast(image):
    """Stretches each channel to 0..255; a channel of one value stays as it is."""
    levels = tf.range(256, dtype=tf.float64)
    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float64)[:, None]  # [3, 1]
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float64)[:, None]
    scale = 255 / tf.maximum(high - low, 1)
    table = tf.floor(tf.clip_by_value(levels * scale - low * scale, 0, 255))
    return _look_up(image, tf.where(high > low, table, levels[None]))


def equalize(image):
    """Flattens the histogram of each channel."""
    pixels = tf.cast(tf.reshape(image, [-1, 3]), tf.int32)
    histogram = tf.math.bincount(
        tf.reshape(pixels + 256 * tf.range(3), [-1]), minlength=768, maxlength=768)
    histogram = tf.reshape(histogram, [3, 256])
    highest = tf.reduce_max(pixels, 0)
    last = tf.gather(histogram, highest, batch_dims=1)
    step = (tf.reduce_sum(histogram, 1) - last) // 255
    below = tf.cumsum(histogram, 1, exclusive=True)
    table = (step[:, None] // 2 + below) // tf.maximum(step[:, None], 1)
    table = tf.where(step[:, None] > 0, tf.minimum(table, 255), tf.range(256)[None])
    return _look_up(image, table)


def _look_up(image, table):
    """Replaces each value of channel c by table[c, value]."""
    table = tf.cast(table, tf.uint8)
    index = tf.cast(image, tf.int32)
    return tf.stack([tf.gather(table[c], index[..., c]) for c in range(3)], -1)


def posterize(image, bits):
    """Keeps the highest `bits` (int 0..8) of each value."""
    step = tf.bitwise.left_shift(1, 8 - bits)
    return tf.cast(tf.cast(image, tf.int32) // step * step, tf.uint8)


def solarize(image, threshold):
    """Inverts values of at least `threshold` (int)."""
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def solarize_add(image, amount):
    """Adds `amount` (int) to values below 128."""
    values = tf.cast(image, tf.int32)
    return tf.cast(tf.where(values < 128, tf.minimum(values + amount, 255), values), tf.uint8)


def sharpness(image, factor):
    """Away from (factor > 1) or towards (< 1) a slightly blurred copy; borders stay as they are."""
    sharp = tf.cast(image, tf.float32)
    total = sum(sharp[y:tf.shape(sharp)[0] - 2 + y, x:tf.shape(sharp)[1] - 2 + x]
                for y in range(3) for x in range(3))
    inner = sharp[1:-1, 1:-1]
    blurred = tf.floor((total + 4 * inner) / 13 + 0.5)
    mixed = tf.clip_by_value(blurred + factor * (inner - blurred), 0.0, 255.0)
    mixed = tf.concat([sharp[1:-1, :1], mixed, sharp[1:-1, -1:]], 1)
    return tf.cast(tf.concat([sharp[:1], mixed, sharp[-1:]], 0), tf.uint8)


def _enhance(function):
    """A colour operation with factor 1 +- 0.09 M."""
    def operation(image, level, sign, fill):
        del fill
        changed = function(tf.cast(image, tf.float32), 1 + sign * 0.09 * level)
        return tf.cast(changed, tf.uint8)
    return operation


def _whole(x):
    return tf.cast(x, tf.int32)  # cut off, as Python's int() does


def _brighter(function):
    """A colour operation with factor 0.1 + 0.18 M."""
    def operation(image, level, sign, fill):
        del sign, fill
        return tf.cast(function(tf.cast(image, tf.float32), 0.1 + 0.18 * level), tf.uint8)
    return operation


def _shift(translate, axis: int):
    """A shift by M pixels, on grey; `translate` knows shares of the side."""
    def operation(image, level, sign, fill):
        del fill
        share = sign * level / tf.cast(tf.shape(image)[axis], tf.float32)
        return translate(image, share, _GREY, "bilinear")
    return operation


def _bilinear(function, strength: float):
    """A shear or rotation by `strength` M, on grey."""
    def operation(image, level, sign, fill):
        del fill
        return function(image, sign * strength * level, _GREY, "bilinear")
    return operation


# name -> (image, M, sign, fill) -> image. The order is only the numbering of the draw.
_INCREASING = {
    "AutoContrast": lambda image, m, sign, fill: autocontrast(image),
    "Equalize": lambda image, m, sign, fill: equalize(image),
    "Invert": lambda image, m, sign, fill: 255 - image,
    "Rotate": lambda image, m, sign, fill: geometric.rotate(image, sign * 3 * m, fill),
    "Posterize": lambda image, m, sign, fill: posterize(image, 4 - _whole(0.4 * m)),
    "Solarize": lambda image, m, sign, fill: solarize(image, 256 - _whole(25.6 * m)),
    "SolarizeAdd": lambda image, m, sign, fill: solarize_add(image, _whole(11 * m)),
    "Color": _enhance(image_ops.saturation),
    "Contrast": _enhance(image_ops.contrast),
    "Brightness": _enhance(image_ops.brightness),
    "Sharpness": lambda image, m, sign, fill: sharpness(image, 1 + sign * 0.09 * m),
    "ShearX": lambda image, m, sign, fill: geometric.shear_x(image, sign * 0.03 * m, fill),
    "ShearY": lambda image, m, sign, fill: geometric.shear_y(image, sign * 0.03 * m, fill),
    "TranslateX": lambda image, m, sign, fill: geometric.translate_x(
        image, sign * 0.045 * m, fill),
    "TranslateY": lambda image, m, sign, fill: geometric.translate_y(
        image, sign * 0.045 * m, fill),
}

_GREY = (128, 128, 128)  # what geometric operations of "vl" let in, whatever the data's mean

_VISION_LANGUAGE = {
    "Identity": lambda image, m, sign, fill: image,
    "AutoContrast": _INCREASING["AutoContrast"],
    "Equalize": _INCREASING["Equalize"],
    "Brightness": _brighter(image_ops.brightness),
    "Sharpness": lambda image, m, sign, fill: sharpness(image, 0.1 + 0.18 * m),
    "ShearX": _bilinear(geometric.shear_x, 0.03),
    "ShearY": _bilinear(geometric.shear_y, 0.03),
    "TranslateX": _shift(geometric.translate_x, 1),
    "TranslateY": _shift(geometric.translate_y, 0),
    "Rotate": _bilinear(geometric.rotate, 3.0),
}

OPERATIONS = {"rand": _INCREASING, "vl": _VISION_LANGUAGE}
