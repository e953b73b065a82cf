"""Folders of anybody's images: what is found, what is skipped, what pixels come out."""
import io
import itertools
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from beit_jax.data import broken_files, pipeline
from beit_jax.data.image_file import decode_with_pil
from beit_jax.data.source import Source

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


def _folders(root, *paths):
    """An image in each folder; of one that ends with "/" nothing but the folder."""
    for k, path in enumerate(paths):
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            _save(root / path / f"{k}.png", _picture(k))


@pytest.mark.parametrize(("train", "val"), [
    ("Train", "Val"), ("TRAIN", "VALIDATION"), ("training_set", "valid"), ("Training", "Testing"),
    ("train2017", "val2017"), ("train-images", "test_data"), ("trainset", "dev")], ids=str)
def test_splits_are_known_in_any_case_and_the_usual_spellings(tmp_path, train, val):
    _folders(tmp_path, f"{train}/ant", f"{train}/bee", f"{val}/ant", f"{val}/bee")
    info = pipeline.describe(_options(tmp_path))
    assert (info.num_train, info.num_eval, info.class_names) == (2, 2, ("ant", "bee"))


@pytest.mark.parametrize("name", ["test", "val", "Train", "valid", "testing"])
def test_a_class_that_is_called_as_a_split_stays_a_class_and_is_told(tmp_path, caplog, name):
    _folders(tmp_path, "exam", "quiz", name)
    with caplog.at_level("WARNING", logger="beit_jax"):
        info = pipeline.describe(_options(tmp_path))
    assert (info.num_train, info.num_eval) == (3, 0)
    assert set(info.class_names) == {"exam", "quiz", name}
    assert f"{name} (taken as a class" in caplog.text


def test_a_folder_of_the_same_classes_beside_them_is_a_split(tmp_path):
    _folders(tmp_path, "ant", "bee", "val/ant", "val/bee", "Test/bee")
    info = pipeline.describe(_options(tmp_path))
    assert info.class_names == ("ant", "bee") and (info.num_train, info.num_eval) == (2, 2)
    assert _evaluated(_options(tmp_path), "test")["label"].tolist() == [1]


AMBIGUOUS = {  # what lies there -> what the message says
    "two_training_splits": (("train/a", "Train/a"), "train_split=./Train"),
    "two_validation_splits": (("train/a", "val/a", "Valid/a"), "eval_split=./Valid"),
    "no_training_split": (("val/a", "test/a"), "train_split=./test"),
    "a_class_or_the_training_split": (("bus", "car", "train/steam", "train/fast"),
                                      "train_split=./train, or config.data.train_split=."),
    "images_in_all": (("train", "val", "extra"), "train_split=./train, or"),
    "a_test_of_other_classes": (("a", "b", "test/c"), "eval_split=./test, or"),
    "splits_one_level_below": (("photos/train/a", "photos/val/a"), "path=.*photos meant"),
    "splits_inside_classes": (("cat/train", "cat/val", "dog/train", "dog/val"), "they come first"),
    "splits_with_other_names": (("seg_a/x", "seg_a/y", "seg_b/x", "seg_b/y"),
                                "train_split=seg_a and eval_split=seg_b"),
    "validation_without_classes": (("train/a", "train/b", "val"), "val has no class folders"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_is_not_certain_is_refused_and_the_way_out_is_told(tmp_path, case):
    paths, message = AMBIGUOUS[case]
    _folders(tmp_path, *paths)
    with pytest.raises(ValueError, match=message) as error:
        pipeline.describe(_options(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [
    ("train_split", "trian"), ("eval_split", "tset"), ("eval_split", "test"),
    ("train_split", "train[:90%]"), ("train_split", "./nowhere"), ("eval_split", "./nowhere")])
def test_a_split_that_is_not_there_is_never_the_whole_folder(tmp_path, key, value):
    _folders(tmp_path, "train/a", "train/b", "val/a")
    with pytest.raises(ValueError, match=r"(tset|trian|test|train\[:90%\]|nowhere)\b.*val"):
        pipeline.describe(_options(tmp_path, **{key: value}))
    if key == "eval_split":  # nor are examples that were held back for another split
        with pytest.raises(ValueError, match="has no split|is no folder"):
            pipeline.eval_batches(_options(tmp_path), value)


def test_a_split_that_is_named_as_the_training_images_are_is_not_taken_for_them(tmp_path):
    _folders(tmp_path, "train1/a", "train1/b", "train2/a")
    options = _options(tmp_path, train_split="train1", eval_split="train2")
    assert (pipeline.describe(options).num_train, pipeline.describe(options).num_eval) == (2, 1)


def test_no_image_is_both_trained_on_and_measured(tmp_path):
    _folders(tmp_path, "images/a", "images/b", "images/test/a", "images/test/b")
    options = _options(tmp_path, train_split="./images", eval_split="./images/test")
    info = pipeline.describe(options)
    assert (info.class_names, info.num_train, info.num_eval) == (("a", "b"), 2, 2)
    _folders(tmp_path, "images/a/val/a")
    with pytest.raises(ValueError, match="eval_split=./images/a/val: .* lies inside a class"):
        pipeline.describe(_options(tmp_path, train_split="./images", eval_split="./images/a/val"))


def test_a_test_split_stands_in_for_the_default_alone_and_is_told(tmp_path, caplog):
    _folders(tmp_path, "train/a", "train/b", "test/a")
    assert pipeline.describe(_options(tmp_path)).num_eval == 1
    assert "stands in for it" in caplog.text
    with pytest.raises(ValueError, match="has no split 'val'"):
        pipeline.describe(_options(tmp_path, eval_split="val"))


def test_names_of_splits_can_be_stated(tmp_path):
    _folders(tmp_path / "own", "seg_a/x", "seg_a/y", "seg_b/x", "seg_b/y")
    stated = _options(tmp_path / "own", train_split="seg_a", eval_split="seg_b")
    assert pipeline.describe(stated).num_eval == 2
    _folders(tmp_path / "flat", "car", "train", "test", "val")
    info = pipeline.describe(_options(tmp_path / "flat", train_split="."))
    assert info.class_names == ("car", "test", "train", "val") and info.num_eval == 0
    stated = _options(tmp_path / "flat", train_split=".", eval_split="./test")
    assert pipeline.describe(stated).class_names == ("car", "train", "val")
    assert _evaluated(stated, "validation")["label"].tolist() == [-1]


def test_a_test_folder_without_classes_does_not_stand_for_validation(tmp_path):
    _folders(tmp_path, "train/a", "train/b", "test")
    assert pipeline.describe(_options(tmp_path)).num_eval == 0
    with pytest.raises(ValueError, match="test has no class folders, and"):
        pipeline.describe(_options(tmp_path, eval_split="test"))


def test_folders_without_images_and_litter_are_no_classes_and_are_told(tmp_path, caplog):
    _folders(tmp_path, "train/ant", "train/cow/", "train/dog", "train/__MACOSX/ant",
             "train/.ipynb_checkpoints", "val/ant", "val/dog", "val/ant/.thumbs", "__MACOSX/train")
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / "eel" / "broken.jpg").write_bytes(b"")
    (tmp_path / "train" / "dog" / "Thumbs.db").write_bytes(b"thumbs")
    with caplog.at_level("WARNING", logger="beit_jax"):
        info = pipeline.describe(_options(tmp_path))
    assert (info.num_train, info.num_eval, info.class_names) == (2, 2, ("ant", "dog"))
    for name in ("cow", "__MACOSX", ".ipynb_checkpoints", "eel", "Thumbs.db", ".thumbs"):
        assert name in caplog.text, name


def test_empty_classes_of_validation_do_not_move_labels(tmp_path):
    _folders(tmp_path, "train/a", "train/b", "train/c", "val/a", "val/b/", "val/c")
    assert _evaluated(_options(tmp_path), "validation")["label"].tolist() == [0, 2]


def test_links_that_lead_upwards_or_in_circles_show_no_image_twice(tmp_path, caplog):
    _folders(tmp_path, "cat", "dog", "dog/inner", "far/fox")
    (tmp_path / "cat" / "loop").symlink_to("..")
    (tmp_path / "cat" / "self").symlink_to(".")
    (tmp_path / "cat" / "here").symlink_to(".")
    (tmp_path / "cat" / "dogs").symlink_to("../dog")
    (tmp_path / "dog" / "inner" / "above").symlink_to("../../..")
    (tmp_path / "cat" / "endless").symlink_to("endless")
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "cats").symlink_to("cat")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    with caplog.at_level("WARNING", logger="beit_jax"):
        source = pipeline.load(_options(tmp_path), "train")
    assert source.class_names == ("cat", "dog", "far") and source.labels.tolist() == [0, 1, 1, 2]
    for name in ("loop", "self", "dogs", "above", "endless", "gone.png", "pipe.jpg", "cats"):
        assert f"{name} (" in caplog.text, name


def test_class_folders_may_be_links(tmp_path):
    _folders(tmp_path, "store/x", "store/y")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ant").symlink_to("../store/x")
    (tmp_path / "data" / "bee").symlink_to("../store/y")
    assert pipeline.load(_options(tmp_path / "data"), "train").labels.tolist() == [0, 1]


def test_names_that_are_not_utf8_are_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for k, size in enumerate(((20, 16), (120, 100))):  # too large to be held in memory
        with open(folder + b"/\xff%d.png" % k, "wb") as file:
            _picture(k, size).save(file, "png")
    batch = _evaluated(_options(tmp_path))
    assert batch["label"].tolist() == [0, 0] and batch["image"].std() > 1
    assert pipeline.describe(_options(tmp_path)).class_names == ("caf\\xe9",)


def test_holdout_takes_the_last_of_each_class(tmp_path):
    for name in ("a", "b"):
        for k in range(4):
            _save(tmp_path / name / f"{k}.png", _picture(k))
    options = _options(tmp_path, holdout_per_class=1)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval) == (6, 2)
    last = np.asarray(_picture(3).resize((20, 16)))[:, 2:18]
    np.testing.assert_array_equal(_evaluated(options, "validation")["image"], [last, last])
    with pytest.raises(ValueError, match="=4 leaves nothing to train on: class a has 4"):
        pipeline.describe(_options(tmp_path, holdout_per_class=4))
    with pytest.raises(ValueError, match="examples_per_class=5, but class a has only 4"):
        pipeline.describe(_options(tmp_path, examples_per_class=5))
    with pytest.raises(ValueError, match="has no split 'tset'"):
        pipeline.eval_batches(options, "tset")


def test_holdout_and_a_validation_folder_exclude_each_other(tmp_path, caplog):
    _folders(tmp_path, "train/a", "train/b", "test/a")
    for name in ("a", "b"):
        _save(tmp_path / "train" / name / "more.png", _picture(9))
    with caplog.at_level("WARNING", logger="beit_jax"):
        assert pipeline.describe(_options(tmp_path, holdout_per_class=1)).num_eval == 2
    assert "test is not used: config.data.holdout_per_class=1" in caplog.text
    with pytest.raises(ValueError, match="set one of the two"):
        pipeline.describe(_options(tmp_path, holdout_per_class=1, eval_split="test"))


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


BREAK = {  # what becomes of a file during a run -> what is said of it
    "gone": (os.unlink, "No such file or directory"),
    "cut": (lambda path: os.truncate(path, os.path.getsize(path) // 2), "truncated"),
    "other": (lambda path: path.write_text("words"), "not an image"),
}


def _seven(root, kind="png"):
    """Too large to be held in memory, of three classes."""
    for k in range(7):
        _save(root / "abc"[k // 3] / f"{k}.{kind}", _picture(k, (120 + k, 100)))
    return _options(root, global_batch_size=3, crop="resized", max_broken=2)


@pytest.mark.parametrize("how", BREAK)
def test_where_a_file_breaks_the_next_example_stands_and_no_other_row_changes(
        tmp_path, caplog, how):
    options = _seven(tmp_path, "jpg")
    whole = list(itertools.islice(pipeline.train_batches(options, seed=1), 5))
    for k in (2, 3):  # neighbours: 4 stands for both
        BREAK[how][0](tmp_path / "abc"[k // 3] / f"{k}.jpg")
    with caplog.at_level("WARNING", logger="beit_jax"):
        broken = list(itertools.islice(pipeline.train_batches(options, seed=1), 5))
    assert "abc"[0] + "/2.jpg (" in caplog.text and BREAK[how][1] in caplog.text
    seen = np.concatenate([batch["index"] for batch in whole])
    assert {2, 3} < set(seen.tolist())
    for a, b in zip(whole, broken, strict=True):
        np.testing.assert_array_equal(b["index"], np.where(np.isin(a["index"], [2, 3]), 4,
                                                           a["index"]))
        np.testing.assert_array_equal(b["label"], b["index"] // 3)
        stays = ~np.isin(a["index"], [2, 3])
        np.testing.assert_array_equal(a["image"][stays], b["image"][stays])
    resumed = next(pipeline.train_batches(options, seed=1, start_step=4))
    np.testing.assert_array_equal(resumed["image"], broken[4]["image"])


def test_more_broken_files_than_allowed_end_the_run_by_their_names(tmp_path):
    options = _seven(tmp_path)
    pipeline.describe(options)  # the check at the start has passed
    for k in (0, 4, 5):
        (tmp_path / "abc"[k // 3] / f"{k}.png").unlink()
    with pytest.raises(ValueError, match=r"3 image files broke during the run, more than config\."
                       r"data\.max_broken=2; the last: .*png \(No such file") as error:
        list(itertools.islice(pipeline.train_batches(options, seed=1), 9))
    assert "\n" not in str(error.value)


def test_broken_files_do_not_count_in_an_evaluation(tmp_path):
    options = _seven(tmp_path)
    before = _evaluated(options)
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "c" / "6.png").unlink()
    after = _evaluated(options)
    assert after["index"].tolist() == [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(after["image"], before["image"][after["index"]])


def test_the_next_of_the_chosen_examples_stands_for_a_broken_one():
    is_broken = np.isin(np.arange(8), [1, 4, 7])
    assert broken_files.stand_ins(is_broken).tolist() == [0, 2, 2, 3, 5, 5, 6, 0]
    chosen = broken_files.stand_ins(is_broken, np.array([1, 2, 4, 6, 7]))
    assert chosen[[1, 2, 4, 6, 7]].tolist() == [2, 2, 6, 6, 2]
    with pytest.raises(ValueError, match="no example is left"):
        broken_files.stand_ins(is_broken, np.array([1, 4]))


def test_an_example_of_two_images_is_broken_with_one_of_them(monkeypatch):
    monkeypatch.setattr(broken_files, "_BROKEN", {"b": "gone"})
    source = Source(3, (), "pairs", paths=np.array(["a", "b", "c"]), images_per_example=2,
                    image_of=np.array([0, 2, 2, 1, 0, 0]))
    assert broken_files.examples(source).tolist() == [False, True, False]
    assert broken_files.examples(source._replace(paths=np.array(["a", "c", "d"]))) is None


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


def test_the_digest_follows_the_list_of_images_and_not_the_place(tmp_path):
    for label in ("ant", "bee", "cow"):
        for k in range(3):
            _save(tmp_path / "a" / label / f"{k}.png", _picture(k))

    def digest_of(name, change, **keys):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        change(tmp_path / name)
        return pipeline.describe(_options(tmp_path / name, **keys)).digest

    first = pipeline.describe(_options(tmp_path / "a")).digest
    assert digest_of("copied", lambda root: None) == first
    others = {digest_of(name, change) for name, change in {
        "renamed": lambda root: (root / "ant").rename(root / "dog"),
        "removed": lambda root: (root / "bee" / "1.png").unlink(),
        "swapped": lambda root: (root / "bee" / "1.png").rename(root / "cow" / "9.png"),
        "another": lambda root: _picture(7).save(root / "bee" / "1.png")}.items()}
    assert len(others | {first}) == 5
    assert digest_of("fewer", lambda root: None, examples_per_class=2) != first
