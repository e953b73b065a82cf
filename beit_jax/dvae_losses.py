"""The objective of the discrete VAE: relaxed codes, pixel likelihoods, KL, schedules, code use.

Source: DALL-E (arXiv 2102.12092), Sec. 2.1 and appendix A.2, A.3. float32 throughout.
"""

import jax
import jax.numpy as jnp


def half_cosine(step, start: float, end: float, steps: int) -> jax.Array:
    """From `start` to `end` along half a cosine over `steps` steps, constant afterwards.

    The paper says "cosine" and no more; half a period, flat at both ends, is our reading of it.
    """
    progress = jnp.minimum(step / max(steps, 1), 1.0) if steps > 0 else 1.0
    return end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2


def gumbel(uniform: jax.Array) -> jax.Array:
    """Uniform numbers in [0, 1] -> Gumbel noise -ln(-ln u), finite at both ends."""
    limits = jnp.finfo(jnp.float32)
    uniform = jnp.clip(uniform.astype(jnp.float32), limits.tiny, 1.0 - limits.epsneg)
    return -jnp.log(-jnp.log(uniform))


def relax(logits: jax.Array, noise: jax.Array, tau) -> jax.Array:
    """softmax((logits + noise) / tau): relaxed one-hot codes [..., v].

    Used in the forward and in the backward pass, no straight-through (openai/DALL-E issue 1).
    """
    return jax.nn.softmax((logits.astype(jnp.float32) + noise) / tau, axis=-1)


def logit_laplace_nll(x: jax.Array, mu: jax.Array, ln_b: jax.Array) -> jax.Array:
    """-ln of the density of sigmoid(Laplace(mu, b)) at x in (0, 1), elementwise.

    A density can exceed 1: in good training the value is negative. Source: DALL-E, eq. 2.
    """
    logit = jnp.log(x) - jnp.log1p(-x)
    log_volume = jnp.log(x) + jnp.log1p(-x)
    return jnp.log(2.0) + ln_b + log_volume + jnp.abs(logit - mu) * jnp.exp(-ln_b)


def reconstruction_error(
    mapped: jax.Array, stats: jax.Array, likelihood: str, ln_b_min: float
) -> jax.Array:
    """What one pixel and channel costs, [b, h, w, 3].

    Args:
      mapped: pixels [b, h, w, 3] in [0.1, 0.9].
      stats: decoder output [b, h, w, 6]: mu, then ln b.
      likelihood: "logit_laplace", or "mse" / "l1" between sigmoid(mu) and the mapped pixels
        (ours; they ignore ln b and want a KL weight of their own).
      ln_b_min: ln b is raised to this, so that one perfectly predicted pixel cannot drive the
        density to infinity (ours).
    Raises: ValueError: another likelihood.
    """
    mu, ln_b = jnp.split(stats.astype(jnp.float32), 2, axis=-1)
    if likelihood == "logit_laplace":
        return logit_laplace_nll(mapped, mu, jnp.maximum(ln_b, ln_b_min))
    if likelihood == "mse":
        return jnp.square(jax.nn.sigmoid(mu) - mapped)
    if likelihood == "l1":
        return jnp.abs(jax.nn.sigmoid(mu) - mapped)
    raise ValueError(f"likelihood={likelihood!r} is none of logit_laplace, mse, l1")


def kl_to_uniform(logits: jax.Array) -> jax.Array:
    """KL of softmax(logits) to the uniform prior, [..., v] -> [...], in [0, ln v].

    From the plain logits: no temperature, no noise (openai/DALL-E issue 26).
    """
    return jnp.log(float(logits.shape[-1])) - entropy(logits)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits) in nats, [..., v] -> [...]."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)


def kl_coefficient(kl_weight, downsampling: int):
    """Factor of the mean KL per position beside a mean over pixels and channels.

    The paper sums both and divides by the number of pixel values: the mean KL per position then
    counts positions / (pixels * 3) = 1 / (3 * downsampling^2) times, that is kl_weight / 192 at
    the published factor 8, for every image size.
    """
    return kl_weight / (3 * downsampling**2)


def psnr(squared_error: jax.Array) -> jax.Array:
    """Mean squared error of images in [0, 1] -> peak signal-to-noise ratio in dB, at most 100."""
    return -10 * jnp.log10(jnp.maximum(squared_error, 1e-10))
