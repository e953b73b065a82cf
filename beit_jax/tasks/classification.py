"""Image classification: fine-tuning from a checkpoint, or training from scratch.

Source: BEiT (arXiv 2106.08254), Sec. 2.6 and Table 13; microsoft/unilm
  beit/run_class_finetuning.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from beit_jax import augment, losses, metrics, options
from beit_jax.models.beit import BeitForClassification
from beit_jax.tasks import task as contract


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss. label_smoothing: share of the target spread evenly over all classes."""

    label_smoothing: float = 0.0


def make(config) -> contract.Task:
    """Classifier with label smoothing, random erasing, mixup and cutmix.

    Reads config.model (BeitForClassification), loss, augment, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "loss", "augment"))
    model = options.build(BeitForClassification, config.model, "config.model",
                          dtype=contract.compute_dtype(config))
    if model.num_classes < 2:
        raise ValueError(f"model.num_classes={model.num_classes}: classification needs two "
                         "classes or more; does the data set have labels?")
    model.grid  # noqa: B018  raises now if the patch does not divide the image
    smoothing = options.build(LossOptions, config.loss, "config.loss").label_smoothing
    mixing = options.build(augment.MixOptions, config.augment, "config.augment")
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    top_k = min(5, model.num_classes)

    def init(key, batch):
        return model.init(key, normalise(batch["image"]))

    def loss(params, state, frozen, batch, key):
        del frozen
        erase_key, mix_key, drop_key = jax.random.split(key, 3)
        label, is_labelled = batch["label"], batch["label"] >= 0
        image = normalise(batch["image"])
        if mixing.random_erasing > 0:
            image = augment.random_erasing(erase_key, image, mixing.random_erasing)
        target = losses.smooth_targets(label, model.num_classes, smoothing)
        image, target = augment.mix(mix_key, image, target, mixing)
        logits = model.apply({"params": params}, image, train=True, rngs={"drop_path": drop_key})
        errors = losses.soft_target_cross_entropy(logits, target)
        total = losses.weighted_mean(errors, is_labelled)
        accuracy = losses.weighted_mean(metrics.is_correct(logits, label), is_labelled)
        return total, (state, {"loss": total, "accuracy": accuracy})

    def eval_step(variables, frozen, batch):
        del frozen
        logits = model.apply({"params": variables["params"]}, normalise(batch["image"]))
        weights = (batch["is_example"] & (batch["label"] >= 0)).astype(jnp.float32)
        label = jnp.maximum(batch["label"], 0)
        return {
            "loss": jnp.sum(losses.cross_entropy(logits, label) * weights),
            "top1": jnp.sum(metrics.is_correct(logits, label) * weights),
            f"top{top_k}": jnp.sum(metrics.is_correct(logits, label, top_k) * weights),
            "count": jnp.sum(weights),
        }

    return contract.Task(init, loss, eval_step, contract.mean_of_sums)
