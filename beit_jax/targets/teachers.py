"""Frozen teachers: networks whose patch tokens are to be predicted. TEACHERS names them.

All have one interface: `init(key)` gives random weights, that is the shape into which a checkpoint
is loaded; `features(variables, image01)` maps images in [0, 1] to float32 tokens [b, gh * gw, c],
row-major, without the class token and without a gradient; `dim` is c, `grid` is (gh, gw). The
student's normalisation never reaches a teacher: each has its own mean and std inside.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from beit_jax.models.layers import layer_norm
from beit_jax.models.plain_vit import PlainVit
from beit_jax.models.vit import VisionTransformer, patch_grid

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std of red, green, blue
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def normalise(image01: jax.Array, mean, std) -> jax.Array:
    """(image - mean) / std per colour, float32. image01: [b, h, w, 3] in [0, 1]."""
    return (image01.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


@dataclasses.dataclass(frozen=True)
class DinoVitb16:
    """DINO's ViT-B/16: patch tokens behind the final norm. `variables` is {"params": ...}.

    Attributes:
      image_px: side of the images, for which the positions are. The released ones are for 224; for
        another size load them with adapt=("resize_pos_embed_offset",).
      patch_size, width, depth, num_heads, mlp_ratio: as published unless set.
      dtype: of matrix products, as a name ("float32", "bfloat16"); tokens are float32.
      attention: backend, see `layers.attend`.
    Source: DINO (arXiv 2104.14294); facebookresearch/dino vision_transformer.py; the choice of
      tokens: microsoft/unilm beit2/vqkd_teacher/dino.py.
    """

    image_px: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    attention: str = "xla"

    @property
    def dim(self) -> int:
        return self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def network(self) -> PlainVit:
        return PlainVit(**dataclasses.asdict(self) | {"dtype": jnp.dtype(self.dtype)})

    def init(self, key: jax.Array) -> dict:
        return self.network.init(key, jnp.zeros((1, self.image_px, self.image_px, 3)))

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, d]. Raises ValueError: the image has another size than `image_px`."""
        tokens = self.network.apply(variables, normalise(image01, *IMAGENET))
        return jax.lax.stop_gradient(tokens[:, 1:])


@dataclasses.dataclass(frozen=True)
class DinoVits16(DinoVitb16):
    """DINO's ViT-S/16; all else as DinoVitb16."""

    width: int = 384
    num_heads: int = 6


@dataclasses.dataclass(frozen=True)
class ClipVitb16:
    """CLIP's image tower ViT-B/16: patch tokens, normed and projected into the joint space.

    OpenAI norms and projects the class token alone; that patch tokens go the same way is BEiT v2's
    choice. `variables` is {"params": ...}.

    Attributes: as DinoVitb16; output_dim: width of the joint space.
    Source: CLIP (arXiv 2103.00020); openai/CLIP clip/model.py; microsoft/unilm
      beit2/vqkd_teacher/clip/model.py.
    """

    image_px: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    output_dim: int = 512
    dtype: str = "float32"
    attention: str = "xla"

    @property
    def dim(self) -> int:
        return self.output_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def network(self) -> PlainVit:
        return PlainVit(**dataclasses.asdict(self) | {"dtype": jnp.dtype(self.dtype)},
                        activation="quick_gelu", patch_bias=False, use_pre_norm=True, epsilon=1e-5)

    def init(self, key: jax.Array) -> dict:
        return self.network.init(key, jnp.zeros((1, self.image_px, self.image_px, 3)))

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, output_dim]. Raises ValueError: another size than `image_px`."""
        tokens = self.network.apply(variables, normalise(image01, *CLIP))
        return jax.lax.stop_gradient(tokens[:, 1:])


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: the dict `model` has no hash
class Backbone:
    """A VisionTransformer trained here, by whatever task, as a teacher.

    Its tokens are the patch tokens behind a block, under a LayerNorm without parameters (epsilon
    1e-6): a backbone's own final norm belongs to the head it was trained with and is not taken.
    `variables` is {"params": ...} of the backbone; heads in a checkpoint stay behind.

    Attributes:
      model: fields of models.vit.VisionTransformer as the backbone was trained with (the run's
        config.model without the head's; no dtype).
      mean, std: with which the backbone's images in [0, 1] were normalised (the run's config.data).
      block: index of the block whose output is taken; -1 is the last. Later blocks do not run.
      dtype: of matrix products, as a name; tokens are float32.
    Raises: ValueError: model has a field too many or too few, or no such block.
    """

    model: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    block: int = -1
    dtype: str = "float32"

    def __post_init__(self):
        known = {field.name: field for field in dataclasses.fields(VisionTransformer)
                 if field.init and field.name not in ("parent", "name", "dtype")}
        needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        if unknown := sorted(self.model.keys() - known.keys()):
            raise ValueError(f"model.{unknown[0]} of a backbone as teacher is unknown; known: "
                             f"{', '.join(sorted(known))}")
        if missing := sorted(needed - self.model.keys()):
            raise ValueError(f"model of a backbone as teacher lacks {', '.join(missing)}")
        depth = self.model["depth"]
        if not -depth <= self.block < depth:
            raise ValueError(f"block={self.block}, but the backbone has {depth}: -1 is the last")

    @property
    def dim(self) -> int:
        return self.model["width"]

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.model["image_px"], self.model["patch_size"])

    @property
    def network(self) -> VisionTransformer:
        """The part that runs: the blocks up to `block`."""
        return self._network(self.block % self.model["depth"] + 1)

    def _network(self, depth: int) -> VisionTransformer:
        return VisionTransformer(**dict(self.model) | {"depth": depth,
                                                       "dtype": jnp.dtype(self.dtype)})

    def init(self, key: jax.Array) -> dict:
        side = self.model["image_px"]
        return self._network(self.model["depth"]).init(key, jnp.zeros((1, side, side, 3)),
                                                       method="encode")

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, width]. Raises ValueError: another size than `model.image_px`."""
        network, params = self.network, dict(variables["params"])
        params["blocks"] = jax.tree.map(lambda leaf: leaf[:network.depth], params["blocks"])
        tokens = network.apply({"params": params}, normalise(image01, self.mean, self.std),
                               method="encode")
        patches = tokens[:, 1:].astype(jnp.float32)
        return jax.lax.stop_gradient(layer_norm(patches, 1.0, 0.0, 1e-6))


TEACHERS = {
    "backbone": Backbone,
    "clip_vitb16": ClipVitb16,
    "dino_vitb16": DinoVitb16,
    "dino_vits16": DinoVits16,
}
