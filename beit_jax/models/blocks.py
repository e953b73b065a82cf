"""The blocks of BEiT's Vision Transformer, its patch embedding, and how their weights begin.

Submodules bear the names of the released checkpoints. vit.py stacks the blocks.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from beit_jax.models import layers, position

INITIALISERS = ("pretrain", "finetune", "torch", "xavier")


def weight_init(name: str):
    """Initialiser of matrices: "pretrain" cuts N(0, 0.02) at one sigma, "finetune" does not;
    "torch" is PyTorch's default for Linears, uniform, and sets their biases too; "xavier" is MAE's,
    uniform by fan-in and fan-out, where q, k and v are one matrix.

    Raises: ValueError: another name.
    """
    if name not in INITIALISERS:
        raise ValueError(f"model.initializer={name!r} is none of {', '.join(INITIALISERS)}")
    if name == "torch":
        return lambda key, shape, dtype=jnp.float32: layers.uniform_fan_in(shape[0])(
            key, shape, dtype)
    if name == "xavier":
        return nn.initializers.xavier_uniform()
    return token_init(name)


def token_init(name: str):
    """Initialiser of tokens and learned positions that `weight_init(name)` goes with."""
    return layers.truncated_normal(0.02) if name == "pretrain" else nn.initializers.normal(0.02)


def bias_init(name: str, fan_in: int):
    """Initialiser of the biases of Linears that `weight_init(name)` goes with."""
    return layers.uniform_fan_in(fan_in) if name == "torch" else nn.initializers.zeros


class PatchEmbed(nn.Module):
    """Linear map of each patch. image [b, h, w, 3] -> float32 [b, gh * gw, d], row-major.

    The kernel has the shape of the convolution that it is, [p, p, 3, d].
    """

    patch_size: int
    width: int
    initializer: str
    dtype: Any

    @nn.compact
    def __call__(self, image):
        p, c = self.patch_size, image.shape[-1]
        fan_in = p * p * c
        kernel_init = bias_init = layers.uniform_fan_in(fan_in)  # PyTorch's default, left by BEiT's
        if self.initializer == "pretrain":  # fine-tuning, which always loads it, and MAE's bias
            kernel_init, bias_init = weight_init("pretrain"), nn.initializers.zeros
        elif self.initializer == "xavier":
            def kernel_init(key, shape, dtype=jnp.float32):  # as the matrix that it is
                matrix = weight_init("xavier")(key, (fan_in, self.width), dtype)
                return matrix.reshape(shape)
        kernel, bias = _Parameters(
            {"kernel": (kernel_init, (p, p, c, self.width)), "bias": (bias_init, (self.width,))},
            name="proj")()
        patches = layers.patchify(image, p).astype(self.dtype)
        return layers.matmul(patches, kernel.reshape(fan_in, -1)).astype(jnp.float32) + bias


class _Parameters(nn.Module):
    """Holds named parameters under a scope of their own: name -> (initialiser, shape)."""

    table: Any

    @nn.compact
    def __call__(self):
        return tuple(self.param(name, init, shape) for name, (init, shape) in self.table.items())


class Attention(nn.Module):
    """Self-attention with biases on q and v. x [b, n, d] -> [b, n, d].

    A bias on k adds the same to all logits of a query and so changes nothing: BEiT has none, but
    the plain ViT's checkpoints do (`use_k_bias`).

    Args (call): x; bias: float [1, a, n, n] added to the logits, or None; proj_init: initialiser
      of the output projection.
    Source: microsoft/unilm beit/modeling_finetune.py, Attention.
    """

    num_heads: int
    rel_pos_grid: tuple[int, int] | None
    use_k_bias: bool
    initializer: str
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x, bias, proj_init):
        b, n, d = x.shape
        kernel, = _Parameters({"kernel": (weight_init(self.initializer), (d, 3 * d))}, name="qkv")()
        q_bias = self.param("q_bias", nn.initializers.zeros, (d,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (d,))
        k_bias = jnp.zeros_like(q_bias)
        if self.use_k_bias:
            k_bias = self.param("k_bias", nn.initializers.zeros, (d,))
        qkv = layers.matmul(x.astype(self.dtype), kernel)
        qkv += jnp.concatenate([q_bias, k_bias, v_bias]).astype(self.dtype)
        query, key, value = jnp.unstack(qkv.reshape(b, n, 3, self.num_heads, -1), axis=2)
        if self.rel_pos_grid is not None:
            table = self.param(
                "relative_position_bias_table", nn.initializers.zeros,
                (position.num_relative_distances(self.rel_pos_grid), self.num_heads))
            own = pad_bias(position.gather_bias(table, self.rel_pos_grid), n)
            bias = own if bias is None else bias + own
        out = layers.attend(query, key, value, bias, backend=self.backend)
        return layers.Linear(d, kernel_init=proj_init, bias_init=bias_init(self.initializer, d),
                             dtype=self.dtype, name="proj")(out.reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear maps with exact GELU between. x [b, n, d] -> [b, n, d]."""

    hidden: int
    initializer: str
    dtype: Any

    @nn.compact
    def __call__(self, x, fc2_init):
        d = x.shape[-1]
        h = layers.Linear(self.hidden, kernel_init=weight_init(self.initializer),
                          bias_init=bias_init(self.initializer, d), dtype=self.dtype,
                          name="fc1")(x)
        return layers.Linear(d, kernel_init=fc2_init,
                             bias_init=bias_init(self.initializer, self.hidden),
                             dtype=self.dtype, name="fc2")(layers.gelu(h))


class Block(nn.Module):
    """Pre-norm block with layer scale and stochastic depth; body of a scan over blocks.

    Args (call): x float32 [b, n, d], with `mix` the pair (x, running sum float32 [b, n, d]); layer:
      (index int, drop path rate float, weight float) of this block; bias: float [1, a, n, n] or
      None; drop: whether samples are dropped; collect: give x as scan output too; mix: what is
      added to the running sum, times the weight: None nothing, "raw" the output, "norm" its
      LayerNorm without parameters.
    Source: microsoft/unilm beit/modeling_finetune.py, Block.
    """

    num_heads: int
    mlp_ratio: float
    layer_scale_init: float
    rel_pos_grid: tuple[int, int] | None
    use_k_bias: bool
    initializer: str
    epsilon: float
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x, layer, bias, drop: bool, collect: bool, mix: str | None):
        x, total = x if mix else (x, None)
        index, rate, weight = layer
        d = x.shape[-1]

        def residual_init(key, shape, dtype=jnp.float32):
            values = weight_init(self.initializer)(key, shape, dtype)
            return values if self.initializer == "xavier" else values / jnp.sqrt(2.0 * (index + 1))

        def residual(x, branch, name):
            branch = branch.astype(jnp.float32)  # 1e-5 of it would vanish in a bfloat16 sum
            if self.layer_scale_init > 0:
                branch *= self.param(name, nn.initializers.constant(self.layer_scale_init), (d,))
            if drop:
                branch = layers.drop_path(branch, rate, self.make_rng("drop_path"))
            return x + branch

        attention = Attention(self.num_heads, self.rel_pos_grid, self.use_k_bias, self.initializer,
                              self.dtype, self.backend, name="attn")
        mlp = Mlp(int(d * self.mlp_ratio), self.initializer, self.dtype, name="mlp")
        norm1 = layers.LayerNorm(self.epsilon, name="norm1")
        norm2 = layers.LayerNorm(self.epsilon, name="norm2")
        x = residual(x, attention(norm1(x), bias, residual_init), "gamma_1")
        x = residual(x, mlp(norm2(x), residual_init), "gamma_2")
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        if mix:
            total = total + weight * (layers.standardise(x, self.epsilon) if mix == "norm" else x)
        return ((x, total) if mix else x), (x if collect else None)


def pad_bias(bias, padded: int):
    """Pads a bias [1, a, n, n] to `padded` tokens so that nobody attends to the new ones."""
    extra = padded - bias.shape[-1]
    if not extra:
        return bias
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, 0)))
    return jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, extra)), constant_values=-1e9)
