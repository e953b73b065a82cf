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


def code_use(counts):
    """(share of codes used at least once, perplexity in [1, v]) of code counts [v].

    Sum the counts over batches and hosts first: neither is a mean of means.
    """
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    terms = jnp.where(counts > 0, share * jnp.log(jnp.where(counts > 0, share, 1.0)), 0.0)
    return jnp.mean(counts > 0), jnp.exp(-jnp.sum(terms))
