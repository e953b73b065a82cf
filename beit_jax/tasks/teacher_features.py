"""Features of a frozen teacher as targets: what all tasks with a teacher share. `config.target`."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from beit_jax import options
from beit_jax.targets.teachers import TEACHERS
from beit_jax.tasks import task as contract


class TeacherFeatures(NamedTuple):
    """A teacher as a task needs it.

    Attributes:
      dim: c, width of a token.
      grid: (gh, gw), tokens per side.
      frozen: for Task.frozen.
      tokens: (frozen, batch) -> float32 [b, gh * gw, c], row-major, raw, no gradient. The teacher
        sees `image_for_target` where the batch has one (config.data.target_px), else `image`.
      flops: work per image, as flops.py counts.
      picture: (tokens, image01) -> image01 that the tokens describe, for pixels; else None.
      statistics: by which the teacher's images are normalised.
    """

    dim: int
    grid: tuple[int, int]
    frozen: dict[str, contract.Frozen]
    tokens: Callable
    flops: float
    picture: Callable | None = None
    statistics: contract.Statistics | None = None


def make(config, beside: tuple[str, ...] = ()) -> TeacherFeatures:
    """The teacher that config.target names by `kind`, with its sizes.

    Args: beside: keys of config.target that the calling task reads itself.
    Raises: ValueError: an unknown kind or key.
    """
    kind = contract.kind_of(config.target, TEACHERS, "config.target")
    section = {key: value for key, value in config.target.items() if key not in beside}
    fields = contract.network_fields(section, "config.target")
    if not TEACHERS[kind].has_weights:  # targets made of the student's own image
        fields = {"mean": config.data.mean, "std": config.data.std} | fields
    teacher = options.build(TEACHERS[kind], fields, "config.target")
    statistics = contract.statistics_of_network(teacher)
    frozen = {"teacher": contract.Frozen(teacher.init, "target", statistics)}
    if not teacher.has_weights:
        frozen = {}
        for key in contract.OF_LOADING:
            if section.get(key):
                raise ValueError(f"config.target.{key}={section[key]!r}, but {kind} has no "
                                 "weights to load: remove it")

    def tokens(frozen, batch):
        image01 = batch.get("image_for_target", batch["image"]).astype(jnp.float32) / 255.0
        return teacher.features(frozen.get("teacher", {}), image01)

    return TeacherFeatures(teacher.dim, teacher.grid, frozen, tokens, teacher.flops,
                           getattr(teacher, "picture", None), statistics)
