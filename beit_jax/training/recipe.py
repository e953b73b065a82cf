"""A config as the loop needs it: checked sections, lengths in steps, records in the workdir."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax

from beit_jax import options, tasks
from beit_jax.checkpoint import CheckpointOptions, absolute, flatten
from beit_jax.data import pipeline
from beit_jax.tasks.task import TASK_SECTIONS, Frozen
from beit_jax.training import sharding
from beit_jax.training.evaluate import EvalOptions
from beit_jax.training.metric_writer import LogOptions
from beit_jax.training.optim import OptimOptions
from beit_jax.training.state import InitOptions

log = logging.getLogger(__name__)

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


def plain(config) -> dict[str, Any]:
    """The config as JSON knows it (tuples become lists), in the order of the file."""
    return json.loads(config.to_json())


def _length(config: Mapping[str, Any]) -> list[float]:
    """What decides where a run ends."""
    return [config.get("total_steps", 0), config.get("total_epochs", 0.0)]


def finished(config, workdir: str) -> dict[str, float] | None:
    """The final metrics of a run that came to the end that `config` asks for, else None."""
    path = absolute(workdir) / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError:  # killed while writing: the run measures again
        return None
    return result["metrics"] if result["length"] == _length(plain(config)) else None


def finish(config, workdir: str, step: int, metrics: Mapping[str, float]) -> None:
    """Records that the run is at its end. Process 0 writes."""
    if jax.process_index() == 0:
        result = {"step": step, "length": _length(plain(config)), "metrics": dict(metrics)}
        _write(absolute(workdir) / "result.json", result)


def write_predictions(workdir: str, split: str, files: Mapping[str, str]) -> None:
    """Writes what a task predicted for a split into predictions/<split>/. Process 0 writes."""
    if not files or jax.process_index() != 0:
        return
    folder = absolute(workdir) / "predictions" / split
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        _write_text(folder / name, text)


def prepare(config, workdir: str) -> None:
    """Makes the workdir and its config.json; refuses a workdir of another model.

    Raises: ValueError: another task or model. OSError: the folder cannot be written.
    """
    folder = absolute(workdir)
    path, new = folder / "config.json", plain(config)
    if path.exists():
        old = json.loads(path.read_text())
        changed = _differences(old, new)
        wrong = [text for key, text in changed.items() if key.split("/")[0] in ("task", "model")]
        if wrong:
            raise ValueError(f"workdir {workdir} holds a run of another model ({'; '.join(wrong)})"
                             ": take another workdir, or the config it was made with")
        if changed:
            log.warning("this config is not the one in %s: %s", path, "; ".join(changed.values()))
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, new)
        except OSError as error:
            raise OSError(error.errno, f"workdir {workdir} cannot be written: {error.strerror}; "
                          "give another --workdir") from error


def _write(path, value) -> None:
    """JSON, see `_write_text`."""
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path, text: str) -> None:
    """At once: a kill leaves the old file or the new one."""
    unfinished = path.parent / (path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """{path: "a.b was 1, is 2"} of all values that differ."""
    old, new = flatten(old), flatten(new)
    return {path: f"{path.replace('/', '.')} was {old.get(path)}, is {new.get(path)}"
            for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)}
