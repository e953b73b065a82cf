"""The sum of several losses on one set of parameters, each on data of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def add(parts: Sequence[Callable], params: Any, *, sequential: bool = False):
    """Sum of the losses, and all their metrics.

    Args:
      parts: params -> (loss, {"name": metric}), names that differ.
      sequential: takes each part's gradient right behind its loss, before the next part begins:
        memory never holds the activations of two. Only for losses that will be differentiated once.
    Returns: (scalar, {"name": metric}); the same in both ways, and so is the gradient.
    """
    total, metrics = 0.0, {}
    for part in parts:
        if sequential:
            # the next part waits for the last one's loss, which stands behind its gradient
            params, total = jax.lax.optimization_barrier((params, total))
            part = eager(part)
        loss, more = part(params)
        total, metrics = total + loss, metrics | more
    return total, metrics


def eager(function: Callable) -> Callable:
    """params -> (scalar, metrics), whose gradient is taken together with the value.

    Metrics have no gradient.
    """
    @jax.custom_vjp
    def call(params):
        return function(params)

    def forward(params):
        value, gradient = jax.value_and_grad(function, has_aux=True)(params)
        # neither can be had without the other: what waits for the value waits for the gradient
        return jax.lax.optimization_barrier((value, gradient))

    def backward(gradient, cotangent):
        of_loss, _ = cotangent
        return (jax.tree.map(lambda leaf: (leaf * of_loss).astype(leaf.dtype), gradient),)

    call.defvjp(forward, backward)
    return call
