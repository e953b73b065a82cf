"""The plain pre-norm Vision Transformer: biases everywhere, learned positions.

Networks of others that we load and do not train are of this kind (DINO, DINOv2, MAE's encoder,
CLIP's image tower).
Submodules bear the names of DINO's checkpoints; blocks are stacked on a leading layer axis.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.blocks import PatchEmbed
from beit_jax.models.vit import patch_grid

ACTIVATIONS = {"gelu": layers.gelu, "quick_gelu": layers.quick_gelu}
_WEIGHTS = nn.initializers.normal(0.02)


class UnbiasedPatchEmbed(nn.Module):
    """PatchEmbed without a bias. image [b, h, w, 3] -> float32 [b, gh * gw, d], row-major."""

    patch_size: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, image):
        p = self.patch_size
        x = nn.Conv(self.width, (p, p), (p, p), padding="VALID", use_bias=False,
                    kernel_init=_WEIGHTS, dtype=self.dtype, name="proj")(image)
        return x.reshape(x.shape[0], -1, self.width).astype(jnp.float32)


class Attention(nn.Module):
    """Self-attention with biases on q, k and v. x [b, n, d] -> [b, n, d]."""

    num_heads: int
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x):
        b, n, d = x.shape
        qkv = layers.Linear(3 * d, kernel_init=_WEIGHTS, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.unstack(qkv.reshape(b, n, 3, self.num_heads, -1), axis=2)
        out = layers.attend(query, key, value, backend=self.backend)
        return layers.Linear(d, kernel_init=_WEIGHTS, dtype=self.dtype,
                             name="proj")(out.reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear maps with an activation between. x [b, n, d] -> [b, n, d]."""

    hidden: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h = layers.Linear(self.hidden, kernel_init=_WEIGHTS, dtype=self.dtype, name="fc1")(x)
        return layers.Linear(x.shape[-1], kernel_init=_WEIGHTS, dtype=self.dtype,
                             name="fc2")(ACTIVATIONS[self.activation](h))


class LayerScale(nn.Module):
    """float32 [b, n, d] times one factor per channel."""

    init: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("gamma", nn.initializers.constant(self.init), x.shape[-1:])


class Block(nn.Module):
    """Pre-norm block; body of a scan. x float32 [b, n, d]; collect: give x as scan output too."""

    num_heads: int
    mlp_ratio: float
    activation: str
    layer_scale_init: float
    epsilon: float
    dtype: Any
    backend: str

    @nn.compact
    def __call__(self, x, collect: bool):
        attention = Attention(self.num_heads, self.dtype, self.backend, name="attn")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.activation, self.dtype, name="mlp")
        has_scales = self.layer_scale_init > 0

        def scaled(name, y):
            y = y.astype(jnp.float32)
            return LayerScale(self.layer_scale_init, name=name)(y) if has_scales else y

        x = x + scaled("ls1", attention(layers.LayerNorm(self.epsilon, name="norm1")(x)))
        x = x + scaled("ls2", mlp(layers.LayerNorm(self.epsilon, name="norm2")(x)))
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        return x, (x if collect else None)


class PlainVit(nn.Module):
    """Patches, class token, positions, blocks, a norm over all tokens, perhaps a projection.

    Attributes:
      image_px, patch_size: sides in pixels; the positions are for this size and no other
        (models/adapt.py resizes them when weights are loaded).
      activation: "gelu" (exact) or "quick_gelu" (CLIP).
      patch_bias: whether the patch embedding has a bias (CLIP's has none).
      use_pre_norm: a LayerNorm after adding the positions, before the blocks (CLIP).
      layer_scale_init: initial factor of each branch, per channel (DINOv2); 0 or less: none.
      num_registers: tokens without position or output, behind the class token (DINOv2).
      output_dim: width of a projection without bias behind the norm (CLIP); 0: none.
      dtype: of matrix products; the residual stream and the norm at its end are float32.
      attention: backend, see `layers.attend`.
    Args (call): image float [b, h, w, 3], normalised; all_blocks: also give every block's output.
    Returns: tokens float32 [b, n + 1, c], class token first, c = output_dim or width; with
      all_blocks the pair (tokens, normed outputs of the blocks [depth, b, n + 1, width]).
    Raises: ValueError: an unknown activation, an image of another size, sizes that do not divide.
    Source: facebookresearch/dino vision_transformer.py; facebookresearch/dinov2
      dinov2/models/vision_transformer.py; openai/CLIP clip/model.py, VisionTransformer, with its
      norm and projection on all tokens as microsoft/unilm beit2/ has them.
    """

    image_px: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    patch_bias: bool = True
    use_pre_norm: bool = False
    layer_scale_init: float = 0.0
    num_registers: int = 0
    output_dim: int = 0
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    attention: str = "xla"

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    def check(self) -> None:
        """Refuses values that do not fit together. Raises: ValueError."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is no multiple of num_heads={self.num_heads}")

    def setup(self):
        self.check()
        if self.patch_bias:
            self.patch_embed = PatchEmbed(self.patch_size, self.width, "pretrain", self.dtype)
        else:
            self.patch_embed = UnbiasedPatchEmbed(self.patch_size, self.width, self.dtype)
        num_tokens = self.grid[0] * self.grid[1] + 1
        self.cls_token = self.param("cls_token", _WEIGHTS, (1, 1, self.width))
        self.pos_embed = self.param("pos_embed", _WEIGHTS, (1, num_tokens, self.width))
        if self.num_registers:
            self.register_tokens = self.param("register_tokens", _WEIGHTS,
                                              (1, self.num_registers, self.width))
        if self.use_pre_norm:
            self.pre_norm = layers.LayerNorm(self.epsilon)
        # rolled: forward passes gain nothing from a flat program (on a CPU), which compiles slower
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True},
                       length=self.depth, in_axes=nn.broadcast)
        self.blocks = scan(self.num_heads, self.mlp_ratio, self.activation, self.layer_scale_init,
                           self.epsilon, self.dtype, self.attention)
        self.norm = layers.LayerNorm(self.epsilon)
        if self.output_dim:
            self.proj = nn.Dense(self.output_dim, use_bias=False, kernel_init=_WEIGHTS)

    def embed(self, image):
        """Tokens with their positions, before the blocks. [b, h, w, 3] -> [b, 1 + r + n, d]."""
        if image.shape[1:3] != (self.image_px, self.image_px):
            rule = "antialias" if self.num_registers else "offset"
            raise ValueError(
                f"the image is {image.shape[1]}x{image.shape[2]}, the positions are for "
                f"{self.image_px}x{self.image_px}: set image_px, and where weights of another "
                f'size are loaded, adapt=("resize_pos_embed_{rule}",)')
        x = self.patch_embed(image)
        cls = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, self.width))
        x = jnp.concatenate([cls, x], axis=1) + self.pos_embed
        if self.num_registers:
            registers = jnp.broadcast_to(self.register_tokens,
                                         (x.shape[0], self.num_registers, self.width))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        return x

    def finish(self, x):
        """Without the registers, normed: [..., 1 + r + n, d] -> float32 [..., 1 + n, d]."""
        if self.num_registers:
            x = jnp.concatenate([x[..., :1, :], x[..., 1 + self.num_registers:, :]], axis=-2)
        return self.norm(x)

    def __call__(self, image, *, all_blocks: bool = False):
        x = self.embed(image)
        if self.use_pre_norm:
            x = self.pre_norm(x)
        x, outputs = self.blocks(x, all_blocks)
        tokens = self.finish(x)
        if self.output_dim:
            tokens = self.proj(tokens)
        return (tokens, self.finish(outputs)) if all_blocks else tokens
