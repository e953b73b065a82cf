"""Masked autoencoders: an encoder that sees visible patches only, and a small decoder of all.

One network for MAE (pixels) and Img2Vec (features of a teacher): they differ in the target, in
which blocks' outputs the decoder gets (`fusion`), and in a second head on the pooled encoder.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import blocks, layers, position
from beit_jax.models.beit import select
from beit_jax.models.vit import VisionTransformer
from beit_jax.options import Count, Natural, NonNegative

FUSIONS = ("last", "mean", "mean_norm", "learned")
GRID_MATCHES = ("pool", "repeat")


class Prediction(NamedTuple):
    """patches: float32 [b, m, c], at the positions asked for; pooled: float32 [b, c], or None."""

    patches: jax.Array
    pooled: jax.Array | None


class MaeEncoder(VisionTransformer):
    """The plain ViT of masked autoencoders: fixed positions, a norm at the end."""

    layer_scale_init: NonNegative = 0.0
    use_abs_pos: bool = True
    fixed_pos: bool = True
    use_k_bias: bool = True
    initializer: str = "xavier"

    def setup(self):
        super().setup()
        self.norm = layers.LayerNorm(self.epsilon)

    def features(self, image):
        """Tokens of the last block behind the final norm, nothing hidden: float32 [b, n + 1, d]."""
        return self.norm(self.encode(image))


class MaskedAutoencoder(MaeEncoder):
    """MAE's and Img2Vec's network. The encoder's leaves are those of a VisionTransformer.

    Attributes:
      target_dim: c, numbers to predict for a token of the target.
      target_grid: tokens of the target (rows, columns); (): as the patch grid. Where it is coarser,
        by a whole factor, `grid_match` says how the two meet.
      grid_match: "pool": the decoder's outputs of a cell are averaged and predict its token once;
        "repeat": every patch of the cell predicts it.
      fusion: what the decoder gets of the encoder's blocks, before the final norm: "last" (MAE),
        "mean" of all outputs (Img2Vec), "mean_norm" (each under a LayerNorm without parameters
        before), "learned" (softmax weights, equal at the start).
      fusion_blocks: indices of the blocks that are fused; (): all.
      decoder_width, decoder_depth, decoder_num_heads: of the decoder's blocks.
      global_layers: Linears (ReLU between) that predict a pooled target from the mean visible patch
        token, Img2Vec's global semantic learning; 0: none.
      global_hidden: their width inside.
      global_source: the mean is of "fused" or of "last" block's tokens, behind the norm.
    Args (call): image float [b, h, w, 3], normalised; is_masked bool [b, n], with num_masked True
      in each row; num_masked; positions: int [b, m], the tokens of the predicted grid (see
      `predicted_grid`) to predict, or None for all.
    Returns: Prediction.
    Raises: ValueError: values that do not fit together.
    Source: MAE (arXiv 2111.06377), facebookresearch/mae models_mae.py; Img2Vec (arXiv 2304.12535).
      The width of Img2Vec's decoder, how its grids meet and what is fused are our choices, see
      docs/img2vec.md.
    """

    target_dim: Count = 768
    target_grid: tuple[Count, ...] = ()
    grid_match: str = "pool"
    fusion: str = "last"
    fusion_blocks: tuple[Natural, ...] = ()
    decoder_width: Count = 512
    decoder_depth: Count = 8
    decoder_num_heads: Count = 16
    global_layers: Natural = 0
    global_hidden: Count = 2048
    global_source: str = "fused"

    @property
    def cell(self) -> int:
        """Patches per side of a token of the target.

        Raises: ValueError: the target's grid does not divide the patch grid.
        """
        target = self.target_grid or self.grid
        if any(n % m for n, m in zip(self.grid, target)) or (
                self.grid[0] // target[0] != self.grid[1] // target[1]):
            raise ValueError(
                f"the target has {target[0]}x{target[1]} tokens, the model {self.grid[0]}x"
                f"{self.grid[1]} patches, no whole multiple of it: choose sizes that agree, for "
                "example another target.image_px with the same data.target_px")
        return self.grid[0] // target[0]

    @property
    def predicted_grid(self) -> tuple[int, int]:
        """Grid of the tokens that are predicted."""
        rows, columns = self.grid
        return (rows // self.cell, columns // self.cell) if self.grid_match == "pool" else self.grid

    def check(self) -> None:
        super().check()
        for name, allowed in (("fusion", FUSIONS), ("grid_match", GRID_MATCHES),
                              ("global_source", ("fused", "last"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}={getattr(self, name)!r} is none of "
                                 f"{', '.join(allowed)}")
        if self.decoder_width % 4:
            raise ValueError(f"model.decoder_width={self.decoder_width} is no multiple of 4, which "
                             "its sine-cosine positions need")
        if not self.use_abs_pos:
            raise ValueError("model.use_abs_pos=False: without positions nobody knows which "
                             "patches are hidden; remove it")
        if self.decoder_width % self.decoder_num_heads:
            raise ValueError(f"model.decoder_width={self.decoder_width} is no multiple of "
                             f"model.decoder_num_heads={self.decoder_num_heads}")
        wrong = [i for i in self.fusion_blocks if not 0 <= i < self.depth]
        if wrong or len(set(self.fusion_blocks)) < len(self.fusion_blocks):
            raise ValueError(f"model.fusion_blocks={self.fusion_blocks} must be different numbers "
                             f"from 0 to {self.depth - 1}, or () for all")
        if self.fusion_blocks and self.fusion == "last":
            raise ValueError(f"model.fusion_blocks={self.fusion_blocks} has no effect with "
                             "model.fusion=last: remove it")
        if self.use_rel_pos or self.use_shared_rel_pos:
            raise ValueError("model.use_rel_pos, use_shared_rel_pos: relative positions need all "
                             "patches, and this encoder sees some: remove them")
        self.cell  # noqa: B018  raises if the grids do not meet

    def setup(self):
        super().setup()
        if self.fusion == "learned":
            count = len(self.fusion_blocks) or self.depth
            self.fusion_logits = self.param("fusion_logits", nn.initializers.zeros, (count,))
        token_init = blocks.token_init(self.initializer)
        linear = dict(kernel_init=blocks.weight_init(self.initializer), dtype=self.dtype)
        self.decoder_embed = layers.Linear(self.decoder_width, **linear)
        self.mask_token = self.param("mask_token", token_init, (1, 1, self.decoder_width))
        self.decoder_pos_embed = self.param(
            "decoder_pos_embed", position.sincos_init(self.grid),
            (1, self.num_patches + 1, self.decoder_width))
        self.decoder_blocks = self.stack(self.decoder_depth, self.initializer,
                                         self.decoder_num_heads)
        self.decoder_norm = layers.LayerNorm(self.epsilon)
        self.decoder_pred = layers.Linear(self.target_dim, **linear, output_dtype=jnp.float32)
        widths = [self.global_hidden] * (self.global_layers - 1) + [self.target_dim]
        self.global_head = [layers.Linear(width, **linear, output_dtype=jnp.float32)
                            for width in widths[:self.global_layers]]

    def fuse(self, tokens, train: bool = False):
        """Runs the blocks on tokens [b, t, d].

        Returns: fused tokens, and those of the last block, both behind the final norm, [b, t, d].
        """
        if self.fusion == "last":
            last = self.norm(self.run(self.blocks, self.depth, tokens, train=train)[0])
            return last, last
        chosen = jnp.asarray(self.fusion_blocks or range(self.depth))
        share = (jax.nn.softmax(self.fusion_logits) if self.fusion == "learned"
                 else jnp.full(len(chosen), 1.0 / len(chosen)))
        weights = jnp.zeros(self.depth).at[chosen].set(share)
        last, _, fused = self.run(self.blocks, self.depth, tokens, train=train, weights=weights,
                                  mix="norm" if self.fusion == "mean_norm" else "raw")
        return self.norm(fused), self.norm(last)

    def features(self, image):
        """Fused tokens behind the final norm, which was trained on them; nothing is hidden."""
        return self.fuse(self.embed(image))[0]

    def visible_features(self, image, order, num_visible: int, *, train: bool = False):
        """`fuse` of the class token and the patches that stand first in `order`.

        Args: order: int [b, n], see `visible_first`.
        Returns: a pair of [b, num_visible + 1, d], class token first.
        """
        tokens = self.embed(image)
        visible = permute(tokens[:, 1:], *order)[:, :num_visible]
        return self.fuse(jnp.concatenate([tokens[:, :1], visible], axis=1), train)

    def decode(self, fused, order, positions=None):
        """Tokens [b, v + 1, d] -> predictions float32 [b, m, c]."""
        x = self.decoder_embed(fused).astype(jnp.float32)
        hidden = self.num_patches + 1 - x.shape[1]
        tokens = jnp.broadcast_to(self.mask_token, (x.shape[0], hidden, self.decoder_width))
        patches = permute(jnp.concatenate([x[:, 1:], tokens], axis=1), *reversed(order))
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        x = x + jax.lax.stop_gradient(self.decoder_pos_embed)
        x = self.run(self.decoder_blocks, self.decoder_depth, x)[0][:, 1:]
        if self.predicted_grid == self.grid:  # the norm, too, only where it is needed
            return self.decoder_pred(self.decoder_norm(select(x, positions)))
        rows, columns = self.predicted_grid
        cells = self.decoder_norm(x).reshape(x.shape[0], rows, self.cell, columns, self.cell, -1)
        cells = jnp.mean(cells, axis=(2, 4)).reshape(x.shape[0], -1, self.decoder_width)
        return self.decoder_pred(select(cells, positions))

    def __call__(self, image, is_masked, num_masked: int, positions=None, *, train: bool = False):
        order = visible_first(is_masked)
        fused, last = self.visible_features(image, order, self.num_patches - num_masked,
                                            train=train)
        patches = self.decode(fused, order, positions)
        if not self.global_layers:
            return Prediction(patches, None)
        source = fused if self.global_source == "fused" else last
        x = jnp.mean(source[:, 1:], axis=1)
        for i, linear in enumerate(self.global_head):
            x = linear(jax.nn.relu(x) if i else x)
        return Prediction(patches, x)


def visible_first(is_masked):
    """The order that puts visible patches first, and its inverse.

    Args: is_masked: bool [b, n].
    Returns: order int32 [b, n], row-major inside both parts; back int32 [b, n]: patch i stands at
      place back[i] of the order.
    """
    order = jnp.argsort(is_masked, axis=1, stable=True)
    return order, jnp.argsort(order, axis=1)


@jax.custom_vjp
def permute(x, order, back):
    """x [b, n, d] with row order[i] at place i; back is the inverse order.

    The backward pass is a permutation too: that of a gather would be a scatter.
    """
    del back
    return jnp.take_along_axis(x, order[..., None], axis=1)


def _permute_forward(x, order, back):
    return permute(x, order, back), back


def _permute_backward(back, dy):
    return jnp.take_along_axis(dy, back[..., None], axis=1), None, None


permute.defvjp(_permute_forward, _permute_backward)
