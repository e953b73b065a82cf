"""Losses: arrays in, scalar out, float32 inside; no module, no state, no collectives."""

import math

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

    A label of C or more gives NaN, as in `cross_entropy`; below 0 stands for no label: off alone.
    Source: Szegedy et al. 2016; timm, mixup targets.
    """
    on = jnp.where(label < num_classes, 1.0 - smoothing, jnp.nan)[:, None]
    return jax.nn.one_hot(label, num_classes) * on + smoothing / num_classes


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


def binary_cross_entropy(logits, target):
    """Of soft targets in [0, 1], summed over classes: logits, target [b, C] -> float32 [b].

    Source: microsoft/unilm beit3/engine_for_finetuning.py, VQA: the mean over classes, times C.
    """
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), target), axis=-1)


def smoothed_divergence(logits, codes, smoothing: float):
    """KL(q | softmax(logits)), q = 1 - s at the code and s / (v - 1) elsewhere; 0 at the optimum.

    logits [..., v], codes int [...] -> float32 [...].
    Source: microsoft/unilm beit3/utils.py, captioning. The usual smoothing, see `smooth_targets`,
      gives the code itself a share of s.
    """
    others = smoothing / (logits.shape[-1] - 1)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    cross_entropy_of_q = -(1.0 - smoothing) * own - others * (jnp.sum(log_p, axis=-1) - own)
    entropy = -(1.0 - smoothing) * math.log(1.0 - smoothing)
    if smoothing:
        entropy -= smoothing * math.log(others)
    return cross_entropy_of_q - entropy


def mean_of_smallest(values, is_counted, share: float):
    """Mean of the floor(share * n) smallest (at least one) of the n values that count.

    values float [...], is_counted bool [...] -> float32 scalar; 0 if none counts.
    Source: microsoft/unilm beit3/utils.py: late in captioning the worst words are dropped.
    """
    flat, counted = values.ravel(), is_counted.ravel()
    order = jnp.argsort(jnp.where(counted, flat, jnp.inf))
    n = jnp.sum(counted)
    kept = jnp.maximum(jnp.floor(share * n), 1)
    return weighted_mean(flat[order], (jnp.arange(flat.size) < kept) & counted[order])


def contrastive(images, texts, factor):
    """Every image to its text among all, and the reverse: the mean of both cross-entropies.

    Args: images, texts: unit vectors [b, d], rows of one pair at one place, b the global batch;
      factor: of their products, a scalar.
    Returns: float32 scalar.
    Source: CLIP; microsoft/unilm beit3/utils.py, ClipLoss.
    """
    logits = factor * jnp.matmul(images, texts.T, preferred_element_type=jnp.float32)
    pairs = jnp.arange(logits.shape[0])
    return 0.5 * jnp.mean(cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs))
