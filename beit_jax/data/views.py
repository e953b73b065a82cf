"""From a stored image to the views a model sees: one page for single images, one for batches.

Training draws everything from a seed of the example. Order of work: colour jitter on the whole
image, crop, resize (twice where the target has its own view), mirror, RandAugment.
Source: BEiT, released pre-training and fine-tuning code.
"""
from beit_jax.data import batch_ops, image_ops, randaugment
from beit_jax.data.host_tensorflow import tf
from beit_jax.data.options import DataOptions

_PADDING = 4  # pixels of black border of crop="pad"
# crops that are a random box, resized -> what draws the box
_BOXES = {"resized": image_ops.sample_crop, "resized_once": image_ops.sample_crop_once}


def can_batch(images, options: DataOptions) -> bool:
    """Whether `train_batch` can do the work for images uint8 [n, h, w, 3]."""
    largest = max(*images.shape[1:3], options.image_px, options.target_px)
    return largest <= batch_ops.MAX_SIDE and options.crop != "dvae" and not options.fast


def train_batch(images, draws, options: DataOptions) -> dict:
    """Views of a batch of small images.

    Args: images uint8 [b, h, w, 3]; draws float32 [b, DRAWS] of [0, 1), one row an example.
    Returns: image uint8 [b, s, s, 3], image_for_target uint8 [b, t, t, 3] where there is one.
    """
    flip, crop, jitter = draws[:, 0], draws[:, 1:23], draws[:, 23:29]
    if options.color_jitter and not options.randaugment:
        images = image_ops.color_jitter(images, jitter, options.color_jitter)
    sizes = _sizes(options)
    if options.crop in _BOXES:
        count = tf.shape(images)[0]
        height, width = (tf.fill([count], size) for size in images.shape[1:3])
        boxes = _BOXES[options.crop](height, width, crop, options.crop_scale, options.crop_ratio)
        views = {key: batch_ops.crop_and_resize(images, boxes, size, method)
                 for key, (size, method) in sizes.items()}
    else:
        if options.crop == "pad":
            images = batch_ops.fit(images, options.image_px, 1.0, options.interpolation)
            offsets = tf.cast(tf.floor(crop[:, :2] * (2 * _PADDING + 1)), tf.int32)
            images = batch_ops.pad_and_crop(images, offsets, _PADDING)
        views = {key: batch_ops.fit(images, size, 1.0, method)
                 for key, (size, method) in sizes.items()}
    if options.flip:
        views = {key: image_ops.flip_if(view, flip < options.flip) for key, view in views.items()}
    return views


DRAWS = 29  # numbers of [0, 1) that `train_batch` needs for an example


def train_example(image, seed, options: DataOptions) -> dict:
    """Views of one image, uint8 [h, w, 3] or encoded (a string); the seed is int [2]."""
    jitter_seed, crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 3))
    jitters = options.color_jitter and not options.randaugment
    if image.dtype == tf.string and (jitters or options.crop not in _BOXES):
        image = decode(image, options.fast)
    if jitters:
        draws = tf.random.stateless_uniform([6], jitter_seed)
        image = image_ops.color_jitter(image, draws, options.color_jitter)
    antialias = not options.fast
    sizes = _sizes(options)
    if options.crop in _BOXES:
        image = _random_crop(image, crop_seed, options)
        views = {key: image_ops.resize(image, size, size, method, antialias)
                 for key, (size, method) in sizes.items()}
    else:
        if options.crop == "dvae":
            image = image_ops.tokenizer_crop(image, crop_seed, options.image_px,
                                             options.interpolation)
        elif options.crop == "pad":
            image = image_ops.resize_and_center_crop(image, options.image_px, 1.0,
                                                     options.interpolation, antialias)
            offsets = tf.random.stateless_uniform([1, 2], crop_seed, 0, 2 * _PADDING + 1, tf.int32)
            image = batch_ops.pad_and_crop(image[None], offsets, _PADDING)[0]
        views = {key: image_ops.resize_and_center_crop(image, size, 1.0, method, antialias)
                 for key, (size, method) in sizes.items()}
    if options.flip:
        is_flipped = tf.random.stateless_uniform([], flip_seed) < options.flip
        views = {key: image_ops.flip_if(view, is_flipped) for key, view in views.items()}
    return views


def augment(view, seed, options: DataOptions):
    """RandAugment on the first view of one image, uint8 [s, s, 3]."""
    fill = tuple(int(255 * mean + 0.5) for mean in options.mean)
    return randaugment.randaugment(view, seed, randaugment.parse(options.randaugment), fill)


def eval_example(image, options: DataOptions) -> dict:
    """Views for evaluation of one image, uint8 [h, w, 3] or encoded: nothing is random."""
    if image.dtype == tf.string:
        image = decode(image, options.fast)
    ratio, antialias = options.crop_ratio_at_evaluation, not options.fast
    if options.eval_resize == "squash":
        return {key: image_ops.resize(image, size, size, method, antialias)
                for key, (size, method) in _sizes(options).items()}
    return {key: image_ops.resize_and_center_crop(image, size, ratio, method, antialias)
            for key, (size, method) in _sizes(options).items()}


def eval_batch(images, options: DataOptions) -> dict:
    """The same for a batch of small images uint8 [b, h, w, 3]."""
    if options.eval_resize == "squash":
        return {key: batch_ops.crop_and_resize(images, batch_ops.whole_box(images), size, method)
                for key, (size, method) in _sizes(options).items()}
    return {key: batch_ops.fit(images, size, options.crop_ratio_at_evaluation, method)
            for key, (size, method) in _sizes(options).items()}


def decode(encoded, fast: bool = False):
    """JPEG or PNG (or BMP, GIF) bytes to uint8 [h, w, 3]; JPEG bit-equal to PIL unless `fast`."""
    def jpeg():
        return tf.io.decode_jpeg(encoded, 3, dct_method=_dct(fast))

    def other():
        return tf.io.decode_image(encoded, 3, expand_animations=False)

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, [None, None, 3])


def _random_crop(image, seed, options: DataOptions):
    """Cuts a random box out of an image; of a JPEG only the part that is needed is decoded."""
    draws = tf.random.stateless_uniform([22], seed)

    def box_of(shape):
        return _BOXES[options.crop](shape[0], shape[1], draws, options.crop_scale,
                                    options.crop_ratio)

    def crop_of(pixels):
        return image_ops.crop(pixels, box_of(tf.shape(pixels)))

    if image.dtype != tf.string:
        return crop_of(image)
    return tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_and_crop_jpeg(image, box_of(tf.io.extract_jpeg_shape(image)), 3,
                                           dct_method=_dct(options.fast)),
        lambda: crop_of(decode(image)))


def _dct(fast: bool) -> str:
    return "INTEGER_FAST" if fast else "INTEGER_ACCURATE"


def _sizes(options: DataOptions) -> dict:
    """name of each view -> (side in pixels, filter)."""
    sizes = {"image": (options.image_px, options.interpolation)}
    if options.target_px:
        sizes["image_for_target"] = (options.target_px, options.target_filter)
    return sizes
