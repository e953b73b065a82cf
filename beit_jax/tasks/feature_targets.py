"""Features as targets: of a frozen teacher or of the student's own average. `config.target`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from beit_jax import options
from beit_jax.targets import normalise
from beit_jax.targets.teachers import TEACHERS
from beit_jax.tasks import self_teacher, teacher_features
from beit_jax.tasks import task as contract

SELF_TEACHER = "ema"


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Keys of config.target that are not the teacher's: see targets/normalise.py."""

    norm: Literal[*normalise.NORMS] = "none"
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """config.target.statistics: a run of task token_diversity, loaded as config.init is."""

    checkpoint: str
    accept_other_statistics: bool = False


_BESIDE = tuple(field.name for field in dataclasses.fields(Scaling))


class Target(NamedTuple):
    """What is to be predicted.

    Attributes:
      dim, grid, frozen, flops: as of teacher_features.TeacherFeatures.
      tokens: (model, state, frozen, batch) -> raw tokens float32 [b, k, c], no gradient.
      scale: (tokens [..., c], frozen) -> as the loss is to see them.
      begin, end_step: of Task, where the target is part of the state; else None.
      picture: (predicted tokens of all patches, image01) -> image01, for pixels; else None.
    """

    dim: int
    grid: tuple[int, int]
    frozen: dict[str, contract.Frozen]
    flops: float
    tokens: Callable
    scale: Callable
    begin: Callable | None
    end_step: Callable | None
    picture: Callable | None


def make(config, normalise_image: Callable) -> Target:
    """config.target: a teacher by its kind, or "ema"; norm; statistics for norm="whiten".

    Raises: ValueError: an unknown kind, norm or key.
    """
    kind = contract.kind_of(config.target, (SELF_TEACHER, *TEACHERS), "config.target")
    scaling = options.build(Scaling, {key: config.target[key] for key in _BESIDE
                                      if key in config.target}, "config.target")
    norm, statistics = scaling.norm, scaling.statistics
    if bool(statistics) != (norm == "whiten"):
        raise ValueError(
            f"target.norm={norm} with target.statistics={dict(statistics)}: whiten, and nothing "
            "else, needs statistics, dict(checkpoint=...) of a run of task token_diversity")
    if kind == SELF_TEACHER:
        return _own_average(config, norm, normalise_image)
    teacher = teacher_features.make(config, beside=_BESIDE)
    frozen = dict(teacher.frozen)
    if statistics:
        options.build(Whitening, statistics, "config.target.statistics")
        start = {"mean": jnp.zeros(teacher.dim), "variance": jnp.ones(teacher.dim),
                 "count": jnp.zeros(())}
        # of a teacher that always normalises alike, other pixels are another teacher's
        seen = teacher.statistics if teacher.statistics and teacher.statistics.section else None
        frozen["statistics"] = contract.Frozen(
            lambda key: {"params": {}, "statistics": start}, "target.statistics", seen,
            contract.statistics_of_target)

    def scale(tokens, frozen):
        found = frozen["statistics"]["statistics"] if statistics else None
        return normalise.normalise(tokens, norm, found)

    return Target(teacher.dim, teacher.grid, frozen, teacher.flops,
                  lambda model, state, frozen, batch: teacher.tokens(frozen, batch), scale,
                  None, None, teacher.picture)


def _own_average(config, norm: str, normalise_image: Callable) -> Target:
    """The student's averaged encoder as its teacher."""
    section = {key: value for key, value in config.target.items()
               if key not in ("kind", *_BESIDE)}
    rule = options.build(self_teacher.SelfTeacher, section, "config.target")
    missing = [key for key in ("width", "depth") if key not in config.model]
    if missing:
        raise ValueError(f"config.model lacks {', '.join(missing)}: set it in the config file")
    if rule.blocks > config.model.depth:
        raise ValueError(f"target.blocks={rule.blocks}, but the model has {config.model.depth} "
                         "blocks")
    if norm == "whiten":
        raise ValueError("target.norm=whiten: the self-teacher changes, it has no fixed statistics")
    if config.data.get("target_px"):
        raise ValueError(f"data.target_px={config.data.target_px} has no effect here: the "
                         "self-teacher sees the student's image; remove it")

    def tokens(model, state, frozen, batch):
        del frozen
        return self_teacher.tokens(model, state["average"], normalise_image(batch["image"]),
                                   rule.blocks)

    def begin(variables, frozen, batch, key):
        del frozen, batch, key
        return {"average": self_teacher.begin(variables["params"])}

    def end_step(params, state):
        return {"average": self_teacher.update(state["average"], params, rule.decay)}

    return Target(config.model.width, contract.grid_of(config), {}, 0.0, tokens,
                  lambda tokens, frozen: normalise.normalise(tokens, norm), begin, end_step, None)
