"""The train step: keys, gradients, averages, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax.tasks.task import Task, mean_of_sums
from beit_jax.training import sharding, state, step

BATCH = {"x": np.linspace(-1, 1, 8 * 3, dtype=np.float32).reshape(8, 3),
         "y": np.arange(8, dtype=np.float32)}
SHAPES = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in BATCH.items()}


def linear(noise=0.0, end_step=None):
    """Least squares, with noise from the key, a call counter, and a frozen offset."""
    def init(key, batch):
        return {"params": {"w": jnp.ones(batch["x"].shape[1])}, "count": {"n": jnp.zeros(())}}

    def loss(params, state_, frozen, batch, key):
        error = batch["x"] @ params["w"] + frozen["offset"] - batch["y"]
        value = jnp.mean(error ** 2) + noise * jnp.sum(params["w"]) * jax.random.normal(key)
        return value, ({"count": {"n": state_["count"]["n"] + 1}}, {"error": jnp.mean(error)})
    return Task(init, loss, None, mean_of_sums, end_step=end_step)


def run(mesh, steps=1, *, tx=None, noise=0.0, ema=0.0, parts=1, seed=0, end_step=None):
    task, tx = linear(noise, end_step), tx or optax.sgd(0.1)
    _, make = state.create(task, tx, jax.random.key(0), SHAPES, mesh, with_ema=ema > 0)
    train_step = step.make_train_step(task, tx, jax.random.key(seed), ema_decay=ema,
                                      accumulation_steps=parts)
    current, batch, seen = make(), sharding.global_batch(BATCH, mesh), []
    for _ in range(steps):
        current, metrics = train_step(current, {"offset": jnp.ones(())}, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return current, seen


def gradient(w):
    error = BATCH["x"] @ w + 1 - BATCH["y"]
    return 2 * BATCH["x"].T @ error / 8


def test_one_step_of_gradient_descent_by_hand(mesh):
    current, (metrics,) = run(mesh)
    expected = np.ones(3) - 0.1 * gradient(np.ones(3))
    np.testing.assert_allclose(current.params["w"], expected, rtol=1e-5)
    assert metrics["grad_norm"] == pytest.approx(np.linalg.norm(gradient(np.ones(3))), rel=1e-5)
    assert metrics["loss"] == pytest.approx(
        np.mean((BATCH["x"] @ np.ones(3) + 1 - BATCH["y"]) ** 2), rel=1e-5)
    assert int(current.step) == 1 and float(current.model_state["count"]["n"]) == 1


def test_grad_norm_is_that_before_clipping(mesh):
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    current, (metrics,) = run(mesh, tx=tx)
    assert metrics["grad_norm"] > 1.0
    assert np.linalg.norm(np.ones(3) - current.params["w"]) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_the_parameters(mesh):
    current, _ = run(mesh, steps=2, ema=0.75)
    w, average = np.ones(3), np.ones(3)
    for _ in range(2):
        w = w - 0.1 * gradient(w)
        average = 0.75 * average + 0.25 * w
    np.testing.assert_allclose(current.ema_params["w"], average, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(mesh, parts):
    whole, (metrics,) = run(mesh)
    split, (split_metrics,) = run(mesh, parts=parts)
    np.testing.assert_allclose(split.params["w"], whole.params["w"], rtol=1e-5)
    assert split_metrics == pytest.approx(metrics, rel=1e-5)
    assert int(split.step) == 1
    assert float(split.model_state["count"]["n"]) == parts  # the state goes through all parts


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_ends_once_however_many_parts_its_batch_has(mesh, parts):
    def end_step(params, state_):
        return {"count": {"n": state_["count"]["n"] + 100}}

    current, _ = run(mesh, steps=3, parts=parts, end_step=end_step)
    assert float(current.model_state["count"]["n"]) == 3 * (100 + parts)


def test_a_step_ends_behind_its_last_part(mesh):
    def end_step(params, state_):
        return {"count": {"n": 10 * state_["count"]["n"]}}

    current, _ = run(mesh, steps=2, parts=2, end_step=end_step)
    assert float(current.model_state["count"]["n"]) == 10 * (10 * 2 + 2)


def test_the_key_is_a_function_of_seed_and_step(mesh):
    losses = {seed: [m["loss"] for m in run(mesh, steps=3, noise=1.0, seed=seed,
                                            tx=optax.set_to_zero())[1]] for seed in (0, 1)}
    again = [m["loss"] for m in run(mesh, steps=3, noise=1.0, tx=optax.set_to_zero())[1]]
    assert again == losses[0]
    assert len({*losses[0], *losses[1]}) == 6


def test_seeds_share_one_compiled_program(mesh):
    """The key is no constant of the program, so that the compilation cache serves all seeds."""
    texts = []
    for seed in (0, 1):
        with jax.log_compiles(False):
            task, tx = linear(1.0), optax.sgd(0.1)
            abstract, _ = state.create(task, tx, jax.random.key(0), SHAPES, mesh, with_ema=False)
            lowered = step.make_train_step(task, tx, jax.random.key(seed)).__closure__
            jitted = next(c.cell_contents for c in lowered if hasattr(c.cell_contents, "lower"))
            texts.append(jitted.lower(abstract, jax.random.key(seed), {"offset": jnp.ones(())},
                                      SHAPES).as_text())
    assert texts[0] == texts[1]


def test_the_old_state_is_given_away(mesh):
    task, tx = linear(), optax.sgd(0.1)
    _, make = state.create(task, tx, jax.random.key(0), SHAPES, mesh, with_ema=True)
    before = make()
    train_step = step.make_train_step(task, tx, jax.random.key(0), ema_decay=0.5)
    train_step(before, {"offset": jnp.ones(())}, sharding.global_batch(BATCH, mesh))
    assert before.params["w"].is_deleted() and before.ema_params["w"].is_deleted()
