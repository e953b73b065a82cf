"""AdamW with decay mask, layer-wise learning rates on stacked blocks, and the schedules."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax.training.sharding import path_of

SCHEDULES = ("cosine", "cosine_by_epoch", "constant")
DECAY_RULES = ("matrices", "kernels", "all")
_UNDECAYED = ("bias", "pos_embed", "cls_token")
_EMBEDDINGS = ("cls_token", "mask_token", "pos_embed", "patch_embed")
_BLOCKS = "blocks"  # the scope of a backbone's blocks
_STACKED = {_BLOCKS, "cls_pt_layers"}  # scopes whose leaves have a leading layer axis


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """config.optim; steps are optimizer updates.

    Attributes:
      learning_rate, min_learning_rate: peak and end of the schedule.
      warmup_steps, warmup_epochs: linear warm-up; steps win if both are given.
      schedule: "cosine", "cosine_by_epoch" (constant within an epoch) or "constant".
      decay_steps: length of the cosine, constant afterwards; 0: the whole run.
      weight_decay, weight_decay_end: cosine from one to the other; end < 0: constant.
      clip_norm: largest global gradient norm; 0: off.
      layer_decay: learning rate of a block over that of the block above; 1: off.
      accumulation_steps: micro-batches per update (read by training/step.py).
      decay_rule: "matrices" (all but vectors, biases, class token and positions), "kernels" (only
        weights of linear maps and convolutions), "all".
      decay_rel_pos_bias: whether relative position tables are decayed under "matrices".
      ema_decay: of the averaged parameters; 0: none (read by training/step.py).
      mu_dtype: dtype of Adam's first moment.
    """

    learning_rate: float
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    schedule: str = "cosine"
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    weight_decay_end: float = -1.0
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    accumulation_steps: int = 1
    decay_rule: str = "matrices"
    decay_rel_pos_bias: bool = True
    ema_decay: float = 0.0
    mu_dtype: str = "float32"

    def __post_init__(self):
        for name, allowed in (("schedule", SCHEDULES), ("decay_rule", DECAY_RULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"optim.{name}={getattr(self, name)!r} is none of "
                                 f"{', '.join(allowed)}")
        if self.accumulation_steps < 1:
            raise ValueError(f"optim.accumulation_steps={self.accumulation_steps} must be 1 or "
                             "more")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"optim.ema_decay={self.ema_decay} must be 0 or more and below 1")
        if self.schedule == "constant" and self.min_learning_rate:
            raise ValueError(f"optim.min_learning_rate={self.min_learning_rate} has no effect "
                             "here: optim.schedule=constant stays at its peak; remove it")


def warmup_cosine(peak: float, end: float, total_steps: int, warmup_steps: int = 0, *,
                  start: float = 0.0):
    """Linear warm-up that ends at the peak, then a half cosine that starts there again.

    Args:
      peak, end: highest value, and the value that the cosine approaches.
      total_steps: T; from step T on the value is `end`.
      warmup_steps: W; step 0 has `start`, step W - 1 and step W have the peak.
      start: value of step 0 if there is a warm-up.
    Returns: step -> float32 value.
    Raises: ValueError: the warm-up is longer than the run.
    Source: microsoft/unilm beit/utils.py, cosine_scheduler.
    """
    if warmup_steps > total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps is longer than the run of "
                         f"{total_steps} steps: lower optim.warmup_steps or warmup_epochs")

    def schedule(step):
        step = jnp.asarray(step)
        rising = start + (peak - start) * step / max(warmup_steps - 1, 1)
        # sin^2 of what is left equals (1 + cos) / 2 and keeps its accuracy near the end
        left = jnp.clip((total_steps - step) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        falling = end + (peak - end) * jnp.square(jnp.sin(0.5 * math.pi * left))
        return jnp.where(step < warmup_steps, rising, falling)

    return schedule


def learning_rate_schedule(options: OptimOptions, total_steps: int, steps_per_epoch: int):
    """step -> learning rate, as config.optim describes it.

    Raises: ValueError: the warm-up is longer than the run.
    """
    warmup = options.warmup_steps or round(options.warmup_epochs * steps_per_epoch)
    if options.schedule == "constant":
        return warmup_cosine(options.learning_rate, options.learning_rate, total_steps, warmup)
    smooth = warmup_cosine(options.learning_rate, options.min_learning_rate,
                           options.decay_steps or total_steps, warmup)
    if options.schedule == "cosine":
        return smooth
    return lambda step: smooth(step // steps_per_epoch * steps_per_epoch)


def decay_mask(params, options: OptimOptions):
    """True where weight decay applies. Source: microsoft/unilm beit/optim_factory.py."""
    def decays(path, leaf):
        parts = path_of(path).split("/")
        ndim = leaf.ndim - bool(_STACKED.intersection(parts))
        if options.decay_rule == "all":
            return True
        if options.decay_rule == "kernels":
            return parts[-1] in ("kernel", "w")
        if parts[-1] == "relative_position_bias_table":
            return options.decay_rel_pos_bias
        return ndim > 1 and parts[-1] not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_multipliers(params, layer_decay: float):
    """Learning-rate multiplier per leaf; for stacked blocks a vector along the layer axis.

    Embeddings and tokens are layer 0, block i is i + 1, all else depth + 1; the multiplier is
    layer_decay ** (depth + 1 - layer).
    Raises: ValueError: the network has no blocks.
    Source: BEiT, fine-tuning; microsoft/unilm beit/optim_factory.py.
    """
    stacked = jax.tree.leaves(params.get(_BLOCKS, {}))
    if not stacked:
        raise ValueError(f"config.optim.layer_decay={layer_decay}, but this network has no stack "
                         "of blocks to grade: remove it")
    depth = stacked[0].shape[0]

    def multiplier(path, leaf):
        top = path_of(path).split("/")[0]
        if top == _BLOCKS:
            rates = layer_decay ** (depth - np.arange(depth, dtype=np.float64))
            return rates.astype(np.float32).reshape((depth,) + (1,) * (leaf.ndim - 1))
        layer = 0 if top in _EMBEDDINGS else depth + 1
        return np.float32(layer_decay ** (depth + 1 - layer))

    return jax.tree_util.tree_map_with_path(multiplier, params)


def make_optimizer(options: OptimOptions, params, total_steps: int, steps_per_epoch: int):
    """The gradient transformation of a run, and its schedules for the log.

    Args:
      options: config.optim.
      params: the trained parameters, or their shapes.
      total_steps, steps_per_epoch: optimizer updates.
    Returns: (transformation, {"learning_rate": step -> value, "weight_decay": ...}).
    Raises: ValueError: the warm-up is longer than the run.
    """
    learning_rate = learning_rate_schedule(options, total_steps, steps_per_epoch)
    decay_end = options.weight_decay_end
    decay = warmup_cosine(options.weight_decay,
                          options.weight_decay if decay_end < 0 else decay_end, total_steps)
    parts = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm > 0 else []
    parts.append(optax.scale_by_adam(options.b1, options.b2, options.eps,
                                     mu_dtype=jnp.dtype(options.mu_dtype)))
    if options.weight_decay > 0 or decay_end > 0:
        parts.append(optax.add_decayed_weights(decay, mask=decay_mask(params, options)))
    if options.layer_decay != 1.0:
        rates = layer_multipliers(params, options.layer_decay)
        parts.append(optax.stateless(
            lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates)))
    parts.append(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(*parts), {"learning_rate": learning_rate, "weight_decay": decay}
