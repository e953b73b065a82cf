"""Augmentations against PIL, and the crop sampler's distribution."""
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from beit_jax.data import batch_ops, geometric, image_ops, randaugment
from beit_jax.data.host_tensorflow import tf

PHOTO = load_sample_images().images[0]
PICTURES = {
    "photo": PHOTO[:150, :200],
    "small": PHOTO[100:132, 200:232],
    "noise": np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8),
    "flat": np.full((20, 24, 3), 90, np.uint8),
}
FILL = (124, 116, 104)
PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
               "lanczos3": Image.Resampling.LANCZOS}


def _error(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))


def _reference(name, image, m, sign):
    """What PIL makes of one RandAugment operation at magnitude m."""
    bicubic = Image.Resampling.BICUBIC
    width, height = image.size

    def affine(*numbers):
        return image.transform(image.size, Image.Transform.AFFINE, numbers, bicubic, fillcolor=FILL)

    def solarize_add():
        add = int(11 * m)
        return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)

    factor = 1 + sign * 0.09 * m
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(sign * 3 * m, bicubic, fillcolor=FILL),
        "Posterize": lambda: ImageOps.posterize(image, 4 - int(0.4 * m)),
        "Solarize": lambda: ImageOps.solarize(image, 256 - int(25.6 * m)),
        "SolarizeAdd": solarize_add,
        "Color": lambda: ImageEnhance.Color(image).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: affine(1, sign * 0.03 * m, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, sign * 0.03 * m, 1, 0),
        "TranslateX": lambda: affine(1, 0, sign * 0.045 * m * width, 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, sign * 0.045 * m * height),
    }[name]()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", randaugment.OPERATIONS["rand"])
def test_randaugment_operation_is_pils(name, picture):
    image = PICTURES[picture]
    for m, sign in ((8.7, 1.0), (9.3, -1.0)):
        ours = randaugment.OPERATIONS["rand"][name](
            tf.constant(image), tf.constant(m), tf.constant(sign), FILL)
        error = _error(ours, _reference(name, Image.fromarray(image), m, sign))
        if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
            # float32 against PIL's doubles: a value just below a whole number is cut off there
            assert error.max() <= 1 and (error > 0).mean() < 0.02
        else:
            assert error.max() == 0


def test_there_are_fifteen_operations_each_drawn_and_done_half_of_the_time(monkeypatch):
    """Operations are replaced by marks; two draws leave (1 - p)^2 of the images untouched."""
    marks = {name: lambda image, m, sign, fill, i=i: image * 16 + tf.cast(i + 1, tf.int32)
             for i, name in enumerate(randaugment.OPERATIONS["rand"])}
    monkeypatch.setitem(randaugment.OPERATIONS, "rand", marks)
    policy = randaugment.parse("rand-m9-mstd0.5-inc1")

    @tf.function
    def draw(number):
        seed = tf.stack([7, number])
        return randaugment.randaugment(tf.zeros([1, 1, 3], tf.int32), seed, policy, FILL)[0, 0, 0]

    codes = np.array([draw(tf.constant(i)).numpy() for i in range(2000)])
    assert len(marks) == 15
    assert abs((codes == 0).mean() - 0.25) < 0.03
    done = np.concatenate([codes // 16, codes % 16])
    share = np.bincount(done[done > 0], minlength=16)[1:] / (done > 0).sum()
    assert abs(share - 1 / 15).max() < 0.02
    both = codes[codes > 15]
    assert (both // 16 == both % 16).mean() < 0.2  # drawn anew for the second


def test_magnitudes_are_normal_around_nine_and_clipped(monkeypatch):
    marks = {"Mark": lambda image, m, sign, fill: tf.zeros_like(image) + sign * m}
    monkeypatch.setitem(randaugment.OPERATIONS, "rand", marks)
    policy = randaugment.parse("rand-m9-mstd0.5-inc1-n1-p1")

    @tf.function
    def draw(number):
        image = tf.zeros([1, 1, 3])
        return randaugment.randaugment(image, tf.stack([7, number]), policy, FILL)[0, 0, 0]

    values = np.array([draw(tf.constant(i)).numpy() for i in range(1000)])
    assert abs(np.abs(values).mean() - 9) < 0.06 and abs(np.abs(values).std() - 0.5) < 0.05
    assert np.abs(values).max() <= 10 and abs((values > 0).mean() - 0.5) < 0.06


def test_the_operations_for_images_with_text_are_ten_and_pils():
    """Magnitude 7: factors 1.36, shear 0.21, 7 pixels, 21 degrees, bilinear, grey outside."""
    image, grey = Image.fromarray(PICTURES["photo"]), (128, 128, 128)
    bilinear = Image.Resampling.BILINEAR

    def affine(*numbers):
        return image.transform(image.size, Image.Transform.AFFINE, numbers, bilinear,
                               fillcolor=grey)

    theirs = {
        "Identity": image, "AutoContrast": ImageOps.autocontrast(image),
        "Equalize": ImageOps.equalize(image),
        "Brightness": ImageEnhance.Brightness(image).enhance(1.36),
        "Sharpness": ImageEnhance.Sharpness(image).enhance(1.36),
        "ShearX": affine(1, 0.21, 0, 0, 1, 0), "ShearY": affine(1, 0, 0, 0.21, 1, 0),
        "TranslateX": affine(1, 0, 7, 0, 1, 0), "TranslateY": affine(1, 0, 0, 0, 1, 7),
        "Rotate": image.rotate(21, bilinear, fillcolor=grey)}
    operations = randaugment.OPERATIONS[randaugment.parse("vl-m7").kind]
    assert list(operations) == list(theirs)
    for name, operation in operations.items():
        ours = operation(tf.constant(PICTURES["photo"]), tf.constant(7.0), tf.constant(1.0), FILL)
        error = _error(ours, theirs[name])
        assert error.max() <= 1 and (error > 0).mean() < 0.02, name


@pytest.mark.parametrize("text", ["rand-m9", "rand-m9-x3-inc1", "augmix-m9-inc1", "vl-m7-inc1"])
def test_unknown_policies_are_refused(text):
    with pytest.raises(ValueError, match="config.data.randaugment"):
        randaugment.parse(text)


@pytest.mark.parametrize("method", PIL_FILTERS)
@pytest.mark.parametrize("size", [(112, 96), (224, 224), (16, 16)], ids=str)
def test_resizing_of_photographs_is_pils_within_a_level(method, size):
    image = PHOTO[:300, :400]
    theirs = Image.fromarray(image).resize(size[::-1], PIL_FILTERS[method])
    error = _error(image_ops.resize(image, *size, method), theirs)
    assert (error > 1).mean() < 2e-3 and error.mean() < 0.25


@pytest.mark.parametrize("method", PIL_FILTERS)
@pytest.mark.parametrize("size", [16, 32, 40])
def test_crop_and_resize_of_batches_is_pils_even_on_noise(method, size):
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    boxes = [[0, 0, 32, 32], [3, 5, 11, 17], [20, 1, 12, 8], [31, 31, 1, 1]]
    ours = batch_ops.crop_and_resize(tf.constant(images), tf.constant(boxes), size, method)
    for image, (top, left, height, width), own in zip(images, boxes, ours, strict=True):
        crop = Image.fromarray(image[top:top + height, left:left + width])
        assert _error(own, crop.resize((size, size), PIL_FILTERS[method])).max() <= 1


def test_crop_boxes_follow_the_reference_distribution():
    """Ten tries of a uniform area and a log-uniform aspect: against the same in plain numpy."""
    height, width, n = 60, 100, 20_000
    draws = np.random.default_rng(0).random((n, 22), np.float32)
    boxes = image_ops.sample_crop(
        tf.fill([n], height), tf.fill([n], width), tf.constant(draws)).numpy()
    top, left, h, w = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width))
    rng = np.random.default_rng(1)
    areas, aspects = [], []
    while len(areas) < n:
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        area = height * width * rng.uniform(0.08, 1)
        x, y = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < x <= width and 0 < y <= height:
            areas.append(x * y / (height * width))
            aspects.append(math.log(x / y))
    fitted = h * w / (height * width)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(fitted, q) - np.quantile(areas, q)) < 0.012
        assert abs(np.quantile(np.log(w / h), q) - np.quantile(aspects, q)) < 0.015
    place = left[w < width - 5] / (width - w[w < width - 5])
    assert abs(place.mean() - 0.5) < 0.01 and place.min() == 0 and place.max() == 1


@pytest.mark.parametrize("shape, box", [
    ((30, 300), (0, 130, 30, 40)), ((300, 30), (130, 0, 40, 30)), ((40, 40), (0, 0, 40, 40)),
    ((30, 303), (0, 131, 30, 40))], ids=["wide", "tall", "square", "odd"])
def test_where_no_crop_fits_the_middle_is_taken(shape, box):
    draws = tf.fill([22], 0.999)  # the largest area, the widest aspect: never fits
    found = image_ops.sample_crop(*map(tf.constant, shape), draws, scale=(0.9, 1.0))
    assert found.numpy().tolist() == list(box)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60)], ids=["wide", "tall"])
def test_a_crop_of_one_try_is_cut_to_the_image_and_never_rejected(height, width):
    """facebookresearch/mae util/crop.py, written out in plain Python on the same draws."""
    draws = np.random.default_rng(0).random((2000, 22), np.float32)
    boxes = image_ops.sample_crop_once(
        tf.fill([2000], height), tf.fill([2000], width), tf.constant(draws)).numpy()
    num_cut = 0
    for (top, left, h, w), draw in zip(boxes, draws.astype(float)):
        area = height * width * (0.08 + 0.92 * draw[0])
        aspect = math.exp(math.log(3 / 4) + math.log(16 / 9) * draw[10])
        drawn_w, drawn_h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        # to half a pixel: float32 may round to the other side
        assert abs(w - min(drawn_w, width)) <= 0.501 and abs(h - min(drawn_h, height)) <= 0.501
        assert (top, left) == (int(draw[20] * (height - h + 1)), int(draw[21] * (width - w + 1)))
        num_cut += drawn_h > height + 1 or drawn_w > width + 1
    assert num_cut > 200  # these are what crop="resized" draws again
    whole = image_ops.sample_crop_once(*map(tf.constant, (30, 300)), tf.fill([22], 0.999))
    assert whole.numpy().tolist()[2:] == [30, 109]


def test_colour_jitter_is_pils_enhancement_in_the_drawn_order():
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    rng = np.random.default_rng(0)
    images = np.stack([PHOTO[40 * i:40 * i + 40, :60] for i in range(8)])
    draws = rng.random((8, 6), np.float32)
    ours = image_ops.color_jitter(tf.constant(images), tf.constant(draws), 0.4).numpy()
    for image, draw, own in zip(images, draws, ours, strict=True):
        expected = Image.fromarray(image)
        for which in np.argsort(draw[3:]):
            expected = enhancers[which](expected).enhance(float(1 + 0.4 * (2 * draw[which] - 1)))
        error = _error(own, expected)
        assert error.max() <= 2 and (error > 0).mean() < 0.01  # float32 at a cut-off
        single = image_ops.color_jitter(tf.constant(image), tf.constant(draw), 0.4)
        np.testing.assert_array_equal(own, single)


@pytest.mark.parametrize("size, ratio", [(64, 0.875), (64, 1.0)])
def test_evaluation_crop_is_resize_then_middle(size, ratio):
    image = PHOTO[:150, :200]
    short = int(size / ratio)
    whole = Image.fromarray(image).resize((short * 200 // 150, short), Image.Resampling.BICUBIC)
    top, left = (round((extent - size) / 2) for extent in (whole.height, whole.width))
    expected = np.asarray(whole)[top:top + size, left:left + size]
    error = _error(image_ops.resize_and_center_crop(tf.constant(image), size, ratio), expected)
    assert error.max() <= 2 and error.mean() < 0.25


def test_batched_evaluation_crop_is_the_single_one():
    images = np.stack([PHOTO[:48, :48], PHOTO[100:148, 100:148]])
    batch = batch_ops.fit(tf.constant(images), 32, 0.875, "bicubic")
    for image, own in zip(images, batch, strict=True):
        single = image_ops.resize_and_center_crop(tf.constant(image), 32, 0.875)
        assert _error(own, single).max() <= 2
    same = batch_ops.fit(tf.constant(images), 48, 1.0, "bicubic")
    np.testing.assert_array_equal(same, images)


def test_padding_shifts_over_a_black_border():
    images = np.random.default_rng(0).integers(1, 256, (2, 8, 8, 3), dtype=np.uint8)
    shifted = batch_ops.pad_and_crop(tf.constant(images), tf.constant([[4, 4], [0, 7]])).numpy()
    np.testing.assert_array_equal(shifted[0], images[0])
    np.testing.assert_array_equal(shifted[1, 4:, :5], images[1, :4, 3:])
    assert not shifted[1, :4].any() and not shifted[1, :, 5:].any()


def test_flip_mirrors_only_where_asked():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    flipped = image_ops.flip_if(tf.constant(images), tf.constant([True, False])).numpy()
    np.testing.assert_array_equal(flipped, [images[0][:, ::-1], images[1]])
    single = image_ops.flip_if(tf.constant(images[0]), tf.constant(True))
    np.testing.assert_array_equal(single, images[0][:, ::-1])


@pytest.mark.parametrize("shape", [(100, 80), (60, 90), (40, 50), (32, 64)], ids=str)
def test_tokenizer_crop_scales_between_nine_and_twelve_eighths(shape):
    """On a picture of its own coordinates the scale and the place of a crop can be read off."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    image = np.stack([2 * y, 2 * x, 0 * x], -1).astype(np.uint8)
    steps = []
    for i in range(40):
        crop = image_ops.tokenizer_crop(tf.constant(image), tf.constant([1, i]), 48).numpy()
        assert crop.shape == (48, 48, 3)
        steps.append([(crop[-8, 8:-8, 1].astype(float)[-1] - crop[-8, 8:-8, 1].astype(float)[0])
                      / 2 / 31])
    short = min(shape)
    enlarged = short if short >= 48 else 54  # 9/8 of 48
    factor = enlarged / short  # how much enlarging shrank the steps beforehand
    sides = enlarged / (np.array(steps) * factor)
    low, high = min(enlarged, 54), min(enlarged, 72)
    assert sides.min() > low - 2.5 and sides.max() < high + 2.5
    if high > low + 5:
        assert sides.max() - sides.min() > 0.5 * (high - low)


def test_geometric_operations_agree_for_every_shape_of_picture():
    """Height and width are not mixed up: on a strip, x and y are not alike."""
    strip = PHOTO[:10, :60]
    moved = geometric.translate_x(tf.constant(strip), tf.constant(0.5), FILL).numpy()
    np.testing.assert_array_equal(moved[:, :30], strip[:, 30:])
    assert np.all(moved[:, 30:] == FILL)
