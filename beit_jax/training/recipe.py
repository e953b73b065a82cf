"""A config as the loop needs it: checked sections, and lengths in steps."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from beit_jax import options, tasks
from beit_jax.checkpoint import CheckpointOptions
from beit_jax.data import pipeline
from beit_jax.options import Dtype, Natural, NonNegative
from beit_jax.tasks.task import TASK_SECTIONS, Frozen
from beit_jax.training import evaluate, sharding
from beit_jax.training.evaluate import EvalOptions
from beit_jax.training.metric_writer import LogOptions
from beit_jax.training.optim import OptimOptions
from beit_jax.training.state import InitOptions

SECTIONS = {"data": pipeline.DataOptions, "mesh": sharding.MeshOptions, "optim": OptimOptions,
            "init": InitOptions, "eval": EvalOptions, "checkpoint": CheckpointOptions,
            "log": LogOptions}
_OF_MAIN = ("stages", "report")
_PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
_MOST_STEPS = 2**31 - 1  # the state counts them as int32


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The keys of a config that stand in no section.

    Attributes:
      seed: of weights, order and all draws.
      task: a name in tasks/__init__.py.
      total_steps, total_epochs: length of the run; exactly one is above 0.
      dtype: of matrix products; "auto": bfloat16 on accelerators, float32 on CPUs.
      matmul_precision: jax's, of float32 products on accelerators.
    """

    seed: Natural = 0
    task: str = ""
    total_steps: Natural = 0
    total_epochs: NonNegative = 0.0
    dtype: Literal["auto", *get_args(Dtype)] = "auto"
    matmul_precision: Literal[*_PRECISIONS] = "default"

    def __post_init__(self):
        if (self.total_steps > 0) == (self.total_epochs > 0):
            raise ValueError(f"config.total_steps={self.total_steps} and config.total_epochs="
                             f"{self.total_epochs}: exactly one of them must be above 0")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The sections of a config that the training floor reads, as checked values."""

    seed: int
    matmul_precision: str
    data: pipeline.DataOptions
    mesh: sharding.MeshOptions
    optim: OptimOptions
    init: InitOptions
    eval: EvalOptions
    checkpoint: CheckpointOptions
    log: LogOptions


def read(config) -> Recipe:
    """Checks all keys before anything is read or compiled.

    Raises: ValueError: an unknown key, or an impossible value.
    """
    values = [field.name for field in dataclasses.fields(RunOptions)]
    known = (*values, *SECTIONS, *TASK_SECTIONS, *_OF_MAIN)
    for key in config:
        if key not in known:
            raise ValueError(options.unknown_key(key, known, "config"))
    run = options.build(RunOptions, {key: config[key] for key in values if key in config}, "config")
    for name in (*SECTIONS, *TASK_SECTIONS):
        options.read_section(config.get(name, {}), f"config.{name}")
    sections = {}
    for name, cls in SECTIONS.items():
        sections[name] = options.build(cls, config.get(name), f"config.{name}")
    pipeline.batch_sizes(sections["data"])  # raises where the streams of a mixture do not fit
    tasks.check(config)
    return Recipe(seed=run.seed, matmul_precision=run.matmul_precision, **sections)


def check_batch(recipe: Recipe, mesh) -> None:
    """Refuses batches that the devices cannot share evenly. Raises: ValueError."""
    parts = recipe.optim.accumulation_steps
    for where, rows in pipeline.batch_sizes(recipe.data).items():
        sharding.check_divisible(rows, mesh, where)
        if "eval" not in where and rows % (parts * sharding.rows_multiple(mesh)):
            raise ValueError(f"{where}={rows} cannot be worked off in "
                             f"config.optim.accumulation_steps={parts} parts on "
                             f"{sharding.rows_multiple(mesh)} devices: give a multiple of "
                             f"{parts * sharding.rows_multiple(mesh)}")


def with_data(config, info):
    """A copy of the config with what only the data knows: num_classes and vocab_size = -1.

    Raises: ValueError: the data has no classes or no text, another vocabulary than the model, or
      more classes than a section was given.
    """
    config = config.copy_and_resolve_references()
    given = config.model.get("vocab_size", 0)
    if given == -1 and not info.vocab_size:
        raise ValueError("config.model.vocab_size=-1, but the data has no text: set "
                         "config.data.text_length and config.data.tokenizer")
    if given == -1:
        with config.unlocked():
            config.model.vocab_size = info.vocab_size
    elif info.vocab_size and given and given != info.vocab_size:
        raise ValueError(f"config.model.vocab_size={given}, but the tokenizer of config.data needs "
                         f"a table of {info.vocab_size} rows: give the tokenizer that the weights "
                         "were trained with, or train from scratch with vocab_size=-1")
    for section in ("model", "probe", "target"):
        given = (config.get(section) or {}).get("num_classes")
        if given is not None and 0 <= given < info.num_classes:
            raise ValueError(f"config.{section}.num_classes={given}, but the data "
                             f"{config.data.name!r} has {info.num_classes} classes, and no label "
                             "may lie beyond: set it to -1, which takes as many as the data has")
        if given != -1:
            continue
        if info.num_classes < 1:
            raise ValueError(f"config.{section}.num_classes=-1, but the data {config.data.name!r} "
                             "has no classes: give the number")
        with config.unlocked():
            config[section].num_classes = info.num_classes
    return config


def check_labels(config, data: pipeline.DataOptions) -> None:
    """Refuses to train a classifier on examples none of which has a label: its loss would be 0.

    Raises: ValueError.
    """
    for section in ("model", "probe"):
        given = (config.get(section) or {}).get("num_classes")
        if given is not None and not pipeline.num_labelled(data, "train"):
            raise ValueError(f"config.{section}.num_classes={given}, but no training example of "
                             f"the data {data.name!r} has a label: images want one sub-folder for "
                             "each class")


def with_task(config, recipe: Recipe, evaluate_only: bool = False):
    """Looks at the data, and makes the task for them.

    Returns: (the config of `with_data`, DataInfo, Task).
    Raises: ValueError, OSError: data that cannot be used, or not for this.
    """
    info = pipeline.describe(recipe.data)
    evaluate.check_data(recipe.eval, recipe.data, info)
    config = with_data(config, info)
    if not evaluate_only:
        check_labels(config, recipe.data)
    return config, info, tasks.make(config)


def frozen_networks(config) -> Mapping[str, Frozen]:
    """Those that a recipe's target needs, known before its data are: {} where it has no target."""
    if not (config.get("target") or {}).get("checkpoint"):
        return {}
    return tasks.check(config).frozen


def lengths(config, recipe: Recipe, num_train: int) -> tuple[int, int]:
    """(total_steps, steps_per_epoch) of a run.

    Raises: ValueError: less than one step, or more than can be counted.
    """
    batch = recipe.data.global_batch_size
    steps_per_epoch = num_train // batch
    if config.get("total_steps", 0) > 0:
        return int(config.total_steps), max(steps_per_epoch, 1)
    if steps_per_epoch < 1:
        raise ValueError(f"config.data.global_batch_size={batch} is larger than the training "
                         f"split of {num_train} examples: lower it, or set config.total_steps")
    total = max(round(config.total_epochs * steps_per_epoch), 1)
    if total > _MOST_STEPS:
        raise ValueError(f"config.total_epochs={config.total_epochs} of {steps_per_epoch} steps "
                         f"are more than {_MOST_STEPS} steps: lower it")
    return total, steps_per_epoch


def eval_every(evaluation: EvalOptions, steps_per_epoch: int) -> int:
    """Steps between evaluations; 0: only at the end. A part of an epoch is one step or more."""
    if evaluation.every_steps or not evaluation.every_epochs:
        return evaluation.every_steps
    return max(round(evaluation.every_epochs * steps_per_epoch), 1)
