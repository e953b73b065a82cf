"""Linear probe: one linear classifier on the frozen features of every block.

Blocks are numbered from 0 here; papers count from 1, so that "block 9" of a paper is block 8.
Source: BEiT (arXiv 2106.08254), Appendix D; microsoft/unilm beit/run_linear_eval.py;
  BEiT v2 (arXiv 2208.06366) probes the class token of the last block; MAE (arXiv 2111.06377),
  appendix A.1, and facebookresearch/mae main_linprobe.py do it behind a batch normalisation.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax import augment, losses, metrics, options
from beit_jax.models.layers import standardise
from beit_jax.models.vit import VisionTransformer
from beit_jax.options import Natural
from beit_jax.tasks import task as contract

FEATURES = ("mean", "cls", "cls+mean")
NORMALISE = ("none", "layer", "batch", "layer+batch")
EPSILON = 1e-6  # of both normalisations; the backbone's own norm has the same
SCOPE = "block_classifiers"  # by which training/optim.py knows that the first axis counts layers


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """config.probe.

    Attributes:
      num_classes: of the data set.
      feature: "mean" of the patch tokens (the paper), "cls" token, or both ("cls+mean", the code).
      normalise: what stands between a feature and its classifier, always without parameters:
        "none": nothing;
        "layer": each vector to mean 0 and variance 1, class token and mean patch each on its own.
          A classifier on the last block's class token can then represent exactly what one on
          norm(x_L)[0] can: the scale and shift of that norm are absorbed by the linear layer;
        "batch": each of the f numbers to mean 0 and variance 1 over the global batch, or over a
          part of it that is worked off by itself; evaluation takes running averages (0.9 of the
          old value is kept each time, biased variance: of b rows, PyTorch's is b / (b - 1) times
          as large, 6e-5 more at MAE's 16,384);
        "layer+batch": one after the other. On the last block's class token this is MAE's probe,
          which puts a batch normalisation behind the backbone's final norm: that norm gives
          s_j * x_j + t_j, x what "layer" gives; batch normalisation takes t_j out again, and s_j
          but for its sign, which the classifier absorbs (and epsilon counts as epsilon / s_j^2).
    """

    num_classes: Natural
    feature: Literal[*FEATURES] = "mean"
    normalise: Literal[*NORMALISE] = "none"


class BlockClassifiers(nn.Module):
    """Independent linear classifiers. features [l, b, f] -> logits [l, b, num_classes].

    With batch_norm, means and variances [l, f] are kept in the collection "batch_stats", float32.
    """

    num_classes: int
    batch_norm: bool = False

    @nn.compact
    def __call__(self, features, *, train: bool = False):
        depth, _, width = features.shape
        if self.batch_norm:
            # jit sees the global batch, so that its mean is the mean over all devices
            features = nn.BatchNorm(
                use_running_average=not train, axis=(0, 2), momentum=0.9, epsilon=EPSILON,
                use_bias=False, use_scale=False, use_fast_variance=False, name="norm")(features)
        kernel = self.param("kernel", nn.initializers.normal(0.01),
                            (depth, width, self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (depth, self.num_classes))
        return jnp.einsum("lbf,lfc->lbc", features, kernel) + bias[:, None]


def make(config) -> contract.Task:
    """Trains all classifiers at once on the sum of their losses; they do not interact.

    Reads config.model (VisionTransformer), probe, init.checkpoint, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "probe"))
    backbone = options.build(VisionTransformer, config.model, "config.model",
                             dtype=contract.compute_dtype(config), drop_path_rate=0.0)
    backbone.check()
    probe = options.build(ProbeOptions, config.probe, "config.probe")
    if probe.num_classes < 2:
        raise ValueError(f"probe.num_classes={probe.num_classes}: a probe needs two classes or "
                         "more; does the data set have labels?")
    parts = probe.normalise.split("+")
    classifiers = BlockClassifiers(probe.num_classes, batch_norm="batch" in parts)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    image_shape = (1, backbone.grid[0] * backbone.patch_size, backbone.image_px, 3)
    width = backbone.width * (2 if probe.feature == "cls+mean" else 1)

    def init_backbone(key):
        return backbone.init(key, jnp.zeros(image_shape), method="encode")

    def features(frozen, batch):
        """float32 [l, b, f]; of raw block outputs."""
        _, tokens = backbone.apply(frozen["backbone"], normalise(batch["image"]),
                                   all_blocks=True, method="encode")
        tokens = jax.lax.stop_gradient(tokens)  # [l, b, n + 1, d]
        cls, mean = tokens[:, :, 0], jnp.mean(tokens[:, :, 1:], axis=2)
        if "layer" in parts:
            cls, mean = standardise(cls, EPSILON), standardise(mean, EPSILON)
        return {"cls": cls, "mean": mean,
                "cls+mean": jnp.concatenate([cls, mean], axis=-1)}[probe.feature]

    def per_block(logits, label):
        """Cross-entropy and hit of every classifier: each [l, b]."""
        label = jnp.broadcast_to(jnp.maximum(label, 0), logits.shape[:2])
        hits = jax.vmap(metrics.is_correct)(logits, label)
        return losses.cross_entropy(logits, label), hits

    def init(key, batch):
        del batch
        variables = classifiers.init(key, jnp.zeros((backbone.depth, 1, width)))
        return {**variables, "params": {SCOPE: variables["params"]}}

    def loss(params, state, frozen, batch, key):
        del key
        logits, state = classifiers.apply({"params": params[SCOPE], **state},
                                          features(frozen, batch), train=True, mutable=list(state))
        errors, hits = per_block(logits, batch["label"])
        weights = (batch["label"] >= 0).astype(jnp.float32)
        shares = weights / jnp.maximum(jnp.sum(weights), 1.0)
        total = jnp.sum(errors @ shares)
        return total, (state, {"loss": total, "accuracy": jnp.max(hits @ shares)})

    def eval_step(variables, frozen, batch):
        variables = {**variables, "params": variables["params"][SCOPE]}
        logits = classifiers.apply(variables, features(frozen, batch))
        errors, hits = per_block(logits, batch["label"])
        weights = (batch["is_example"] & (batch["label"] >= 0)).astype(jnp.float32)
        return {"loss": jnp.sum(errors @ weights), "top1_of_blocks": hits @ weights,
                "count": jnp.sum(weights)}

    def summarize(sums):
        """Accuracy after every block (numbered from 0) and of the best one; {} without labels."""
        if contract.nothing_counted(sums):
            return {}
        count = float(sums["count"])
        top1 = [float(hits) / count for hits in sums["top1_of_blocks"]]
        best = max(range(len(top1)), key=top1.__getitem__)
        blocks = {f"top1_block_{i}": value for i, value in enumerate(top1)}
        return {"loss": float(sums["loss"]) / count, "top1": top1[best], "best_block": float(best),
                **blocks}

    return contract.Task(init, loss, eval_step, summarize,
                         frozen={"backbone": contract.Frozen(
                             init_backbone, "init", contract.statistics_of_data(config))})
