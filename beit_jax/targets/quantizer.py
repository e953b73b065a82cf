"""The vector quantizer of VQ-KD: unit vectors, moved by averages and never by gradients.

All functions are pure and float32. The batch is global: under jit the sums run over all devices, so
that one codebook, the same everywhere, is what one device would have made.

Source: BEiT v2 (arXiv 2208.06366), Sec. 2.1; microsoft/unilm beit2/norm_ema_quantizer.py. The
paper's Eq. 2 pulls codes to vectors by a loss; the code, which we follow, by `update`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from beit_jax.vectors import to_unit


class Quantized(NamedTuple):
    """What becomes of vectors [..., c].

    Attributes:
      unit: the vectors at length 1, [..., c].
      codes: int32 [...], the nearest code; of a tie the lowest.
      output: [..., c], the code's vector in the forward pass; its gradient goes to `unit`.
      commitment: [...], mean over the c components of (unit - code's vector)^2.
    """

    unit: jax.Array
    codes: jax.Array
    output: jax.Array
    commitment: jax.Array


def random_codebook(key, size: int, dim: int):
    """Unit vectors of random directions, float32 [v, c]."""
    return to_unit(jax.random.normal(key, (size, dim)))


def nearest(unit, codebook):
    """The code at the smallest distance: unit [..., c], codebook [v, c] -> int32 [...]."""
    # both have length 1, so the largest product is the smallest distance; near-ties among thousands
    # of codes need the full product, which accelerators leave out unless told
    similarity = jnp.matmul(unit, codebook.T, precision="highest")
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)


def quantize(vectors, codebook) -> Quantized:
    """Replaces vectors [..., c] by their nearest codes in codebook [v, c]."""
    unit = to_unit(vectors)
    codes = nearest(unit, codebook)
    chosen = jax.lax.stop_gradient(codebook[codes])
    return Quantized(unit, codes, unit + jax.lax.stop_gradient(chosen - unit),
                     jnp.mean(jnp.square(unit - chosen), axis=-1))


def statistics(unit, codes, size: int):
    """What `update` needs of a batch: how often each code was chosen, and by which sum of vectors.

    Args: unit: [..., c]; codes: int [...]; size: v.
    Returns: count float32 [v], total float32 [v, c].
    """
    unit = jax.lax.stop_gradient(unit).reshape(-1, unit.shape[-1])
    # a product, not a scatter: sums in a fixed order, the same at every run
    chosen = jax.nn.one_hot(codes.reshape(-1), size, dtype=jnp.float32)
    return jnp.sum(chosen, axis=0), jnp.matmul(chosen.T, unit, precision="highest")


def update(codebook, count, total, decay: float):
    """Moves every chosen code towards the mean direction of the vectors that chose it.

    Args:
      codebook: [v, c]; count, total: of `statistics`, summed over one update's whole batch.
      decay: weight of the old code.
    Returns: [v, c], rows of length 1; codes that nobody chose stay where they are.
    """
    mean = to_unit(total / jnp.maximum(count, 1.0)[:, None])
    mean = jnp.where(count[:, None] > 0, mean, codebook)
    return to_unit(decay * codebook + (1.0 - decay) * mean)


def start_means(key, samples, size: int):
    """`size` samples drawn uniformly, without replacement while there are enough: [m, c] -> [v, c].
    """
    return jax.random.choice(key, samples, (size,), replace=samples.shape[0] < size)


def kmeans(samples, means, iterations: int):
    """k-means on the sphere: assign by the largest product, renormalise the means.

    Args:
      samples: [m, c], unit vectors; means: [v, c], where to start, see `start_means`.
    Returns: means [v, c], unit vectors; a cluster without samples keeps its mean. Counts float32
      [v] of the last assignment.
    """
    def step(_, carry):
        means, _ = carry
        count, total = statistics(samples, nearest(samples, means), means.shape[0])
        return update(means, count, total, 0.0), count

    return jax.lax.fori_loop(0, iterations, step, (means, jnp.zeros(means.shape[0])))
