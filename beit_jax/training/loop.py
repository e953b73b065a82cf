"""One run: data, mesh, state, steps, measurements, checkpoints. Knows no method and no data set."""

import contextlib
import functools
import logging
import math
import signal

import jax

from beit_jax import checkpoint
from beit_jax.checkpoint import Checkpoints
from beit_jax.training import preemption, recipe, records, sharding, state, step
from beit_jax.training.assembly import Job, assemble
from beit_jax.training.metric_writer import MetricWriter, Stopwatch
from beit_jax.training.preemption import Stopped

log = logging.getLogger(__name__)


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
      FloatingPointError: a step or an evaluation is not finite. Stopped: a signal came.
    """
    with preemption.listen(signal.SIGTERM) as requests:
        # while a stage before this one ended; several processes have to agree on it
        if requests.number if jax.process_count() == 1 else requests.stop():
            raise Stopped(f"{name} is not begun: {requests.name} came", requests.code)
        requests.kept = functools.partial(checkpoint.kept, workdir)
        try:
            return _run(config, workdir, name, evaluate_only, force, requests)
        except preemption.Interrupted as error:
            raise Stopped(f"{name} stopped by {requests.name} before a further step: "
                          f"{checkpoint.kept(workdir)}", requests.code) from error
        finally:
            requests.has_news = False


def _run(config, workdir: str, name: str, evaluate_only: bool, force: bool,
         requests: preemption.Requests) -> dict[str, float]:
    """See `run`."""
    opts = recipe.read(config)
    result = None if evaluate_only else records.finished(config, workdir, force)
    if result is not None:
        log.info("%s is finished: %s", name, workdir)
        return result
    mesh = sharding.make_mesh(opts.mesh)
    recipe.check_batch(opts, mesh)
    config, info, task = recipe.with_task(config, opts, evaluate_only)
    state.check_statistics(config, task.frozen, workdir)
    taken = contextlib.nullcontext(lambda: None) if evaluate_only else records.taken(
        config, workdir, info, recipe.lengths(config, opts, info.num_train)[0], force)
    precision = None if opts.matmul_precision == "default" else opts.matmul_precision
    with (taken as write_config, sharding.use(mesh), jax.default_matmul_precision(precision),
          contextlib.closing(Checkpoints(workdir, opts.checkpoint, evaluate_only)) as checkpoints,
          _newest_good_named(checkpoints)):
        if evaluate_only and checkpoints.latest_step() is None:
            state.check_evaluable(task, opts.init, workdir)
        job = assemble(config, opts, name, workdir, mesh, task, info, checkpoints, requests)
        if evaluate_only:
            return _finite(job.measure(job.state), job.start)
        write_config()
        with MetricWriter(workdir, name, job.start, job.total, opts.log) as writer:
            result = train(job, writer)
        checkpoints.wait()
        records.finish(config, workdir, job.total, result)
        return result


@contextlib.contextmanager
def _newest_good_named(checkpoints: Checkpoints):
    """Says what to go on from where a step was not finite."""
    try:
        yield
    except step.NotFinite as error:
        advice = "" if checkpoints.read_only else (
            ". Lower config.optim.learning_rate, or set config.optim.clip_norm")
        raise FloatingPointError(
            f"{error}; {checkpoints.disown(error.weights_of)}{advice}") from error


def train(job: Job, writer: MetricWriter) -> dict[str, float]:
    """The steps. Returns: the last measurement. Raises: NotFinite, Stopped."""
    opts, current, result = job.opts, job.state, None
    eval_every = recipe.eval_every(opts.eval, job.per_epoch)
    watch = Stopwatch(opts.data.global_batch_size, job.task.flops_per_image)
    in_flight = step.InFlight()

    @contextlib.contextmanager
    def paused():
        """Around what is not training: the steps before it are done, and good."""
        in_flight.drain()
        with watch.paused():
            writer.write_late()
            yield

    @contextlib.contextmanager
    def saved_before_leaving(number: int):
        """An error of the data leaves once the state after `number` steps is saved."""
        try:
            yield
        except (ValueError, OSError):
            if number > job.start and jax.process_count() == 1:  # others would not save with us
                with paused():
                    writer.flush()
                    job.checkpoints.save(number, current)
                    job.checkpoints.wait()
                log.warning("%s: step %d is saved: the same command goes on from there", job.name,
                            number)
            raise

    def is_measured(number: int) -> bool:
        return number == job.total or bool(eval_every and number % eval_every == 0)

    def measure(number: int) -> dict[str, float]:
        values = job.measure(current)
        writer.write(number, values)
        return _finite(values, number)

    if job.start and is_measured(job.start) and not writer.was_measured(job.start):
        result = measure(job.start)  # a signal came meanwhile
        job.checkpoints.rate(job.start, _scores(result))
    for number in range(job.start + 1, job.total + 1):
        with saved_before_leaving(number - 1), watch.waiting():
            batch = sharding.global_batch(next(job.batches), job.mesh)
        current, metrics = job.train_step(current, job.frozen, batch)
        in_flight.add(number, metrics)
        if number == job.start + 1:
            in_flight.drain()
            watch.begin(metrics["loss"])
            job.requests.has_news = True
        if number % opts.log.every_steps == 0 or number == job.total:
            writer.write_late()  # one interval late: the devices do not wait for the host
            if number == job.total:
                in_flight.drain()
            writer.later(number, metrics | job.rates(number - 1), watch.read(in_flight.finished()))
        measured, stop = {}, False
        if is_measured(number):
            with saved_before_leaving(number), paused():
                try:
                    measured = result = measure(number)
                    writer.pictures(number, job.draw(current))
                except preemption.Interrupted:  # measured when the run goes on
                    stop = True
        stop = job.requests.stop() or stop
        due = opts.checkpoint.every_steps and number % opts.checkpoint.every_steps == 0
        if due or stop or number == job.total or (measured and opts.checkpoint.keep_best):
            with paused():
                writer.flush()
                job.checkpoints.save(number, current, _scores(measured))
        if stop:
            job.checkpoints.wait()
            raise Stopped(f"{job.name} stopped by {job.requests.name} at step {number} of "
                          f"{job.total}, saved there: the same command goes on", job.requests.code)
    if result is None:  # killed after the last step, before its result was written
        result = _finite(job.measure(current), job.start)
    return result


def _scores(measured: dict[str, float]) -> dict[str, float]:
    """What is measured, without "eval/<split>/"."""
    return {key.split("/", 2)[2]: value for key, value in measured.items()}


def _finite(measured: dict[str, float], number: int) -> dict[str, float]:
    """What is measured of a step. Raises: NotFinite."""
    for name, value in measured.items():
        if not math.isfinite(value):
            raise step.NotFinite(number, f"{name} is {value}", weights_of=number)
    return measured
