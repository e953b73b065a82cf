"""The student's own average as its teacher: `config.target` with kind "ema".

Source: data2vec (arXiv 2202.03555); facebookresearch/data2vec_vision beit/engine_for_cyclical.py as
  its commands for ViT-B and ViT-L run it (--post_target_layer_norm: a norm behind the average too).
  There, the student has mask tokens in its encoder; here the rule is applied to the encoder of a
  masked autoencoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from beit_jax.models.layers import standardise
from beit_jax.models.vit import VisionTransformer
from beit_jax.options import BelowOne, Count

ENCODER = ("patch_embed", "cls_token", "pos_embed", "blocks")  # parameters that are averaged
_EPSILON = 1e-5  # of the target's norms, as in the original


@dataclasses.dataclass(frozen=True)
class SelfTeacher:
    """config.target of kind "ema".

    Attributes:
      decay: share of the old average that each update keeps, from the first step on.
      blocks: number of the last blocks whose outputs are averaged, each under a norm; the average
        is under one more.
    """

    decay: BelowOne = 0.9998
    blocks: Count = 6


def begin(params: Mapping[str, Any]) -> dict:
    """The average before the first step: a copy of the encoder's parameters."""
    # a copy: one buffer twice in a donated state is a crash
    return jax.tree.map(jnp.copy, {name: params[name] for name in ENCODER})


def update(average: Mapping[str, Any], params: Mapping[str, Any], decay: float) -> dict:
    """decay * average + (1 - decay) * parameters, float32."""
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average,
                        {name: params[name] for name in ENCODER})


def tokens(model: VisionTransformer, average: Mapping[str, Any], image, blocks: int) -> jax.Array:
    """What the averaged encoder makes of an image of which nothing is hidden.

    Args:
      model: the student; its sizes are the teacher's.
      image: float [b, h, w, 3], normalised as the student's.
      blocks: the last so many blocks are averaged.
    Returns: float32 [b, n, d], mean 0 and variance 1 per token, no gradient.
    """
    fields = {field.name: getattr(model, field.name)
              for field in dataclasses.fields(VisionTransformer)
              if field.init and field.name not in ("parent", "name")}
    _, outputs = VisionTransformer(**fields).apply(
        {"params": average}, image, all_blocks=True, method="encode")
    patches = outputs[-blocks:, :, 1:]  # [l, b, n, d]
    mean = jnp.mean(standardise(patches, _EPSILON), axis=0)
    return jax.lax.stop_gradient(standardise(mean, _EPSILON))
