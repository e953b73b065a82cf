"""The block of a Multiway Transformer: attention over all tokens, weights by modality.

Expert "A" serves image tokens, "B" text tokens, and "VL", of the paper's top layers, both kinds of
a pair. Submodules bear the names of the released BEiT-3 checkpoints. beit3.py stacks the blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import layers

INITIALISERS = ("magneto", "beit")


def normal_init(std: float) -> Callable:
    """Normal around 0, cut at two sigma."""
    return nn.initializers.truncated_normal(std)


class Routes(NamedTuple):
    """Who serves which tokens: spans (expert, first, end) that cover the sequence in order.

    Static: a span is a slice of its expert's matrix product. Attention and feed-forward layer may
    differ: the former has no "VL".
    """

    attention: tuple[tuple[str, int, int], ...]
    ffn: tuple[tuple[str, int, int], ...]


class Cache(NamedTuple):
    """Keys and values of earlier tokens, [b, n, a, k]; with a layer axis in front: of all blocks.
    """

    key: jax.Array
    value: jax.Array


class Inits(NamedTuple):
    """Initialisers of matrices: of queries and keys; of values and fc1; of the branches' ends."""

    plain: Callable
    inner: Callable
    outer: Callable


def matrix_inits(name: str, depth: int, index, std: float) -> Inits:
    """How the matrices of block `index` (from 0, may be traced) of `depth` begin.

    "magneto" multiplies all but queries and keys by sqrt(ln(2 depth)); "beit" divides those that
    end a branch by sqrt(2 (index + 1)). Both start from `normal_init(std)`.
    Raises: ValueError: another name.
    Source: Magneto (arXiv 2210.06423), Sec. 3.2; BEiT-3, Sec. 2.3, footnote.
    """
    plain = normal_init(std)

    def times(factor):
        return lambda key, shape, dtype=jnp.float32: plain(key, shape, dtype) * factor

    if name == "magneto":
        gain = times(math.sqrt(math.log(2 * depth)))
        return Inits(plain, gain, gain)
    if name == "beit":
        return Inits(plain, plain, times(1.0 / jnp.sqrt(2.0 * (index + 1))))
    raise ValueError(f"model.initializer={name!r} is none of {', '.join(INITIALISERS)}")


class Multiway(nn.Module):
    """A module per modality, each on its span of the tokens.

    Attributes:
      make: (name=) -> module of one expert.
      experts: their names.
    Args (call): x [b, n, d]; route: spans, see `Routes`.
    Returns: [b, n, ...], the spans' results one behind the other.
    """

    make: Callable
    experts: tuple[str, ...]

    @nn.compact
    def __call__(self, x, route):
        experts = {name: self.make(name=name) for name in self.experts}
        if self.is_initializing():
            for expert in experts.values():  # whatever the first input is, all of them exist
                expert(x[:, :1])
        parts = [experts[name](x[:, first:end]) for name, first, end in route]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def multiway(make: Callable, experts: tuple[str, ...], name: str) -> Callable:
    """(x, route) -> Multiway's result; without experts one module serves all tokens."""
    if experts:
        return Multiway(make, experts, name=name)
    shared = make(name=name)
    return lambda x, route: shared(x)


class Attention(nn.Module):
    """Self-attention over all tokens, projections by modality. x [b, n, d] -> [b, n, d].

    Args (call): x; route; bias: float32, broadcast over [b, a, n, keys], or None; cache: keys and
      values that stand before those of x, or None; slot: where in the cache x's are written.
    Returns: [b, n, d], and the keys and values that were attended to, Cache.
    Source: torchscale component/multihead_attention.py.
    """

    num_heads: int
    experts: tuple[str, ...]
    subln: bool
    inits: Inits
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x, route, bias, cache, slot):
        b, n, d = x.shape

        def linear(name, init):
            make = functools.partial(layers.Linear, d, kernel_init=init, dtype=self.dtype)
            return multiway(make, self.experts, name)

        def heads(name, init):
            return linear(name, init)(x, route).reshape(b, n, self.num_heads, -1)

        query = heads("q_proj", self.inits.plain)
        kept = Cache(heads("k_proj", self.inits.plain), heads("v_proj", self.inits.inner))
        if cache is not None:
            kept = Cache(*(jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, slot, 0, 0))
                           for old, new in zip(cache, kept)))
        out = layers.attend(query, kept.key, kept.value, bias).reshape(b, n, d)
        if self.subln:
            norm = functools.partial(layers.LayerNorm, self.epsilon)
            out = multiway(norm, self.experts, "inner_attn_ln")(out, route)
        return linear("out_proj", self.inits.outer)(out, route), kept


class FeedForward(nn.Module):
    """One expert: two linear maps, exact GELU and, with sub-LN, a norm between. [b, n, d]."""

    hidden: int
    subln: bool
    inits: Inits
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = layers.gelu(layers.Linear(self.hidden, kernel_init=self.inits.inner, dtype=self.dtype,
                                      name="fc1")(x))
        if self.subln:
            h = layers.LayerNorm(self.epsilon, name="ffn_layernorm")(h)
        return layers.Linear(x.shape[-1], kernel_init=self.inits.outer, dtype=self.dtype,
                             name="fc2")(h)


class Block(nn.Module):
    """Pre-norm Multiway block, with sub-LN if asked for; body of a scan over blocks.

    Attributes:
      depth: blocks of the whole network, for the initial values.
      attention_experts: of projections and their norms; (): one set serves all modalities.
      ffn_experts: of feed-forward layers and the norms before them.
    Args (call): x float32 [b, n, d]; layer: (index int, drop path rate float, Cache or None) of
      this block; bias, slot: see Attention; routes: Routes; drop: whether samples are dropped, all
      tokens of a sample together; keep: give keys and values as scan output.
    Source: torchscale architecture/encoder.py; BEiT-3, Sec. 2.1, for shared attention.
    """

    num_heads: int
    hidden: int
    depth: int
    attention_experts: tuple[str, ...]
    ffn_experts: tuple[str, ...]
    subln: bool
    initializer: str
    init_std: float
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x, layer, bias, slot, routes: Routes, drop: bool, keep: bool):
        index, rate, cache = layer
        inits = matrix_inits(self.initializer, self.depth, index, self.init_std)
        norm = functools.partial(layers.LayerNorm, self.epsilon)

        def residual(x, branch):
            branch = branch.astype(jnp.float32)
            if drop:
                branch = layers.drop_path(branch, rate, self.make_rng("drop_path"))
            return x + branch

        y = multiway(norm, self.attention_experts, "self_attn_layer_norm")(x, routes.attention)
        y, kept = Attention(self.num_heads, self.attention_experts, self.subln, inits, self.epsilon,
                            self.dtype, name="self_attn")(y, routes.attention, bias, cache, slot)
        x = residual(x, y)
        # the released name misleads: this is the norm before the feed-forward layer
        y = multiway(norm, self.ffn_experts, "final_layer_norm")(x, routes.ffn)
        expert = functools.partial(FeedForward, self.hidden, self.subln, inits, self.epsilon,
                                   self.dtype)
        x = residual(x, multiway(expert, self.ffn_experts, "ffn")(y, routes.ffn))
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), kept if keep else None
