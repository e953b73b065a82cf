"""Losses: arrays in, scalar out, float32 inside; no module, no state, no collectives."""

import jax
import jax.numpy as jnp
import optax

from beit_jax.vectors import to_unit


def weighted_mean(values, weights):
    """Sum of values * weights over the sum of weights, at least 1. Both of one shape."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def cross_entropy(logits, codes):
    """-log softmax(logits)[codes]: logits [..., v], codes int [...] -> float32 [...]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), codes)


def smooth_targets(label, num_classes: int, smoothing: float):
    """One-hot targets, on = 1 - s + s/C and off = s/C. label int [b] -> [b, C].

    Source: Szegedy et al. 2016; timm, mixup targets.
    """
    return jax.nn.one_hot(label, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def soft_target_cross_entropy(logits, target):
    """Cross-entropy with soft targets: logits, target [b, C] -> float32 [b]."""
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def squared_error(predicted, target):
    """Mean over the last axis of squared differences: [..., c] -> float32 [...]."""
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - target), axis=-1)


def smooth_l1(predicted, target, beta: float):
    """Mean over the last axis of d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, float32.

    [..., c] -> [...]. Source: PyTorch's smooth_l1_loss with its argument beta; data2vec's has 2.
    """
    distance = jnp.abs(predicted.astype(jnp.float32) - target)
    return jnp.mean(jnp.where(distance < beta, 0.5 / beta * jnp.square(distance),
                              distance - 0.5 * beta), axis=-1)


def cosine_distance(predicted, target):
    """1 - cosine along the last axis: [..., c] -> float32 [...]."""
    return 1.0 - jnp.sum(to_unit(predicted) * to_unit(target), axis=-1)
