"""The networks of VQ-KD: an encoder before the codebook, a small decoder behind it."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.stack import REMAT_POLICIES
from beit_jax.models.vit import MlpRatio, VisionTransformer, check_width, patch_grid
from beit_jax.options import Count, Natural, Positive


class PatchTower(VisionTransformer):
    """ViT whose patch tokens are normalised one by one: [b, h, w, c] -> float32 [b, n, d]."""

    def setup(self):
        super().setup()
        self.fc_norm = layers.LayerNorm(self.epsilon)

    def __call__(self, image):
        return self.fc_norm(self.encode(image)[:, 1:])


class TaskLayer(nn.Module):
    """Linear, tanh, Linear: [..., d] -> float32 [..., features]."""

    features: int
    dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x):
        shared = dict(kernel_init=nn.initializers.normal(0.02), dtype=self.dtype,
                      precision=self.precision)
        h = jnp.tanh(layers.Linear(x.shape[-1], **shared, name="fc1")(x))
        return layers.Linear(self.features, **shared, output_dtype=jnp.float32, name="fc2")(h)


class Vqkd(nn.Module):
    """Encoder and decoder of the tokenizer; the codebook between them is the task's state.

    Attributes:
      image_px, patch_size, width, depth, num_heads, mlp_ratio: of the encoder.
      decoder_depth: blocks of the decoder, which has the encoder's width and heads.
      code_dim: width of the codes.
      codebook_size: number of codes.
      teacher_dim: width of the features that the decoder predicts.
      dtype: of matrix products; what leads to the codes' vectors is always float32 at its end.
    Source: BEiT v2, Sec. 2.1; microsoft/unilm beit2/modeling_vqkd.py.
    """

    image_px: Count = 224
    patch_size: Count = 16
    width: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: MlpRatio = 4.0
    decoder_depth: Count = 3
    code_dim: Count = 32
    codebook_size: Count = 8192
    teacher_dim: Count = 512
    epsilon: Positive = 1e-6
    dtype: Any = jnp.float32
    attention: Literal[*layers.ATTENTION_BACKENDS] = "xla"
    token_multiple: Count = 1
    unroll: Natural = 0
    remat: Literal["none", *REMAT_POLICIES] = "none"

    def _tower(self, image_px: int, patch_size: int, depth: int) -> PatchTower:
        return PatchTower(
            image_px=image_px, patch_size=patch_size, width=self.width, depth=depth,
            num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, layer_scale_init=0.0,
            use_abs_pos=True, initializer="finetune", epsilon=self.epsilon, dtype=self.dtype,
            attention=self.attention, token_multiple=self.token_multiple, unroll=self.unroll,
            remat=self.remat)

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

    def setup(self):
        self.encoder = self._tower(self.image_px, self.patch_size, self.depth)
        self.encode_task_layer = TaskLayer(self.code_dim, precision="highest")
        # a code is a pixel of an "image" as large as the patch grid
        self.decoder = self._tower(self.grid[0], 1, self.decoder_depth)
        self.decode_task_layer = TaskLayer(self.teacher_dim, self.dtype)

    def encode(self, image):
        """image [b, h, w, 3], normalised -> what is to be quantized, float32 [b, n, c]."""
        return self.encode_task_layer(self.encoder(image))

    def decode(self, vectors):
        """Vectors of codes [b, n, c] -> predicted teacher features, float32 [b, n, t]."""
        b, _, c = vectors.shape
        return self.decode_task_layer(self.decoder(vectors.reshape(b, *self.grid, c)))

    def __call__(self, image):
        """Both networks without a codebook between them: makes the parameters."""
        return self.decode(self.encode(image))
