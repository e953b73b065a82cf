"""The frozen VQ-KD tokenizer: what BEiT v2 predicts. Source: BEiT v2 (arXiv 2208.06366), Sec. 2.1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from beit_jax.models.vit import MlpRatio
from beit_jax.models.vqkd import Vqkd
from beit_jax.options import Count, Dtype, Mean, Std
from beit_jax.targets import quantizer
from beit_jax.vectors import to_unit


@dataclasses.dataclass(frozen=True)
class VqkdTokenizer:
    """Images to codes, with weights given as an argument.

    Images are float [b, h, w, 3] in [0, 1]; the tokenizer's own mean and std are applied inside.
    `variables` is {"params": {"encoder": ..., "encode_task_layer": ...}, "codebook":
    {"embedding": [v, c]}}; no decoder is needed.

    Attributes: as models.vqkd.Vqkd; mean, std: what the encoder's input is normalised with (0.5 for
      the published ones, which see 2 x - 1); dtype: of matrix products, as a name. float32 is the
      default because codes are an argmax: measure the agreement before going lower.
    Raises: ValueError: sizes that do not divide.
    """

    image_px: Count = 224
    patch_size: Count = 16
    width: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: MlpRatio = 4.0
    code_dim: Count = 32
    codebook_size: Count = 8192
    mean: Mean = (0.5, 0.5, 0.5)
    std: Std = (0.5, 0.5, 0.5)
    dtype: Dtype = "float32"

    def __post_init__(self):
        self._network().check()

    @property
    def vocab_size(self) -> int:
        return self.codebook_size

    def _network(self) -> Vqkd:
        sizes = {key: value for key, value in dataclasses.asdict(self).items()
                 if key not in ("mean", "std")}
        return Vqkd(**sizes | {"dtype": jnp.dtype(self.dtype)})

    def init(self, key: jax.Array) -> dict:
        """Random weights of encoder and codebook: the shape into which a checkpoint is loaded."""
        network_key, codebook_key = jax.random.split(key)
        image = jnp.zeros((1, self.image_px, self.image_px, 3))
        variables = self._network().init(network_key, image, method="encode")
        codebook = quantizer.random_codebook(codebook_key, self.codebook_size, self.code_dim)
        return {**variables, "codebook": {"embedding": codebook}}

    def num_codes(self, image_px: int) -> int:
        """Codes of a square image."""
        return (image_px // self.patch_size) ** 2

    def codes(self, variables: dict, image01: jax.Array, positions=None) -> jax.Array:
        """The nearest code of every patch, row-major (the lowest of a tie).

        Args: positions: int [b, m], the patches to search for alone; None: all n.
        Returns: int32 [b, n], or [b, m].
        Raises: ValueError: the image has another size than the tokenizer.
        """
        image = (image01 - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        vectors = self._network().apply({"params": variables["params"]}, image, method="encode")
        if positions is not None:
            vectors = jnp.take_along_axis(vectors, positions[..., None], axis=1)
        return quantizer.nearest(to_unit(vectors), variables["codebook"]["embedding"])
