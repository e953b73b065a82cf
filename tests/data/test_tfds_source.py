"""Prepared TFDS data sets in every way they can be read."""
import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from text_corpora import WORDS, assert_resumes_and_splits, write_tokenizer

from beit_jax.data import pipeline, tfds_source

NUM = {"train": 23, "test": 9}
WAYS = {  # way of reading -> file format, fixed image size, limits of pixels and files in memory
    "pixels_in_memory": ("array_record", True, 2**20, 2**20),
    "pixels_of_tfrecord": ("tfrecord", True, 2**20, 2**20),
    "by_number": ("array_record", False, 2**20, 2**20),
    "large_by_number": ("array_record", True, 0, 0),
    "files_in_memory": ("tfrecord", False, 2**20, 2**20),
    "in_sequence": ("tfrecord", False, 0, 0),
}


def _image(split, number, is_fixed):
    shape = (16, 16, 3) if is_fixed else (16 + number % 3, 16, 3)
    seed = [list(NUM).index(split), number]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _captions(number):
    return [f"{WORDS[number % 7]} cat", "the bus", "many"][:1 + number % 3]


class Squares(tfds.core.GeneratorBasedBuilder):
    """Noise; config "fixed" has one image size, "mixed" several."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version="1.0.0")
                       for name in ("fixed", "mixed")]
    code_path = None

    def _info(self):
        side = 16 if self.builder_config.name == "fixed" else None
        return tfds.core.DatasetInfo(
            builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
                "extra": tfds.features.Text(),
                "captions": tfds.features.Sequence({"text": tfds.features.Text(),
                                                    "id": np.int64})}))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUM}

    def _generate_examples(self, split):
        for i in range(NUM[split]):
            yield i, {"image": _image(split, i, self.builder_config.name == "fixed"),
                      "label": i % 2, "extra": "" if i == 3 else "red dog",
                      "captions": [{"text": said, "id": i} for said in _captions(i)]}


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    tfds.disable_progress_bar()
    folders = {}
    for file_format in ("array_record", "tfrecord"):
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        for name in ("fixed", "mixed"):
            Squares(config=name, data_dir=folders[file_format],
                    file_format=file_format).download_and_prepare()
    return folders


@pytest.fixture(params=WAYS)
def options(request, data_dirs, monkeypatch):
    """Options that read the small data set in one of the ways large ones are read."""
    file_format, is_fixed, pixels, files = WAYS[request.param]
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_PIXELS", pixels)
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_FILES", files)
    tfds_source.read_prepared.cache_clear()
    yield pipeline.DataOptions(
        name=f"squares/{'fixed' if is_fixed else 'mixed'}", path=str(data_dirs[file_format]),
        global_batch_size=4, image_px=16, crop="none", flip=0.0, eval_split="test", threads=2)
    tfds_source.read_prepared.cache_clear()


def _is_fixed(options):
    return options.name.endswith("fixed")


def test_training_gives_each_example_once_an_epoch_with_its_own_pixels(options):
    assert pipeline.describe(options) == pipeline.DataInfo(23, 9, 2, ("a", "b"))
    batches = list(itertools.islice(pipeline.train_batches(options, seed=0), 5))
    index = np.concatenate([batch["index"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert len(set(index.tolist())) == 20
    if _is_fixed(options):  # stored in order, not cropped: number, pixels and label belong together
        np.testing.assert_array_equal(label, index % 2)
        np.testing.assert_array_equal(
            batches[0]["image"], [_image("train", i, True) for i in batches[0]["index"]])


def test_resume_and_two_processes_see_the_unbroken_run(options):
    whole = list(itertools.islice(pipeline.train_batches(options, seed=1), 8))
    resumed = itertools.islice(pipeline.train_batches(options, seed=1, start_step=6), 2)
    for a, b in zip(whole[6:], resumed, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    for i in range(2):
        part = itertools.islice(pipeline.train_batches(
            options, seed=1, start_step=4, process_index=i, process_count=2), 3)
        for a, b in zip(whole[4:7], part, strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key][2 * i:2 * i + 2], b[key])


def test_evaluation_is_in_order_and_filled_up(options):
    batches = list(pipeline.eval_batches(options))
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.tolist() == [*range(9), -1, -1, -1]
    assert np.concatenate([b["is_example"] for b in batches]).sum() == 9
    assert np.concatenate([b["label"] for b in batches])[:9].tolist() == [i % 2 for i in range(9)]


def test_a_limited_evaluation_takes_examples_spread_over_the_split(options):
    """4 of 9 are the numbers 0, 2, 4 and 6."""
    whole, part = (list(pipeline.eval_batches(options, limit=limit)) for limit in (0, 4))
    assert len(part) == 1 and part[0]["is_example"].all()
    images = np.concatenate([batch["image"] for batch in whole])
    np.testing.assert_array_equal(part[0]["image"], images[[0, 2, 4, 6]])
    assert part[0]["label"].tolist() == [0, 0, 0, 0]


def test_holdout_stands_for_a_missing_split(data_dirs):
    options = pipeline.DataOptions(
        name="squares/fixed", path=str(data_dirs["array_record"]), global_batch_size=4,
        image_px=16, crop="none", holdout_per_class=3)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval) == (17, 6)
    with pytest.raises(ValueError, match="no split 'validation' .known: "):
        pipeline.eval_batches(pipeline.DataOptions(
            name="squares/fixed", path=str(data_dirs["array_record"]), global_batch_size=4,
            image_px=16))


@pytest.mark.parametrize("key", ["holdout_per_class", "examples_per_class", "train_examples"])
def test_choices_beforehand_need_random_access_or_memory(options, key):
    options = dataclasses.replace(options, **{key: 5 if key == "train_examples" else 3})
    if "tfrecord" in options.path and tfds_source._IN_MEMORY_FILES == 0:
        with pytest.raises(ValueError, match=f"{key} .*in sequence: prepare it as array_record"):
            pipeline.describe(options)
        return
    info = pipeline.describe(options)
    assert info.num_train == {"holdout_per_class": 17, "examples_per_class": 6,
                              "train_examples": 5}[key]
    assert info.num_eval == (6 if key == "holdout_per_class" else 9)
    batches = [next(pipeline.train_batches(options, seed=0)), *pipeline.eval_batches(options)]
    for batch in batches:
        shown = batch["is_example"]
        if _is_fixed(options):  # pixels and label belong together
            number = {_image(split, i, True).tobytes(): i for split, n in NUM.items()
                      for i in range(n)}
            found = [number[image.tobytes()] for image in batch["image"][shown]]
            np.testing.assert_array_equal(batch["label"][shown], np.array(found) % 2)


def test_what_is_not_prepared_says_where_it_looked_and_what_to_do(tmp_path):
    options = pipeline.DataOptions(name="imagenet2012", path=str(tmp_path), global_batch_size=4,
                                   image_px=16)
    with pytest.raises(FileNotFoundError, match="looked in .*imagenet2012.*tfds build") as error:
        pipeline.describe(options)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def captioned(options, tmp_path_factory):
    tfds_source._read_captions.cache_clear()
    yield dataclasses.replace(options, text="captions/text", text_length=8,
                              tokenizer=write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    tfds_source._read_captions.cache_clear()


def _is_sequence(options):
    return "tfrecord" in options.path and tfds_source._IN_MEMORY_FILES == 0


def test_captions_belong_to_their_images(captioned):
    if _is_sequence(captioned):
        with pytest.raises(ValueError, match="text='captions/text' needs random access"):
            pipeline.describe(captioned)
        return
    info = pipeline.describe(captioned)
    assert (info.num_train, info.num_eval, info.vocab_size) == (23, 9, 90)
    assert_resumes_and_splits(captioned)
    split = pipeline.split_info(captioned)
    batch = next(pipeline.eval_batches(captioned))
    for row, index in enumerate(batch["index"]):
        said = [split.tokenizer.decode(ids) for ids in batch["text"][row]]
        assert said[:1 + index % 3] == list(split.records[index].captions) == _captions(index)
        assert split.records[index].image_id == index
        if _is_fixed(captioned):
            np.testing.assert_array_equal(batch["image"][row], _image("test", index, True))


def test_every_caption_of_a_prepared_set_may_be_an_example(captioned):
    if _is_sequence(captioned):
        return
    options = dataclasses.replace(captioned, captions="each")
    counts = [1 + i % 3 for i in range(23)]
    assert pipeline.describe(options).num_train == sum(counts)
    batches = list(itertools.islice(pipeline.train_batches(options, seed=0), sum(counts) // 4))
    decode = pipeline.split_info(options, "train").tokenizer.decode
    shown = [(image.tobytes(), decode(text), label) for batch in batches for image, text, label in
             zip(batch["image"], batch["text"], batch["label"], strict=True)]
    assert len(set(shown)) == len(batches) * 4
    if _is_fixed(options):
        assert set(shown) <= {(_image("train", i, True).tobytes(), said, i % 2)
                              for i in range(23) for said in _captions(i)}
    held = dataclasses.replace(options, holdout_per_class=3, examples_per_class=0)
    assert pipeline.describe(held).num_eval == 6


def test_a_feature_without_texts_and_an_example_without_are_one_line(captioned):
    if _is_sequence(captioned):
        return
    for feature in ("label", "caption"):
        with pytest.raises(ValueError, match=f"text='{feature}' is no feature with texts .*"
                                             "captions/text"):
            pipeline.describe(dataclasses.replace(captioned, text=feature))
    with pytest.raises(ValueError, match="example 3 has no text in extra.*skip_defects"):
        pipeline.describe(dataclasses.replace(captioned, text="extra"))
    options = dataclasses.replace(captioned, text="extra", skip_defects=True)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval) == (22, 8)
