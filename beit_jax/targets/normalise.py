"""How a teacher's tokens are scaled before they are predicted: `config.target.norm`."""

import jax
import jax.numpy as jnp

from beit_jax.models.layers import standardise
from beit_jax.vectors import to_unit

NORMS = ("none", "layernorm", "l2", "whiten")
EPSILON = 1e-6


def normalise(tokens: jax.Array, norm: str, statistics: dict | None = None) -> jax.Array:
    """Scales tokens so that a loss with a scale of its own means the same for every teacher.

    Args:
      tokens: [..., c].
      norm: "none"; "layernorm": each token to mean 0 and variance 1, without parameters; "l2": to
        mean square 1; "whiten": each channel by the data set's mean and variance.
      statistics: for "whiten": mean [c] and variance [c], gathered by task token_diversity.
    Returns: float32 [..., c].
    Raises: ValueError: an unknown norm.
    Source: ours; Img2Vec does not say. data2vec normalises layer-wise.
    """
    tokens = tokens.astype(jnp.float32)
    if norm == "none":
        return tokens
    if norm == "layernorm":
        return standardise(tokens, EPSILON)
    if norm == "l2":
        return to_unit(tokens) * jnp.sqrt(float(tokens.shape[-1]))
    if norm == "whiten":
        return (tokens - statistics["mean"]) * jax.lax.rsqrt(statistics["variance"] + EPSILON)
    raise ValueError(f"target.norm={norm!r} is none of {', '.join(NORMS)}")
