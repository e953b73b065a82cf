"""AdamW and LARS with decay mask, layer-wise learning rates on stacked blocks, and schedules."""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax.options import BelowOne, Count, Dtype, Natural, NonNegative, Positive, Rule, within
from beit_jax.training.sharding import path_of

SCHEDULES = ("cosine", "cosine_continuous", "cosine_by_epoch", "constant")
DECAY_RULES = ("matrices", "not_vectors", "kernels", "kernels_and_words", "all")
# name -> keys of config.optim that only this optimizer reads
OPTIMIZERS = {"adamw": ("b1", "b2", "eps", "mu_dtype"), "lars": ("momentum", "trust_coefficient")}
_POSITIONS = ("pos_embed", "decoder_pos_embed")  # fixed ones have no gradient to oppose a decay
_UNDECAYED = ("bias", "cls_token", *_POSITIONS)
_EMBEDDINGS = ("cls_token", "mask_token", "pos_embed", "patch_embed", "text_embed", "vision_embed",
               "embed_positions")
_BLOCKS = ("blocks", "vl_blocks")  # the scopes of a backbone's blocks, from below
# scopes whose leaves have a leading layer axis
_STACKED = {*_BLOCKS, "cls_pt_layers", "decoder_blocks", "block_classifiers"}
# BEiT-3: its text positions are decayed, as the original's are
_UNDECAYED_PATHS = ("embed_positions/A/embedding",)
_WORDS = "text_embed/embedding"


DecayEnd = Annotated[float, Rule(lambda end: end >= 0 or end == -1, "0 or more, or -1")]


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """config.optim; steps are optimizer updates.

    Attributes:
      name: "adamw", or "lars" (for linear probes at large batches); each refuses the other's keys.
      learning_rate, min_learning_rate: peak and end of the schedule.
      warmup_steps, warmup_epochs: linear warm-up; steps win if both are given.
      schedule: "cosine", whose warm-up of W steps reaches the peak at step W - 1 as BEiT's does;
        "cosine_continuous", which reaches it at step W as MAE's does; "cosine_by_epoch" (as
        "cosine", constant within an epoch); "constant".
      decay_steps: length of the cosine, constant afterwards; 0: the whole run.
      weight_decay, weight_decay_end: cosine from one to the other; end -1: constant.
      clip_norm: largest global gradient norm; 0: off.
      layer_decay: learning rate of a block over that of the block above; 1: off.
      head_rate: learning rate of the leaves under "head" over that of the others (VQA).
      accumulation_steps: micro-batches per update (read by training/step.py).
      decay_rule: "matrices" (all but vectors, biases, class token and positions), "not_vectors"
        (all but vectors and positions: class and mask token are decayed), "kernels" (only weights
        of linear maps and convolutions), "kernels_and_words" (these and the table of words: no
        positions, no tokens; BEiT-3's pre-training), "all".
      decay_rel_pos_bias: whether relative position tables are decayed under the first two.
      ema_decay: of the averaged parameters; 0: none (read by training/step.py).
      b1, b2, eps, mu_dtype: of AdamW: decay of both moments, what is added to the root of the
        second, dtype of the first.
      momentum, trust_coefficient: of LARS, see `make_optimizer`.
    """

    learning_rate: NonNegative
    name: Literal[*OPTIMIZERS] = "adamw"
    min_learning_rate: NonNegative = 0.0
    warmup_steps: Natural = 0
    warmup_epochs: NonNegative = 0.0
    schedule: Literal[*SCHEDULES] = "cosine"
    decay_steps: Natural = 0
    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.05
    weight_decay_end: DecayEnd = -1.0
    clip_norm: NonNegative = 0.0
    layer_decay: Annotated[float, within(above=0, high=1)] = 1.0
    head_rate: Positive = 1.0
    accumulation_steps: Count = 1
    decay_rule: Literal[*DECAY_RULES] = "matrices"
    decay_rel_pos_bias: bool = True
    ema_decay: BelowOne = 0.0
    mu_dtype: Dtype = "float32"
    momentum: BelowOne = 0.9
    trust_coefficient: Positive = 0.001

    def __post_init__(self):
        for other in OPTIMIZERS.keys() - {self.name}:
            for key in OPTIMIZERS[other]:
                if getattr(self, key) != getattr(OptimOptions, key):
                    raise ValueError(f"config.optim.{key}={getattr(self, key)} has no effect here: "
                                     f"optim.name={self.name} does not read it; remove it")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"config.optim.min_learning_rate={self.min_learning_rate} must be at "
                             f"most the peak, config.optim.learning_rate={self.learning_rate}")
        if self.schedule == "constant" and self.min_learning_rate:
            raise ValueError(f"config.optim.min_learning_rate={self.min_learning_rate} has no "
                             "effect here: optim.schedule=constant stays at its peak; remove it")


def warmup_cosine(peak: float, end: float, total_steps: int, warmup_steps: int = 0, *,
                  start: float = 0.0, rise_steps: int = 0):
    """Linear warm-up that ends at the peak, then a half cosine that starts there again.

    Args:
      peak, end: highest value, and the value that the cosine approaches.
      total_steps: T; from step T on the value is `end`.
      warmup_steps: W; step 0 has `start`, step W - 1 and step W have the peak.
      start: value of step 0 if there is a warm-up.
      rise_steps: R; the warm-up is start + (peak - start) * step / R; 0: R = W - 1. With R = W
        there is one step at the peak, step W.
    Returns: step -> float32 value.
    Raises: ValueError: the warm-up is longer than the run.
    Source: microsoft/unilm beit/utils.py, cosine_scheduler; facebookresearch/mae
      util/lr_sched.py for R = W, whose fraction of an epoch is step / steps per epoch.
    """
    if warmup_steps > total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps is longer than the run of "
                         f"{total_steps} steps: lower optim.warmup_steps or warmup_epochs")

    def schedule(step):
        step = jnp.asarray(step)
        rising = start + (peak - start) * step / (rise_steps or max(warmup_steps - 1, 1))
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
                           options.decay_steps or total_steps, warmup,
                           rise_steps=warmup if options.schedule == "cosine_continuous" else 0)
    if options.schedule == "cosine_by_epoch":
        return lambda step: smooth(step // steps_per_epoch * steps_per_epoch)
    return smooth


def _num_dims(path, leaf) -> int:
    """Axes of a leaf as one layer has it."""
    return leaf.ndim - _is_stacked(path)


def _is_stacked(path) -> bool:
    """Whether the first axis of a leaf counts layers."""
    return not _STACKED.isdisjoint(path_of(path).split("/"))


def decay_mask(params, options: OptimOptions):
    """True where weight decay applies.

    Source: microsoft/unilm beit/optim_factory.py and beit3/ ("matrices"); facebookresearch/mae
      main_pretrain.py ("not_vectors").
    """
    def decays(path, leaf):
        name = path_of(path).split("/")[-1]
        if options.decay_rule == "matrices" and path_of(path) in _UNDECAYED_PATHS:
            return False
        if options.decay_rule == "all":
            return True
        if options.decay_rule.startswith("kernels"):
            is_words = path_of(path) == _WORDS and options.decay_rule == "kernels_and_words"
            return name in ("kernel", "w") or is_words
        if name == "relative_position_bias_table":
            return options.decay_rel_pos_bias
        kept = _UNDECAYED if options.decay_rule == "matrices" else _POSITIONS
        return _num_dims(path, leaf) > 1 and name not in kept

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_multipliers(params, layer_decay: float):
    """Learning-rate multiplier per leaf; for stacked blocks a vector along the layer axis.

    Embeddings and tokens are layer 0, block i is i + 1, all else depth + 1; the multiplier is
    layer_decay ** (depth + 1 - layer).
    Raises: ValueError: the network has no blocks.
    Source: BEiT, fine-tuning; microsoft/unilm beit/optim_factory.py.
    """
    stacks = {name: jax.tree.leaves(params[name])[0].shape[0] for name in _BLOCKS
              if name in params}
    if not stacks:
        raise ValueError(f"config.optim.layer_decay={layer_decay}, but this network has no stack "
                         "of blocks to grade: remove it")
    depth = sum(stacks.values())

    def multiplier(path, leaf):
        top = path_of(path).split("/")[0]
        if top in stacks:
            first = stacks["blocks"] if top == "vl_blocks" else 0
            index = first + np.arange(stacks[top], dtype=np.float64)
            rates = layer_decay ** (depth - index)
            return rates.astype(np.float32).reshape((-1,) + (1,) * (leaf.ndim - 1))
        layer = 0 if top in _EMBEDDINGS else depth + 1
        return np.float32(layer_decay ** (depth + 1 - layer))

    return jax.tree_util.tree_map_with_path(multiplier, params)


def head_multipliers(params, head_rate: float):
    """Learning-rate multiplier per leaf: `head_rate` under "head", 1 elsewhere.

    Source: microsoft/unilm beit3/run_beit3_finetuning.py, task_head_lr_weight.
    """
    def multiplier(path, leaf):
        del leaf
        return np.float32(head_rate if path_of(path).split("/")[0] == "head" else 1.0)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def scale_by_layer_trust_ratio(coefficient: float) -> optax.GradientTransformation:
    """Makes the update of every tensor `coefficient` times as long as the tensor.

    Tensors of one axis stay as they are, and so does what has length 0 or an update of length 0.
    Leaves that are stacked over layers get one ratio per layer: layers do not see each other.
    """
    ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def of_tensor(update, param):
        return ratio.update(update, ratio.init(param), param)[0]

    def of_leaf(path, update, param):
        if _num_dims(path, param) < 2:
            return update
        return (jax.vmap(of_tensor) if _is_stacked(path) else of_tensor)(update, param)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(of_leaf, updates, params))


def make_optimizer(options: OptimOptions, params, total_steps: int, steps_per_epoch: int):
    """The gradient transformation of a run, and its schedules for the log.

    LARS: u = g + decay * p; u *= trust_coefficient * |p| / |u| (tensors of two or more axes);
    m = momentum * m + u; p -= rate * m. The rate is not in m, where optax.lars has it: while the
    rate falls, that lets old gradients count more than here.

    Args:
      options: config.optim.
      params: the trained parameters, or their shapes.
      total_steps, steps_per_epoch: optimizer updates.
    Returns: (transformation, {"learning_rate": step -> value, "weight_decay": ...}).
    Raises: ValueError: the warm-up is longer than the run.
    Source: of LARS: You et al., arXiv 1708.03888, in the form of facebookresearch/mae util/lars.py,
      where weight decay spares vectors too: that is decay_rule here.
    """
    learning_rate = learning_rate_schedule(options, total_steps, steps_per_epoch)
    decay_end = options.weight_decay_end
    decay = warmup_cosine(options.weight_decay,
                          options.weight_decay if decay_end < 0 else decay_end, total_steps)
    parts = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm > 0 else []
    decayed = []
    if options.weight_decay > 0 or decay_end > 0:
        decayed = [optax.add_decayed_weights(decay, mask=decay_mask(params, options))]
    if options.name == "lars":
        parts += [*decayed, scale_by_layer_trust_ratio(options.trust_coefficient),
                  optax.trace(options.momentum)]
    else:
        parts += [optax.scale_by_adam(options.b1, options.b2, options.eps,
                                      mu_dtype=jnp.dtype(options.mu_dtype)), *decayed]
    if options.layer_decay != 1.0:
        parts.append(_scale_by_tree(layer_multipliers(params, options.layer_decay)))
    if options.head_rate != 1.0:
        parts.append(_scale_by_tree(head_multipliers(params, options.head_rate)))
    parts.append(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(*parts), {"learning_rate": learning_rate, "weight_decay": decay}


def _scale_by_tree(rates) -> optax.GradientTransformation:
    """Multiplies every update by its leaf of `rates`."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates))
