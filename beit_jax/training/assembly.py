"""The parts of a run, made once: state, data, and the functions that work on them."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax

from beit_jax.checkpoint import Checkpoints
from beit_jax.data import pipeline
from beit_jax.training import (
    evaluate,
    optim,
    preemption,
    recipe,
    records,
    rehearsal,
    sharding,
    state,
    step,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """The parts of a run, made once; only the state that `train` carries changes."""

    name: str
    opts: recipe.Recipe
    mesh: jax.sharding.Mesh
    task: Any
    total: int                      # steps to do, from the first
    per_epoch: int                  # steps
    checkpoints: Checkpoints
    start: int                      # steps done before
    state: state.TrainState         # after `start` steps
    frozen: dict[str, Any]
    batches: Iterator               # from step `start` on
    train_step: Callable
    rates: Callable                 # step -> {"learning_rate": value, ...}
    measure: Callable               # state -> {"eval/<split>/<metric>": value}
    draw: Callable                  # state -> {"name": uint8 [n, h, w, 3]}
    requests: preemption.Requests   # to stop


def assemble(config, opts, name: str, workdir: str, mesh, task, info, checkpoints,
             requests: preemption.Requests) -> Job:
    """Makes the state, fresh or from the newest checkpoint, and the functions that work on it."""
    total, per_epoch = recipe.lengths(config, opts, info.num_train)
    measure_split = evaluate.make_measure(task, opts.eval, mesh)
    start = checkpoints.latest_step()
    process = dict(process_index=jax.process_index(), process_count=jax.process_count())
    batches = pipeline.train_batches(opts.data, seed=opts.seed, start_step=start or 0, **process)
    first = next(batches)
    shapes = sharding.global_shapes(first)
    init_key, step_key, frozen_key, draw_key = jax.random.split(jax.random.key(opts.seed), 4)
    begin_key = jax.random.fold_in(init_key, 1)
    frozen = state.load_frozen(task, config, frozen_key, mesh)
    params = rehearsal.variables_of(task, opts, info, shapes)["params"]
    tx, schedules = optim.make_optimizer(opts.optim, params, total, per_epoch)
    abstract, make_state = state.create(task, tx, init_key, shapes, mesh,
                                        with_ema=opts.optim.ema_decay > 0)
    if start is None:
        train_state = state.begin(make_state(), task, opts.init, frozen,
                                  sharding.global_batch(first, mesh), begin_key, mesh)
    else:
        train_state = checkpoints.restore(start, abstract)
        log.info("%s goes on from step %d of %d", name, start, total)
    train_step = step.make_train_step(
        task, tx, step_key, ema_decay=opts.optim.ema_decay,
        accumulation_steps=opts.optim.accumulation_steps,
        out_shardings=(sharding.shardings(abstract, mesh), sharding.replicated(mesh)))
    draw_pictures = evaluate.make_pictures(task, opts.eval.pictures, mesh)
    split = opts.eval.split
    has_rows = evaluate.has_rows(opts.eval, info)
    if not has_rows:
        log.warning("%s: the data has no examples to evaluate on", name)

    # one small program in place of one for every operation of the schedules
    rates = jax.jit(lambda step: {key: at(step) for key, at in schedules.items()})

    def rows(part: str = split, limit: int = opts.eval.limit) -> Iterator:
        return requests.watched(pipeline.eval_batches(opts.data, part, limit=limit, **process))

    def measure(current) -> dict[str, float]:
        if not has_rows:
            return {}
        values, files = measure_split(current, frozen, rows, functools.partial(
            pipeline.split_info, opts.data, split, limit=opts.eval.limit))
        records.write_predictions(workdir, split, files)
        return {f"eval/{split}/{key}": value for key, value in values.items()}

    def draw(current) -> dict[str, Any]:
        if draw_pictures is None:
            return {}
        shown = next(iter(rows())) if has_rows else first
        return draw_pictures(current, frozen, shown, draw_key)

    return Job(name, opts, mesh, task, total, per_epoch, checkpoints, start or 0, train_state,
               frozen, itertools.chain([first], batches), train_step, rates, measure, draw,
               requests)
