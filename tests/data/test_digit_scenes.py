"""Drawing of digit scenes, their sentences, and the prepared data set."""
import numpy as np
import pytest

from beit_jax.data import digit_scenes, scene_text


@pytest.mark.parametrize("name", digit_scenes.CONFIGS)
def test_scenes_have_the_promised_arrays_and_do_not_depend_on_their_number(name):
    config = digit_scenes.find_config(name)
    few = digit_scenes.make_scenes(name, "train", 20, seed=1)
    many = digit_scenes.make_scenes(name, "train", 600, seed=1)
    assert few["image"].shape == (20, config.image_px, config.image_px, 3)
    assert few["image"].dtype == few["segmentation"].dtype == np.uint8
    for key in few:
        np.testing.assert_array_equal(few[key], many[key][:20], err_msg=key)
    assert not np.array_equal(
        few["image"], digit_scenes.make_scenes(name, "train", 20, seed=2)["image"])


@pytest.mark.parametrize("name", digit_scenes.CONFIGS)
def test_each_digit_is_in_the_segmentation_where_its_record_says(name):
    scenes = digit_scenes.make_scenes(name, "validation", 100)
    for row in range(100):
        present = scenes["digits"][row][scenes["digits"][row] >= 0]
        assert set(np.unique(scenes["segmentation"][row])) == {0, *(present + 1)}
        for slot in np.flatnonzero(scenes["digits"][row] >= 0):
            half = scenes["sizes"][row, slot] * 0.75 + 1
            ys, xs = np.nonzero(scenes["segmentation"][row] == scenes["digits"][row, slot] + 1)
            center = scenes["centers"][row, slot]
            assert np.any(np.maximum(abs(xs + 0.5 - center[0]), abs(ys + 0.5 - center[1])) < half)
    is_one = digit_scenes.find_config(name).max_digits == 1
    np.testing.assert_array_equal(scenes["label"], scenes["digits"][:, 0] if is_one else -1)


def test_plain_digits_stand_out_from_their_background():
    scenes = digit_scenes.make_scenes("plain", "train", 200)
    grey = scenes["image"].mean(-1)
    ink = scenes["segmentation"] > 0
    differences = [abs(g[i].mean() - g[~i].mean()) for g, i in zip(grey, ink, strict=True)]
    assert np.min(differences) > 25 and 0.04 < ink.mean() < 0.5


def test_splits_share_no_handwriting_and_no_photograph():
    train, validation = (set(digit_scenes.handwriting_of(s)) for s in digit_scenes.SPLITS)
    assert not train & validation and len(train | validation) == 1797
    used = digit_scenes.make_scenes("plain", "validation", 500)["handwriting"]
    assert set(used.ravel()) <= validation
    left, right = (digit_scenes._photos(split)[0] for split in digit_scenes.SPLITS)
    assert left.shape[1] + right.shape[1] == 640


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="known: plain, varied, multi, tiles, photo"):
        digit_scenes.make_scenes("plane", "train", 1)
    with pytest.raises(ValueError, match="known: train, validation"):
        digit_scenes.make_scenes("plain", "test", 1)


def _things(*rows):
    return [scene_text.Thing(digit, color, "small", x, y, scene_text.DIGITS.index(digit), 10.0)
            for digit, color, x, y in rows]


def test_captions_name_digits_colours_and_places():
    rng = np.random.default_rng(0)
    pair = _things(("three", "red", 10, 30), ("eight", "orange", 50, 33))
    listed, related = scene_text.captions(pair, 64, rng)
    assert listed == "a red three and an orange eight"
    assert related in ("a red three left of a small orange eight",
                       "an orange eight right of a small red three")
    assert scene_text.captions(_things(("six", "dark", 10, 25)), 32, rng) == [
        "a small dark six", "a dark six at the bottom left"]


def test_questions_have_ten_answers_of_which_most_are_right():
    rng = np.random.default_rng(0)
    pair = _things(("three", "red", 10, 30), ("eight", "blue", 50, 33))
    seen = set()
    for _ in range(50):
        for question, answers in scene_text.questions(pair, 64, rng):
            assert len(answers) == 10
            majority = max(set(answers), key=answers.count)
            assert answers.count(majority) >= 8
            seen.add((question, majority))
    assert {("what digit is red?", "three"), ("how many digits are there?", "two"),
            ("is there a three?", "yes"), ("is there a five?", "no")} <= seen


def test_statements_are_true_about_half_of_the_time_and_never_wrong():
    rng = np.random.default_rng(0)
    scenes = digit_scenes.make_scenes("multi", "train", 300)
    things = [scene_text.things_in(scenes, row, "multi") for row in range(300)]
    truths = []
    for left, right in zip(things[:-1], things[1:], strict=True):
        sentence, is_true = scene_text.statement(left, right, rng)
        truths.append(is_true)
        if sentence.startswith("both images show"):
            digit = sentence.split()[-1]
            assert is_true == all(digit in [t.digit for t in side] for side in (left, right))
        elif "add up" in sentence:
            totals = sum(t.value for t in left), sum(t.value for t in right)
            assert is_true == (totals[0] > totals[1] if "left" in sentence
                               else totals[1] > totals[0])
    assert 0.4 < np.mean(truths) < 0.6


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    from beit_jax.data import digit_scenes_builder
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes_builder, "SIZES", {
            name: (70, 30) if name == "plain" else (30, 20) for name in digit_scenes.CONFIGS})
        for variant in digit_scenes.CONFIGS:
            digit_scenes_builder.prepare(variant, str(cache))
    return cache


def test_prepared_scenes_come_back_as_they_were_drawn(small_cache):
    from beit_jax.data import pipeline
    options = pipeline.DataOptions(name="digit_scenes/plain", path=str(small_cache), crop="none",
                                   global_batch_size=10, image_px=32, flip=0.0)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.num_classes) == (70, 30, 10)
    assert info.class_names == scene_text.DIGITS
    scenes = digit_scenes.make_scenes("plain", "validation", 30)
    for i, batch in enumerate(pipeline.eval_batches(options)):
        np.testing.assert_array_equal(batch["image"], scenes["image"][10 * i:10 * i + 10])
        np.testing.assert_array_equal(batch["label"], scenes["label"][10 * i:10 * i + 10])


def test_prepared_scenes_bear_sentences_and_segmentation(small_cache):
    import tensorflow_datasets as tfds

    from beit_jax.data.digit_scenes_builder import VERSION
    folder = small_cache / "digit_scenes" / "multi" / VERSION
    builder = tfds.builder_from_directory(str(folder))
    examples = builder.as_data_source(split="train")
    assert len(examples) == 30
    for row in (0, 17):
        example = examples[row]
        assert example["segmentation"].shape == (64, 64, 1)
        assert set(np.unique(example["segmentation"])) <= set(range(11))
        assert len(example["captions"]) == 2
        assert len(example["questions"]) == len(example["answers"]) == 3
        assert all(len(a.decode().split("\n")) == 10 for a in example["answers"])
        assert 0 <= example["other"] < 30 and example["other"] != row
        assert example["statement"] and example["statement_is_true"] in (True, False)
    assert sorted(p.name for p in folder.parent.iterdir()) == [VERSION]  # no building site left


def test_unwritable_cache_is_one_clear_line(tmp_path):
    from beit_jax.data import digit_scenes_builder
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="set the environment variable BEIT_JAX_DATA"):
        digit_scenes_builder.prepare("plain", str(tmp_path / "file"))


def test_a_killed_build_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    from beit_jax.data import digit_scenes_builder

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digit_scenes_builder.digit_scenes, "make_scenes", killed)
    with pytest.raises(KeyboardInterrupt):
        digit_scenes_builder.prepare("plain", str(tmp_path))
    assert not list((tmp_path / "digit_scenes" / "plain").iterdir())
