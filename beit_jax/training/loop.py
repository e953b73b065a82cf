"""One run: data, mesh, state, steps, measurements, checkpoints. Knows no method and no data set."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from beit_jax.checkpoint import Checkpoints
from beit_jax.data import pipeline
from beit_jax.training import evaluate, optim, recipe, records, rehearsal, sharding, state, step
from beit_jax.training.metric_writer import MetricWriter, Stopwatch
from beit_jax.training.preemption import Stopped, stop_signal

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


def run(config, workdir: str, *, name: str = "train", evaluate_only: bool = False,
        force: bool = False) -> dict[str, float]:
    """Trains, or goes on, to the end that the config asks for; a finished run only tells its end.

    Args:
      config: one recipe without stages.
      workdir: folder of checkpoints, metrics and pictures.
      name: what progress lines begin with.
      evaluate_only: measure the newest checkpoint (or config.init's weights) and change nothing.
      force: accept a workdir that was made with another config, see `records`.
    Returns: {"eval/<split>/<metric>": value} of the last step.
    Raises: ValueError, FileNotFoundError, OSError: the user's to mend, in one line.
      FloatingPointError: the loss is not finite. Stopped: SIGTERM came.
    """
    opts = recipe.read(config)
    result = None if evaluate_only else records.finished(config, workdir, force)
    if result is not None:
        log.info("%s is finished: %s", name, workdir)
        return result
    mesh = sharding.make_mesh(opts.mesh)
    recipe.check_batch(opts, mesh)
    config, info, task = recipe.with_task(config, opts, evaluate_only)
    state.check_statistics(config, task.frozen, workdir)
    taken = contextlib.nullcontext() if evaluate_only else records.taken(
        config, workdir, recipe.lengths(config, opts, info.num_train)[0], force)
    precision = None if opts.matmul_precision == "default" else opts.matmul_precision
    with (taken, sharding.use(mesh), jax.default_matmul_precision(precision),
          contextlib.closing(Checkpoints(workdir, opts.checkpoint, evaluate_only)) as checkpoints):
        if evaluate_only and checkpoints.latest_step() is None:
            state.check_evaluable(task, opts.init, workdir)
        job = assemble(config, opts, name, workdir, mesh, task, info, checkpoints)
        if evaluate_only:
            return job.measure(job.state)
        with MetricWriter(workdir, name, job.start, job.total, opts.log) as writer:
            result = train(job, writer)
        checkpoints.wait()
        records.finish(config, workdir, job.total, result)
        return result


def assemble(config, opts, name: str, workdir: str, mesh, task, info, checkpoints) -> Job:
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
    has_rows = info.num_eval or split == "train"  # of which there always are some
    if not has_rows:
        log.warning("%s: the data has no examples to evaluate on", name)

    # one small program in place of one for every operation of the schedules
    rates = jax.jit(lambda step: {key: at(step) for key, at in schedules.items()})

    def rows(part: str = split, limit: int = opts.eval.limit) -> Iterator:
        return pipeline.eval_batches(opts.data, part, limit=limit, **process)

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
               frozen, itertools.chain([first], batches), train_step, rates, measure, draw)


def train(job: Job, writer: MetricWriter) -> dict[str, float]:
    """The steps. Returns: the last measurement."""
    opts, current, result = job.opts, job.state, None
    eval_every = opts.eval.every_steps or round(opts.eval.every_epochs * job.per_epoch)
    watch = Stopwatch(opts.data.global_batch_size, job.task.flops_per_image)
    in_flight, pending = collections.deque(), {}

    def settle(number: int, metrics) -> None:
        """Writes the pending lines, and refuses to go on from a loss that is not a number."""
        for logged in sorted(pending):
            values, speed = pending.pop(logged)
            values = jax.device_get(values | job.rates(logged - 1))  # all in one transfer
            train_values = {f"train/{key}": value for key, value in values.items()}
            writer.write(logged, train_values | speed)
        if not math.isfinite(loss := float(metrics["loss"])):
            raise FloatingPointError(
                f"the loss is {loss} at step {number}; last checkpoint: step "
                f"{job.checkpoints.latest_step()} in {job.checkpoints.directory}. Lower config."
                "optim.learning_rate, or set config.optim.clip_norm")

    with stop_signal() as asked_to_stop:
        for number in range(job.start + 1, job.total + 1):
            with watch.waiting():
                batch = sharding.global_batch(next(job.batches), job.mesh)
            current, metrics = job.train_step(current, job.frozen, batch)
            in_flight.append(metrics["loss"])
            if len(in_flight) > 2:  # else the host would queue batches until the memory is full
                in_flight.popleft().block_until_ready()
            if number == job.start + 1:
                watch.begin(metrics["loss"])
            if number % opts.log.every_steps == 0 or number == job.total:
                if pending:  # one interval late: the device does not wait for the host
                    late = max(pending)
                    settle(late, pending[late][0])
                pending[number] = metrics, watch.read(number - job.start)
            measured = {}
            if number == job.total or (eval_every and number % eval_every == 0):
                with watch.paused():
                    settle(number, metrics)
                    measured = result = job.measure(current)
                    writer.write(number, result)
                    writer.pictures(number, job.draw(current))
            stop = asked_to_stop(number)
            due = opts.checkpoint.every_steps and number % opts.checkpoint.every_steps == 0
            if due or stop or number == job.total or (measured and opts.checkpoint.keep_best):
                with watch.paused():
                    settle(number, metrics)
                    scores = {key.split("/", 2)[2]: value for key, value in measured.items()}
                    job.checkpoints.save(number, current, scores)
            if stop:
                raise Stopped(f"{job.name} stopped by SIGTERM at step {number} of {job.total}, "
                              "saved there: the same command goes on")
    if result is None:  # killed after the last step, before its result was written
        result = job.measure(current)
    return result
