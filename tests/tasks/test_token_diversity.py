"""Token diversity: streamed statistics, what is measured, and a run that trains nothing."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from stopping import stop_at

from beit_jax import checkpoint, metrics, tasks
from beit_jax.tasks import token_diversity
from beit_jax.training import loop
from beit_jax.training.preemption import Stopped
from configs import common

# without weights, so that every token can be computed beside it
PIXELS = dict(kind="pixels", image_px=32, patch_size=8, normalise=False, **common.HALF_MEAN_STD)
DINO = dict(kind="dino_vitb16", checkpoint="random", image_px=32, patch_size=8, width=16, depth=1,
            num_heads=2)


def config_of(**changes):
    config = common.base()
    config.task, config.dtype = "token_diversity", "float32"
    config.target = dict(PIXELS)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


def rows_of(size, seed=0):
    """A batch of patches whose colours share something with all others of their image."""
    random = np.random.RandomState(seed)
    grey = random.randint(0, 128, (size, 1, 1, 3))
    patch = random.randint(0, 64, (size, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    image = (grey + patch + random.randint(0, 64, patch.shape)).astype(np.uint8)
    return {"image": image, "label": np.zeros(size, np.int32), "is_example": np.ones(size, bool)}


def tokens_of(batch):
    """Tokens of PIXELS by hand, float64 [b, 16, 192]."""
    image = batch["image"].reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return (image.reshape(-1, 16, 192) / 255.0 - 0.5) / 0.5


def parts_of(batch, size):
    count = len(batch["label"])
    return [{name: rows[i:i + size] for name, rows in batch.items()} for i in range(0, count, size)]


def gathered(task, batches):
    """The collections after one step a batch."""
    collections = dict(task.init(jax.random.key(0), batches[0]))
    params, loss = collections.pop("params"), jax.jit(task.loss)
    assert params == {}
    for batch in batches:
        value, (collections, _) = loss(params, collections, {}, batch, jax.random.key(0))
        assert float(value) == 0.0
    return collections


# --- statistics -----------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [24, 8, 5, 1])
def test_statistics_are_those_of_all_images_at_once_however_they_are_split(size):
    task, whole = tasks.make(config_of()), rows_of(24)
    found = gathered(task, parts_of(whole, size))["statistics"]
    tokens = tokens_of(whole).reshape(-1, 192)
    np.testing.assert_allclose(found["mean"], tokens.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["variance"], tokens.var(0), atol=1e-6)  # biased
    assert float(found["count"]) == 24


def test_variance_of_channels_far_from_zero_keeps_its_digits():
    """Sums of squares would be off by 1 % and more: float32 holds 1e6 to 0.06."""
    tokens = 1000.0 + np.random.RandomState(0).standard_normal((40, 25, 4)).astype(np.float32)
    total = {"count": jnp.zeros(()), "mean": jnp.zeros(4), "variance": jnp.zeros(4)}
    for part in np.split(tokens, 8):
        total = token_diversity.combine(total, token_diversity.statistics_of(part))
    expected = tokens.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(total["variance"], expected.var(0), rtol=1e-4)
    np.testing.assert_allclose(total["mean"], expected.mean(0), rtol=1e-6)


# --- evaluation -----------------------------------------------------------------------------------

def measured(task, collections, batches):
    evaluate = jax.jit(task.eval_step)
    sums = [evaluate({"params": {}, **collections}, {}, batch) for batch in batches]
    return task.summarize(jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=float), *sums))


def test_evaluation_measures_raw_centred_and_pooled_tokens_of_each_image_once():
    task, train, split = tasks.make(config_of()), rows_of(8, seed=1), rows_of(10)
    collections = gathered(task, [train])
    filled = [dict(part) for part in parts_of(split, 5)]
    filled[1]["is_example"] = np.arange(5) < 3  # fillers are not images of the split
    found = measured(task, collections, filled)
    tokens = tokens_of(split)[:8].astype(np.float32)
    centred = tokens - tokens_of(train).mean((0, 1)).astype(np.float32)
    pooled = tokens.reshape(8, 2, 2, 2, 2, 192).mean((2, 4)).reshape(8, 4, 192)
    single = np.asarray(metrics.token_similarity(tokens))
    expected = {
        "similarity": single.mean(),
        "similarity_centred": np.mean(metrics.token_similarity(centred)),
        "similarity_pooled": np.mean(metrics.token_similarity(pooled)),
        "standard_error": single.std(ddof=1) / 8**0.5, "num_tokens": 16.0, "width": 192.0}
    expected = {name: float(value) for name, value in expected.items()}
    expected |= {f"diversity{kind}": 1 - expected[f"similarity{kind}"]
                 for kind in ("", "_centred", "_pooled")}
    assert found == pytest.approx(expected, abs=2e-6)
    assert abs(found["similarity"] - found["similarity_centred"]) > 0.01  # they do differ
    assert abs(found["similarity"] - found["similarity_pooled"]) > 0.01


@pytest.mark.parametrize(("patch_size", "has_pooled"), [(4, True), (8, True), (16, False)])
def test_grids_that_2x2_cells_do_not_tile_or_leave_one_cell_are_not_pooled(patch_size, has_pooled):
    task = tasks.make(config_of(target=PIXELS | dict(patch_size=patch_size)))
    batch = rows_of(2)
    assert ("similarity_pooled" in measured(task, gathered(task, [batch]), [batch])) == has_pooled


def test_pooling_averages_neighbours_in_both_directions():
    tokens = jnp.arange(16.0).reshape(1, 16, 1)  # rows 0..3, 4..7, 8..11, 12..15
    np.testing.assert_array_equal(token_diversity.pool(tokens, (4, 4))[0, :, 0],
                                  [2.5, 4.5, 10.5, 12.5])


def test_features_are_the_mean_token():
    task, batch = tasks.make(config_of()), rows_of(3)
    np.testing.assert_allclose(task.features({}, {}, batch), tokens_of(batch).mean(1), atol=1e-6)


def test_a_teacher_whose_features_are_no_numbers_gives_a_loss_that_stops_the_run():
    task, batch = tasks.make(config_of(target=DINO)), rows_of(2)
    frozen = {"teacher": jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, jnp.nan),
        jax.eval_shape(task.frozen["teacher"].init, jax.random.key(0)))}
    collections = dict(task.init(jax.random.key(0), batch))
    value, _ = jax.jit(task.loss)(collections.pop("params"), collections, frozen, batch,
                                  jax.random.key(0))
    assert np.isnan(value)


# --- pictures -------------------------------------------------------------------------------------

def test_the_colours_are_those_of_viridis():
    found = token_diversity.similarity_map(jnp.linspace(0, 1, 25)[None], (5, 5), (5, 5))
    expected = matplotlib.colormaps["viridis"](np.linspace(0, 1, 25))[:, :3] * 255
    np.testing.assert_allclose(found.reshape(25, 3), expected, atol=17)  # nine of them
    below = token_diversity.similarity_map(jnp.array([[-0.4, 0.0]]), (1, 2), (1, 2))
    np.testing.assert_array_equal(below[0, 0, 0], below[0, 0, 1])


def test_pictures_frame_the_query_and_its_own_patch_is_the_brightest():
    task, batch = tasks.make(config_of()), rows_of(3)
    sheet = np.asarray(jax.jit(task.pictures)({}, {}, batch, jax.random.key(0))["similarity_maps"])
    assert sheet.shape == (3, 32, 4 * 32, 3) and sheet.dtype == np.uint8
    image, first, same, second = np.split(sheet, 4, axis=2)
    for shown, colours, corner in ((image, first, 16), (same, second, 8)):
        patch = slice(corner, corner + 8)
        assert (shown[:, corner, patch] == token_diversity._MARK).all()
        assert (shown[:, patch, corner + 7] == token_diversity._MARK).all()
        changed = (shown != batch["image"]).any((0, 3))
        changed[patch, patch] = False
        assert not changed.any()
        inner = slice(corner + 1, corner + 7)
        np.testing.assert_array_equal(shown[:, inner, inner], batch["image"][:, inner, inner])
        assert (colours[:, patch, patch] == token_diversity._COLOURS[-1]).all()
    assert (first != second).any()


# --- a run ----------------------------------------------------------------------------------------

def run_config(**changes):
    """Five steps on noise; the training images are what is measured."""
    settings = dict(
        target=DINO, total_steps=5, data__name="synthetic", data__image_px=32,
        data__global_batch_size=16, eval__split="train", eval__pictures=0,
        checkpoint__every_steps=0, log__every_steps=1, log__tensorboard=False) | changes
    return config_of(**settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(workdir, result) of a run of five steps."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, loop.run(run_config(), workdir)


def test_a_run_without_parameters_is_saved_resumed_and_measured_like_any_other(
        unbroken, tmp_path, monkeypatch):
    workdir, result = unbroken
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Stopped, match="at step 2 of 5"):
            loop.run(run_config(), tmp_path)
    assert loop.run(run_config(), tmp_path) == result
    assert loop.run(run_config(), workdir, evaluate_only=True) == result
    one, other = (checkpoint.load_variables(path, collections=True) for path in (workdir, tmp_path))
    assert {name: value.shape for name, value in one.items()} == {
        "statistics/count": (), "statistics/mean": (16,), "statistics/variance": (16,)}
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert one["statistics/count"] == 80 and (one["statistics/variance"] > 0).all()


def test_parts_of_a_batch_gather_what_the_whole_does(unbroken, tmp_path):
    loop.run(run_config(optim__accumulation_steps=4), tmp_path)
    one, other = (checkpoint.load_variables(path, collections=True)
                  for path in (unbroken[0], tmp_path))
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6)


def test_a_limit_measures_so_many_images_and_a_split_for_evaluation_is_not_needed(
        unbroken, tmp_path, monkeypatch):
    from beit_jax.data import pipeline
    from beit_jax.data.source import MissingSplit

    seen, load, batches = [], pipeline.load, pipeline.eval_batches

    def only_training(options, split):
        if split != "train":
            raise MissingSplit(split)
        return load(options, split)

    def counting(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            seen.append(int(batch["is_example"].sum()))
            yield batch

    monkeypatch.setattr(pipeline, "load", only_training)
    monkeypatch.setattr(pipeline, "eval_batches", counting)
    result = loop.run(run_config(eval__limit=20), tmp_path)
    assert seen == [16, 4]
    assert result["eval/train/similarity"] != unbroken[1]["eval/train/similarity"]
    monkeypatch.undo()


# --- errors ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changes", "message"), [
    (dict(optim__learning_rate=1e-3), "optim.learning_rate=0.001 has no effect: task token_div"),
    (dict(optim__ema_decay=0.9), "optim.ema_decay=0.9 has no effect"),
    (dict(model=dict(width=8)), "config.model is set, but task token_diversity"),
    (dict(target=PIXELS | dict(kind="sift")), "target.kind='sift' is none of"),
    (dict(target=PIXELS | dict(normalize=True)), "did you mean normalise"),
    (dict(target=PIXELS | dict(patch_size=32)), "there is n=1"),
], ids=lambda value: None if isinstance(value, dict) else value[:30])
def test_impossible_recipes_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        task, batch = tasks.make(config_of(**changes)), rows_of(2)
        collections = dict(task.init(jax.random.key(0), batch))
        task.loss(collections.pop("params"), collections, {}, batch, jax.random.key(0))
    assert "\n" not in str(error.value)
