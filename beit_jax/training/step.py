"""The train step: knows only `Task` and optax."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from beit_jax.tasks.task import Task
from beit_jax.training.state import TrainState


def make_train_step(task: Task, tx: optax.GradientTransformation, base_key: jax.Array, *,
                    ema_decay: float = 0.0, accumulation_steps: int = 1,
                    out_shardings: Any = None) -> Callable:
    """Compiles one step of training: one global batch, one update of the parameters.

    Args:
      base_key: all randomness of step t follows from it and t, so that a resumed run redraws t's.
      ema_decay: weight of the old averaged parameters; 0 keeps none.
      accumulation_steps: parts that a batch is worked off in, to save memory; gradients and
        metrics are the means over the parts.
      out_shardings: of (state, metrics); None lets the compiler choose, which may move leaves.
    Returns: (state, frozen, batch) -> (state, metrics). `state` is donated. `metrics` are scalars:
      the task's, "loss", "grad_norm" (global norm before clipping), and "is_finite" (bool):
      whether loss, gradient and what the step has made of the state are numbers.
    """
    def gradients(params, model_state, frozen, batch, key):
        grad_fn = jax.value_and_grad(task.loss, has_aux=True)
        (loss, (model_state, metrics)), grads = grad_fn(params, model_state, frozen, batch, key)
        return model_state, (grads, {"loss": loss} | metrics)

    def train_step(state: TrainState, base_key, frozen, batch):
        key = jax.random.fold_in(base_key, state.step)
        if accumulation_steps == 1:
            model_state, (grads, metrics) = gradients(
                state.params, state.model_state, frozen, batch, key)
        else:
            model_state, (grads, metrics) = _mean_over_parts(
                lambda model_state, part, key: gradients(
                    state.params, model_state, frozen, part, key),
                state.model_state, batch, key, accumulation_steps)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if task.end_step is not None:
            model_state = task.end_step(params, model_state)
        ema_params = state.ema_params
        if ema_decay:
            ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
        state = TrainState(step=state.step + 1, params=params, model_state=model_state,
                           opt_state=opt_state, ema_params=ema_params)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        return state, metrics | {"is_finite": _is_finite(metrics, state)}

    # The key is an argument, not a constant: runs that differ in the seed share one program.
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)
    return lambda state, frozen, batch: jitted(state, base_key, frozen, batch)


def _is_finite(metrics: Mapping[str, jax.Array], state: TrainState) -> jax.Array:
    """Whether a step may be saved, bool []: what it saves could not be trained on otherwise.

    The parameters by their norm, which is infinite already where squares overflow, at 2e19: after
    a rate of 1e30 each of them is still a number.
    """
    others = [leaf for leaf in jax.tree.leaves(state.model_state)
              if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    values = [metrics["loss"], metrics["grad_norm"], optax.tree.norm(state.params), *others]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(value)) for value in values]))


class InFlight:
    """Steps that were given to the devices and are not done: at most two.

    Else the host would queue batches until the memory is full.

    Attributes: done: steps that are done, and were finite.
    """

    def __init__(self):
        self.done = 0
        self._waiting = collections.deque()

    def add(self, number: int, metrics: Mapping[str, jax.Array]) -> None:
        """A step was begun. Raises: NotFinite: an earlier one was not."""
        self._waiting.append((number, metrics))
        if len(self._waiting) > 2:
            self._wait()

    def finished(self) -> int:
        """How many are done by now.

        One that is not finite is left to `add` and `drain`, which raise at the same step in every
        process: which steps are ready already is each process's own.
        """
        while (self._waiting and (is_finite := self._waiting[0][1]["is_finite"]).is_ready()
               and bool(is_finite)):
            self._wait()
        return self.done

    def drain(self) -> None:
        """Returns once all are done. Raises: NotFinite."""
        while self._waiting:
            self._wait()

    def _wait(self) -> None:
        number, metrics = self._waiting.popleft()
        if bool(metrics["is_finite"]):
            self.done += 1
            return
        for key, name in (("loss", "the loss"), ("grad_norm", "the norm of the gradient")):
            if not math.isfinite(value := float(metrics[key])):
                raise NotFinite(number, f"{name} is {value}", weights_of=number - 1)
        raise NotFinite(number, "the updated state is not finite", weights_of=number)


class NotFinite(Exception):
    """A step gave something that is no number.

    Attributes: weights_of: the step whose parameters gave it.
    """

    def __init__(self, number: int, what: str, weights_of: int):
        super().__init__(f"{what} at step {number}")
        self.weights_of = weights_of


def _mean_over_parts(gradients: Callable, model_state: Any, batch: Any, key: jax.Array,
                     num_parts: int) -> tuple[Any, Any]:
    """Works off a batch in parts, one after the other; the mean of what they give."""
    # [b, ...] -> [b / n, n, ...] -> [n, b / n, ...]: every part stays spread over all devices
    parts = jax.tree.map(
        lambda rows: rows.reshape(-1, num_parts, *rows.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, num_parts)
    first = jax.tree.map(lambda rows: rows[0], parts)
    shapes = jax.eval_shape(gradients, model_state, first, keys[0])[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry, part_and_key):
        model_state, total = carry
        model_state, value = gradients(model_state, *part_and_key)
        return (model_state, jax.tree.map(jnp.add, total, value)), None

    (model_state, total), _ = jax.lax.scan(add, (model_state, zeros), (parts, keys))
    return model_state, jax.tree.map(lambda value: value / num_parts, total)
