"""Masked autoencoding of any target: what mae_pretrain and img2vec_pretrain share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from beit_jax import augment, flops, losses, masking, options
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from beit_jax.targets import normalise
from beit_jax.targets.teachers import TEACHERS
from beit_jax.tasks import self_teacher, teacher_features
from beit_jax.tasks import task as contract
from beit_jax.tasks.image_codes import grid_of

SELF_TEACHER = "ema"
ERRORS = ("squared", "smooth_l1", "cosine")
BETA = 2.0  # of smooth_l1, data2vec's and Img2Vec's
NO_GLOBAL_HEAD = dict(global_layers=0, global_hidden=2048, global_source="fused")  # of the model
_BESIDE = ("norm", "statistics")  # keys of config.target that are not the teacher's


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


class Predicted(NamedTuple):
    """What a loss compares. patches, target: float32 [b, m, c], of hidden tokens, the target
    scaled; pooled: float32 [b, c] or None; tokens: float32 [b, k, c], raw, of the whole image."""

    patches: jax.Array
    target: jax.Array
    pooled: jax.Array | None
    tokens: jax.Array


def make_target(config, normalise_image: Callable) -> Target:
    """config.target: a teacher by its kind, or "ema"; norm; statistics for norm="whiten".

    Raises: ValueError: an unknown kind, norm or key.
    """
    norm, kind = config.target.get("norm", "none"), config.target.get("kind", "")
    if kind not in (SELF_TEACHER, *TEACHERS):
        raise ValueError(f"target.kind={kind!r} is none of {', '.join((SELF_TEACHER, *TEACHERS))}")
    statistics = config.target.get("statistics") or {}
    if norm not in normalise.NORMS:
        raise ValueError(f"target.norm={norm!r} is none of {', '.join(normalise.NORMS)}")
    if bool(statistics) != (norm == "whiten"):
        raise ValueError(
            f"target.norm={norm} with target.statistics={dict(statistics)}: whiten, and nothing "
            "else, needs statistics, dict(checkpoint=...) of a run of task token_diversity")
    if kind == SELF_TEACHER:
        return _own_average(config, norm, normalise_image)
    teacher = teacher_features.make(config, beside=_BESIDE)
    frozen = dict(teacher.frozen)
    if statistics:
        unknown = set(statistics) - {"checkpoint"}
        if unknown:
            raise ValueError(options.unknown_key(sorted(unknown)[0], ("checkpoint",),
                                                 "config.target.statistics"))
        start = {"mean": jnp.zeros(teacher.dim), "variance": jnp.ones(teacher.dim),
                 "count": jnp.zeros(())}
        frozen["statistics"] = contract.Frozen(lambda key: {"params": {}, "statistics": start},
                                               "target.statistics")

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

    return Target(config.model.width, grid_of(config), {}, 0.0, tokens,
                  lambda tokens, frozen: normalise.normalise(tokens, norm), begin, end_step, None)


def error_function(kind: str, beta: float) -> Callable:
    """(predicted, target) [..., c] -> float32 [...].

    Raises: ValueError: an unknown kind, or a beta that it does not read.
    """
    if kind not in ERRORS:
        raise ValueError(f"loss.kind={kind!r} is none of {', '.join(ERRORS)}")
    if beta <= 0:
        raise ValueError(f"loss.beta={beta} must be above 0")
    if kind != "smooth_l1" and beta != BETA:
        raise ValueError(f"loss.beta={beta} has no effect with loss.kind={kind}: remove it")
    return {"squared": losses.squared_error, "cosine": losses.cosine_distance,
            "smooth_l1": functools.partial(losses.smooth_l1, beta=beta)}[kind]


def make(config, values_of: Callable, **model_fields) -> contract.Task:
    """The task whose loss is the mean over images of values_of(...)["loss"].

    Reads config.model (MaskedAutoencoder), mask, target, data.mean, data.std.

    Args:
      values_of: (Predicted, scale) -> {"loss": float32 [b], ...}, one value an image; scale maps
        raw tokens to targets.
      **model_fields: of the model, set by the task.
    Raises: ValueError: values that do not fit together.
    """
    normalise_image = functools.partial(augment.normalise, mean=config.data.mean,
                                        std=config.data.std)
    grid = grid_of(config)
    target = make_target(config, normalise_image)
    model = options.build(
        MaskedAutoencoder, config.model, "config.model", dtype=contract.compute_dtype(config),
        target_dim=target.dim, target_grid=target.grid, **model_fields)
    model.check()
    mask = options.build(masking.MaskOptions, config.mask, "config.mask")
    mask.check(grid)
    if mask.kind not in ("block_exact", "random"):
        raise ValueError(f"mask.kind={mask.kind!r} is none of block_exact, random: the encoder "
                         "sees a fixed number of patches")
    if mask.cell % model.cell:
        raise ValueError(
            f"mask.cell={mask.cell}: a token of the target covers {model.cell}x{model.cell} "
            f"patches, and none may be half hidden: set mask.kind=random, mask.cell={model.cell}")
    coarse = grid[0] // model.predicted_grid[0]
    num_predicted = mask.num_masked // coarse ** 2
    repeats = model.predicted_grid[0] // target.grid[0]
    # a picture needs a prediction for each token, of the very image that is shown
    picture = None if repeats > 1 or config.data.get("target_px") else target.picture

    def predict(variables, frozen, batch, is_masked, **kwargs) -> Predicted:
        state = {name: value for name, value in variables.items() if name != "params"}
        tokens = target.tokens(model, state, frozen, batch)  # [b, k, c]
        slots, _ = masking.masked_positions(masking.coarsen(is_masked, grid, coarse),
                                            num_predicted)
        wanted = slots
        if repeats > 1:  # the token that a patch lies in
            rows, columns = jnp.divmod(slots, grid[1])
            wanted = rows // repeats * target.grid[1] + columns // repeats
        hidden = jnp.take_along_axis(tokens, wanted[..., None], axis=1)  # [b, m, c]
        patches, pooled = model.apply({"params": variables["params"]},
                                      normalise_image(batch["image"]), is_masked, mask.num_masked,
                                      slots, **kwargs)
        return Predicted(patches, target.scale(hidden, frozen), pooled, tokens)

    def values(variables, frozen, batch, is_masked, **kwargs):
        out = predict(variables, frozen, batch, is_masked, **kwargs)
        result = values_of(out, lambda tokens: target.scale(tokens, frozen))
        cosine = jnp.mean(1.0 - losses.cosine_distance(out.patches, out.target), axis=1)
        return out, result | {"cosine": cosine}

    def init(key, batch):
        image = normalise_image(batch["image"])
        is_masked = mask.draw(jax.random.split(jax.random.key(0), image.shape[0]), grid)
        variables = dict(model.init(key, image, is_masked, mask.num_masked))
        if target.begin is not None:
            variables |= target.begin(variables, {}, batch, key)
        return variables

    def loss(params, state, frozen, batch, key):
        mask_key, drop_key = jax.random.split(key)
        is_masked = mask.draw(jax.random.split(mask_key, batch["image"].shape[0]), grid)
        out, result = values({"params": params, **state}, frozen, batch, is_masked, train=True,
                             rngs={"drop_path": drop_key})
        metrics = {name: jnp.mean(value) for name, value in result.items()}
        metrics |= {"target_std": spread(out.target), "predicted_std": spread(out.patches)}
        return metrics["loss"], (state, metrics)

    def eval_step(variables, frozen, batch):
        _, result = values(variables, frozen, batch, mask.draw_for(batch["index"], grid))
        weights = batch["is_example"].astype(jnp.float32)
        return {"count": jnp.sum(weights),
                **{name: jnp.sum(value * weights) for name, value in result.items()}}

    def features(variables, frozen, batch):
        """The mean over the patch tokens, nothing hidden: float32 [b, d]."""
        del frozen
        tokens = model.apply({"params": variables["params"]}, normalise_image(batch["image"]),
                             method="features")
        return jnp.mean(tokens[:, 1:].astype(jnp.float32), axis=1)

    def pictures(variables, frozen, batch, key):
        """Images, what the encoder sees of them, and for pixels what the decoder makes of it."""
        image = batch["image"]
        is_masked = mask.draw(jax.random.split(key, image.shape[0]), grid)
        seen = masking.grey_out(image, is_masked, grid)
        if picture is None:
            return {"masks": seen}
        patches = model.apply({"params": variables["params"]}, normalise_image(image), is_masked,
                              mask.num_masked).patches
        image01 = image.astype(jnp.float32) / 255.0
        made = jnp.clip(picture(patches, image01), 0.0, 1.0) * 255.0
        hidden = masking.as_pixels(is_masked, grid, image.shape[1:3])
        pasted = jnp.where(hidden, jnp.round(made).astype(jnp.uint8), image)
        return {"reconstructions": jnp.concatenate([seen, pasted], axis=2)}

    work = flops.masked_autoencoder(model, model.num_patches - mask.num_masked, num_predicted)
    if target.end_step is not None:
        target = target._replace(flops=flops.vit(model))
    return contract.Task(
        init, loss, eval_step, contract.mean_of_sums, frozen=target.frozen, pictures=pictures,
        begin=target.begin, end_step=target.end_step, features=features,
        flops_per_image=flops.train_step(work, target.flops))


def spread(values):
    """Root of the mean over channels of the variance over tokens: 0 when all are predicted alike.

    values: float32 [b, m, c].
    """
    return jnp.sqrt(jnp.mean(jnp.var(values, axis=(0, 1))))
