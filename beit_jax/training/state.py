"""What a run carries from step to step, and how it begins: random, or from another checkpoint."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from beit_jax import checkpoint
from beit_jax.models import adapt
from beit_jax.options import Pattern
from beit_jax.tasks.task import Frozen, Loading, Statistics, Task, statistics_of_data
from beit_jax.training import sharding

log = logging.getLogger(__name__)

NO_CHECKPOINT = ("", "random")  # values of config.init.checkpoint that load nothing


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, updates of the parameters so far; each takes one global batch, however
        many parts it is worked off in.
      params: trained parameters, float32.
      model_state: the task's further collections, changed without a gradient; {} if none.
      opt_state: of the optax transformation.
      ema_params: averaged parameters, or None.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema_params: Any


@dataclasses.dataclass(frozen=True)
class InitOptions(Loading):
    """config.init: weights to start from.

    Attributes:
      checkpoint: a workdir, a step folder, a .npz or .safetensors file; "" starts at random.
      adapt: names of functions in models/adapt.py that make the loaded weights fit, in order.
      use_ema: take a run's averaged parameters where it has them.
      allow_missing: regular expressions of parameters that may keep their random values.
      allow_unused: regular expressions of loaded arrays that may be left over.
      collections: state beside the parameters to take over too, by name ("codebook"); what is not
        named starts as the task makes it.
      accept_other_statistics: True takes weights that were trained on pixels normalised otherwise
        than config.data.mean and std say.
    """

    allow_missing: tuple[Pattern, ...] = ()
    allow_unused: tuple[Pattern, ...] = ()
    collections: tuple[str, ...] = ()


def create(task: Task, tx: optax.GradientTransformation, key: jax.Array, batch_shapes: Any,
           mesh: Mesh, *, with_ema: bool) -> tuple[Any, Callable[[], TrainState]]:
    """Describes the state, and gives the function that makes it in place on the mesh.

    Args:
      key: PRNG key of the initial weights.
      batch_shapes: dict of jax.ShapeDtypeStruct, a global batch.
      with_ema: keep averaged parameters.
    Returns: the abstract state (shapes with shardings), and a function that makes the real one.
    """
    def init(key):
        batch = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), batch_shapes)
        variables = dict(task.init(key, batch))
        params = variables.pop("params")
        # a copy: one buffer twice in a donated state is a crash
        ema_params = jax.tree.map(jnp.copy, params) if with_ema else None
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=variables,
                          opt_state=tx.init(params), ema_params=ema_params)

    abstract = sharding.abstract(jax.eval_shape(init, key), mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return abstract, lambda: jax.jit(init, out_shardings=where)(key)


def begin(state: TrainState, task: Task, options: InitOptions, frozen: Mapping[str, Any],
          batch: Any, key: jax.Array, mesh: Mesh) -> TrainState:
    """The state before the first step: weights of config.init, collections of the first batch.

    Args:
      state: as `create` made it.
      batch: the first global batch, on the mesh.
      key: PRNG key of `task.begin`.
    Raises: ValueError: the checkpoint does not fit.
    """
    # where a frozen network takes config.init, the trained parameters start at random
    if all(network.section != "init" for network in task.frozen.values()):
        state = load_into(state, options, mesh)
    if task.begin is None:
        return state
    where = sharding.shardings(state.model_state, mesh)
    variables = {"params": state.params, **state.model_state}
    made = jax.jit(task.begin, out_shardings=where)(variables, frozen, batch, key)
    if options.checkpoint not in NO_CHECKPOINT:
        made = made | {name: state.model_state[name] for name in options.collections}
    return state.replace(model_state=made)


def check_evaluable(task: Task, options: InitOptions, workdir: str) -> None:
    """Refuses to measure a workdir without checkpoints unless config.init says what to measure.

    Raises: FileNotFoundError: nothing to measure. ValueError: a state made of the data's first
      batch would be measured in place of the checkpoint's.
    """
    if not options.checkpoint:
        raise FileNotFoundError(f"{workdir} holds no checkpoint to evaluate")
    if task.begin is not None and not options.collections:
        raise ValueError(f"config.init.checkpoint={options.checkpoint}: to evaluate it, name the "
                         "state beside its parameters too, config.init.collections")


def check_statistics(
        config: Mapping[str, Any], frozen: Mapping[str, Frozen], workdir: str = "",
        tell: bool = True,
        record_of: Callable[[str], Mapping[str, Any]] = checkpoint.recorded) -> None:
    """Refuses weights that were trained on pixels normalised otherwise than they are here.

    Nothing is loaded for it: statistics are those of a run's config.json, or of the record in a
    converted file. Where nothing is recorded, that is said and accepted. A run that goes on is
    compared with itself, so this comes before its config.json is written anew.

    Args:
      frozen: of the task.
      workdir: of the run; where it has weights of its own, config.init is not loaded.
      tell: log what is not known or is accepted.
      record_of: path -> config, as `checkpoint.recorded`.
    Raises: ValueError: one line with both statistics and what to do.
    """
    networks = {network.section: (name, network.statistics, network.recorded)
                for name, network in frozen.items()}
    data = statistics_of_data(config)
    if workdir and checkpoint.step_folders(checkpoint.absolute(workdir) / "checkpoints"):
        _compare(f"workdir {workdir}", statistics_of_data(record_of(workdir)), data, "network",
                 config, "init", tell)
    elif "init" not in networks:
        networks["init"] = "network", data, statistics_of_data
    for place, (name, here, recorded) in networks.items():
        path = section_of(config, place).get("checkpoint", "")
        if path not in NO_CHECKPOINT:
            _compare(f"config.{place}.checkpoint={path}", recorded(record_of(path)), here, name,
                     config, place, tell)


def _compare(what: str, there: Statistics | None, here: Statistics | None, name: str, config,
             place: str, tell: bool) -> None:
    """One comparison of `check_statistics`: `what` was trained by `there`, `name` sees `here`."""
    if here is None:  # pixels as they are
        return
    key = "accept_other_statistics"
    said = log.info if tell else log.debug
    if there is None:
        said("%s does not say by which mean and deviation its pixels were normalised; here by %s",
             what, _written(here))
        return
    if not all(isinstance(part, list | tuple) and len(part) == 3
               and all(isinstance(number, int | float) for number in part) for part in there[:2]):
        raise ValueError(f"{what} records a mean of {there.mean!r} and a deviation of "
                         f"{there.std!r}: three numbers each are needed")
    if np.allclose(here[:2], there[:2], rtol=0.0, atol=1e-4):
        return
    if section_of(config, place).get(key):
        said("%s was trained on pixels normalised by %s, here by %s: config.%s.%s", what,
             _written(there), _written(here), place, key)
        return
    ours = (f"{here.section}.mean and .std are {_written(here)}: set them alike" if here.section
            else f"this {name} takes {_written(here)}: give weights of such pixels")
    raise ValueError(f"{what} was trained on pixels normalised by {_written(there)}, but {ours}, "
                     f"or config.{place}.{key}=True if the difference is meant")


def _written(value: Statistics) -> str:
    """(0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)"""
    return " and ".join(f"({', '.join(f'{number:.4g}' for number in part)})" for part in value[:2])


def section_of(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The config section of a network's weights; {} where it is empty. place: "a.b" for a in b."""
    section = config
    for part in place.split("."):
        section = section.get(part) or {}
    return dict(section)


def load_into(state: TrainState, options: InitOptions, mesh: Mesh) -> TrainState:
    """Replaces the random parameters, and `options.collections`, by those of a checkpoint.

    Raises: ValueError: paths or shapes do not agree, or an unknown name in `adapt`.
    """
    taken = {name: state.model_state[name] for name in options.collections
             if name in state.model_state}
    if len(taken) < len(options.collections):
        raise ValueError(f"config.init.collections={options.collections}: this task has "
                         f"{', '.join(state.model_state) or 'none'}")
    if options.checkpoint in NO_CHECKPOINT:
        return state
    loaded = checkpoint.load_variables(options.checkpoint, use_ema=options.use_ema,
                                       collections=bool(taken))
    if taken:
        wanted = checkpoint.flatten(taken)
        others = tuple(f"{name}/" for name in state.model_state)
        found = {path: leaf for path, leaf in loaded.items() if path in wanted}
        loaded = {path: leaf for path, leaf in loaded.items() if not path.startswith(others)}
        found = fit(found, wanted, InitOptions(options.checkpoint), "config.init")
        state = state.replace(model_state=state.model_state | checkpoint.unflatten(
            sharding.place(found, mesh)))
    flat = checkpoint.flatten(state.params)
    fitted = fit(loaded, flat, options, "config.init")
    params = checkpoint.unflatten(flat | sharding.place(fitted, mesh))
    ema_params = None
    if state.ema_params is not None:
        ema_params = jax.tree.map(jnp.copy, params)
    log.info("initialised %d of %d parameter arrays from %s", len(fitted), len(flat),
             options.checkpoint)
    return state.replace(params=params, ema_params=ema_params)


def load_frozen(task: Task, config: Mapping[str, Any], key: jax.Array, mesh: Mesh) -> dict:
    """The networks that the task uses and never trains, on the mesh.

    Args:
      config: the whole config; each network's section holds its `checkpoint` and `adapt`.
      key: PRNG key for networks whose checkpoint is "random".
    Returns: {name: variables}.
    Raises: ValueError: no checkpoint is named, or it does not fit.
    """
    frozen = {}
    for name, network in task.frozen.items():
        section = section_of(config, network.section)
        where, path = f"config.{network.section}", section.get("checkpoint", "")
        if not path:
            raise ValueError(f"{where}.checkpoint is empty, but this task needs a trained {name}: "
                             'give a checkpoint, or "random" to try the code')
        abstract = sharding.abstract(jax.eval_shape(network.init, key), mesh)
        if path == "random":
            log.warning("%s has random weights: %s.checkpoint is \"random\"", name, where)
            placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            frozen[name] = jax.jit(network.init, out_shardings=placed)(key)
            continue
        others = {key: value for key, value in abstract.items() if key != "params"}
        target = checkpoint.flatten(abstract["params"]) | checkpoint.flatten(others)
        loaded = checkpoint.load_variables(path, use_ema=section.get("use_ema", True),
                                           collections=bool(others))
        # whole parts that this network has not (a decoder, a head) stay behind
        parts = {path.split("/")[0] for path in target} | set(adapt.INPUTS)
        spare = sorted({path.split("/")[0] for path in loaded} - parts)
        if spare:
            log.info("%s takes no %s from %s", name, ", ".join(spare), path)
        options = InitOptions(checkpoint=path, adapt=tuple(section.get("adapt", ())),
                              allow_unused=tuple(rf"^{re.escape(part)}(/|$)" for part in spare))
        placed = sharding.place(fit(loaded, target, options, where), mesh)
        tree = checkpoint.unflatten(placed)
        frozen[name] = {key: tree.pop(key) for key in others} | {"params": tree}
    return frozen


def fit(loaded: dict[str, np.ndarray], target: Mapping[str, Any], options: InitOptions,
        where: str) -> dict[str, np.ndarray]:
    """Makes loaded arrays fit the parameters `target`, and refuses any that do not.

    Args:
      loaded: {"a/b/c": array}.
      target: {"a/b/c": anything with shape and dtype}.
      where: the config section, for messages.
    Returns: the arrays for all paths of `target` but those allowed to be missing.
    Raises: ValueError: one line that lists paths and shapes.
    """
    for name in options.adapt:
        if name not in adapt.ADAPT:
            raise ValueError(f"{where}.adapt names {name!r}; known: {', '.join(adapt.ADAPT)}")
        loaded = adapt.ADAPT[name](loaded, target)
    faults = [f"{path} has {loaded[path].shape} there, {target[path].shape} here"
              for path in target if path in loaded and loaded[path].shape != target[path].shape]
    if faults:
        raise ValueError(f"{where}.checkpoint={options.checkpoint} is of another size: "
                         f"{_few(faults)}; use the model it was made with, or {where}.adapt")
    for paths, allowed, what, key in (
            (target.keys() - loaded.keys(), options.allow_missing, "lacks", "allow_missing"),
            (loaded.keys() - target.keys(), options.allow_unused, "also has", "allow_unused")):
        wrong = sorted(p for p in paths if not any(re.search(rule, p) for rule in allowed))
        if wrong:
            raise ValueError(f"{where}.checkpoint={options.checkpoint} {what} {_few(wrong)}: if "
                             f"that is meant, name them in {where}.{key}")
    return {path: np.asarray(loaded[path], leaf.dtype) for path, leaf in target.items()
            if path in loaded}


def _few(items: list[str], most: int = 6) -> str:
    """The first of many items, in one line."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
