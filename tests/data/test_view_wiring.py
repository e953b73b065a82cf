"""That each option of the views does what it says, on pictures from which that can be read off.

All three ways to a training view: batches of small images, single images, encoded ones.
"""

import numpy as np
import pytest
from PIL import Image

from beit_jax import data
from beit_jax.data import pipeline, randaugment, views
from beit_jax.data.host_tensorflow import tf
from beit_jax.data.options import DataOptions
from beit_jax.data.source import Source

SIDE, ROWS = 64, 200
WAYS = ("batch", "single", "jpeg")
PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
               "lanczos3": Image.Resampling.LANCZOS}
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = np.full((SIDE, SIDE, 3), 100, np.uint8)
# red tells the column, green the row
RAMP = np.stack([*np.meshgrid(4 * np.arange(SIDE), 4 * np.arange(SIDE)), GREY[..., 0]],
                -1).astype(np.uint8)


def options_of(**changes) -> DataOptions:
    return DataOptions(**dict(name="none", global_batch_size=8, image_px=32, crop="none",
                              flip=0.0) | changes)


def training_views(way: str, image, **changes) -> dict:
    """ROWS views of one image; the same row of another call has the same random numbers."""
    options = options_of(**changes)
    if way == "batch":
        draws = np.random.default_rng(1).random((ROWS, views.DRAWS), np.float32)
        made = views.train_batch(tf.constant(np.stack([image] * ROWS)), tf.constant(draws), options)
    else:
        stored = tf.constant(image)
        if way == "jpeg":
            stored = tf.io.encode_jpeg(stored, quality=100, chroma_downsampling=False)
        keys = ["image", *(["image_for_target"] if options.target_px else [])]

        @tf.function
        def all_views(seeds):
            return tf.map_fn(lambda seed: views.train_example(stored, seed, options), seeds,
                             fn_output_signature={key: tf.uint8 for key in keys})

        made = all_views(tf.constant(np.stack([np.arange(ROWS), 3 * np.arange(ROWS)], 1), tf.int32))
    return {key: value.numpy().astype(float) for key, value in made.items()}


def boxes(view) -> tuple:
    """(width, height, left, is_flipped) of the crops of RAMP that views show, in pixels."""
    size = view.shape[1]
    low, high = size // 4, size - size // 4
    across = (view[:, size // 2, high, 0] - view[:, size // 2, low, 0]) / 4
    down = (view[:, high, size // 2, 1] - view[:, low, size // 2, 1]) / 4
    width, height = np.abs(across) * size / (high - low), down * size / (high - low)
    middle = view[:, size // 2, size // 2 - 1:size // 2 + 1, 0].mean(1) / 4 + 0.5
    return width, height, middle - width / 2, across < 0


@pytest.mark.parametrize("way", WAYS)
def test_crops_have_the_areas_and_aspects_of_the_config(way):
    view = training_views(way, RAMP, crop="resized", crop_scale=(0.3, 0.5))["image"]
    width, height, left, is_flipped = boxes(view)
    area, aspect = width * height / SIDE ** 2, width / height
    assert area.min() > 0.27 and area.max() < 0.53 and np.ptp(area) > 0.15
    assert aspect.min() > 0.68 and aspect.max() < 1.47 and np.ptp(aspect) > 0.4
    assert left.min() < 3 and (left + width).max() > SIDE - 3  # all over the image
    assert not is_flipped.any()
    view = training_views(way, RAMP, crop="resized", crop_scale=(0.2, 0.3),
                          crop_ratio=(1.9, 2.1))["image"]
    width, height, *_ = boxes(view)
    assert np.all(np.abs(width / height - 2.0) < 0.3)


@pytest.mark.parametrize("way", WAYS)
def test_the_share_of_the_config_is_mirrored_in_both_views_alike(way):
    for flip, low, high in ((0.0, 0.0, 0.0), (0.25, 0.15, 0.35), (1.0, 1.0, 1.0)):
        made = training_views(way, RAMP, flip=flip, target_px=16)
        flips = {key: boxes(view)[3] for key, view in made.items()}
        assert low <= flips["image"].mean() <= high
        np.testing.assert_array_equal(flips["image"], flips["image_for_target"])


@pytest.mark.parametrize("way", WAYS)
def test_brightness_goes_up_and_down_by_the_strength_of_the_config(way):
    """Of a grey image contrast and saturation change nothing."""
    for strength in (0.4, 0.2):
        made = training_views(way, GREY, color_jitter=strength, target_px=16)
        factor = made["image"].mean((1, 2, 3)) / 100
        assert 1 - strength - 0.02 < factor.min() < factor.max() < 1 + strength + 0.02
        assert factor.std() == pytest.approx(strength / 3 ** 0.5, rel=0.15)  # uniform
        target = made["image_for_target"].mean((1, 2, 3)) / 100
        np.testing.assert_allclose(target, factor, atol=0.01)  # the same picture
    assert np.abs(training_views(way, GREY)["image"] - 100).max() <= 1
    off = training_views(way, GREY, color_jitter=0.4, randaugment="rand-m9-mstd0.5-inc1")
    assert np.abs(off["image"] - 100).max() <= 1


@pytest.mark.parametrize("way", WAYS)
def test_crop_mirror_and_color_are_drawn_independently(way):
    width, height, left, is_flipped = boxes(training_views(
        way, RAMP, crop="resized", crop_scale=(0.2, 0.6), flip=0.5)["image"])
    slack = SIDE - width
    factor = training_views(way, GREY, color_jitter=0.4)["image"].mean((1, 2, 3))
    drawn = np.stack([width * height, width / height, np.clip(left / slack, 0, 1), is_flipped,
                      factor])
    between = np.abs(np.corrcoef(drawn) - np.eye(len(drawn)))
    assert between.max() < 0.3, between.round(2)


def resized(image, size: int, method: str):
    return np.asarray(Image.fromarray(image).resize((size, size), PIL_FILTERS[method]), float)


def assert_filter(view, image, size: int, method: str, cut=lambda whole: whole):
    """Nearer to PIL's filter of this name than half the way to any other."""
    error = {name: np.abs(view - cut(resized(image, size, name))).mean() for name in PIL_FILTERS}
    others = [value for name, value in error.items() if name != method]
    assert error[method] < 0.5 * min(others), error


@pytest.mark.parametrize("way", ["batch", "single"])
@pytest.mark.parametrize(("first", "second"), [("bicubic", "lanczos3"), ("bilinear", "bicubic"),
                                               ("lanczos3", "bilinear")])
def test_each_view_is_resampled_by_its_own_filter(way, first, second):
    filters = dict(interpolation=first, target_px=16, target_filter=second)
    for crop in (dict(crop="resized", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)),
                 dict(crop="none")):  # both show the whole image
        made = training_views(way, NOISE, **filters, **crop)
        assert_filter(made["image"][0], NOISE, 32, first)
        assert_filter(made["image_for_target"][0], NOISE, 16, second)


@pytest.mark.parametrize("way", ["batch", "single"])
def test_evaluation_cuts_out_the_middle_by_the_ratio_of_the_config(way):
    options = options_of(eval_crop_ratio=0.5, target_px=16, interpolation="bilinear",
                         target_filter="lanczos3", color_jitter=0.4, flip=1.0, crop="resized")
    made = (views.eval_batch(tf.constant(NOISE[None]), options) if way == "batch"
            else views.eval_example(tf.constant(NOISE), options))
    image, target = (np.squeeze(made[key].numpy()) for key in ("image", "image_for_target"))
    np.testing.assert_array_equal(image, NOISE[16:48, 16:48])  # 32 / 0.5 are all 64
    assert_filter(target, NOISE, 32, "lanczos3", cut=lambda whole: whole[8:24, 8:24])
    options = options_of(eval_crop_ratio=1.0, interpolation="bilinear")
    made = (views.eval_batch(tf.constant(NOISE[None]), options) if way == "batch"
            else views.eval_example(tf.constant(NOISE), options))
    assert_filter(np.squeeze(made["image"].numpy()), NOISE, 32, "bilinear")


@pytest.mark.parametrize("way", ["batch", "single"])
def test_evaluation_that_squashes_shows_the_whole_image(way):
    strip = NOISE[:40]
    options = options_of(eval_resize="squash")
    made = (views.eval_batch(tf.constant(strip[None]), options) if way == "batch"
            else views.eval_example(tf.constant(strip), options))
    assert_filter(np.squeeze(made["image"].numpy()), strip, 32, "bicubic")


@pytest.mark.parametrize(("px", "ratio", "expected"), [
    (224, 0.0, 0.875), (383, 0.0, 0.875), (384, 0.0, 1.0), (512, 0.0, 1.0), (32, 0.0, 1.0),
    (33, 0.0, 0.875), (224, 0.9, 0.9), (384, 0.875, 0.875)])
def test_the_ratio_of_evaluation_is_the_configs_or_follows_from_the_size(px, ratio, expected):
    options = options_of(image_px=px, eval_crop_ratio=ratio)
    assert options.crop_ratio_at_evaluation == expected


@pytest.mark.parametrize(("mean", "fill"), [
    ((0.485, 0.456, 0.406), (124, 116, 104)), ((0.5, 0.5, 0.5), (128, 128, 128))])
def test_randaugment_lets_in_the_mean_color(monkeypatch, mean, fill):
    monkeypatch.setitem(randaugment.OPERATIONS, "rand", {
        "Fill": lambda image, m, sign, fill: tf.zeros_like(image) + tf.constant(fill, tf.uint8)})
    options = options_of(mean=mean, randaugment="rand-m9-mstd0.5-inc1-n1-p1")
    made = views.augment(tf.constant(NOISE), tf.constant([0, 1]), options)
    assert {tuple(pixel) for pixel in made.numpy().reshape(-1, 3)} == {fill}


@pytest.fixture
def alike(monkeypatch):
    """Sources "small" and "large": eight times the same image, in memory."""
    def load(side):
        image = NOISE[:16, :16] if side == 16 else NOISE.repeat(2, 0).repeat(2, 1)
        images = np.stack([image] * 8)
        return lambda options, split: Source(8, ("a",), "alike", labels=np.zeros(8, np.int32),
                                             images=images)

    monkeypatch.setitem(data.SOURCES, "small", load(16))
    monkeypatch.setitem(data.SOURCES, "large", load(128))


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("changes", [
    dict(color_jitter=0.4), dict(crop="resized"),
    dict(randaugment="rand-m9-mstd0.5-inc1-n1-p1")], ids=lambda changes: next(iter(changes)))
def test_rows_of_a_batch_differ_in_all_that_is_drawn(alike, monkeypatch, name, changes):
    monkeypatch.setitem(randaugment.OPERATIONS, "rand", {
        "Mark": lambda image, m, sign, fill: tf.zeros_like(image) + tf.cast(
            tf.stack([20 * m, 5120 * m % 256, 0 * m]), tf.uint8)})
    options = options_of(name=name, image_px=16, target_px=8, threads=2, **changes)
    batch = next(pipeline.train_batches(options, seed=0))
    assert len({row.tobytes() for row in batch["image"]}) == 8
    is_augmented = bool(options.randaugment)
    assert len({row.tobytes() for row in batch["image_for_target"]}) == (1 if is_augmented else 8)
    if is_augmented:  # the first view alone
        assert np.ptp(batch["image"], axis=(1, 2)).max() == 0
        assert np.ptp(batch["image_for_target"], axis=(1, 2)).min() > 0
