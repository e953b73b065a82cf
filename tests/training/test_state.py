"""The state of a run, and weights that must fit."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import checkpoint
from beit_jax.models import adapt
from beit_jax.tasks.task import Frozen, Task, mean_of_sums
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
