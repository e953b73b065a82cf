"""BEiT v2: predict the codes of hidden patches twice, the second time through the class token.

Source: BEiT v2 (arXiv 2208.06366), Sec. 2.2 and 2.3; microsoft/unilm
  beit2/engine_for_pretraining.py.
"""

import functools

import jax
import jax.numpy as jnp

from beit_jax import augment, flops, losses, masking, options
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.tasks import image_codes
from beit_jax.tasks import task as contract


def make(config) -> contract.Task:
    """Masked image modelling with patch aggregation, on codes of a frozen tokenizer.

    Reads config.model (BeitV2ForMim), mask, target, data.mean, data.std. Without aggregation, the
    same is task beit_pretrain with target.kind=vqkd.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target"))
    mask = options.build(masking.MaskOptions, config.mask, "config.mask")
    if mask.kind not in ("block_exact", "random", "block"):
        raise ValueError(f"mask.kind={mask.kind!r} is none of block_exact, block, random")
    grid = contract.grid_of(config)
    mask.check(grid)
    tokens = image_codes.make(config, grid[0] * grid[1])
    image_codes.check_vocab_size(config, tokens.vocab_size)
    model = options.build(BeitV2ForMim, config.model, "config.model",
                          dtype=contract.compute_dtype(config), vocab_size=tokens.vocab_size)
    model.check()
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)

    def predict(params, frozen, batch, is_masked, **kwargs):
        """Errors and hits of both predictions, {"name": [b, m]}, and which slots count [b, m]."""
        slots, counts = masking.masked_positions(is_masked, mask.num_masked)
        codes = tokens.codes(frozen, batch, slots)
        final, aggregated = model.apply({"params": params}, normalise(batch["image"]), is_masked,
                                        slots, **kwargs)  # each [b, m, v]
        values = {
            "loss_final": losses.cross_entropy(final, codes),
            "loss_aggregated": losses.cross_entropy(aggregated, codes),
            "accuracy": jnp.argmax(final, axis=-1) == codes,
            "accuracy_aggregated": jnp.argmax(aggregated, axis=-1) == codes,
        }
        return values, counts

    def init(key, batch):
        image = normalise(batch["image"])
        return model.init(key, image, jnp.zeros((image.shape[0], model.num_patches), bool))

    def loss(params, state, frozen, batch, key):
        mask_key, drop_key = jax.random.split(key)
        is_masked = mask.draw(jax.random.split(mask_key, batch["image"].shape[0]), grid)
        values, counts = predict(params, frozen, batch, is_masked, train=True,
                                 rngs={"drop_path": drop_key})
        metrics = {key: losses.weighted_mean(value, counts) for key, value in values.items()}
        total = metrics["loss_final"] + metrics["loss_aggregated"]
        return total, (state, {"loss": total, "masked_share": jnp.mean(is_masked), **metrics})

    def eval_step(variables, frozen, batch):
        values, counts = predict(variables["params"], frozen, batch,
                                 mask.draw_for(batch["index"], grid))
        weights = (counts & batch["is_example"][:, None]).astype(jnp.float32)
        sums = {key: jnp.sum(value * weights) for key, value in values.items()}
        return {"loss": sums["loss_final"] + sums["loss_aggregated"], "count": jnp.sum(weights),
                **sums}

    def features(variables, frozen, batch):
        """The class token, which the bottleneck fills: float32 [b, d]."""
        del frozen
        image = normalise(batch["image"])
        return model.apply({"params": variables["params"]}, image, None,
                           method="features")[:, 0]

    def pictures(variables, frozen, batch, key):
        del variables, frozen
        image = batch["image"]
        is_masked = mask.draw(jax.random.split(key, image.shape[0]), grid)
        return {"masks": masking.grey_out(image, is_masked, grid)}

    forward = flops.vit(model) + flops.beitv2_head(model, mask.num_masked)
    return contract.Task(init, loss, eval_step, contract.mean_of_sums, frozen=tokens.frozen,
                         pictures=pictures, features=features,
                         flops_per_image=flops.train_step(forward, tokens.flops))
