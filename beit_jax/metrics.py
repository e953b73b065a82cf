"""Measures of predictions, as sums over rows so that a split can be added up exactly."""

import jax.numpy as jnp


def is_correct(logits, label, k: int = 1):
    """Whether fewer than k classes score above the label's: logits [b, C], label [b] -> bool [b].

    A tie counts as correct only against classes of a higher index, as for argmax; logits that are
    not numbers are never correct.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    index = jnp.arange(logits.shape[-1])[None, :]
    before = (logits > own) | ((logits == own) & (index < label[:, None]))
    return (jnp.sum(before, axis=-1) < k) & ~jnp.any(jnp.isnan(logits), axis=-1)
