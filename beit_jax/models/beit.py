"""What stands on BEiT's backbone: masked image modelling, and the classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.vit import VisionTransformer, weight_init


class BeitForMim(VisionTransformer):
    """BEiT pre-training: predicts the target of each selected patch.

    Args (call): image float [b, h, w, 3], normalised; is_masked bool [b, n]; positions int
      [b, m], the patches to predict, or None for all.
    Returns: float32 [b, m, v], v = vocab_size (codes, or values of a patch for pixel targets).
    Source: microsoft/unilm beit/modeling_pretrain.py, VisionTransformerForMaskedImageModeling.
    """

    vocab_size: int = 8192

    def setup(self):
        super().setup()
        self.mask_token = self.param("mask_token", weight_init(self.initializer),
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
        x = self.encode(image, is_masked, mask_token=self.mask_token, train=train)[:, 1:]
        if positions is not None:
            # a one-hot product: its backward pass is a product too, not a scatter
            x = jax.nn.one_hot(positions, x.shape[1], dtype=x.dtype) @ x  # [b, m, d]
        return self.lm_head(self.norm(x))


class BeitForClassification(VisionTransformer):
    """Classifier: mean over the patch tokens, or the class token; norm; linear layer.

    Args (call): image float [b, h, w, 3], normalised.
    Returns: logits float32 [b, num_classes].
    Raises: ValueError: pool is neither "mean" nor "cls".
    Source: microsoft/unilm beit/modeling_finetune.py, VisionTransformer.
    """

    num_classes: int = 1000
    pool: str = "mean"
    head_init_scale: float = 0.001
    initializer: str = "finetune"

    def setup(self):
        super().setup()
        if self.pool not in ("mean", "cls"):
            raise ValueError(f"model.pool={self.pool!r} is none of mean, cls")
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
            return self.norm(x[:, 0].astype(jnp.float32))
        return self.fc_norm(jnp.mean(x[:, 1:].astype(jnp.float32), axis=1))

    def __call__(self, image, *, train: bool = False):
        feature = self.pooled(image, train=train)
        return self.head(feature) if self.num_classes else feature
