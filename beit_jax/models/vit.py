"""The Vision Transformer of BEiT: patches, positions, blocks. Heads stand in beit.py and
masked_autoencoder.py.

Submodules bear the names of the released checkpoints; blocks are stacked on a leading layer axis.
"""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import blocks, layers, position
from beit_jax.models.stack import REMAT_POLICIES, scanned
from beit_jax.options import BelowOne, Count, Natural, NonNegative, Positive, within

MlpRatio = Annotated[float, within(above=0, high=1000)]


def patch_grid(image_px: int, patch_size: int) -> tuple[int, int]:
    """Patches of a square image, (rows, columns).

    Raises: ValueError: the patch does not divide the image.
    """
    if min(image_px, patch_size) < 1:
        raise ValueError(f"model.image_px={image_px} and model.patch_size={patch_size} must be 1 "
                         "or more")
    if image_px % patch_size:
        raise ValueError(f"model.image_px={image_px} is no multiple of model.patch_size="
                         f"{patch_size}; nearest: "
                         f"{max(image_px // patch_size, 1) * patch_size}")
    return (image_px // patch_size,) * 2


def check_width(width: int, num_heads: int, mlp_ratio: float) -> None:
    """Refuses blocks without whole heads or hidden units. Raises: ValueError."""
    if width % num_heads:
        raise ValueError(f"model.width={width} is no multiple of model.num_heads={num_heads}")
    if int(width * mlp_ratio) < 1:
        raise ValueError(f"model.mlp_ratio={mlp_ratio} leaves nothing of model.width={width}")


class VisionTransformer(nn.Module):
    """Patch embedding, class token, positions and blocks; heads are added by subclasses.

    Attributes:
      image_px, patch_size: sides in pixels; the image must be a multiple of the patch.
      layer_scale_init: initial value of both layer scales; 0: none.
      use_abs_pos: learned absolute positions.
      use_shared_rel_pos: one relative position table for all blocks (pre-training).
      use_rel_pos: one table per block (fine-tuning).
      fixed_pos: the absolute positions are the sine-cosine table, and not trained (MAE).
      use_k_bias: a bias on keys too; it changes nothing, but plain ViTs' checkpoints have it.
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      initializer: "pretrain", "finetune", "torch" or "xavier", see `blocks.weight_init`.
      dtype: of matrix products; the residual stream and parameters stay float32.
      attention: backend, see `layers.attend`.
      token_multiple: pads the token axis to a multiple with tokens that nobody attends to; cuDNN
        attention needs 8.
      unroll: blocks per step of the compiled scan; 0: all, up to 12 blocks.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
    Source: BEiT, Sec. 2.4; microsoft/unilm beit/modeling_{pretrain,finetune}.py.
    """

    image_px: Count
    patch_size: Count
    width: Count
    depth: Count
    num_heads: Count
    mlp_ratio: MlpRatio = 4.0
    layer_scale_init: NonNegative = 0.1
    use_abs_pos: bool = False
    use_shared_rel_pos: bool = False
    use_rel_pos: bool = False
    fixed_pos: bool = False
    use_k_bias: bool = False
    drop_path_rate: BelowOne = 0.0
    initializer: Literal[*blocks.INITIALISERS] = "pretrain"
    epsilon: Positive = 1e-6
    dtype: Any = jnp.float32
    attention: Literal[*layers.ATTENTION_BACKENDS] = "xla"
    token_multiple: Count = 1
    unroll: Natural = 0
    remat: Literal["none", *REMAT_POLICIES] = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def check(self) -> None:
        """Refuses values that do not fit together. Raises: ValueError."""
        self.grid  # noqa: B018  raises if the patch does not divide the image
        check_width(self.width, self.num_heads, self.mlp_ratio)
        if self.fixed_pos and not self.use_abs_pos:
            raise ValueError("model.fixed_pos has no effect without model.use_abs_pos")
        if self.fixed_pos and self.width % 4:
            raise ValueError(f"model.width={self.width} is no multiple of 4, which the sine-cosine "
                             "positions of model.fixed_pos need")

    def setup(self):
        self.check()
        token_init = blocks.token_init(self.initializer)
        self.patch_embed = blocks.PatchEmbed(self.patch_size, self.width, self.initializer,
                                             self.dtype)
        self.cls_token = self.param("cls_token", token_init, (1, 1, self.width))
        if self.use_abs_pos:
            init = position.sincos_init(self.grid) if self.fixed_pos else token_init
            self.pos_embed = self.param("pos_embed", init, (1, self.num_patches + 1, self.width))
        if self.use_shared_rel_pos:
            self.rel_pos_bias = position.RelativePositionBias(self.grid, self.num_heads)
        self.blocks = self.stack(self.depth, self.initializer)

    def stack(self, length: int, initializer: str, num_heads: int = 0):
        """`length` blocks behind each other; parameters bear a leading layer axis.

        Args: num_heads: 0: as the backbone's.
        Returns: module with the arguments of `blocks.Block`, where `layer` holds arrays [length].
        """
        scan = scanned(blocks.Block, length, 4, static=(4, 5, 6), unroll=self.unroll,
                       remat=self.remat)
        return scan(num_heads or self.num_heads, self.mlp_ratio, self.layer_scale_init,
                    self.grid if self.use_rel_pos else None, self.use_k_bias, initializer,
                    self.epsilon, self.dtype, self.attention)

    def embed(self, image, is_masked=None, mask_token=None):
        """Tokens before the blocks, float32 [b, n + 1, d]; see `encode`."""
        if image.shape[1:3] != (self.image_px, self.image_px):
            raise ValueError(f"the image is {image.shape[1]}x{image.shape[2]}, the model expects "
                             f"{self.image_px}x{self.image_px}")
        x = self.patch_embed(image)
        if is_masked is not None:
            x = jnp.where(is_masked[..., None], mask_token, x)
        cls = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)
        if self.use_abs_pos:
            table = jax.lax.stop_gradient(self.pos_embed) if self.fixed_pos else self.pos_embed
            x = x + table
        return x

    def encode(self, image, is_masked=None, *, mask_token=None, train: bool = False,
               all_blocks: bool = False):
        """Runs the blocks.

        Args:
          image: float [b, h, w, 3], normalised.
          is_masked: bool [b, n], True where the embedding is replaced by `mask_token`; or None.
          mask_token: [1, 1, d], needed with is_masked.
          train: drops samples of residual branches (rng "drop_path").
          all_blocks: also give the output of every block.
        Returns: tokens float32 [b, n + 1, d], class token first, not normalised; with all_blocks
          the pair (tokens, [depth, b, n + 1, d]).
        Raises: ValueError: the image has another size than the model.
        """
        tokens = self.embed(image, is_masked, mask_token)
        x, every, _ = self.run(self.blocks, self.depth, tokens, train=train, all_blocks=all_blocks)
        return (x, every) if all_blocks else x

    def drop_path_rates(self, first: int, length: int):
        """Of `length` blocks from number `first` on: growing from 0 at the backbone's first."""
        count = max(self.depth, first + length)
        return jnp.linspace(0.0, self.drop_path_rate, count)[first:first + length]

    def run(self, stack, length: int, x, *, train: bool = False, first: int = 0,
            all_blocks: bool = False, weights=None, mix: str = "raw"):
        """Runs a `stack` of `length` blocks on x [b, n, d], padded to `token_multiple` on the way.

        Args:
          first: index of the stack's first block; drop path rates grow on from those before it.
          all_blocks: also give the output of every block.
          weights: float [l]: also give the sum of the blocks' outputs times these weights.
          mix: what is summed: "raw" outputs, or "norm", each under a LayerNorm without parameters.
        Returns: x after the last block; outputs of all [l, b, n, d] or None; the weighted sum
          float32 [b, n, d] or None.
        """
        num_tokens = x.shape[1]
        padded = -(-num_tokens // self.token_multiple) * self.token_multiple
        bias = self.rel_pos_bias() if self.use_shared_rel_pos else None
        if padded != num_tokens:
            x = jnp.pad(x, ((0, 0), (0, padded - num_tokens), (0, 0)))
            if bias is None and not self.use_rel_pos:
                bias = jnp.zeros((1, stack.num_heads, num_tokens, num_tokens))
        if bias is not None:
            bias = blocks.pad_bias(bias, padded)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        indices, rates = jnp.arange(first, first + length), self.drop_path_rates(first, length)
        drop = train and self.drop_path_rate > 0
        if weights is None:
            layer, carry, mix = (indices, rates, jnp.zeros(length)), x, None
        else:
            layer, carry = (indices, rates, weights), (x, jnp.zeros_like(x))
        carry, every = stack(carry, layer, bias, drop, all_blocks, mix)
        x, total = (carry, None) if weights is None else carry
        every, total = (None if more is None else more[..., :num_tokens, :]
                        for more in (every, total))
        return x[:, :num_tokens], every, total
