"""Evaluation: fillers do not count, rows and sums agree, averages are what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import options
from beit_jax.tasks.task import Task, mean_of_sums
from beit_jax.training import evaluate
from beit_jax.training.state import TrainState

VALUES = np.arange(1.0, 11.0, dtype=np.float32)


def batches(size):
    for begin in range(0, len(VALUES), size):
        position = np.arange(begin, begin + size)
        yield {"x": np.where(position < 10, VALUES[np.minimum(position, 9)], 1e6).astype("f4"),
               "is_example": position < 10}


def state_of(scale, ema=None):
    return TrainState(step=jnp.zeros(()), params={"scale": jnp.asarray(scale)},
                      model_state={"shift": {"by": jnp.asarray(2.0)}}, opt_state=(),
                      ema_params=None if ema is None else {"scale": jnp.asarray(ema)})


def eval_step(variables, frozen, batch):
    rows = batch["x"] * variables["params"]["scale"] + variables["shift"]["by"] + frozen["f"]
    return {"mean": jnp.sum(jnp.where(batch["is_example"], rows, 0)),
            "count": jnp.sum(batch["is_example"])}


def eval_rows(variables, frozen, batch):
    return {"x": batch["x"] * variables["params"]["scale"]}


def measure(mesh, task, state, size):
    return task.summarize(evaluate.collect(task, evaluate.make_eval_step(task, mesh), state,
                                           {"f": jnp.zeros(())}, batches(size), mesh))


@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_fillers_of_the_last_batch_do_not_count(mesh, size):
    task = Task(None, None, eval_step, mean_of_sums)
    assert measure(mesh, task, state_of(1.0), size) == {"mean": pytest.approx(5.5 + 2.0)}


def test_averaged_parameters_are_measured_where_there_are_any(mesh):
    task = Task(None, None, eval_step, mean_of_sums)
    assert measure(mesh, task, state_of(1.0, ema=3.0), 4)["mean"] == pytest.approx(3 * 5.5 + 2)


def test_rows_come_in_order_and_without_fillers(mesh):
    seen = []
    task = Task(None, None, eval_rows, lambda rows: seen.append(rows["x"]) or {"n": 1.0},
                reduce="concat")
    assert measure(mesh, task, state_of(2.0), 4) == {"n": 1.0}
    np.testing.assert_array_equal(seen[0], 2 * VALUES)


def test_sums_are_exact_beyond_what_float32_counts(mesh):
    big = [{"x": np.full(1, value, np.float32), "is_example": np.ones(1, bool)}
           for value in (2.0 ** 24, 1.0, 1.0, 1.0)]
    task = Task(None, None, lambda v, f, b: {"s": jnp.sum(b["x"]), "count": jnp.ones(())},
                lambda sums: {"s": float(sums["s"])})
    sums = evaluate.collect(task, evaluate.make_eval_step(task, mesh), state_of(1.0), {}, big, mesh)
    assert sums["s"] == 2.0 ** 24 + 3


def test_an_empty_split_says_what_to_do(mesh):
    task = Task(None, None, eval_step, mean_of_sums)
    with pytest.raises(ValueError, match="no examples: set config.data.eval_split"):
        evaluate.collect(task, evaluate.make_eval_step(task, mesh), state_of(1.0), {}, [], mesh)


def test_pictures_are_cut_to_the_rows_asked_for(mesh):
    def pictures(variables, frozen, batch, key):
        return {"p": jnp.zeros((batch["x"].shape[0], 2, 2, 3), jnp.uint8)}
    task = Task(None, None, eval_step, mean_of_sums, pictures=pictures)
    batch = next(batches(8))
    draw = evaluate.make_pictures(task, 3, mesh)
    assert draw(state_of(1.0), {}, batch, jax.random.key(0))["p"].shape == (3, 2, 2, 3)
    assert evaluate.make_pictures(task, 0, mesh) is None


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="config.eval.limit=-1 must be 0 or more"):
        options.build(evaluate.EvalOptions, dict(limit=-1), "config.eval")
