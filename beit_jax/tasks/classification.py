"""Image classification: fine-tuning from a checkpoint, or training from scratch.

Source: BEiT (arXiv 2106.08254), Sec. 2.6 and Table 13; microsoft/unilm
  beit/run_class_finetuning.py. BEiT-3 on ImageNet: microsoft/unilm beit3/README.md.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import augment, flops, losses, metrics, options
from beit_jax.data import class_lists
from beit_jax.models.beit import BeitForClassification
from beit_jax.models.beit3_heads import Beit3ForClassification
from beit_jax.options import BelowOne, within
from beit_jax.tasks import task as contract


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss. label_smoothing: share of the target spread evenly over all classes."""

    label_smoothing: BelowOne = 0.0


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """config.target: evaluation on data that have only some of the model's classes.

    Attributes:
      classes: a list of classes, by the name of a file in data/class_lists ("imagenet_a") or by
        path: evaluation chooses among these alone, the softmax runs over these alone, and examples
        of other classes do not count. "": all classes of the model.
      num_classes: of the data set; -1 is filled in. It tells what labels count: as many as the
        model has: positions among all classes; as many as `classes`: positions among those.
      all_classes: the list of all classes of the model, likewise.
    """

    classes: str = ""
    num_classes: Annotated[int, within(-1)] = -1
    all_classes: str = "imagenet_1k"


def make(config) -> contract.Task:
    """Classifier with label smoothing, random erasing, mixup and cutmix.

    Reads config.model, loss, augment, target, data.mean, data.std. config.model.kind chooses the
    network, which has the section's other keys: "beit" (BeitForClassification, the default) or
    "beit3" (Beit3ForClassification, its image experts alone).
    Raises: ValueError: values that do not fit together. FileNotFoundError: no such class list.
    """
    contract.check_sections(config, ("model", "loss", "augment", "target"))
    model, work = _network(config)
    if model.num_classes < 2:
        raise ValueError(f"model.num_classes={model.num_classes}: classification needs two "
                         "classes or more; does the data set have labels?")
    smoothing = options.build(LossOptions, config.loss, "config.loss").label_smoothing
    mixing = options.build(augment.MixOptions, config.augment, "config.augment")
    parts = (config.get("optim") or {}).get("accumulation_steps", 1)
    augment.check_groups(config.data.global_batch_size // parts, mixing)
    normalise = functools.partial(augment.normalise, mean=config.data.mean, std=config.data.std)
    choice = options.build(TargetOptions, config.target, "config.target")
    kept = _kept_classes(choice, model.num_classes)
    top_k = min(5, len(kept))
    labels_count_kept = bool(choice.classes) and choice.num_classes == len(kept)
    place = np.full(model.num_classes, -1, np.int32)  # class of the model -> its place in `kept`
    place[kept] = np.arange(len(kept))

    def translated(label, table):
        """Labels [b] through a table; -1 stays -1."""
        return jnp.where(label >= 0, jnp.asarray(table)[label], -1)

    def init(key, batch):
        return model.init(key, normalise(batch["image"]))

    def loss(params, state, frozen, batch, key):
        del frozen
        erase_key, mix_key, drop_key = jax.random.split(key, 3)
        label = translated(batch["label"], kept) if labels_count_kept else batch["label"]
        is_labelled = label >= 0
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
        label = batch["label"]
        if choice.classes:
            logits = logits[:, kept]
            label = label if labels_count_kept else translated(label, place)
        weights = (batch["is_example"] & (label >= 0)).astype(jnp.float32)
        label = jnp.maximum(label, 0)
        return {
            "loss": jnp.sum(losses.cross_entropy(logits, label) * weights),
            "top1": jnp.sum(metrics.is_correct(logits, label) * weights),
            f"top{top_k}": jnp.sum(metrics.is_correct(logits, label, top_k) * weights),
            "count": jnp.sum(weights),
        }

    forward = work + flops.linear(1, model.width, model.num_classes)
    return contract.Task(init, loss, eval_step, contract.mean_of_sums,
                         flops_per_image=flops.train_step(forward))


def _network(config):
    """The network of config.model, and FLOPs of its forward pass without the head.

    Raises: ValueError: an unknown kind, or values that do not fit together.
    """
    kind = contract.kind_of(config.model, ("beit", "beit3"), "config.model", "beit")
    section = {key: value for key, value in config.model.items() if key != "kind"}
    build = functools.partial(options.build, section=section, where="config.model",
                              dtype=contract.compute_dtype(config))
    if kind == "beit":
        model = build(BeitForClassification)
        model.check()
        return model, flops.vit(model)
    model = build(Beit3ForClassification, modalities="vision")
    model.check()
    return model, flops.multiway(model, model.num_patches + 1, 0)


def read_classes(name: str, key: str) -> tuple[str, ...]:
    """The list that config.target.`key` names. Raises: FileNotFoundError: there is none."""
    try:
        return class_lists.read(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config.target.{key}: {error}") from error


def _kept_classes(choice: TargetOptions, num_classes: int) -> np.ndarray:
    """Classes of the model that evaluation chooses among, int32 [s], increasing.

    Raises: ValueError: lists, model and data do not agree.
    """
    if not choice.classes:
        for name in ("num_classes", "all_classes"):
            if getattr(choice, name) != getattr(TargetOptions, name):
                raise ValueError(f"config.target.{name} has no effect while target.classes is "
                                 "empty: remove it")
        return np.arange(num_classes, dtype=np.int32)
    whole = read_classes(choice.all_classes, "all_classes")
    if len(whole) != num_classes:
        raise ValueError(f"target.all_classes={choice.all_classes} lists {len(whole)} classes, but "
                         f"model.num_classes={num_classes}: name the list of the model's classes")
    kept = class_lists.positions(read_classes(choice.classes, "classes"), whole)
    if choice.num_classes not in (len(whole), len(kept)):
        raise ValueError(f"target.num_classes={choice.num_classes}: data for target.classes="
                         f"{choice.classes} have {len(kept)} classes, or all {len(whole)}")
    return kept
