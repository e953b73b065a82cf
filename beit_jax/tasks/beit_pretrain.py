"""BEiT: predict the visual tokens of hidden patches.

Source: BEiT (arXiv 2106.08254), Sec. 2.3 and Table 4 for the ablations; microsoft/unilm
  beit/engine_for_pretraining.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from beit_jax import augment, losses, masking, options
from beit_jax.models.beit import BeitForMim
from beit_jax.targets import pixels
from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.tasks import task as contract

TARGETS = ("dvae", "pixels", "normalised_pixels")


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """config.mask; see masking.py. kind "none" hides nothing (ablation)."""

    kind: str = "block"
    num_masked: int = 75
    min_block: int = 16
    max_block: int | None = None


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss. positions: "masked", or "all" patches are predicted (ablation)."""

    positions: str = "masked"


def make(config) -> contract.Task:
    """Masked image modelling on codes of a frozen dVAE, or on pixels.

    Reads config.model (BeitForMim), mask, target, loss, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target", "loss"))
    dtype = contract.compute_dtype(config)
    mask = options.build(MaskOptions, config.mask, "config.mask")
    positions = options.build(LossOptions, config.loss, "config.loss").positions
    if positions not in ("masked", "all"):
        raise ValueError(f"loss.positions={positions!r} is none of masked, all")
    if mask.kind == "none" and positions == "masked":
        raise ValueError("mask.kind=none leaves nothing to predict: set loss.positions=all")
    kind, tokenizer = config.target.get("kind", "dvae"), None
    if kind == "dvae":
        of_loading = ("kind", "checkpoint", "adapt", "use_ema")
        target = {k: v for k, v in config.target.items() if k not in of_loading}
        tokenizer = options.build(DvaeTokenizer, target, "config.target")
        num_outputs = tokenizer.vocab_size
    elif kind in TARGETS:
        unread = [k for k, v in config.target.items() if k != "kind" and v]
        if unread:
            raise ValueError(f"config.target.{unread[0]} is set, but target.kind={kind} needs no "
                             "weights: remove it")
        num_outputs = 3 * config.model.patch_size ** 2
    else:
        raise ValueError(f"target.kind={kind!r} is none of {', '.join(TARGETS)}")
    if config.model.get("vocab_size", num_outputs) != num_outputs:
        raise ValueError(f"model.vocab_size={config.model.vocab_size}, but the target has "
                         f"{num_outputs} {'codes' if tokenizer else 'values per patch'}: leave it "
                         "out, it follows from config.target")
    model = options.build(BeitForMim, config.model, "config.model", dtype=dtype,
                          vocab_size=num_outputs)
    grid, n = model.grid, model.num_patches
    if mask.kind != "none":
        masking.check_counts(grid, mask.num_masked,
                             1 if mask.kind == "random" else mask.min_block)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)

    def draw_masks(keys):
        if mask.kind == "none":
            return jnp.zeros((keys.shape[0], n), bool)
        return masking.batched_mask(keys, grid, **dataclasses.asdict(mask))

    def targets_of(frozen, batch):
        """int [b, n] codes, or float [b, n, c] pixels; no gradient reaches them."""
        if tokenizer is None:
            return pixels.patch_pixels(normalise(batch["image"]), model.patch_size,
                                       normalise=kind == "normalised_pixels")
        image01 = batch.get("image_for_target", batch["image"]).astype(jnp.float32) / 255.0
        codes = tokenizer.codes(frozen["dvae"], image01)
        if codes.shape[1] != n:
            raise ValueError(
                f"the tokenizer gives {codes.shape[1]} codes for data.target_px="
                f"{image01.shape[1]}, the model has {n} patches: set data.target_px so that the "
                "two grids agree")
        return jax.lax.stop_gradient(codes)

    def predict(params, frozen, batch, is_masked, **kwargs):
        """Loss and hit per slot, and which slots count: each [b, m]."""
        target = targets_of(frozen, batch)
        slots = None
        counts = jnp.ones(is_masked.shape, bool)
        if positions == "masked":
            slots, counts = masking.masked_positions(is_masked, mask.num_masked)
            index = slots if target.ndim == 2 else slots[..., None]
            target = jnp.take_along_axis(target, index, axis=1)
        out = model.apply({"params": params}, normalise(batch["image"]), is_masked, slots,
                          **kwargs)  # [b, m, v]
        if tokenizer is None:
            return losses.squared_error(out, target), None, counts
        return losses.cross_entropy(out, target), jnp.argmax(out, axis=-1) == target, counts

    def init(key, batch):
        image = normalise(batch["image"])
        return model.init(key, image, jnp.zeros((image.shape[0], n), bool))

    def loss(params, state, frozen, batch, key):
        mask_key, drop_key = jax.random.split(key)
        is_masked = draw_masks(jax.random.split(mask_key, batch["image"].shape[0]))
        errors, hits, counts = predict(params, frozen, batch, is_masked, train=True,
                                       rngs={"drop_path": drop_key})
        mim_loss = losses.weighted_mean(errors, counts)
        metrics = {"loss": mim_loss, "masked_share": jnp.mean(is_masked)}
        if hits is not None:
            metrics["accuracy"] = losses.weighted_mean(hits, counts)
        return mim_loss, (state, metrics)

    def eval_masks(batch):
        # a mask per example, the same at every evaluation
        return draw_masks(jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(
            batch["index"]))

    def eval_step(variables, frozen, batch):
        errors, hits, counts = predict(variables["params"], frozen, batch, eval_masks(batch))
        weights = (counts & batch["is_example"][:, None]).astype(jnp.float32)
        sums = {"loss": jnp.sum(errors * weights), "count": jnp.sum(weights)}
        if hits is not None:
            sums["accuracy"] = jnp.sum(hits * weights)
        return sums

    def pictures(variables, frozen, batch, key):
        """Image beside the same image with its hidden patches grey."""
        del variables, frozen
        image = batch["image"]
        is_masked = draw_masks(jax.random.split(key, image.shape[0])).reshape(-1, *grid)
        hidden = jnp.repeat(jnp.repeat(is_masked, model.patch_size, 1), model.patch_size, 2)
        seen = jnp.where(hidden[..., None], jnp.uint8(128), image)
        return {"masks": jnp.concatenate([image, seen], axis=2)}

    frozen = {"dvae": contract.Frozen(tokenizer.init, "target")} if tokenizer else {}
    return contract.Task(init, loss, eval_step, contract.mean_of_sums, frozen=frozen,
                         pictures=pictures)
