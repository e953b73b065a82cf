"""Vectors at length 1: what cosines and codebooks are made of."""

import jax.numpy as jnp


def to_unit(x):
    """x / |x| along the last axis, float32: [..., c]; zero vectors stay zero."""
    x = x.astype(jnp.float32)
    # the floor stands under the root: its derivative at zero would be a NaN
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
