"""Folders of anybody's images: what is found, what is skipped, what pixels come out."""
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from beit_jax.data import pipeline
from beit_jax.data.image_file import decode_with_pil

OPTIONS = dict(name="folder", global_batch_size=2, image_px=16, crop="none", flip=0.0, threads=2)


def _picture(seed=0, size=(20, 16)):
    """A smooth picture, as PIL image of (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _save(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def _options(path, **changes):
    return pipeline.DataOptions(**(OPTIONS | {"path": str(path)} | changes))


def _evaluated(options, split="train"):
    batches = list(pipeline.eval_batches(options, split))
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return {key: value[whole["is_example"]] for key, value in whole.items()}


def test_class_folders_give_labels_in_sorted_order_and_validation_is_found(tmp_path):
    for i, name in enumerate(("zebra", "ant", "bee")):
        for k in range(3):
            _save(tmp_path / "train" / name / f"{k}.png", _picture(10 * i + k))
        _save(tmp_path / "val" / name / "0.jpg", _picture(i), quality=95)
    options = _options(tmp_path)
    info = pipeline.describe(options)
    assert info == pipeline.DataInfo(9, 3, 3, ("ant", "bee", "zebra"))
    assert _evaluated(options)["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert _evaluated(options, "validation")["label"].tolist() == [0, 1, 2]


def test_holdout_takes_the_last_of_each_class(tmp_path):
    for name in ("a", "b"):
        for k in range(4):
            _save(tmp_path / name / f"{k}.png", _picture(k))
    options = _options(tmp_path, holdout_per_class=1)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval) == (6, 2)
    last = np.asarray(_picture(3).resize((20, 16)))[:, 2:18]
    np.testing.assert_array_equal(_evaluated(options, "validation")["image"], [last, last])
    with pytest.raises(ValueError, match="holdout_per_class=4 leaves nothing to train on"):
        pipeline.describe(_options(tmp_path, holdout_per_class=4))


def test_a_flat_folder_has_no_labels(tmp_path):
    for k in range(3):
        _save(tmp_path / f"{k}.png", _picture(k))
    options = _options(tmp_path)
    assert pipeline.describe(options).num_classes == 0
    assert pipeline.describe(options).num_eval == 0
    assert next(pipeline.train_batches(options, seed=0))["label"].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="holdout_per_class"):
        pipeline.eval_batches(options)


def test_small_images_of_one_size_are_held_in_memory_with_the_same_pixels(tmp_path, monkeypatch):
    from beit_jax.data import folder, image_table
    for k in range(5):
        _save(tmp_path / "a" / f"{k}.jpg", _picture(k), quality=90)
    options = _options(tmp_path, image_px=12)
    held = pipeline.load(options, "train")
    assert held.images.shape == (5, 16, 20, 3)
    images = _evaluated(options)["image"]
    monkeypatch.setattr(image_table, "_IN_MEMORY", 0)
    folder._index.cache_clear()
    folder._load.cache_clear()
    assert pipeline.load(options, "train").images is None
    error = np.abs(_evaluated(options)["image"].astype(int) - images)
    assert error.max() <= 1  # resized by products with PIL's weights, or by TensorFlow
    _save(tmp_path / "a" / "larger.png", _picture(size=(24, 16)))
    monkeypatch.undo()
    folder._index.cache_clear()
    folder._load.cache_clear()
    assert pipeline.load(options, "train").images is None  # of two sizes


def _bytes(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter for display
    return exif


RGB = _picture()
GREY = RGB.convert("L")
WIDE = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
CLEAR = RGB.convert("RGBA")
CLEAR.putalpha(GREY)
FORMATS = {  # name -> (bytes, what an eye would see)
    "rgb.png": (_bytes(RGB, "png"), RGB),
    "grey.png": (_bytes(GREY, "png"), GREY),
    "one_bit.png": (_bytes(GREY.convert("1"), "png"), GREY.convert("1")),
    "sixteen_bit.png": (_bytes(WIDE, "png"), GREY),
    "alpha.png": (_bytes(CLEAR, "png"),
                  Image.composite(RGB, Image.new("RGB", RGB.size, "white"), GREY)),
    "palette.png": (_bytes(RGB.quantize(32), "png"), RGB.quantize(32)),
    "palette.gif": (_bytes(RGB.quantize(32), "gif"), RGB.quantize(32)),
    "rgb.bmp": (_bytes(RGB, "bmp"), RGB),
    "exact.webp": (_bytes(RGB, "webp", lossless=True), RGB),
    "rgb.jpg": (_bytes(RGB, "jpeg", quality=98, subsampling=0), RGB),
    "grey.jpg": (_bytes(GREY, "jpeg", quality=98, subsampling=0), GREY),
    "cmyk.jpg": (_bytes(RGB.convert("CMYK"), "jpeg", quality=98, subsampling=0), RGB),
    "turned.jpg": (_bytes(RGB, "jpeg", quality=98, subsampling=0, exif=_turned()),
                   RGB.transpose(Image.Transpose.ROTATE_270)),
    "progressive.jpeg": (_bytes(RGB, "jpeg", quality=98, subsampling=0, progressive=True), RGB),
}


def test_every_format_comes_out_as_it_looks(tmp_path):
    """All in one folder, so that both decoders are at work in the same graph."""
    for name, (encoded, _) in FORMATS.items():
        (tmp_path / name).write_bytes(encoded)
    images = _evaluated(_options(tmp_path))["image"]
    assert len(images) == len(FORMATS)
    for name, image in zip(sorted(FORMATS), images, strict=True):
        expected = FORMATS[name][1].convert("RGB")
        if expected.size == (20, 16):
            expected = np.asarray(expected)[:, 2:18]
        else:
            expected = np.asarray(expected)[2:18]
        error = np.abs(image.astype(int) - expected)
        assert error.mean() < (2.5 if name.endswith(("jpg", "jpeg")) else 0.6), name


def test_sixteen_bit_values_are_divided_by_257():
    wide = np.array([[0, 128, 129, 257 * 200, 65535]], np.uint16)
    pixels = decode_with_pil(_bytes(Image.fromarray(wide), "png"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 200, 255]


@pytest.mark.parametrize("check_all", [True, False], ids=["decoded", "heads_and_tails"])
def test_broken_files_are_skipped_with_their_names_in_the_log(
        tmp_path, caplog, monkeypatch, check_all):
    from beit_jax.data import image_table
    if not check_all:
        monkeypatch.setattr(image_table, "_DECODE_UP_TO", 0)
    for k in range(3):
        _save(tmp_path / "a" / f"good{k}.png", _picture(k))
    jpeg = _bytes(_picture(size=(64, 64)), "jpeg")
    (tmp_path / "a" / "cut.jpg").write_bytes(jpeg[:len(jpeg) // 2])
    (tmp_path / "a" / "cut.png").write_bytes(_bytes(_picture(), "png")[:-30])
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "a" / ".hidden").write_text("nobody asked")
    with caplog.at_level("WARNING", logger="beit_jax"):
        info = pipeline.describe(_options(tmp_path))
    assert info.num_train == 3
    assert "skipped 4 of 7 files" in caplog.text
    assert all(name in caplog.text for name in ("cut.jpg", "cut.png", "notes.txt", "empty.jpg"))
    assert ".hidden" not in caplog.text


def test_missing_and_empty_folders_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "one.txt").write_text("words")
    for path, message in [("", "needs config.data.path"), (tmp_path / "nowhere", "is no folder"),
                          (tmp_path / "empty", "is empty"),
                          (tmp_path / "texts", "none of them is a whole image")]:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            pipeline.describe(_options(path))
        assert "\n" not in str(error.value)


def test_classes_that_training_lacks_are_refused(tmp_path):
    _save(tmp_path / "train" / "a" / "0.png", _picture())
    _save(tmp_path / "val" / "b" / "0.png", _picture())
    with pytest.raises(ValueError, match="has classes that .* lacks: b"):
        pipeline.describe(_options(tmp_path))


def test_a_file_that_breaks_during_the_run_is_one_clear_line(tmp_path):
    for k in range(2):
        _save(tmp_path / f"{k}.png", _picture(k))
    _save(tmp_path / "0.png", _picture(0, (120, 100)))  # too large to be held in memory
    options = _options(tmp_path)
    pipeline.describe(options)  # the check has passed
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="cannot be read .*remove or replace") as error:
        list(pipeline.eval_batches(options, "train"))
    assert "\n" not in str(error.value)


def test_partial_jpeg_decoding_gives_the_pixels_of_a_full_one(tmp_path):
    """Crops are cut while decoding; colour jitter forces decoding first."""
    _save(tmp_path / "0.jpg", _picture(size=(200, 160)), quality=90)
    options = dict(global_batch_size=1, crop="resized", image_px=32)
    cut, full = (next(pipeline.train_batches(_options(tmp_path, **options, color_jitter=j), seed=5))
                 for j in (0.0, 1e-9))
    # The factors 1 +- 1e-9 round to 1: nothing but the order of work differs. At its right edge
    # a cut lacks the neighbour that the decoder interpolates colour with: one level.
    error = np.abs(cut["image"].astype(int) - full["image"])
    assert error[:, :, :-2].max() == 0 and error.max() <= 1


def test_resume_holds_for_folders(tmp_path):
    for k in range(6):
        _save(tmp_path / f"{k}.jpg", _picture(k, (100 + k, 120)))
    options = _options(tmp_path, crop="resized", color_jitter=0.4, target_px=8)
    whole = list(itertools.islice(pipeline.train_batches(options, seed=0), 6))
    resumed = itertools.islice(pipeline.train_batches(options, seed=0, start_step=4), 2)
    for a, b in zip(whole[4:], resumed, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
