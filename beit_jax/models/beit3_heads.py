"""What stands on BEiT-3's backbone: pre-training, and the heads of its uses.

All of them take normalised images, float [b, h, w, 3], and padded texts: ids int [b, l] with
is_valid bool [b, l]. Logits and features are float32. Source: microsoft/unilm
beit3/modeling_finetune.py, BEiT3For*; of pre-training, whose code is not public, the names and
shapes in the released files.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from beit_jax.models import layers
from beit_jax.models.beit import select
from beit_jax.models.beit3 import Beit3
from beit_jax.models.multiway import Cache, normal_init
from beit_jax.options import Count, Natural
from beit_jax.vectors import to_unit

# heads of fine-tuning begin at N(0, 0.02) cut at one sigma
head_init = layers.truncated_normal(0.02)


class Beit3ForCaptioning(Beit3):
    """Words at masked places of a text that sees an image and what stands before.

    Args (call): image, ids (some replaced by the mask), is_valid; positions: int [b, m], the text
      tokens to predict, or None for all.
    Returns: float32 [b, m, v].
    """

    def setup(self):
        super().setup()
        self.mlm_head = layers.Linear(self.vocab_size, kernel_init=normal_init(self.init_std),
                                      dtype=self.dtype, output_dtype=jnp.float32)

    def __call__(self, image, ids, is_valid, positions=None, *, train: bool = False):
        x = self.encode_pair(image, ids, is_valid, causal_text=True, train=train)
        return self.mlm_head(select(x[:, -ids.shape[1]:], positions))

    def decode_step(self, cache: Cache, last_two_ids, index):
        """Scores of the next word, given the last one and a mask behind it.

        Args:
          cache: from `start_text`, or from here: the mask's keys and values, which it holds too,
            are overwritten by the word that takes its place.
          last_two_ids: int [b, 2], the last real token and the mask.
          index: int, the former's place in the text, 0 for the first; may be traced.
        Returns: float32 [b, v], cache.
        """
        x, cache = self.continue_text(cache, last_two_ids, index)
        return self.mlm_head(x[:, 1]), cache


class Beit3ForPretraining(Beit3):
    """Masked data modelling: codes of hidden patches, and hidden words.

    Attributes:
      codebook_size: of the image tokenizer.
    """

    codebook_size: Count = 8192

    def setup(self):
        super().setup()
        linear = dict(kernel_init=normal_init(self.init_std), dtype=self.dtype,
                      output_dtype=jnp.float32)
        self.mlm_head = layers.Linear(self.vocab_size, **linear)
        self.mim_head = layers.Linear(self.codebook_size, **linear)

    def __call__(self, image, ids, is_valid, is_masked=None, patches=None, words=None, *,
                 train: bool = False):
        """Of pairs: logits [b, m, codebook_size] and [b, k, v] at the places asked for.

        Args: is_masked: bool [b, n]; patches: int [b, m] or None for all; words: int [b, k] or
          None, places in the text.
        """
        x = self.encode_pair(image, ids, is_valid, is_masked, train=train)
        num_image = self.num_patches + 1
        return (self.mim_head(select(x[:, 1:num_image], patches)),
                self.mlm_head(select(x[:, num_image:], words)))

    def predict_patches(self, image, is_masked, patches=None, *, train: bool = False):
        """Of images alone: logits [b, m, codebook_size]."""
        x = self.encode_image(image, is_masked, train=train)
        return self.mim_head(select(x[:, 1:], patches))

    def predict_words(self, ids, is_valid, words=None, *, train: bool = False):
        """Of texts alone: logits [b, k, v]."""
        return self.mlm_head(select(self.encode_text(ids, is_valid, train=train), words))


class Beit3Pooled(Beit3):
    """A backbone that is read as one vector of an image, of a text, or of both.

    Attributes:
      pool: "cls", as released: the class token, of a text its first token; "mean": the mean of all
        tokens but padding. Pre-training asks nothing of those two tokens, so that short fine-tuning
        finds little in them (docs/beit3.md).
    """

    pool: str = "cls"

    def check(self) -> None:
        super().check()
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"model.pool={self.pool!r} is none of cls, mean")

    def read(self, x, is_valid=None):
        """Tokens [b, n, d] -> [b, d]; is_valid bool [b, n], True where no padding, or None."""
        if self.pool == "cls":
            return x[:, 0]
        if is_valid is None:
            return jnp.mean(x, axis=1)
        weights = is_valid[..., None].astype(jnp.float32)
        # an image without a text has no token that counts
        return jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)


class Beit3ForRetrieval(Beit3Pooled):
    """Dual encoder: images and texts as unit vectors [b, d], to be compared by their products."""

    def setup(self):
        super().setup()
        linear = dict(kernel_init=head_init, use_bias=False, dtype=self.dtype,
                      output_dtype=jnp.float32)
        self.vision_head = layers.Linear(self.width, **linear)
        self.language_head = layers.Linear(self.width, **linear)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

    def image_vector(self, image, *, train: bool = False):
        """Image float [b, h, w, 3] -> [b, d]."""
        return to_unit(self.vision_head(self.read(self.encode_image(image, train=train))))

    def text_vector(self, ids, is_valid, *, train: bool = False):
        """Ids int [b, l], is_valid bool [b, l] -> [b, d]."""
        x = self.encode_text(ids, is_valid, train=train)
        return to_unit(self.language_head(self.read(x, is_valid)))

    def __call__(self, image, ids, is_valid, *, train: bool = False):
        """(image vectors, text vectors, factor of their products in the contrastive loss)."""
        return (self.image_vector(image, train=train),
                self.text_vector(ids, is_valid, train=train), jnp.exp(self.logit_scale))


class Pooler(nn.Module):
    """tanh of a linear map of a normalised token: float [b, d] -> float32 [b, d]."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        x = layers.LayerNorm(self.epsilon, name="norm")(x)
        return jnp.tanh(layers.Linear(x.shape[-1], kernel_init=head_init, name="dense")(x))


class VqaHead(nn.Module):
    """float32 [b, d] -> [b, num_classes]; a norm before the activation."""

    num_classes: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        x = layers.Linear(2 * x.shape[-1], kernel_init=head_init, name="fc1")(x)
        x = layers.gelu(layers.LayerNorm(self.epsilon, name="norm")(x))
        return layers.Linear(self.num_classes, kernel_init=head_init, name="fc2")(x)


class Beit3ForVqa(Beit3Pooled):
    """Answers to questions about images: logits [b, num_classes].

    One vector of both is read: with pool="cls" the image's class token.
    """

    num_classes: Natural = 3129
    final_norm: bool = False

    def setup(self):
        super().setup()
        self.pooler = Pooler(self.epsilon)
        self.head = VqaHead(self.num_classes, self.epsilon)

    def __call__(self, image, ids, is_valid, *, train: bool = False):
        x = self.encode_pair(image, ids, is_valid, train=train)
        return self.head(self.pooler(self.read(x, self.pair_is_valid(is_valid))))


class PairHead(nn.Module):
    """float32 [b, c] -> [b, num_classes]; the linear maps start near zero."""

    hidden: int
    num_classes: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        def linear(features, name):
            return layers.Linear(features, kernel_init=small_init, name=name)

        x = linear(self.hidden, "dense1")(layers.LayerNorm(self.epsilon, name="norm1")(x))
        x = layers.gelu(layers.LayerNorm(self.epsilon, name="norm2")(x))
        return linear(self.num_classes, "dense2")(x)


class Beit3ForNlvr2(Beit3Pooled):
    """Is a sentence true of two images? Logits [b, num_classes].

    The images do not see each other: the vectors of image and text of both pairs meet in the head.
    Args (call): images float [b, 2, h, w, 3]; ids, is_valid.
    """

    num_classes: Natural = 2

    def setup(self):
        super().setup()
        self.head = PairHead(2 * self.width, self.num_classes, self.epsilon)

    def __call__(self, images, ids, is_valid, *, train: bool = False):
        b = images.shape[0]
        # the pairs of one example side by side: a batch that is split over devices stays so
        ids, is_valid = (jnp.repeat(each, 2, axis=0) for each in (ids, is_valid))
        x = self.encode_pair(images.reshape(2 * b, *images.shape[2:]), ids, is_valid, train=train)
        num_image = self.num_patches + 1
        read = jnp.stack([self.read(x[:, :num_image]), self.read(x[:, num_image:], is_valid)],
                         axis=1)  # [2 b, 2, d]
        return self.head(read.reshape(b, 4 * self.width))


class Beit3ForClassification(Beit3):
    """Classes of images: mean over the patch tokens; norm; linear layer. Logits [b, num_classes].
    """

    num_classes: Natural = 1000
    final_norm: bool = False

    def setup(self):
        super().setup()
        self.fc_norm = layers.LayerNorm(self.epsilon)
        self.head = layers.Linear(self.num_classes, kernel_init=small_init)

    def pooled(self, image, *, train: bool = False):
        """The feature before the linear layer, float32 [b, d]."""
        x = self.encode_image(image, train=train)
        return self.fc_norm(jnp.mean(x[:, 1:], axis=1))

    def __call__(self, image, *, train: bool = False):
        return self.head(self.pooled(image, train=train))


def small_init(key, shape, dtype=jnp.float32):
    """`head_init` times 0.001."""
    return 0.001 * head_init(key, shape, dtype)
