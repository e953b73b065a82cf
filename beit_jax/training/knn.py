"""Nearest neighbours in a bank of labelled features: how good features are, without training.

Source: Wu et al. (arXiv 1805.01978), Sec. 3.4; Caron et al., DINO (arXiv 2104.14294), Sec. 4.1 and
  appendix: similarity is the cosine, a neighbour's vote weighs exp(similarity / temperature).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from beit_jax.training import sharding

_SIMILARITIES = 2 ** 26  # float32 numbers that are on the devices at once: 256 MiB
_QUERIES = 1024          # at most so many at once


def accuracy(bank: np.ndarray, bank_label: np.ndarray, queries: np.ndarray, label: np.ndarray,
             ks: tuple[int, ...], temperature: float, mesh: Mesh) -> dict[str, float]:
    """Share of the queries that get their own label from their k nearest neighbours.

    Args:
      bank, queries: float [n, f] and [m, f], of any length: directions count.
      bank_label, label: int [n] and [m]; rows with -1 are left out.
      ks: numbers of neighbours that vote.
      temperature: the smaller, the more the nearest count.
      mesh: the bank is split over its devices; every process gives the same arrays.
    Returns: {"knn_<k>": accuracy}.
    Raises: ValueError: no labels, or a bank smaller than a k.
    """
    bank, bank_label = bank[bank_label >= 0], bank_label[bank_label >= 0]
    queries, label = queries[label >= 0], label[label >= 0]
    if len(bank) < max(ks):
        raise ValueError(f"config.eval.knn={ks}, but there are {len(bank)} labelled examples to "
                         "look for neighbours in: ask for fewer, or see config.eval.knn_split and "
                         "knn_bank")
    if not len(queries):
        raise ValueError("config.eval.knn needs labels, and the evaluation split has none")
    parts = sharding.rows_multiple(mesh)
    rows = -(-len(bank) // parts)
    bank = _filled(_unit(bank), parts * rows, 0.0).reshape(parts, rows, -1)
    bank_label = _filled(bank_label, parts * rows, -1).reshape(parts, rows)
    portion = min(max(_SIMILARITIES // (parts * rows), 1), _QUERIES, len(queries))
    portions = -(-len(queries) // portion)
    split = _filled(_unit(queries), portions * portion, 0.0).reshape(portions, portion, -1)

    def place(value, spec):
        where = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    vote = _compiled(mesh, tuple(ks), int(bank_label.max()) + 1)
    winners = vote(place(bank, sharding.BATCH), place(bank_label, sharding.BATCH),
                   place(split, P()), np.float32(temperature))
    winners = np.asarray(winners).reshape(-1, len(ks))[:len(label)]
    hits = np.mean(winners == label[:, None], axis=0)
    return {f"knn_{k}": float(hit) for k, hit in zip(ks, hits, strict=True)}


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Length 1, float32 [n, f]."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _filled(values: np.ndarray, length: int, value: float) -> np.ndarray:
    """Rows of `value` appended, up to `length` rows."""
    missing = [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, missing, constant_values=value)


@functools.lru_cache(maxsize=4)
def _compiled(mesh: Mesh, ks: tuple[int, ...], num_classes: int) -> Callable:
    """(bank [p, r, f], labels [p, r], queries [m, c, f], temperature) -> int [m, c, len(ks)].

    Rows with label -1 fill up and never vote.
    """
    most = max(ks)

    # by hand: left to the compiler, top_k would gather the similarities of all devices on each
    @functools.partial(jax.shard_map, mesh=mesh, out_specs=sharding.BATCH,
                       in_specs=(sharding.BATCH, sharding.BATCH, P()))
    def neighbours(bank, label, queries):
        """Similarities and labels of the nearest in a device's own part: [p = 1, c, k] each."""
        # float32 throughout: near neighbours differ in the third decimal
        similarity = jnp.einsum("cf,prf->pcr", queries, bank, precision="highest")
        similarity = jnp.where(label[:, None] < 0, -jnp.inf, similarity)
        near, index = jax.lax.top_k(similarity, min(most, label.shape[1]))
        return near, label[0][index]

    def vote(bank, label, queries, temperature):
        def of_portion(queries):
            near, found = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
                           for x in neighbours(bank, label, queries))  # [c, p * k]
            near, order = jax.lax.top_k(near, most)
            found = jnp.take_along_axis(found, order, axis=1)
            # relative to the nearest: exp of a small temperature would overflow
            weight = jnp.exp((near - near[:, :1]) / temperature)
            votes = jax.vmap(functools.partial(jnp.bincount, length=num_classes))
            winners = [jnp.argmax(votes(found[:, :k], weights=weight[:, :k]), axis=1) for k in ks]
            return jnp.stack(winners, axis=1)

        return jax.lax.map(of_portion, queries)

    return jax.jit(vote, out_shardings=sharding.replicated(mesh))
