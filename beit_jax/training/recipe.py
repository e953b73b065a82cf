"""A config as the loop needs it: checked sections, and lengths in steps."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

from beit_jax import options, tasks
from beit_jax.checkpoint import CheckpointOptions
from beit_jax.data import pipeline
from beit_jax.tasks.task import TASK_SECTIONS, Frozen
from beit_jax.training import evaluate, sharding
from beit_jax.training.evaluate import EvalOptions
from beit_jax.training.metric_writer import LogOptions
from beit_jax.training.optim import OptimOptions
from beit_jax.training.state import InitOptions

SECTIONS = {"data": pipeline.DataOptions, "mesh": sharding.MeshOptions, "optim": OptimOptions,
            "init": InitOptions, "eval": EvalOptions, "checkpoint": CheckpointOptions,
            "log": LogOptions}
_VALUES = ("seed", "task", "total_steps", "total_epochs", "dtype", "matmul_precision")
_OF_MAIN = ("stages", "report")
_PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


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
    """Checks all keys that do not belong to the task.

    Raises: ValueError: an unknown key, or an impossible value.
    """
    known = (*_VALUES, *SECTIONS, *TASK_SECTIONS, *_OF_MAIN)
    for key in config:
        if key not in known:
            raise ValueError(options.unknown_key(key, known, "config"))
    if (config.get("total_steps", 0) > 0) == (config.get("total_epochs", 0.0) > 0):
        raise ValueError(
            f"config.total_steps={config.get('total_steps', 0)} and config.total_epochs="
            f"{config.get('total_epochs', 0.0)}: exactly one of them must be above 0")
    precision = config.get("matmul_precision", "default")
    if precision not in _PRECISIONS:
        raise ValueError(f"config.matmul_precision={precision!r} is none of "
                         f"{', '.join(_PRECISIONS)}")
    sections = {}
    for name, cls in SECTIONS.items():
        sections[name] = options.build(cls, config.get(name), f"config.{name}")
    return Recipe(seed=config.get("seed", 0), matmul_precision=precision, **sections)


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

    Raises: ValueError: the data has no classes or no text, or another vocabulary than the model.
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
        if (config.get(section) or {}).get("num_classes") != -1:
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
    # any numbers will do: they are of the trained network, not of the target's
    given = config.model.get("vocab_size", 0)
    unread = SimpleNamespace(num_classes=2, vocab_size=given if given > 0 else 64)
    return tasks.make(with_data(config, unread)).frozen


def lengths(config, recipe: Recipe, num_train: int) -> tuple[int, int]:
    """(total_steps, steps_per_epoch) of a run. Raises: ValueError: less than one step."""
    batch = recipe.data.global_batch_size
    steps_per_epoch = num_train // batch
    if config.get("total_steps", 0) > 0:
        return int(config.total_steps), max(steps_per_epoch, 1)
    if steps_per_epoch < 1:
        raise ValueError(f"config.data.global_batch_size={batch} is larger than the training "
                         f"split of {num_train} examples: lower it, or set config.total_steps")
    return max(round(config.total_epochs * steps_per_epoch), 1), steps_per_epoch
