"""What stands on BEiT's backbone: masked image modelling of v1 and v2, and the classifier."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.blocks import token_init, weight_init
from beit_jax.models.vit import VisionTransformer
from beit_jax.options import Count, Natural, NonNegative


class BeitForMim(VisionTransformer):
    """BEiT pre-training: predicts the target of each selected patch.

    Args (call): image float [b, h, w, 3], normalised; is_masked bool [b, n]; positions int
      [b, m], the patches to predict, or None for all.
    Returns: float32 [b, m, v], v = vocab_size (codes, or values of a patch for pixel targets).
    Source: microsoft/unilm beit/modeling_pretrain.py, VisionTransformerForMaskedImageModeling.
    """

    vocab_size: Count = 8192

    def setup(self):
        super().setup()
        self.mask_token = self.param("mask_token", token_init(self.initializer),
                                     (1, 1, self.width))
        self.norm = layers.LayerNorm(self.epsilon)
        # float32 logits: among thousands of codes bfloat16 would make ties
        self.lm_head = layers.Linear(
            self.vocab_size, kernel_init=weight_init(self.initializer), dtype=self.dtype,
            output_dtype=jnp.float32)

    def features(self, image, is_masked):
        """Normalised tokens [b, n + 1, d], class token first."""
        return self.norm(self.encode(image, is_masked, mask_token=self.mask_token))

    def __call__(self, image, is_masked, positions=None, *, train: bool = False):
        x = self.encode(image, is_masked, mask_token=self.mask_token, train=train)
        return self.lm_head(self.norm(select(x[:, 1:], positions)))


def select(patches, positions):
    """Patches [b, n, d] at positions int [b, m] -> [b, m, d]; None: all of them."""
    if positions is None:
        return patches
    # a one-hot product: its backward pass is a product too, not a scatter; "highest": it picks
    # values, and accelerators would round them
    chosen = jax.nn.one_hot(positions, patches.shape[1], dtype=patches.dtype)
    return jnp.matmul(chosen, patches, precision="highest")


class BeitV2ForMim(BeitForMim):
    """BEiT v2 pre-training: a second prediction through a bottleneck, the class token.

    The class token after the last block joins the patches as they were after block `early_layer`;
    head blocks of the same kind mix them, and the codes are predicted once more. What the later
    blocks learn about an image reaches that prediction through the class token alone. The head is
    thrown away after pre-training.

    Attributes:
      early_layer: l, number of blocks before the patches are taken, counted from 1 as the paper.
      head_layers: blocks of the head.
      shared_head: whether both predictions share `norm` and `lm_head`.
      head_init: of the head blocks: "torch" (PyTorch's default, which the published runs had,
        because the code builds the head after its initialiser ran), or "backbone".
    Args (call): as BeitForMim.
    Returns: logits of both predictions, each float32 [b, m, v].
    Source: BEiT v2 (arXiv 2208.06366), Sec. 2.3; microsoft/unilm beit2/modeling_pretrain.py,
      VisionTransformerForMaskedImageModelingCLS.
    """

    early_layer: Count = 9
    head_layers: Count = 2
    shared_head: bool = True
    head_init: Literal["torch", "backbone"] = "torch"

    def check(self) -> None:
        super().check()
        if not 0 < self.early_layer <= self.depth:
            raise ValueError(f"model.early_layer={self.early_layer} must lie between 1 and "
                             f"model.depth={self.depth}")

    def setup(self):
        super().setup()
        self.cls_pt_layers = self.stack(
            self.head_layers, "torch" if self.head_init == "torch" else self.initializer)
        if not self.shared_head:
            self.cls_pt_norm = layers.LayerNorm(self.epsilon)
            self.cls_pt_lm_head = layers.Linear(
                self.vocab_size, kernel_init=weight_init(self.initializer), dtype=self.dtype,
                output_dtype=jnp.float32)

    def both_features(self, image, is_masked, *, train: bool = False):
        """Tokens after the last block and after the head, each [b, n + 1, d], not normalised."""
        tokens = self.embed(image, is_masked, self.mask_token)
        wanted = jax.nn.one_hot(self.early_layer - 1, self.depth)
        x, _, early = self.run(self.blocks, self.depth, tokens, train=train, weights=wanted)
        joined = jnp.concatenate([x[:, :1], early[:, 1:]], axis=1)
        return x, self.run(self.cls_pt_layers, self.head_layers, joined, train=train,
                           first=self.early_layer)[0]

    def __call__(self, image, is_masked, positions=None, *, train: bool = False):
        x, aggregated = self.both_features(image, is_masked, train=train)
        norm, lm_head = self.norm, self.lm_head
        logits = lm_head(norm(select(x[:, 1:], positions)))
        if not self.shared_head:
            norm, lm_head = self.cls_pt_norm, self.cls_pt_lm_head
        return logits, lm_head(norm(select(aggregated[:, 1:], positions)))


class BeitForClassification(VisionTransformer):
    """Classifier: mean over the patch tokens, or the class token; norm; linear layer.

    Args (call): image float [b, h, w, 3], normalised.
    Returns: logits float32 [b, num_classes].
    Source: microsoft/unilm beit/modeling_finetune.py, VisionTransformer.
    """

    num_classes: Natural = 1000
    pool: Literal["mean", "cls"] = "mean"
    head_init_scale: NonNegative = 0.001
    initializer: str = "finetune"

    def setup(self):
        super().setup()
        if self.pool == "mean":
            self.fc_norm = layers.LayerNorm(self.epsilon)
        else:
            self.norm = layers.LayerNorm(self.epsilon)
        if self.num_classes:
            self.head = layers.Linear(
                self.num_classes, kernel_init=nn.initializers.normal(0.02 * self.head_init_scale))

    def pooled(self, image, *, train: bool = False):
        """The feature before the linear layer, float32 [b, d]."""
        x = self.encode(image, train=train)
        if self.pool == "cls":
            return self.norm(x[:, 0])
        return self.fc_norm(jnp.mean(x[:, 1:], axis=1))

    def __call__(self, image, *, train: bool = False):
        feature = self.pooled(image, train=train)
        return self.head(feature) if self.num_classes else feature
