"""Linear probe: one linear classifier on the frozen features of every block.

Source: BEiT (arXiv 2106.08254), Sec. 3.3 and appendix; microsoft/unilm beit/run_linear_eval.py.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax import augment, losses, metrics, options
from beit_jax.models.vit import VisionTransformer
from beit_jax.tasks import task as contract

FEATURES = ("mean", "cls", "cls+mean")


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """config.probe.

    Attributes:
      num_classes: of the data set.
      feature: "mean" of the patch tokens (the paper), "cls" token, or both ("cls+mean", the code).
    """

    num_classes: int
    feature: str = "mean"


class BlockClassifiers(nn.Module):
    """Independent linear classifiers. features [l, b, f] -> logits [l, b, num_classes]."""

    num_classes: int

    @nn.compact
    def __call__(self, features):
        depth, _, width = features.shape
        kernel = self.param("kernel", nn.initializers.normal(0.01),
                            (depth, width, self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (depth, 1, self.num_classes))
        return jnp.einsum("lbf,lfc->lbc", features, kernel) + bias


def make(config) -> contract.Task:
    """Trains all classifiers at once on the sum of their losses; they do not interact.

    Reads config.model (VisionTransformer), probe, init.checkpoint, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "probe"))
    backbone = options.build(VisionTransformer, config.model, "config.model",
                             dtype=contract.compute_dtype(config), drop_path_rate=0.0)
    probe = options.build(ProbeOptions, config.probe, "config.probe")
    if probe.feature not in FEATURES:
        raise ValueError(f"probe.feature={probe.feature!r} is none of {', '.join(FEATURES)}")
    if probe.num_classes < 2:
        raise ValueError(f"probe.num_classes={probe.num_classes}: a probe needs two classes or "
                         "more; does the data set have labels?")
    classifiers = BlockClassifiers(probe.num_classes)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    image_shape = (1, backbone.grid[0] * backbone.patch_size, backbone.image_px, 3)
    width = backbone.width * (2 if probe.feature == "cls+mean" else 1)

    def init_backbone(key):
        return backbone.init(key, jnp.zeros(image_shape), method="encode")

    def features(frozen, batch):
        """float32 [l, b, f]; raw block outputs, no norm."""
        _, tokens = backbone.apply(frozen["backbone"], normalise(batch["image"]),
                                   all_blocks=True, method="encode")
        tokens = jax.lax.stop_gradient(tokens.astype(jnp.float32))  # [l, b, n + 1, d]
        cls, mean = tokens[:, :, 0], jnp.mean(tokens[:, :, 1:], axis=2)
        return {"cls": cls, "mean": mean,
                "cls+mean": jnp.concatenate([cls, mean], axis=-1)}[probe.feature]

    def per_block(params, frozen, batch):
        """Cross-entropy and hit of every classifier: each [l, b]."""
        logits = classifiers.apply({"params": params}, features(frozen, batch))
        label = jnp.broadcast_to(jnp.maximum(batch["label"], 0), logits.shape[:2])
        hits = jax.vmap(metrics.is_correct)(logits, label)
        return losses.cross_entropy(logits, label), hits

    def init(key, batch):
        del batch
        return classifiers.init(key, jnp.zeros((backbone.depth, 1, width)))

    def loss(params, state, frozen, batch, key):
        del key
        errors, hits = per_block(params, frozen, batch)
        weights = (batch["label"] >= 0).astype(jnp.float32)
        shares = weights / jnp.maximum(jnp.sum(weights), 1.0)
        total = jnp.sum(errors @ shares)
        return total, (state, {"loss": total, "accuracy": jnp.max(hits @ shares)})

    def eval_step(variables, frozen, batch):
        errors, hits = per_block(variables["params"], frozen, batch)
        weights = (batch["is_example"] & (batch["label"] >= 0)).astype(jnp.float32)
        return {"loss": jnp.sum(errors @ weights), "top1_of_blocks": hits @ weights,
                "count": jnp.sum(weights)}

    def summarize(sums):
        """Accuracy after every block (numbered from 0) and of the best one."""
        count = max(float(sums["count"]), 1.0)
        top1 = [float(hits) / count for hits in sums["top1_of_blocks"]]
        best = max(range(len(top1)), key=top1.__getitem__)
        blocks = {f"top1_block_{i}": value for i, value in enumerate(top1)}
        return {"loss": float(sums["loss"]) / count, "top1": top1[best], "best_block": float(best),
                **blocks}

    return contract.Task(init, loss, eval_step, summarize,
                         frozen={"backbone": contract.Frozen(init_backbone, "init")})
