"""Order, resume, several processes, and the views of `beit_jax.data.pipeline`."""
import itertools
import subprocess
import sys

import numpy as np
import pytest

from beit_jax import data, options
from beit_jax.data import pipeline
from beit_jax.data.options import DataOptions
from beit_jax.data.source import MissingSplit, Source

NUM, CLASSES = 21, 3


def _toy(size, splits=("train", "validation")):
    """In-memory pictures of one size; picture i holds the value 10 i in its first channel."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(size // 8, 1).repeat(size // 8, 2)
    images[..., 0] = 10 * np.arange(NUM)[:, None, None]
    labels = (np.arange(NUM) % CLASSES).astype(np.int32)

    def load(options, split):
        if split not in splits:
            raise MissingSplit(f"toy has no split {split}")
        return Source(NUM, ("a", "b", "c"), "toy", labels=labels, images=images)

    return load


@pytest.fixture(autouse=True)
def toy_sources(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "small", _toy(16))
    monkeypatch.setitem(data.SOURCES, "large", _toy(112))
    monkeypatch.setitem(data.SOURCES, "alone", _toy(16, ("train",)))


PLAIN = dict(global_batch_size=4, image_px=16, crop="none", flip=0.0, threads=2)
KINDS = {  # every branch: finished views, whole batches, single images, RandAugment after either
    "finished": dict(name="synthetic", synthetic_examples=NUM, synthetic_classes=CLASSES,
                     target_px=8),
    "plain": dict(name="small"),
    "pad": dict(name="small", crop="pad", flip=0.5),
    "pretrain": dict(name="small", crop="resized", flip=0.5, color_jitter=0.4, target_px=8),
    "probe": dict(name="small", crop="resized_once", flip=0.5),
    "finetune": dict(name="small", crop="resized", flip=0.5, randaugment="rand-m9-mstd0.5-inc1"),
    "singly": dict(name="large", crop="resized", flip=0.5, color_jitter=0.4, target_px=8),
    "tokenizer": dict(name="large", crop="dvae", image_px=32, flip=0.5),
}


def _options(kind="plain", **changes):
    return DataOptions(**(PLAIN | KINDS[kind] | changes))


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def _assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("kind", [
    # four graphs with thirty-odd branches each
    pytest.param(kind, marks=pytest.mark.slow if kind == "finetune" else ()) for kind in KINDS])
def test_resumed_run_and_two_processes_see_the_batches_of_one_unbroken_run(kind):
    options = _options(kind)
    whole = _take(pipeline.train_batches(options, seed=3), 7)  # 5 steps an epoch
    _assert_equal(_take(pipeline.train_batches(options, seed=3, start_step=4), 3), whole[4:])
    halves = [_take(pipeline.train_batches(options, seed=3, process_index=i, process_count=2), 7)
              for i in range(2)]
    _assert_equal([{key: np.concatenate([a[key], b[key]]) for key in a}
                   for a, b in zip(*halves, strict=True)], whole)
    other = next(pipeline.train_batches(options, seed=4))
    assert not np.array_equal(other["image"], whole[0]["image"])


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_the_promised_keys_shapes_and_types(kind):
    options = _options(kind)
    batch = next(pipeline.train_batches(options, seed=0))
    sizes = {"image": options.image_px}
    if options.target_px:
        sizes["image_for_target"] = options.target_px
    assert batch.keys() == {*sizes, "label", "index", "is_example"}
    for key, size in sizes.items():
        assert batch[key].dtype == np.uint8 and batch[key].shape == (4, size, size, 3)
    assert batch["label"].dtype == batch["index"].dtype == np.int32
    assert batch["is_example"].dtype == bool and batch["is_example"].all()
    np.testing.assert_array_equal(batch["label"], batch["index"] % CLASSES)


@pytest.mark.parametrize("kind", ["finished", "plain"])
def test_an_epoch_shows_no_example_twice_and_epochs_differ(kind):
    batches = _take(pipeline.train_batches(_options(kind), seed=0), 10)
    epochs = [np.concatenate([batch["index"] for batch in batches[i:i + 5]]) for i in (0, 5)]
    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_without_augmentation_an_image_is_the_stored_one():
    images = _toy(16)(None, "train").images
    for batch in _take(pipeline.train_batches(_options("plain"), seed=0), 5):
        np.testing.assert_array_equal(batch["image"], images[batch["index"]])


@pytest.mark.parametrize("kind", ["pretrain", "singly"])
def test_augmentation_of_an_example_differs_between_epochs(kind):
    batches = _take(pipeline.train_batches(_options(kind, global_batch_size=21), seed=0), 2)
    first, second = ({int(i): im for i, im in zip(b["index"], b["image"], strict=True)}
                     for b in batches)
    assert all(not np.array_equal(first[i], second[i]) for i in range(NUM))


def test_both_views_show_the_same_crop():
    options = _options("singly", image_px=64, target_px=32, color_jitter=0.0)
    batch = next(pipeline.train_batches(options, seed=0))
    shrunk = batch["image"].reshape(4, 32, 2, 32, 2, 3).mean((2, 4))
    views = batch["image_for_target"].astype(float)
    for own, view in zip(shrunk, views, strict=True):
        assert np.corrcoef(own.ravel(), view.ravel())[0, 1] > 0.95
        assert np.corrcoef(own[:, ::-1].ravel(), view.ravel())[0, 1] < 0.95


@pytest.mark.parametrize("kind", ["finished", "plain", "singly"])
def test_evaluation_covers_the_split_once_and_fills_up_the_last_batch(kind):
    options = _options(kind, eval_batch_size=8)
    whole = list(pipeline.eval_batches(options))
    assert [len(batch["label"]) for batch in whole] == [8, 8, 8]
    index = np.concatenate([batch["index"] for batch in whole])
    is_example = np.concatenate([batch["is_example"] for batch in whole])
    assert index.tolist() == [*range(NUM), -1, -1, -1]
    assert is_example.tolist() == [True] * NUM + [False] * 3
    label = np.concatenate([batch["label"] for batch in whole])
    assert label.tolist() == [*(i % CLASSES for i in range(NUM)), -1, -1, -1]
    halves = [list(pipeline.eval_batches(options, process_index=i, process_count=2))
              for i in range(2)]
    _assert_equal([{key: np.concatenate([a[key], b[key]]) for key in a}
                   for a, b in zip(*halves, strict=True)], whole)


@pytest.mark.parametrize("kind", ["finished", "plain", "singly"])
def test_a_limited_evaluation_takes_examples_spread_over_the_split(kind):
    options = _options(kind, eval_batch_size=2)
    whole = list(pipeline.eval_batches(options))
    part = list(pipeline.eval_batches(options, limit=3))
    for key in ("image", "label"):
        rows = np.concatenate([batch[key] for batch in whole])
        few = np.concatenate([batch[key] for batch in part])[:3]
        np.testing.assert_array_equal(few, rows[[0, 7, 14]])  # of 21
    assert np.concatenate([batch["is_example"] for batch in part]).tolist() == [True] * 3 + [False]
    _assert_equal(list(pipeline.eval_batches(options, limit=21)), whole)


def test_few_labels_are_balanced_and_grow_with_their_number():
    def examples(per_class):
        options = _options("plain", examples_per_class=per_class, global_batch_size=3)
        assert pipeline.describe(options).num_train == 3 * per_class
        batches = _take(pipeline.train_batches(options, seed=0), per_class)
        return np.concatenate([batch["index"] for batch in batches]).tolist()

    two, four = examples(2), examples(4)
    assert len(set(two)) == 6 and set(two) < set(four)
    assert sorted(i % CLASSES for i in four) == [0] * 4 + [1] * 4 + [2] * 4


def test_few_examples_are_chosen_by_the_seed_and_grow_with_their_number():
    def examples(number, seed=0):
        options = _options("plain", train_examples=number, subset_seed=seed, global_batch_size=3)
        assert pipeline.describe(options).num_train == number
        batches = _take(pipeline.train_batches(options, seed=5), number // 3)
        return np.concatenate([batch["index"] for batch in batches]).tolist()

    three, nine = examples(3), examples(9)
    assert len(set(nine)) == 9 and set(three) < set(nine)
    assert sorted(examples(9)) == sorted(nine) != sorted(examples(9, seed=1))


def test_describe_counts_examples_and_a_missing_validation_split_is_none():
    info = pipeline.describe(_options("plain"))
    assert (info.num_train, info.num_eval, info.num_classes) == (NUM, NUM, CLASSES)
    assert pipeline.describe(_options("plain", name="alone")).num_eval == 0
    for use in (pipeline.describe, pipeline.eval_batches):  # a name that was asked for is missed
        with pytest.raises(ValueError, match="no split test"):
            use(_options("plain", eval_split="test"))


@pytest.mark.parametrize("changes, message", [
    (dict(global_batch_size=22), "larger than the 21 training examples"),
    (dict(examples_per_class=8), "has only 7 examples"),
    (dict(train_examples=22), "has only 21 examples"),
    (dict(train_examples=3, examples_per_class=1), "set one of the two"),
    (dict(name="no_such_data"), "not prepared"),
    (dict(name="digit_scenes/no_such"), "known: plain, varied, multi, tiles, photo"),
], ids=lambda value: str(value)[:30])
def test_impossible_requests_are_one_clear_line(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        next(pipeline.train_batches(_options("plain", **changes), seed=0))
    assert "\n" not in str(error.value)


def test_batch_that_processes_do_not_divide_is_refused():
    for call in (lambda: pipeline.train_batches(_options(), seed=0, process_count=3),
                 lambda: pipeline.eval_batches(_options(), process_count=3)):
        with pytest.raises(ValueError, match="global_batch_size=4 is no multiple of 3 processes"):
            call()


@pytest.mark.parametrize("changes", [
    dict(crop="center"), dict(interpolation="cubic"), dict(flip=1.5), dict(crop_scale=(0.5, 0.1)),
    dict(randaugment="autoaugment"), dict(global_batch_size=0), dict(holdout_per_class=-1),
], ids=str)
def test_impossible_options_are_refused_with_key_and_value(changes):
    key, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"config.data.{key}=") as error:
        options.build(DataOptions, vars(_options()) | changes, "config.data")
    assert repr(value) in str(error.value)


def test_importing_the_pipeline_and_synthetic_batches_load_neither_tensorflow_nor_jax():
    code = """
import sys
from beit_jax.data import pipeline
o = pipeline.DataOptions(name="synthetic", global_batch_size=8, image_px=32, target_px=16)
next(pipeline.train_batches(o, seed=0)), list(pipeline.eval_batches(o)), pipeline.describe(o)
assert not {"tensorflow", "tensorflow_datasets", "jax"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
