"""Img2Vec: predict a token-diverse teacher's features of hidden cells, and of the whole image.

Source: Img2Vec (arXiv 2304.12535). No code was published and we had no full text: what the sources
  leave open is a switch, and docs/img2vec.md lists which choice is whose.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from beit_jax import options
from beit_jax.options import Natural, NonNegative, Positive
from beit_jax.tasks import masked_prediction
from beit_jax.tasks import task as contract

GLOBAL_TARGETS = ("pool_then_norm", "mean_of_normalised")


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss.

    Attributes:
      kind, beta: error of both losses, "smooth_l1" with beta 2 in the paper.
      global_weight: lambda, of the global loss; 0 leaves its head out, and what follows unread.
      global_target: "pool_then_norm": the mean of the teacher's raw tokens, scaled then;
        "mean_of_normalised": the mean of the scaled tokens.
      global_source: the visible tokens whose mean predicts it: "fused", or of the "last" block.
      global_layers, global_hidden: of the head, Linears with ReLU between.
    """

    kind: Literal[*masked_prediction.ERRORS] = "smooth_l1"
    beta: Positive = masked_prediction.BETA
    global_weight: NonNegative = 0.5
    global_target: Literal[*GLOBAL_TARGETS] = "pool_then_norm"
    global_source: str = "fused"
    global_layers: Natural = 2
    global_hidden: Natural = 2048

    def __post_init__(self):
        if self.global_weight and min(self.global_layers, self.global_hidden) < 1:
            raise ValueError(f"config.loss.global_layers={self.global_layers} and global_hidden="
                             f"{self.global_hidden} must be 1 or more; loss.global_weight=0 leaves "
                             "the head out")


def make(config) -> contract.Task:
    """Patch loss on hidden cells plus global_weight times the global loss.

    Reads config.model (MaskedAutoencoder), mask, target, loss, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target", "loss"))
    rule = options.build(LossOptions, config.loss, "config.loss")
    error = masked_prediction.error_function(rule.kind, rule.beta)
    head = masked_prediction.NO_GLOBAL_HEAD
    if rule.global_weight:
        head = dict(global_layers=rule.global_layers, global_hidden=rule.global_hidden,
                    global_source=rule.global_source)

    def values(predicted: masked_prediction.Predicted, scale):
        loss_patch = jnp.mean(error(predicted.patches, predicted.target), axis=1)
        if not rule.global_weight:
            return {"loss": loss_patch, "loss_patch": loss_patch}
        if rule.global_target == "pool_then_norm":
            wanted = scale(jnp.mean(predicted.tokens, axis=1))
        else:
            wanted = jnp.mean(scale(predicted.tokens), axis=1)
        loss_global = error(predicted.pooled, wanted)
        return {"loss": loss_patch + rule.global_weight * loss_global, "loss_patch": loss_patch,
                "loss_global": loss_global}

    return masked_prediction.make(config, values, **head)
