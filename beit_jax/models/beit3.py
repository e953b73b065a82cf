"""BEiT-3's backbone: Multiway blocks, and its uses as an encoder of images, texts and pairs and as
a generator of texts. Heads stand in beit3_heads.py.

Submodules bear the names of the released checkpoints, without "beit3." and "encoder." in front;
blocks are stacked on a leading layer axis.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.beit3_embed import PositionTables, Table, VisionEmbed
from beit_jax.models.multiway import INITIALISERS, Block, Cache, Multiway, Routes
from beit_jax.models.stack import REMAT_POLICIES, scanned
from beit_jax.models.vit import MlpRatio, check_width, patch_grid
from beit_jax.options import BelowOne, Count, Natural, Positive

POSITION_OFFSET = 2  # the first two rows of both position tables are never read
_HIDDEN = -1e9  # finite in float32, and softmax gives exactly 0


class Beit3(nn.Module):
    """Multiway Transformer over images, texts and pairs; heads are added by subclasses.

    Attributes:
      image_px, patch_size: sides in pixels; the image must be a multiple of the patch.
      vocab_size: rows of the text table.
      text_positions: rows of the text's position table, of which two are never read.
      modalities: "both", or "vision": a network of the image experts alone.
      attention_experts: "separate" (released files) or "shared" (the paper's): whether modalities
        have projections and norms of attention, and a final norm, of their own.
      vl_layers: top blocks with a third feed-forward expert for pairs (the paper's giant: 3).
      subln: a norm before the last matrix of each branch (released files).
      final_norm: a norm after the last block; VQA and ImageNet classification have none.
      initializer: "magneto" or "beit", see `multiway.matrix_inits`.
      init_std: of matrices, tables and tokens at the start. 0.02 suits width 768; at width 128 it
        keeps the network from learning to see for hundreds of steps (docs/beit3.md).
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      dtype: of matrix products; the residual stream and parameters stay float32.
      unroll: blocks per step of the compiled scan; 0: all, up to 12 blocks.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
    Raises (on use): ValueError: values that do not fit together.
    Source: BEiT-3 (arXiv 2208.10442), Sec. 2; torchscale model/BEiT3.py.
    """

    image_px: Count
    patch_size: Count
    width: Count
    depth: Count
    num_heads: Count
    mlp_ratio: MlpRatio = 4.0
    vocab_size: Count = 64010
    text_positions: Count = 1024
    modalities: str = "both"
    attention_experts: str = "separate"
    vl_layers: Natural = 0
    subln: bool = True
    final_norm: bool = True
    initializer: Literal[*INITIALISERS] = "magneto"
    init_std: Positive = 0.02
    drop_path_rate: BelowOne = 0.0
    epsilon: Positive = 1e-5
    dtype: Any = jnp.float32
    unroll: Natural = 0
    remat: str = "none"

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts that serve one modality each."""
        return ("A",) if self.modalities == "vision" else ("A", "B")

    @property
    def is_separate(self) -> bool:
        """Whether attention and the final norm have experts at all."""
        return self.attention_experts == "separate"

    def check(self) -> None:
        """Refuses values that do not fit together. Raises: ValueError."""
        for name, allowed in (("modalities", ("both", "vision")),
                              ("attention_experts", ("separate", "shared")),
                              ("remat", ("none", *REMAT_POLICIES))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}={getattr(self, name)!r} is none of "
                                 f"{', '.join(allowed)}")
        self.grid  # noqa: B018  raises if the patch does not divide the image
        check_width(self.width, self.num_heads, self.mlp_ratio)
        if not 0 <= self.vl_layers < self.depth:
            raise ValueError(f"model.vl_layers={self.vl_layers} must be 0 or more and below "
                             f"model.depth={self.depth}")
        if self.vl_layers and self.modalities == "vision":
            raise ValueError(f"model.vl_layers={self.vl_layers} serve pairs, and "
                             "model.modalities=vision sees none: set vl_layers=0")

    def setup(self):
        self.check()
        self.vision_embed = VisionEmbed(self.patch_size, self.width, self.init_std, self.dtype)
        rows = {"A": self.num_patches + 1 + POSITION_OFFSET, "B": self.text_positions}
        self.embed_positions = PositionTables(tuple((name, rows[name]) for name in self.experts),
                                              self.width, self.init_std)
        if "B" in self.experts:
            self.text_embed = Table(self.vocab_size, self.width, self.init_std)
        self.blocks = self.stack(self.depth - self.vl_layers, self.experts)
        if self.vl_layers:
            self.vl_blocks = self.stack(self.vl_layers, (*self.experts, "VL"))
        if self.final_norm:
            norm = functools.partial(layers.LayerNorm, self.epsilon)
            self.layer_norm = Multiway(norm, self.experts) if self.is_separate else norm()

    def stack(self, length: int, ffn_experts: tuple[str, ...]):
        """`length` blocks in a scan; called as `Block`, where `layer` holds arrays [length]."""
        scan = scanned(Block, length, 5, static=(5, 6, 7), unroll=self.unroll, remat=self.remat)
        return scan(self.num_heads, round(self.width * self.mlp_ratio), self.depth,
                    self.experts if self.is_separate else (), ffn_experts, self.subln,
                    self.initializer, self.init_std, self.epsilon, self.dtype)

    def embed_image(self, image, is_masked=None):
        """Class token and patches without positions: [b, n + 1, d].

        Raises: ValueError: the image has another size than the model.
        """
        if image.shape[1:3] != (self.image_px, self.image_px):
            raise ValueError(f"the image is {image.shape[1]}x{image.shape[2]}, the model expects "
                             f"{self.image_px}x{self.image_px}")
        if self.is_initializing() and "B" in self.experts:
            self.text_embed()  # exists whatever the first input is
        return self.vision_embed(image, is_masked)

    def embed_text(self, ids):
        """Text tokens without positions: ids int [b, l] -> [b, l, d]."""
        if "B" not in self.experts:
            raise ValueError("model.modalities=vision has no experts for text: set it to both")
        if self.is_initializing():
            self.vision_embed(jnp.zeros((1, self.image_px, self.image_px, 3)))
        # whole on every device: looked up in a split table, rows would come out split by width
        table = nn.with_logical_constraint(self.text_embed(), (None, None))
        return jnp.take(table, ids, axis=0)

    def check_length(self, num_text: int) -> None:
        """Refuses texts that are too long. Raises: ValueError."""
        most = self.text_positions - POSITION_OFFSET
        if num_text > most:
            raise ValueError(f"{num_text} text tokens, but the model has positions for {most}: "
                             "shorten the texts or raise model.text_positions")

    def place(self, x, expert: str, first=0):
        """Adds the positions from number `first` on (it may be traced) to x [b, n, d].

        Raises: ValueError: more tokens than positions.
        """
        table, n = self.embed_positions()[expert], x.shape[1]
        if expert == "B":
            self.check_length(n)
        rows = jax.lax.dynamic_slice_in_dim(table, first + POSITION_OFFSET, n)
        return x + rows

    def run(self, x, num_image: int, may_attend=None, *, is_pair: bool = False,
            train: bool = False, cache: Cache | None = None, slot=0, keep: bool = False):
        """Runs the blocks and the final norm on x [b, n, d], the first `num_image` of an image.

        Args:
          may_attend: bool, broadcast over [b, 1, n, keys], or None: everywhere.
          is_pair: whether blocks that have an expert for pairs use it.
          train: drops samples of residual branches (rng "drop_path").
          cache: [l, b, keys, a, k], keys and values that stand beside those of x, or None.
          slot: where those of x are written in the cache.
          keep: also give the keys and values that were attended to.
        Returns: [b, n, d]; Cache [l, b, keys, a, k] or None.
        """
        n = x.shape[1]
        spans = tuple(span for span in (("A", 0, num_image), ("B", num_image, n))
                      if span[1] < span[2])
        bias = None if may_attend is None else jnp.where(may_attend, 0.0, _HIDDEN)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        rates, kept = jnp.linspace(0.0, self.drop_path_rate, self.depth), []
        top = self.depth - self.vl_layers
        stacks = [(self.blocks, slice(0, top), spans)]
        if self.vl_layers:
            pair = (("VL", 0, n),) if is_pair else spans
            stacks.append((self.vl_blocks, slice(top, self.depth), pair))
        for blocks, part, ffn in stacks:
            own = None if cache is None else Cache(*(each[part] for each in cache))
            layer = (jnp.arange(self.depth)[part], rates[part], own)
            x, more = blocks(x, layer, bias, slot, Routes(spans, ffn),
                             train and self.drop_path_rate > 0, keep)
            kept.append(more)
        if self.final_norm:
            x = self.layer_norm(x, spans) if self.is_separate else self.layer_norm(x)
        if not keep:
            return x, None
        return x, Cache(*(jnp.concatenate(each) for each in zip(*kept)))

    def encode_image(self, image, is_masked=None, *, train: bool = False):
        """Vision encoder: image float [b, h, w, 3], normalised -> [b, n + 1, d], class token first.

        is_masked: bool [b, n], True where the mask token replaces a patch; or None.
        """
        x = self.place(self.embed_image(image, is_masked), "A")
        return self.run(x, x.shape[1], train=train)[0]

    def encode_text(self, ids, is_valid, *, train: bool = False):
        """Language encoder: ids int [b, l], is_valid bool [b, l] (no padding) -> [b, l, d]."""
        x = self.place(self.embed_text(ids), "B") * is_valid[..., None]
        return self.run(x, 0, is_valid[:, None, None, :], train=train)[0]

    def encode_pair(self, image, ids, is_valid, is_masked=None, *, causal_text: bool = False,
                    train: bool = False):
        """Fusion encoder, or with `causal_text` the image-to-text network: no token sees later
        text, and the image sees none.

        Args: image, is_masked: as encode_image; ids, is_valid: as encode_text.
        Returns: [b, n + 1 + l, d], image first.
        """
        image = self.place(self.embed_image(image, is_masked), "A")
        text = self.place(self.embed_text(ids), "B") * is_valid[..., None]
        num_image = image.shape[1]
        may_attend = self.pair_is_valid(is_valid)[:, None, None, :]
        if causal_text:
            may_attend &= causal(num_image, ids.shape[1])
        x = jnp.concatenate([image, text], axis=1)
        return self.run(x, num_image, may_attend, is_pair=True, train=train)[0]

    def pair_is_valid(self, is_valid):
        """Which tokens of a pair are none of padding: bool [b, l] of its text -> [b, n + 1 + l]."""
        return jnp.pad(is_valid, ((0, 0), (self.num_patches + 1, 0)), constant_values=True)

    def start_text(self, image, max_length: int) -> Cache:
        """Encodes an image once for `continue_text`; room for `max_length` text tokens.

        Raises: ValueError: more tokens than positions.
        """
        self.check_length(max_length)
        x = self.place(self.embed_image(image), "A")
        cache = self.run(x, x.shape[1], is_pair=True, keep=True)[1]
        room = ((0, 0), (0, 0), (0, max_length), (0, 0), (0, 0))
        return Cache(*(jnp.pad(each, room) for each in cache))

    def continue_text(self, cache: Cache, ids, index):
        """The image-to-text network on the next text tokens; what it saw before is in the cache.

        Args:
          cache: from `start_text` or from here; what it holds from `index` on is forgotten.
          ids: int [b, t], tokens number index, index + 1, ...; index + t <= max_length.
          index: int, may be traced.
        Returns: [b, t, d], and the cache with these tokens.
        """
        num_image = self.num_patches + 1
        x = self.place(self.embed_text(ids), "B", index)
        last = num_image + index + jnp.arange(ids.shape[1])
        may_attend = jnp.arange(cache.key.shape[2]) <= last[:, None]  # [t, keys]
        return self.run(x, 0, may_attend[None, None], is_pair=True, cache=cache,
                        slot=num_image + index, keep=True)


def causal(num_image: int, num_text: int):
    """May query i attend to key j? Image to image, text to image and to text up to itself.

    Returns: bool [n, n], n = num_image + num_text.
    """
    index = jnp.arange(num_image + num_text)
    return (index < num_image) | ((index <= index[:, None]) & (index[:, None] >= num_image))
