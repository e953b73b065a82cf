"""The state of a run, and weights that must fit."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import checkpoint
from beit_jax.convert import files
from beit_jax.models import adapt
from beit_jax.targets import preprocess
from beit_jax.targets.teachers import TEACHERS
from beit_jax.tasks import image_codes
from beit_jax.tasks.task import (
    Frozen,
    Statistics,
    Task,
    mean_of_sums,
    statistics_of_network,
    statistics_of_target,
)
from beit_jax.training import state
from beit_jax.training.state import InitOptions

SHAPES = {"image": jax.ShapeDtypeStruct((2, 4), jnp.float32)}


def task_of(width=3, frozen=None, begin=None):
    def init(key, batch):
        return {"params": {"a": {"kernel": jax.random.normal(key, (batch["image"].shape[1], width)),
                                 "bias": jnp.zeros(width)}},
                "codebook": {"embed": jnp.ones(2)}}
    return Task(init, None, None, mean_of_sums, frozen=frozen or {}, begin=begin)


def created(mesh, with_ema=True, **kwargs):
    _, make = state.create(task_of(**kwargs), optax.adam(1.0), jax.random.key(0), SHAPES, mesh,
                           with_ema=with_ema)
    return make()


def test_state_is_described_as_it_is_made(mesh):
    abstract, make = state.create(task_of(), optax.adam(1.0), jax.random.key(0), SHAPES, mesh,
                                  with_ema=True)
    made = make()
    assert jax.tree.structure(abstract) == jax.tree.structure(made)
    jax.tree.map(lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
                 or pytest.fail(f"{a} {b}"), abstract, made)
    assert int(made.step) == 0 and set(made.model_state) == {"codebook"}


def test_averaged_parameters_are_equal_and_no_alias(mesh):
    made = created(mesh)
    jax.tree.map(np.testing.assert_array_equal, made.params, made.ema_params)
    kernel, average = made.params["a"]["kernel"], made.ema_params["a"]["kernel"]
    assert kernel.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()
    assert created(mesh, with_ema=False).ema_params is None


FLAT = {"a/kernel": np.full((4, 3), 2.0), "a/bias": np.full(3, 3.0)}


def save(tmp_path, flat):
    np.savez(tmp_path / "w.npz", **flat)
    return str(tmp_path / "w.npz")


def test_loaded_weights_replace_the_random_ones_and_their_average(mesh, tmp_path):
    loaded = state.load_into(created(mesh), InitOptions(checkpoint=save(tmp_path, FLAT)), mesh)
    for params in (loaded.params, loaded.ema_params):
        np.testing.assert_array_equal(params["a"]["kernel"], FLAT["a/kernel"])
        assert params["a"]["kernel"].dtype == jnp.float32
    assert loaded.params["a"]["bias"].unsafe_buffer_pointer() != loaded.ema_params["a"][
        "bias"].unsafe_buffer_pointer()


@pytest.mark.parametrize("change, options, message", [
    ({"a/kernel": np.ones((4, 5))}, {}, r"a/kernel has \(4, 5\) there, \(4, 3\) here"),
    ({"a/bias": None}, {}, "lacks a/bias.*allow_missing"),
    ({"lm_head/kernel": np.ones(2)}, {}, "also has lm_head/kernel.*allow_unused"),
    ({}, {"adapt": ("grow",)}, "adapt names 'grow'; known:"),
    ({"a/kernel": np.ones((4, 5))}, {"allow_missing": (".*",), "allow_unused": (".*",)},
     "another size"),
])
def test_weights_that_do_not_fit_are_one_line(mesh, tmp_path, change, options, message):
    flat = {name: value for name, value in (FLAT | change).items() if value is not None}
    options = InitOptions(checkpoint=save(tmp_path, flat), **options)
    with pytest.raises(ValueError, match=message) as caught:
        state.load_into(created(mesh), options, mesh)
    assert "\n" not in str(caught.value)


def test_allowed_differences_and_adapting(mesh, tmp_path, monkeypatch):
    def rename(loaded, target):
        assert target["a/bias"].shape == (3,)
        return {name.replace("old/", "a/"): value for name, value in loaded.items()}

    monkeypatch.setitem(adapt.ADAPT, "rename", rename)
    path = save(tmp_path, {"old/kernel": FLAT["a/kernel"], "lm_head/kernel": np.ones(2)})
    before = created(mesh)
    loaded = state.load_into(before, InitOptions(
        checkpoint=path, adapt=("rename",), allow_missing=(r"bias$",),
        allow_unused=(r"^lm_head/",)), mesh)
    np.testing.assert_array_equal(loaded.params["a"]["kernel"], FLAT["a/kernel"])
    np.testing.assert_array_equal(loaded.params["a"]["bias"], before.params["a"]["bias"])


@pytest.fixture
def other_run(mesh, tmp_path):
    """Workdir of a run with parameters of 2 and a codebook of 5."""
    other = created(mesh)
    other = other.replace(params=jax.tree.map(lambda leaf: 0 * leaf + 2, other.params),
                          ema_params=None, model_state={"codebook": {"embed": jnp.full(2, 5.0)}})
    with contextlib.closing(checkpoint.Checkpoints(
            tmp_path, checkpoint.CheckpointOptions())) as checkpoints:
        checkpoints.save(1, other)
    return str(tmp_path)


def begun(mesh, **options):
    """The state before the first step; the task's `begin` makes a codebook of rising numbers."""
    def begin(variables, frozen, batch, key):
        return {"codebook": {"embed": variables["codebook"]["embed"] + batch["image"].sum(0)[:2]}}

    batch = {"image": jnp.arange(8.0).reshape(2, 4)}
    return state.begin(created(mesh, with_ema=False), task_of(begin=begin), InitOptions(**options),
                       {}, batch, jax.random.key(0), mesh)


def test_collections_begin_with_the_first_batch(mesh):
    np.testing.assert_array_equal(begun(mesh).model_state["codebook"]["embed"], [5, 7])


def test_a_named_collection_is_taken_over_and_not_begun_again(mesh, other_run, tmp_path):
    flat = {"a/kernel": np.full((4, 3), 2.0), "a/bias": np.full(3, 2.0)}
    file = save(tmp_path, flat | {"codebook/embed": np.full(2, 5.0)})
    for path in (other_run, file):
        taken = begun(mesh, checkpoint=path, collections=("codebook",))
        np.testing.assert_array_equal(taken.model_state["codebook"]["embed"], [5, 5])
        np.testing.assert_array_equal(taken.params["a"]["kernel"], flat["a/kernel"])


def test_without_the_name_the_weights_are_taken_and_the_collection_is_not(mesh, other_run):
    fresh = begun(mesh, checkpoint=other_run)
    np.testing.assert_array_equal(fresh.model_state["codebook"]["embed"], [5, 7])
    np.testing.assert_array_equal(fresh.params["a"]["bias"], [2, 2, 2])


@pytest.mark.parametrize("path", ["", "random"])
def test_without_a_checkpoint_named_collections_begin_all_the_same(mesh, path):
    made = begun(mesh, checkpoint=path, collections=("codebook",))
    np.testing.assert_array_equal(made.model_state["codebook"]["embed"], [5, 7])


@pytest.mark.parametrize("path", ["", "weights.npz"])
def test_an_unknown_collection_is_one_line(mesh, path):
    with pytest.raises(ValueError, match="init.collections=.*'code'.*has codebook") as caught:
        begun(mesh, checkpoint=path, collections=("code",))
    assert "\n" not in str(caught.value)


def test_a_file_without_the_collection_is_refused(mesh, tmp_path):
    with pytest.raises(ValueError, match="lacks codebook/embed"):
        begun(mesh, checkpoint=save(tmp_path, FLAT), collections=("codebook",))


def frozen_task():
    def init(key):
        return {"params": {"w": jax.random.normal(key, (2, 2))}, "codebook": {"e": jnp.zeros(3)}}
    return task_of(frozen={"teacher": Frozen(init, "target")})


def test_frozen_networks_come_from_their_section(mesh, tmp_path):
    path = save(tmp_path, {"w": np.eye(2), "codebook/e": np.arange(3.0), "head/b": np.ones(4)})
    frozen = state.load_frozen(frozen_task(), {"target": {"checkpoint": path}}, jax.random.key(0),
                               mesh)
    np.testing.assert_array_equal(frozen["teacher"]["params"]["w"], np.eye(2))
    np.testing.assert_array_equal(frozen["teacher"]["codebook"]["e"], np.arange(3.0))


def test_frozen_networks_at_random_are_told_and_missing_ones_refused(mesh, caplog):
    frozen = state.load_frozen(frozen_task(), {"target": {"checkpoint": "random"}},
                               jax.random.key(0), mesh)
    assert "teacher has random weights" in caplog.text
    assert frozen["teacher"]["params"]["w"].shape == (2, 2)
    with pytest.raises(ValueError, match="target.checkpoint is empty.*needs a trained teacher"):
        state.load_frozen(frozen_task(), {"target": {"checkpoint": ""}}, jax.random.key(0), mesh)


def test_flat_names_agree_with_the_tree():
    tree = {"a": {"b": np.ones(1)}, "c": np.ones(2)}
    assert checkpoint.unflatten(checkpoint.flatten(tree)).keys() == tree.keys()


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def statistics_config(**sections):
    return {"data": HALF} | sections


def trained_on(tmp_path, statistics, kind):
    """A checkpoint of that kind, and what it is called in a config."""
    record = {"data": statistics} if statistics else {}
    if kind == "workdir":
        (tmp_path / "checkpoints" / "3").mkdir(parents=True)
        (tmp_path / "config.json").write_text(json.dumps(record))
        return str(tmp_path)
    files.write(str(tmp_path / f"w.{kind}"), FLAT, record=record)
    return str(tmp_path / f"w.{kind}")


def pixels(statistics=HALF, section="config.target"):
    return Statistics(statistics["mean"], statistics["std"], section)


SETTABLE = {"teacher": Frozen(None, "target", pixels())}
GATHERED = {"statistics": Frozen(None, "target.statistics", pixels(), statistics_of_target)}


@pytest.mark.parametrize("kind", ["workdir", "npz", "safetensors"])
@pytest.mark.parametrize("place, frozen", [
    ("init", {}), ("init", {"backbone": Frozen(None, "init", pixels())}), ("target", SETTABLE),
    ("target.statistics", GATHERED)])
def test_weights_of_other_pixels_are_refused_unless_that_is_said(tmp_path, caplog, kind, place,
                                                                 frozen):
    caplog.set_level("INFO")
    path = trained_on(tmp_path, IMAGENET, kind)
    section = {"checkpoint": path}

    def config(**change):
        name, _, inner = place.partition(".")
        return statistics_config(**{name: {inner: section | change} if inner else section | change})

    with pytest.raises(ValueError) as caught:
        state.check_statistics(config(), frozen)
    message = str(caught.value)
    assert "\n" not in message and "(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)" in message
    assert "(0.5, 0.5, 0.5) and (0.5, 0.5, 0.5)" in message and path in message
    assert f"config.{place}.accept_other_statistics=True" in message
    assert not caplog.text
    state.check_statistics(config(accept_other_statistics=True), frozen)
    assert "(0.485, 0.456, 0.406)" in caplog.text and "\n" not in caplog.records[0].message


def test_a_teacher_that_always_normalises_alike_is_named(tmp_path):
    frozen = {"teacher": Frozen(None, "target", pixels(IMAGENET, ""))}
    config = statistics_config(target={"checkpoint": trained_on(tmp_path, HALF, "npz")})
    with pytest.raises(ValueError, match=r"this teacher takes \(0.485.*give weights of such pixels"
                       ):
        state.check_statistics(config, frozen)


@pytest.mark.parametrize("kind", ["workdir", "npz", "safetensors"])
def test_equal_statistics_pass_and_unknown_ones_are_told(tmp_path, caplog, kind):
    caplog.set_level("INFO")
    almost = {"mean": [0.5, 0.50001, 0.5], "std": [0.5, 0.5, 0.5]}  # as a file may round them
    path = trained_on(tmp_path, almost, kind)
    state.check_statistics(statistics_config(init={"checkpoint": path}), {})
    assert not caplog.text
    (tmp_path / "old").mkdir()
    path = trained_on(tmp_path / "old", None, kind)
    state.check_statistics(statistics_config(init={"checkpoint": path}), {})
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert f"{path} does not say" in caplog.text and "(0.5, 0.5, 0.5)" in caplog.text


def test_networks_that_take_pixels_as_they_are_have_nothing_to_compare(tmp_path, caplog):
    caplog.set_level("INFO")
    config = statistics_config(target={"checkpoint": trained_on(tmp_path, IMAGENET, "npz")},
                               init={"checkpoint": "random"})
    state.check_statistics(config, {"dvae": Frozen(None, "target")})
    assert not caplog.text


@pytest.mark.parametrize("statistics", [
    {"mean": 5, "std": [1, 1, 1]}, {"mean": ["a"] * 3, "std": [1, 1, 1]},
    {"mean": [0.5, 0.5], "std": [0.5, 0.5]}, {"mean": "abc", "std": "abc"}])
def test_a_record_of_no_numbers_is_one_line(tmp_path, statistics):
    config = statistics_config(init={"checkpoint": trained_on(tmp_path, statistics, "npz")})
    with pytest.raises(ValueError, match="w.npz records a mean of .*three numbers") as caught:
        state.check_statistics(config, {})
    assert "\n" not in str(caught.value)


def test_a_run_measured_by_another_config_is_compared_with_its_own(tmp_path):
    config = statistics_config(init={"checkpoint": "is not loaded"})
    trained_on(tmp_path, IMAGENET, "workdir")
    with pytest.raises(ValueError, match=f"^workdir {tmp_path} was trained"):
        state.check_statistics(config, {}, str(tmp_path))


def test_statistics_of_whitened_pixels_are_those_of_the_target(tmp_path):
    """config.target wins over config.data, in the run that gathered them too."""
    record = {"data": HALF, "target": {"kind": "pixels"} | IMAGENET}
    assert statistics_of_target(record)[:2] == (IMAGENET["mean"], IMAGENET["std"])
    assert statistics_of_target({"data": HALF, "target": {}})[:2] == (HALF["mean"], HALF["std"])
    assert statistics_of_target({}) is None


def test_what_each_frozen_network_sees_is_what_it_says():
    tokenizers, teachers = image_codes.TOKENIZERS, TEACHERS
    assert statistics_of_network(tokenizers["dvae"]()) is None
    assert statistics_of_network(tokenizers["vqkd"]()) == (
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "config.target")
    for kind, (mean, std) in {"clip_vitb16": preprocess.CLIP, "mae_vitb16": preprocess.IMAGENET,
                              "dino_resnet50": preprocess.IMAGENET}.items():
        assert statistics_of_network(teachers[kind]()) == (mean, std, "")
