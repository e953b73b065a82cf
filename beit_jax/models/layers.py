"""Building blocks that all networks share: LayerNorm, GELU, drop path, attention, initialisers.

LayerNorm and GELU bear hand-written backward passes: two-pass statistics in float32 keep their
accuracy at a fraction of what automatic differentiation of them costs.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ATTENTION_BACKENDS = ("xla", "cudnn")


def truncated_normal(stddev: float):
    """N(0, stddev) cut at one standard deviation: what comes out has std 0.539 * stddev.

    Source: microsoft/unilm beit/modeling_pretrain.py; jax's own initialiser of that name cuts at
      two standard deviations unless told otherwise.
    """
    return nn.initializers.truncated_normal(stddev, lower=-1.0, upper=1.0)


def uniform_fan_in(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for convolutions and their biases."""
    limit = 1.0 / np.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon: float):
    """Normalises the last axis with float32 two-pass statistics. x: [..., d] -> [..., d]."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    centred = x32 - mean
    inverse_std = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    y = centred * inverse_std * scale + bias
    return y.astype(x.dtype), (x, scale, mean, inverse_std)


def _layer_norm_backward(epsilon, saved, dy):
    del epsilon
    x, scale, mean, inverse_std = saved
    dy32 = dy.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse_std
    leading = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(dy32 * normalised, axis=leading)
    d_bias = jnp.sum(dy32, axis=leading)
    dn = dy32 * scale
    dx = inverse_std * (
        dn - jnp.mean(dn, axis=-1, keepdims=True)
        - normalised * jnp.mean(dn * normalised, axis=-1, keepdims=True))
    return dx.astype(x.dtype), d_scale, d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def standardise(x, epsilon: float = 1e-6):
    """LayerNorm without parameters: every vector to mean 0 and variance 1. [..., d] -> [..., d]."""
    return layer_norm(x, jnp.ones(x.shape[-1:]), jnp.zeros(x.shape[-1:]), epsilon)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; parameters and statistics float32, output in x's dtype."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, self.epsilon)


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x * Phi(x). Saves only x for the backward pass."""
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    x32 = x.astype(jnp.float32)
    y = 0.5 * x32 * (1.0 + jax.lax.erf(x32 * np.float32(np.sqrt(0.5))))
    return y.astype(x.dtype), x


def _gelu_backward(x, dy):
    x32 = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(x32 * np.float32(np.sqrt(0.5))))
    pdf = jnp.exp(-0.5 * jnp.square(x32)) * np.float32(1.0 / np.sqrt(2.0 * np.pi))
    return ((cdf + x32 * pdf) * dy.astype(jnp.float32)).astype(x.dtype),


gelu.defvjp(_gelu_forward, _gelu_backward)


def quick_gelu(x):
    """x * sigmoid(1.702 x), CLIP's cheaper GELU. It is off by up to 0.02: not interchangeable."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.nn.sigmoid(1.702 * x32)).astype(x.dtype)


class Linear(nn.Module):
    """Linear map of the last axis, [..., d] -> [..., features]; parameters "kernel" and "bias".

    All leading axes are folded into one before the product: on a CPU its gradient then takes half
    the time of flax's Dense on three axes; elsewhere it makes no difference.
    """

    features: int
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros
    dtype: Any = jnp.float32  # of the factors
    output_dtype: Any = None  # of sums, bias and result; None: as dtype
    precision: Any = None  # "highest": full float32 products on accelerators too
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        out = matmul(x.astype(self.dtype), kernel, self.output_dtype or self.dtype,
                     self.precision)
        if not self.use_bias:
            return out
        return out + self.param("bias", self.bias_init, (self.features,)).astype(out.dtype)


def patchify(image, patch_size: int):
    """Images [b, h, w, c] as patches [b, n, p * p * c], row-major; in each (row, column, channel).

    The patch must divide the image.
    """
    b, h, w, c = image.shape
    p = patch_size
    patches = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, (h // p) * (w // p), p * p * c)


def matmul(x, kernel, output_dtype=None, precision=None):
    """x [..., d] @ kernel [d, f] over folded leading axes -> [..., f]; the kernel in x's dtype."""
    out = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype),
                     precision=precision, preferred_element_type=output_dtype or x.dtype)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def drop_path(x, rate, key):
    """Drops whole samples of a residual branch, stochastic depth.

    Args:
      x: [b, ...].
      rate: probability of dropping, 0 <= rate < 1; may be traced (one rate per scanned block).
      key: PRNG key; one draw per sample.
    Returns: x where kept, divided by the probability of keeping; zeros elsewhere.
    """
    keep = 1.0 - rate
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    factor = jax.random.bernoulli(key, keep, shape) / keep
    return (x * factor).astype(x.dtype)  # float32: 1 / keep would be rounded in bfloat16


def attend(query, key, value, bias=None, *, backend: str = "xla"):
    """softmax(q k^T / sqrt(k) + bias) v, with logits and softmax in float32.

    Args:
      query, key, value: [b, n, a, k].
      bias: float [1, a, n, n] (with "xla" all that broadcasts to [b, a, n, keys]), added to the
        logits, or None.
      backend: "xla", or "cudnn" (bfloat16 on NVIDIA GPUs; needs an even n in training).
    Returns: [b, n, a, k] in the dtype of `value`.
    Raises: ValueError: an unknown backend.
    """
    if backend == "xla":
        # heads before tokens: on a CPU a third of the time of an einsum over the given layout
        query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
        logits = jnp.matmul(query * query.shape[-1] ** -0.5, key.swapaxes(-1, -2),
                            preferred_element_type=jnp.float32)  # [b, a, n, n]
        if bias is not None:
            logits = logits + bias
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.matmul(weights, value).transpose(0, 2, 1, 3)
    if backend == "cudnn":
        # bias in the compute dtype: float32 biases are reported to give NaN, jax issue 32242
        cast = None if bias is None else bias.astype(query.dtype)
        return jax.nn.dot_product_attention(query, key, value, cast, implementation="cudnn")
    raise ValueError(f"attention={backend!r} is none of {', '.join(ATTENTION_BACKENDS)}")
