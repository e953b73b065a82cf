"""The frozen dVAE as image tokenizer: what BEiT predicts. Source: BEiT, Sec. 2.1; DALL-E."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from beit_jax.models.dvae import (
    Dvae,
    DvaeDecoder,
    DvaeEncoder,
    check_image_px,
    downsampling,
    map_pixels,
    pixels_of_stats,
)
from beit_jax.options import Count, Dtype, within


@dataclasses.dataclass(frozen=True)
class DvaeTokenizer:
    """Images to codes and back, with weights given as an argument.

    Images are float [b, h, w, 3] in [0, 1] (a uint8 image divided by 255), NOT normalised by mean
    and std: the pixel map to [0.1, 0.9] is done inside. h and w must be multiples of
    `downsampling` (8 when num_groups is 4): 112 px make the 14x14 codes of a 224 px student.
    `variables` is {"params": {"encoder": ..., "decoder": ...}}; decode, decode_stats and
    reconstruct alone need the decoder.

    Attributes: as models.dvae.Dvae; dtype is a name ("float32", "bfloat16"). float32 is the
      default because codes are an argmax: measure the agreement before going lower.
    """

    vocab_size: Count = 8192
    n_hid: Annotated[int, within(4)] = 256
    n_init: Count = 128
    num_groups: Annotated[int, within(1, 10)] = 4
    blocks_per_group: Count = 2
    dtype: Dtype = "float32"

    @property
    def downsampling(self) -> int:
        """Pixels per code along each side."""
        return downsampling(self.num_groups)

    def _sizes(self) -> dict:
        return dataclasses.asdict(self) | {"dtype": jnp.dtype(self.dtype)}

    def _encoder(self) -> DvaeEncoder:
        return DvaeEncoder(**{k: v for k, v in self._sizes().items() if k != "n_init"})

    def init(self, key: jax.Array) -> dict:
        """Random weights of the encoder alone, {"params": {"encoder": ...}}: the shape into which
        a checkpoint is loaded (its decoder leaves stay behind)."""
        smallest = jnp.zeros((1, self.downsampling, self.downsampling, 3))
        return {"params": {"encoder": self._encoder().init(key, smallest)["params"]}}

    def init_with_decoder(self, key: jax.Array) -> dict:
        """Random weights of both parts, for pictures of reconstructions."""
        smallest = jnp.zeros((1, self.downsampling, self.downsampling, 3))
        return Dvae(**self._sizes()).init(key, smallest)

    def encode_logits(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, h/f, w/f, v]. Raises ValueError if h or w is no multiple of f."""
        check_image_px(*image01.shape[1:3], self.num_groups)
        encoder = {"params": variables["params"]["encoder"]}
        return self._encoder().apply(encoder, map_pixels(image01))

    def num_codes(self, image_px: int) -> int:
        """Codes of a square image."""
        return (image_px // self.downsampling) ** 2

    def codes(self, variables: dict, image01: jax.Array, positions=None) -> jax.Array:
        """int32 [b, n], n = (h/f)(w/f), row-major: the likeliest code of every position (the
        lowest one of a tie); no noise, no temperature. positions int [b, m]: of these alone."""
        logits = self.encode_logits(variables, image01)
        codes = jnp.argmax(logits, axis=-1).astype(jnp.int32).reshape(logits.shape[0], -1)
        return codes if positions is None else jnp.take_along_axis(codes, positions, axis=1)

    def decode_stats(self, variables: dict, codes: jax.Array) -> jax.Array:
        """Codes int [b, gh, gw], or relaxed or one-hot [b, gh, gw, v] -> float32 [b, h, w, 6]."""
        decoder = {"params": variables["params"]["decoder"]}
        return DvaeDecoder(**self._sizes()).apply(decoder, codes)

    def decode(self, variables: dict, codes: jax.Array) -> jax.Array:
        """Codes as in `decode_stats` -> image [b, h, w, 3] in [0, 1]."""
        return pixels_of_stats(self.decode_stats(variables, codes))

    def reconstruct(self, variables: dict, image01: jax.Array) -> jax.Array:
        """The image [b, h, w, 3] in [0, 1] that its own hard codes stand for."""
        codes = jnp.argmax(self.encode_logits(variables, image01), axis=-1)
        return self.decode(variables, codes)
