"""Features of a frozen teacher as targets: what all tasks with a teacher share. `config.target`."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from beit_jax import flops, options
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
    """

    dim: int
    grid: tuple[int, int]
    frozen: dict[str, contract.Frozen]
    tokens: Callable
    flops: float


def make(config) -> TeacherFeatures:
    """The teacher that config.target names by `kind`, with its sizes.

    Raises: ValueError: an unknown kind or key.
    """
    kind = config.target.get("kind", "")
    if kind not in TEACHERS:
        raise ValueError(f"target.kind={kind!r} is none of {', '.join(TEACHERS)}")
    section = contract.network_fields(config.target, "config.target")
    teacher = options.build(TEACHERS[kind], section, "config.target")

    def tokens(frozen, batch):
        image01 = batch.get("image_for_target", batch["image"]).astype(jnp.float32) / 255.0
        return teacher.features(frozen["teacher"], image01)

    return TeacherFeatures(
        teacher.dim, teacher.grid, {"teacher": contract.Frozen(teacher.init, "target")}, tokens,
        flops.teacher(teacher.network, teacher.dim))
