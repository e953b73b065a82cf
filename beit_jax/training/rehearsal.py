"""A run in shapes alone, before it trains: does the network take its data, what will be measured?

Nothing is computed, and of the data only one batch is read.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from beit_jax.data import pipeline
from beit_jax.tasks.task import Task
from beit_jax.training import evaluate, optim, recipe, sharding


def of_config(config) -> tuple[str, ...]:
    """Goes through all that a run of this config does before its second step, and one evaluation.

    Returns: names of what the run measures, "eval/<split>/<metric>".
    Raises: ValueError, OSError: what the run would stop with, hours later.
    """
    opts = recipe.read(config)
    mesh = sharding.make_mesh(opts.mesh)
    recipe.check_batch(opts, mesh)
    config, info, task = recipe.with_task(config, opts)
    total, per_epoch = recipe.lengths(config, opts, info.num_train)
    evaluate.make_measure(task, opts.eval, mesh)  # refuses neighbours of a task without features
    batch = sharding.global_shapes(next(pipeline.train_batches(
        opts.data, seed=opts.seed, start_step=0, **_process())))
    with sharding.use(mesh):
        variables = variables_of(task, opts, info, batch)
        params = variables.pop("params")
        optim.make_optimizer(opts.optim, params, total, per_epoch)
        jax.eval_shape(task.loss, params, variables, _frozen(task), batch, jax.random.key(0))
        names = metric_names(task, opts, info, {"params": params, **variables})
    return tuple(f"eval/{opts.eval.split}/{name}" for name in names)


def variables_of(task: Task, opts: recipe.Recipe, info, batch: Any) -> dict[str, Any]:
    """Shapes of what `task.init` makes.

    Args: batch: shapes of a global batch.
    Raises: ValueError: config.checkpoint.keep_best will not be measured.
    """
    variables = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
    best = opts.checkpoint.keep_best
    names = metric_names(task, opts, info, variables) if best else ()
    if names and best.removeprefix("-") not in names:
        raise ValueError(f"config.checkpoint.keep_best={best!r} is none of the metrics of the "
                         f"evaluation: {', '.join(sorted(names))}")
    return variables


def metric_names(task: Task, opts: recipe.Recipe, info, variables: Mapping[str, Any],
                 ) -> tuple[str, ...]:
    """What an evaluation reports at most; () where there is nothing to evaluate on.

    Args: variables: shapes, as of `variables_of`.
    """
    if not evaluate.has_rows(opts.eval, info):
        return ()
    near = tuple(f"knn_{k}" for k in opts.eval.knn)
    if task.judge is not None:  # asks the data, so that only it knows
        return task.judged + near
    rows = sharding.global_shapes(next(iter(pipeline.eval_batches(
        opts.data, opts.eval.split, limit=opts.eval.limit, **_process()))))
    shapes = jax.eval_shape(task.eval_step, variables, _frozen(task), rows)
    # as if each sum had counted one: of nothing counted some report nothing
    return tuple(task.summarize(jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes))) + near


def _frozen(task: Task) -> dict[str, Any]:
    """Shapes of the networks that are used."""
    return {name: jax.eval_shape(network.init, jax.random.key(0))
            for name, network in task.frozen.items()}


def _process() -> dict[str, int]:
    return dict(process_index=jax.process_index(), process_count=jax.process_count())
