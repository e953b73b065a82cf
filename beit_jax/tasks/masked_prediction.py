"""Masked autoencoding of any target: what mae_pretrain and img2vec_pretrain share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from beit_jax import augment, flops, losses, masking, options
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from beit_jax.tasks import feature_targets
from beit_jax.tasks import task as contract

ERRORS = ("squared", "smooth_l1", "cosine")
BETA = 2.0  # of smooth_l1, data2vec's and Img2Vec's
NO_GLOBAL_HEAD = dict(global_layers=0, global_hidden=2048, global_source="fused")  # of the model


class Predicted(NamedTuple):
    """What a loss compares. patches, target: float32 [b, m, c], of hidden tokens, the target
    scaled; pooled: float32 [b, c] or None; tokens: float32 [b, k, c], raw, of the whole image."""

    patches: jax.Array
    target: jax.Array
    pooled: jax.Array | None
    tokens: jax.Array


def error_function(kind: str, beta: float) -> Callable:
    """(predicted, target) [..., c] -> float32 [...]; kind: one of `ERRORS`.

    Raises: ValueError: a beta that the kind does not read.
    """
    if kind != "smooth_l1" and beta != BETA:
        raise ValueError(f"config.loss.beta={beta} has no effect with loss.kind={kind}: remove it")
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
    grid = contract.grid_of(config)
    target = feature_targets.make(config, normalise_image)
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
        return jnp.mean(tokens[:, 1:], axis=1)

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
    # a self-teacher is the student's own encoder on the whole image
    of_target = flops.vit(model) if target.end_step is not None else target.flops
    return contract.Task(
        init, loss, eval_step, contract.mean_of_sums, frozen=target.frozen, pictures=pictures,
        begin=target.begin, end_step=target.end_step, features=features,
        flops_per_image=flops.train_step(work, of_target))


def spread(values):
    """Root of the mean over channels of the variance over tokens: 0 when all are predicted alike.

    values: float32 [b, m, c].
    """
    return jnp.sqrt(jnp.mean(jnp.var(values, axis=(0, 1))))
