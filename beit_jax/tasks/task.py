"""The contract between a method and the training loop: a named tuple of pure functions."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from beit_jax import options
from beit_jax.models.adapt import ADAPT
from beit_jax.models.vit import VisionTransformer, patch_grid

log = logging.getLogger(__name__)

# config sections that belong to tasks; each task names those it reads
TASK_SECTIONS = ("model", "mask", "target", "loss", "augment", "probe", "measure")


class Statistics(NamedTuple):
    """By what pixels in [0, 1] are normalised before a network sees them.

    Attributes:
      mean, std: of red, green and blue.
      section: the config section in which they can be set; "": they belong to the network.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    section: str = ""


def statistics_of_data(config: Mapping[str, Any]) -> Statistics | None:
    """Those of the images of a run, by its config or a converted file's record; None: not known."""
    data = _mapping(config, "data")
    if data.get("mean") is None or data.get("std") is None:
        return None
    return Statistics(data["mean"], data["std"], "config.data")


def statistics_of_target(config: Mapping[str, Any]) -> Statistics | None:
    """Those of the images that a run's target is made of, where config.target can set them."""
    data, target = _mapping(config, "data"), _mapping(config, "target")
    return statistics_of_data({"data": {
        key: data.get(key) if target.get(key) is None else target[key] for key in ("mean", "std")}})


def _mapping(config, name: str):
    """A section, {} where there is none: records may come from other people's files."""
    section = config.get(name)
    return section if hasattr(section, "get") else {}


def statistics_of_network(network: Any) -> Statistics | None:
    """Those of a tokenizer or teacher; config.target sets them where they are fields of it."""
    if not hasattr(network, "mean"):
        return None
    fields = {field.name for field in dataclasses.fields(network)}
    return Statistics(network.mean, network.std, "config.target" if "mean" in fields else "")


@dataclasses.dataclass(frozen=True)
class Loading:
    """Keys of a section that say where frozen weights come from; the others describe the network.

    Attributes: as of config.init (training/state.py).
    """

    checkpoint: str = ""
    adapt: tuple[Literal[*ADAPT], ...] = ()
    use_ema: bool = True
    accept_other_statistics: bool = False


OF_LOADING = tuple(field.name for field in dataclasses.fields(Loading))


class Frozen(NamedTuple):
    """A network that is used and never trained.

    Attributes:
      init: key -> variables, for example {"params": ...}: gives the shapes, and random weights
        where the config asks for them.
      section: the config section whose `checkpoint` and `adapt` say where the weights come from;
        dots lead to a section in a section.
      statistics: of the pixels that the network sees; None where there is nothing to normalise.
      recorded: (config of the run that made the checkpoint) -> Statistics, to compare; None: not
        known.
    """

    init: Callable
    section: str
    statistics: Statistics | None = None
    recorded: Callable = statistics_of_data


class Task(NamedTuple):
    """What a method is to the loop. All is pure and may be jitted, save `summarize`, `judge`.

    Attributes:
      init: (key, batch) -> {"params": ..., further collections}.
      loss: (params, state, frozen, batch, key) -> (scalar, (state, metrics)); `state` holds the
        further collections, `metrics` scalars. It is called once for each part of a batch that is
        worked off in parts.
      eval_step: (variables, frozen, batch) -> dict of sums over the rows with `is_example`, or of
        rows if `reduce` is "concat".
      summarize: what eval_step gave, reduced over the split -> dict of floats; None with `judge`.
      reduce: "sum" or "concat".
      frozen: name -> Frozen; `loss` and `eval_step` get name -> variables.
      pictures: (variables, frozen, batch, key) -> {"name": uint8 [n, h, w, 3]}, or None.
      begin: (variables, frozen, batch, key) -> further collections: what they are before the first
        step, made of the first global batch; None leaves them as `init` made them.
      end_step: (params, state) -> state, once after each update of the parameters (it gets the new
        ones), however many parts its batch had; or None.
      flops_per_image: of one training step, counted as flops.py counts; None: not known.
      features: (variables, frozen, batch) -> float32 [b, f], one vector for each image, by which
        nearest neighbours are found (config.eval.knn); or None.
      judge: in place of `summarize`, of rows, where data must be asked or predictions are handed
        in: (rows, data.pipeline.SplitInfo) -> (dict of floats, {file name: text}); or None.
      judged: all names that `judge` may report: a wrong one in a config is found before training.
    """

    init: Callable
    loss: Callable
    eval_step: Callable
    summarize: Callable | None
    reduce: str = "sum"
    frozen: Mapping[str, Frozen] = {}
    pictures: Callable | None = None
    begin: Callable | None = None
    end_step: Callable | None = None
    flops_per_image: float | None = None
    features: Callable | None = None
    judge: Callable | None = None
    judged: tuple[str, ...] = ()


def compute_dtype(config) -> Any:
    """dtype of matrix products: config.dtype, where "auto" is bfloat16 on accelerators."""
    name = config.get("dtype", "auto")
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def grid_of(config) -> tuple[int, int]:
    """Patch grid of config.model. Raises: ValueError: sizes that are missing or do not fit."""
    options.check(VisionTransformer, config.model, "config.model",
                  ("image_px", "patch_size", "width", "depth"))
    missing = [key for key in ("image_px", "patch_size") if key not in config.model]
    if missing:
        raise ValueError(f"config.model lacks {', '.join(missing)}: set it in the config file")
    return patch_grid(config.model.image_px, config.model.patch_size)


def network_fields(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a section that describe a frozen network, without those of its loading and kind.

    Raises: ValueError: a key of the loading that cannot be meant.
    """
    options.check(Loading, section, where, OF_LOADING)
    return {key: value for key, value in section.items() if key not in (*OF_LOADING, "kind")}


def kind_of(section: Mapping[str, Any], known: Iterable[str], where: str, default: str = "") -> str:
    """The section's `kind`. Raises: ValueError: it is not known."""
    kind, known = options.freeze(section.get("kind", default)), tuple(known)
    if kind not in known:
        raise ValueError(f"{where}.kind={kind!r} is none of {', '.join(known)}")
    return kind


def check_sections(config, reads: tuple[str, ...]) -> None:
    """Refuses sections that are filled in although the task reads only `reads`."""
    unread = tuple(name for name in TASK_SECTIONS if name not in reads)
    options.require_empty(config, unread, config.task)


def nothing_counted(sums: Mapping[str, Any]) -> bool:
    """Whether the summed "count" is 0, as of a split without labels; the log then says so."""
    is_empty = float(sums["count"]) == 0
    if is_empty:
        log.warning("no example of the split could be counted (have they labels?): no number is "
                    "reported")
    return is_empty


def mean_of_sums(sums: Mapping[str, Any]) -> dict[str, float]:
    """Divides every summed value by the summed "count"; {} where nothing was counted."""
    if nothing_counted(sums):
        return {}
    count = float(sums["count"])
    return {name: float(value) / count for name, value in sums.items() if name != "count"}
