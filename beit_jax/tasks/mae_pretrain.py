"""MAE: an encoder of visible patches, and a decoder that predicts the hidden ones.

By config.target and config.loss the same task is the baseline that others are compared with:
  pixels, of each patch normalised, squared error         MAE
  hog, squared error                                      MaskFeat's target in MAE's network
  a teacher's tokens, squared, smooth-l1 or cosine        distillation into a masked autoencoder
  the student's own average ("ema"), smooth-l1            data2vec's target in MAE's network
Source: MAE (arXiv 2111.06377), Sec. 3; facebookresearch/mae models_mae.py. MaskFeat (arXiv
  2112.09133) and data2vec have mask tokens in the encoder, this network has not.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from beit_jax import options
from beit_jax.options import Positive
from beit_jax.tasks import masked_prediction
from beit_jax.tasks import task as contract


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """config.loss. kind: "squared", "smooth_l1" or "cosine"; beta: of smooth_l1."""

    kind: Literal[*masked_prediction.ERRORS] = "squared"
    beta: Positive = masked_prediction.BETA


def make(config) -> contract.Task:
    """Mean error over the hidden patches of what config.target names.

    Reads config.model (MaskedAutoencoder), mask, target, loss, data.mean, data.std.
    Raises: ValueError: values that do not fit together.
    """
    contract.check_sections(config, ("model", "mask", "target", "loss"))
    rule = options.build(LossOptions, config.loss, "config.loss")
    error = masked_prediction.error_function(rule.kind, rule.beta)

    def values(predicted: masked_prediction.Predicted, scale):
        del scale
        return {"loss": jnp.mean(error(predicted.patches, predicted.target), axis=1)}

    return masked_prediction.make(config, values, **masked_prediction.NO_GLOBAL_HEAD)
