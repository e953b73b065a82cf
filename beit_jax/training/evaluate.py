"""Measures a split: sums or rows of padded batches, gathered over all processes."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from beit_jax.data import pipeline
from beit_jax.options import Count, Natural, NonNegative, Positive
from beit_jax.tasks.task import Task
from beit_jax.training import knn, sharding
from beit_jax.training.state import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """config.eval.

    Attributes:
      every_steps: steps between evaluations.
      every_epochs: the same in epochs, read where every_steps is 0; with both 0 only the end is
        evaluated.
      split: the split that is measured.
      limit: at most so many of its examples, evenly spaced; 0: all.
      pictures: rows of the task's pictures; 0 draws none.
      knn: numbers of neighbours, (10, 20, 100, 200): classifies the split by the labels of the
        nearest features of `knn_split`; () does not. Result: eval/<split>/knn_<k>, top-1.
      knn_temperature: how much the nearest count more than the others, see knn.py.
      knn_split: where neighbours are looked for, in evaluation views; labels are needed.
      knn_bank: at most so many of its examples, evenly spaced; 0: all.
    Raises: ValueError: a value that nothing could be done with.
    """

    every_steps: Natural = 0
    every_epochs: NonNegative = 0.0
    split: str = "validation"
    limit: Natural = 0
    pictures: Natural = 8
    knn: tuple[Count, ...] = ()
    knn_temperature: Positive = 0.07
    knn_split: str = "train"
    knn_bank: Natural = 0

    def __post_init__(self):
        if 0 < self.knn_bank < max(self.knn, default=0):
            raise ValueError(f"config.eval.knn_bank={self.knn_bank} examples cannot hold "
                             f"config.eval.knn={self.knn} neighbours; 0 takes all examples")


def has_rows(options: EvalOptions, info: pipeline.DataInfo) -> bool:
    """Whether there are examples to evaluate on: only the default split may be missing."""
    return bool(info.num_eval) or options.split != EvalOptions.split


def check_data(options: EvalOptions, data: pipeline.DataOptions, info: pipeline.DataInfo) -> None:
    """Finds out before training whether the data can be evaluated on as asked.

    Raises: ValueError: no such split, or fewer labelled examples than neighbours.
    """
    if not has_rows(options, info):
        return  # nothing is evaluated; whoever trains says so
    labelled = pipeline.num_labelled(data, options.split, options.limit)
    if info.num_classes and not labelled:
        log.warning("no example of the split %s has a label: what needs labels is not measured",
                    options.split)
    if not options.knn:
        return
    bank = pipeline.num_labelled(data, options.knn_split, options.knn_bank)
    if bank < max(options.knn):
        raise ValueError(f"config.eval.knn={options.knn}, but there are {bank} labelled examples "
                         f"of the split {options.knn_split} to look for neighbours in: ask for "
                         "fewer, or see config.eval.knn_split and knn_bank")
    if not labelled:
        raise ValueError(f"config.eval.knn={options.knn} needs labels, and the split "
                         f"{options.split} has none")


def variables_of(state: TrainState) -> dict[str, Any]:
    """What is measured: averaged parameters where the run keeps them, and the collections."""
    params = state.params if state.ema_params is None else state.ema_params
    return {"params": params, **state.model_state}


def make_eval_step(task: Task, mesh: Mesh) -> Callable:
    """Compiles `task.eval_step`; sums come out whole on every device, rows stay split."""
    spec = P() if task.reduce == "sum" else sharding.BATCH
    return jax.jit(task.eval_step, out_shardings=NamedSharding(mesh, spec))


def collect(task: Task, eval_step: Callable, state: TrainState, frozen: Mapping[str, Any],
            batches: Iterable[Mapping[str, Any]], mesh: Mesh) -> dict[str, Any]:
    """Runs over one split.

    Args:
      eval_step: of `make_eval_step`.
      batches: rows of this process, equally many batches on all; fillers have is_example False.
    Returns: the sums (float64), or all rows that are examples.
    Raises: ValueError: the split is empty.
    """
    variables = variables_of(state)
    add = _add_sums if task.reduce == "sum" else _add_rows
    total, late = collections.defaultdict(list), None
    for local in batches:
        batch = sharding.global_batch(local, mesh)
        result = eval_step(variables, frozen, batch), batch.get("is_example")
        if late is not None:  # one batch late: the device never waits for the host
            add(total, *late)
        late = result
    if late is None:
        raise ValueError("the evaluation split has no examples: set config.data.eval_split, or "
                         "config.data.holdout_per_class to hold some back")
    add(total, *late)
    join = functools.partial(np.sum, axis=0) if task.reduce == "sum" else np.concatenate
    return {name: join(parts) for name, parts in total.items()}


def make_measure(task: Task, options: EvalOptions, mesh: Mesh) -> Callable:
    """All that is measured: what the task itself evaluates, and nearest neighbours if asked for.

    Returns: (state, frozen, rows, facts) -> (dict of floats, files as of Task.judge), which every
      process must call. `rows` gives batches as for `collect`: rows() of the split, rows(split,
      limit) of another one; facts() what the host knows of the split's examples.
    Raises: ValueError: neighbours of a task without features.
    """
    if options.knn and task.features is None:
        raise ValueError(f"config.eval.knn={options.knn}, but this task has no features to "
                         "compare: leave it empty")
    eval_step = make_eval_step(task, mesh)

    def feature_rows(variables, frozen, batch):
        return {"feature": task.features(variables, frozen, batch), "label": batch["label"]}

    collecting = task._replace(eval_step=feature_rows, reduce="concat")
    feature_step = make_eval_step(collecting, mesh)

    def measure(state, frozen, rows, facts):
        found = collect(task, eval_step, state, frozen, rows(), mesh)
        values, files = (task.summarize(found), {}) if task.judge is None else task.judge(
            found, facts())
        if not options.knn:
            return values, files
        bank, queries = (
            collect(collecting, feature_step, state, frozen, batches, mesh)
            for batches in (rows(options.knn_split, options.knn_bank), rows()))
        near = knn.accuracy(bank["feature"], bank["label"], queries["feature"], queries["label"],
                            options.knn, options.knn_temperature, mesh)
        return values | near, files

    return measure


def _add_sums(total, sums, is_example) -> None:
    """float64: float32 stops counting at 2 ** 24."""
    del is_example  # the task has left the fillers out
    for name, value in jax.device_get(sums).items():
        total[name].append(np.asarray(value, np.float64))


def _add_rows(total, rows, is_example) -> None:
    """Rows of all processes, without the fillers."""
    rows, is_example = sharding.local_rows((dict(rows), is_example))
    for name, value in rows.items():
        total[name].append(value[is_example])


def make_pictures(task: Task, rows: int, mesh: Mesh) -> Callable | None:
    """Compiles `task.pictures` on at least `rows` rows.

    Returns: (state, frozen, local batch, key) -> {"name": uint8 [rows, h, w, 3]}, which every
      process must call; None if the task draws nothing, or nothing is asked for.
    """
    if task.pictures is None or rows < 1:
        return None
    draw = jax.jit(task.pictures, out_shardings=sharding.replicated(mesh))
    multiple = sharding.rows_multiple(mesh)
    drawn = -(-rows // multiple) * multiple // jax.process_count()

    def pictures(state, frozen, local, key):
        part = jax.tree.map(lambda values: values[:drawn], dict(local))
        batch = sharding.global_batch(part, mesh)
        images = draw(variables_of(state), frozen, batch, key)
        return {name: np.asarray(values)[:rows] for name, values in images.items()}

    return pictures
