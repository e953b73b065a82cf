"""The Vision Transformer of BEiT: patches, blocks, backbone. Heads stand in beit.py.

Submodules bear the names of the released checkpoints; blocks are stacked on a leading layer axis.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import layers, position

INITIALISERS = ("pretrain", "finetune", "torch")
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_UNROLLED_BLOCKS = 12  # a flat program is faster up to here, and compiles much slower beyond


def weight_init(name: str):
    """Initialiser of matrices and tokens: "pretrain" cuts N(0, 0.02) at one sigma, "finetune" not;
    "torch" is PyTorch's default for Linears, uniform, and sets their biases too.

    Raises: ValueError: another name.
    """
    if name not in INITIALISERS:
        raise ValueError(f"model.initializer={name!r} is none of {', '.join(INITIALISERS)}")
    if name == "torch":
        return lambda key, shape, dtype=jnp.float32: layers.uniform_fan_in(shape[0])(
            key, shape, dtype)
    return layers.truncated_normal(0.02) if name == "pretrain" else nn.initializers.normal(0.02)


def bias_init(name: str, fan_in: int):
    """Initialiser of the biases of Linears that `weight_init(name)` goes with."""
    return layers.uniform_fan_in(fan_in) if name == "torch" else nn.initializers.zeros


class PatchEmbed(nn.Module):
    """Linear map of each patch. image [b, h, w, 3] -> [b, gh * gw, d], row-major.

    The kernel has the shape of the convolution that it is, [p, p, 3, d].
    """

    patch_size: int
    width: int
    initializer: str
    dtype: Any

    @nn.compact
    def __call__(self, image):
        b, h, w, c = image.shape
        p = self.patch_size
        fan_in = p * p * c
        if self.initializer == "pretrain":
            kernel_init, bias_init = weight_init("pretrain"), nn.initializers.zeros
        else:  # the original leaves PyTorch's default here: it is always loaded from a checkpoint
            kernel_init = bias_init = layers.uniform_fan_in(fan_in)
        kernel, bias = _Parameters(
            {"kernel": (kernel_init, (p, p, c, self.width)), "bias": (bias_init, (self.width,))},
            name="proj")()
        patches = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, -1, fan_in).astype(self.dtype)
        return layers.matmul(patches, kernel.reshape(fan_in, -1)) + bias.astype(self.dtype)


class _Parameters(nn.Module):
    """Holds named parameters under a scope of their own: name -> (initialiser, shape)."""

    table: Any

    @nn.compact
    def __call__(self):
        return tuple(self.param(name, init, shape) for name, (init, shape) in self.table.items())


class Attention(nn.Module):
    """Self-attention with biases on q and v, none on k. x [b, n, d] -> [b, n, d].

    Args (call): x; bias: float [1, a, n, n] added to the logits, or None; proj_init: initialiser
      of the output projection.
    Source: microsoft/unilm beit/modeling_finetune.py, Attention.
    """

    num_heads: int
    rel_pos_grid: tuple[int, int] | None
    initializer: str
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x, bias, proj_init):
        b, n, d = x.shape
        kernel, = _Parameters({"kernel": (weight_init(self.initializer), (d, 3 * d))}, name="qkv")()
        q_bias = self.param("q_bias", nn.initializers.zeros, (d,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (d,))
        qkv = layers.matmul(x.astype(self.dtype), kernel)
        qkv += jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(self.dtype)
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

    Args (call): x [b, n, d], or the pair (x, output of block `keep`); layer: (index int, drop path
      rate float) of this block; bias: float [1, a, n, n] or None; drop: whether samples are
      dropped; collect: give x as scan output too; keep: index of a block, or None.
    Source: microsoft/unilm beit/modeling_finetune.py, Block.
    """

    num_heads: int
    mlp_ratio: float
    layer_scale_init: float
    rel_pos_grid: tuple[int, int] | None
    initializer: str
    epsilon: float
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x, layer, bias, drop: bool, collect: bool, keep: int | None):
        x, kept = (x, None) if keep is None else x
        index, rate = layer
        d = x.shape[-1]

        def residual_init(key, shape, dtype=jnp.float32):
            return weight_init(self.initializer)(key, shape, dtype) / jnp.sqrt(2.0 * (index + 1))

        def residual(x, branch, name):
            if self.layer_scale_init > 0:
                gamma = self.param(name, nn.initializers.constant(self.layer_scale_init), (d,))
                branch = branch * gamma.astype(branch.dtype)
            if drop:
                branch = layers.drop_path(branch, rate, self.make_rng("drop_path"))
            return x + branch

        attention = Attention(self.num_heads, self.rel_pos_grid, self.initializer, self.dtype,
                              self.backend, name="attn")
        mlp = Mlp(int(d * self.mlp_ratio), self.initializer, self.dtype, name="mlp")
        norm1 = layers.LayerNorm(self.epsilon, name="norm1")
        norm2 = layers.LayerNorm(self.epsilon, name="norm2")
        x = residual(x, attention(norm1(x), bias, residual_init), "gamma_1")
        x = residual(x, mlp(norm2(x), residual_init), "gamma_2")
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        carry = x if keep is None else (x, jnp.where(index == keep, x, kept))
        return carry, (x if collect else None)


def patch_grid(image_px: int, patch_size: int) -> tuple[int, int]:
    """Patches of a square image, (rows, columns).

    Raises: ValueError: the patch does not divide the image.
    """
    if image_px % patch_size:
        raise ValueError(f"model.image_px={image_px} is no multiple of model.patch_size="
                         f"{patch_size}; nearest: "
                         f"{max(image_px // patch_size, 1) * patch_size}")
    return (image_px // patch_size,) * 2


class VisionTransformer(nn.Module):
    """Patch embedding, class token, positions and blocks; heads are added by subclasses.

    Attributes:
      image_px, patch_size: sides in pixels; the image must be a multiple of the patch.
      layer_scale_init: initial value of both layer scales; 0 or less: none.
      use_abs_pos: learned absolute positions.
      use_shared_rel_pos: one relative position table for all blocks (pre-training).
      use_rel_pos: one table per block (fine-tuning).
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      initializer: "pretrain", "finetune" or "torch", see `weight_init`.
      dtype: of matrix products and of the residual stream; parameters stay float32.
      attention: backend, see `layers.attend`.
      token_multiple: pads the token axis to a multiple with tokens that nobody attends to; cuDNN
        attention needs 8.
      unroll: blocks per step of the compiled scan; 0: all, up to 12 blocks.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
    Source: BEiT, Sec. 2.4; microsoft/unilm beit/modeling_{pretrain,finetune}.py.
    """

    image_px: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    layer_scale_init: float = 0.1
    use_abs_pos: bool = False
    use_shared_rel_pos: bool = False
    use_rel_pos: bool = False
    drop_path_rate: float = 0.0
    initializer: str = "pretrain"
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    attention: str = "xla"
    token_multiple: int = 1
    unroll: int = 0
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def setup(self):
        if self.width % self.num_heads:
            raise ValueError(f"model.width={self.width} is no multiple of "
                             f"model.num_heads={self.num_heads}")
        token_init = weight_init(self.initializer)
        self.patch_embed = PatchEmbed(self.patch_size, self.width, self.initializer, self.dtype)
        self.cls_token = self.param("cls_token", token_init, (1, 1, self.width))
        if self.use_abs_pos:
            self.pos_embed = self.param("pos_embed", token_init,
                                        (1, self.num_patches + 1, self.width))
        if self.use_shared_rel_pos:
            self.rel_pos_bias = position.RelativePositionBias(self.grid, self.num_heads)
        self.blocks = self.stack(self.depth, self.initializer)

    def stack(self, length: int, initializer: str):
        """`length` blocks behind each other; parameters bear a leading layer axis.

        Returns: module with the arguments of `Block`, and indices and drop path rates of all.
        """
        block = Block
        if self.remat != "none":
            if self.remat not in REMAT_POLICIES:
                raise ValueError(f"model.remat={self.remat!r} is none of none, "
                                 f"{', '.join(REMAT_POLICIES)}")
            block = nn.remat(Block, prevent_cse=False, static_argnums=(4, 5, 6),
                             policy=REMAT_POLICIES[self.remat])
        unroll = self.unroll or (length if length <= _UNROLLED_BLOCKS else 1)
        scan = nn.scan(block, variable_axes={"params": 0}, unroll=unroll, length=length,
                       split_rngs={"params": True, "drop_path": True},
                       in_axes=(0, *[nn.broadcast] * 4))
        return scan(self.num_heads, self.mlp_ratio, self.layer_scale_init,
                    self.grid if self.use_rel_pos else None, initializer, self.epsilon,
                    self.dtype, self.attention)

    def encode(self, image, is_masked=None, *, mask_token=None, train: bool = False,
               all_blocks: bool = False, keep: int | None = None):
        """Runs the blocks.

        Args:
          image: float [b, h, w, 3], normalised.
          is_masked: bool [b, n], True where the embedding is replaced by `mask_token`; or None.
          mask_token: [1, 1, d], needed with is_masked.
          train: drops samples of residual branches (rng "drop_path").
          all_blocks: also give the output of every block.
          keep: also give the output of this block, counted from 0.
        Returns: tokens [b, n + 1, d], class token first, not normalised; with all_blocks the pair
          (tokens, [depth, b, n + 1, d]), with keep (tokens, [b, n + 1, d]).
        Raises: ValueError: the image has another size than the model.
        """
        if image.shape[1:3] != (self.image_px, self.image_px):
            raise ValueError(f"the image is {image.shape[1]}x{image.shape[2]}, the model expects "
                             f"{self.image_px}x{self.image_px}")
        x = self.patch_embed(image)
        if is_masked is not None:
            x = jnp.where(is_masked[..., None], mask_token.astype(x.dtype), x)
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)
        if self.use_abs_pos:
            x = x + self.pos_embed.astype(x.dtype)
        rates = jnp.linspace(0.0, self.drop_path_rate, self.depth)
        x, more = self.run(self.blocks, x, jnp.arange(self.depth), rates, train, all_blocks, keep)
        return x if more is None else (x, more)

    def run(self, blocks, x, indices, rates, train: bool, all_blocks: bool = False,
            keep: int | None = None):
        """Runs a `stack` on x [b, n, d], padded to `token_multiple` on the way.

        Returns: x after the last block, and the outputs of all [l, b, n, d], or of the block whose
          index is `keep` [b, n, d], or None.
        """
        num_tokens = x.shape[1]
        padded = -(-num_tokens // self.token_multiple) * self.token_multiple
        bias = self.rel_pos_bias() if self.use_shared_rel_pos else None
        if padded != num_tokens:
            x = jnp.pad(x, ((0, 0), (0, padded - num_tokens), (0, 0)))
            if bias is None and not self.use_rel_pos:
                bias = jnp.zeros((1, self.num_heads, num_tokens, num_tokens))
        if bias is not None:
            bias = pad_bias(bias, padded)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        drop = train and self.drop_path_rate > 0
        carry = x if keep is None else (x, jnp.zeros_like(x))
        carry, outputs = blocks(carry, (indices, rates), bias, drop, all_blocks, keep)
        x, more = (carry, outputs) if keep is None else carry
        return x[:, :num_tokens], None if more is None else more[..., :num_tokens, :]


def pad_bias(bias, padded: int):
    """Pads a bias [1, a, n, n] to `padded` tokens so that nobody attends to the new ones."""
    extra = padded - bias.shape[-1]
    if not extra:
        return bias
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, 0)))
    return jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, extra)), constant_values=-1e9)
