"""BEiT: predict the visual tokens of hidden patches.

Source: BEiT (arXiv 2106.08254), Sec. 2.3 and Table 4 for the ablations; microsoft/unilm
  beit/engine_for_pretraining.py.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from beit_jax import augment, flops, losses, masking, options
from beit_jax.models.beit import BeitForMim
from beit_jax.targets import pixels
from beit_jax.tasks import image_codes
from beit_jax.tasks import task as contract

PIXELS = ("pixels", "normalised_pixels")


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss. positions: "masked", or "all" patches are predicted (ablation)."""

    positions: Literal["masked", "all"] = "masked"


def make(config) -> contract.Task:
    """Masked image modelling on codes of a frozen tokenizer, or on pixels.

    Reads config.model (BeitForMim), mask, target, loss, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target", "loss"))
    dtype = contract.compute_dtype(config)
    mask = options.build(masking.MaskOptions, config.mask, "config.mask")
    positions = options.build(LossOptions, config.loss, "config.loss").positions
    if mask.kind == "none" and positions == "masked":
        raise ValueError("mask.kind=none leaves nothing to predict: set loss.positions=all")
    grid = contract.grid_of(config)
    n, tokens = grid[0] * grid[1], None
    kind = contract.kind_of(config.target, (*image_codes.TOKENIZERS, *PIXELS), "config.target",
                            "dvae")
    if kind in PIXELS:
        unread = [k for k, v in config.target.items() if k != "kind" and v]
        if unread:
            raise ValueError(f"config.target.{unread[0]} is set, but target.kind={kind} needs no "
                             "weights: remove it")
        if config.data.get("target_px"):
            raise ValueError(f"data.target_px={config.data.target_px} has no effect here: "
                             f"target.kind={kind} is read from the one view; remove it")
        num_outputs = 3 * config.model.patch_size ** 2
    else:
        tokens = image_codes.make(config, n)
        num_outputs = tokens.vocab_size
    image_codes.check_vocab_size(config, num_outputs, "codes" if tokens else "values per patch")
    model = options.build(BeitForMim, config.model, "config.model", dtype=dtype,
                          vocab_size=num_outputs)
    model.check()
    mask.check(grid)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)

    def targets_of(frozen, batch, slots):
        """int [b, m] codes, or float [b, m, c] pixels; no gradient reaches them."""
        if tokens is not None:
            return tokens.codes(frozen, batch, slots)
        values = pixels.patch_pixels(normalise(batch["image"]), model.patch_size,
                                     normalise=kind == "normalised_pixels")
        return values if slots is None else jnp.take_along_axis(values, slots[..., None], axis=1)

    def predict(params, frozen, batch, is_masked, **kwargs):
        """Loss and hit per slot, and which slots count: each [b, m]."""
        slots, counts = None, jnp.ones(is_masked.shape, bool)
        if positions == "masked":
            slots, counts = masking.masked_positions(is_masked, mask.num_masked)
        target = targets_of(frozen, batch, slots)
        out = model.apply({"params": params}, normalise(batch["image"]), is_masked, slots,
                          **kwargs)  # [b, m, v]
        if tokens is None:
            return losses.squared_error(out, target), None, counts
        return losses.cross_entropy(out, target), jnp.argmax(out, axis=-1) == target, counts

    def init(key, batch):
        image = normalise(batch["image"])
        return model.init(key, image, jnp.zeros((image.shape[0], n), bool))

    def loss(params, state, frozen, batch, key):
        mask_key, drop_key = jax.random.split(key)
        is_masked = mask.draw(jax.random.split(mask_key, batch["image"].shape[0]), grid)
        errors, hits, counts = predict(params, frozen, batch, is_masked, train=True,
                                       rngs={"drop_path": drop_key})
        mim_loss = losses.weighted_mean(errors, counts)
        metrics = {"loss": mim_loss, "masked_share": jnp.mean(is_masked)}
        if hits is not None:
            metrics["accuracy"] = losses.weighted_mean(hits, counts)
        return mim_loss, (state, metrics)

    def eval_step(variables, frozen, batch):
        is_masked = mask.draw_for(batch["index"], grid)
        errors, hits, counts = predict(variables["params"], frozen, batch, is_masked)
        weights = (counts & batch["is_example"][:, None]).astype(jnp.float32)
        sums = {"loss": jnp.sum(errors * weights), "count": jnp.sum(weights)}
        if hits is not None:
            sums["accuracy"] = jnp.sum(hits * weights)
        return sums

    def features(variables, frozen, batch):
        """The mean over the patch tokens, nothing hidden: float32 [b, d]."""
        del frozen
        tokens = model.apply({"params": variables["params"]}, normalise(batch["image"]), None,
                             method="features")
        return jnp.mean(tokens[:, 1:], axis=1)

    def pictures(variables, frozen, batch, key):
        del variables, frozen
        image = batch["image"]
        is_masked = mask.draw(jax.random.split(key, image.shape[0]), grid)
        return {"masks": masking.grey_out(image, is_masked, grid)}

    predicted = mask.num_masked if positions == "masked" else n
    forward = flops.vit(model) + flops.linear(predicted, model.width, num_outputs)
    return contract.Task(init, loss, eval_step, contract.mean_of_sums,
                         frozen=tokens.frozen if tokens else {}, pictures=pictures,
                         features=features,
                         flops_per_image=flops.train_step(forward, tokens.flops if tokens else 0))
