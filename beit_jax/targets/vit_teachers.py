"""Teachers that are plain Vision Transformers of others: DINO, DINOv2, MAE, CLIP."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from beit_jax import flops
from beit_jax.models import layers
from beit_jax.models.masked_autoencoder import MaeEncoder
from beit_jax.models.plain_vit import PlainVit
from beit_jax.models.vit import MlpRatio, patch_grid
from beit_jax.options import Count, Dtype, Natural
from beit_jax.targets import preprocess


@dataclasses.dataclass(frozen=True)
class VitTeacher:
    """What these teachers have in common. `variables` is {"params": ...}.

    Attributes:
      image_px: side of the images, for which the positions are. The released ones are for 224; for
        another size load them with adapt=("resize_pos_embed_offset",).
      patch_size, width, depth, num_heads, mlp_ratio: as published unless set.
      dtype: of matrix products, as a name ("float32", "bfloat16"); tokens are float32.
      attention: backend, see `layers.attend`.
    Raises: ValueError: sizes that do not divide.
    """

    image_px: Count = 224
    patch_size: Count = 16
    width: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    mlp_ratio: MlpRatio = 4.0
    dtype: Dtype = "float32"
    attention: Literal[*layers.ATTENTION_BACKENDS] = "xla"

    # what else tells one kind from another: no fields, so that no config sets them
    mean, std = preprocess.IMAGENET
    design = {}  # further fields of PlainVit
    has_weights = True

    def __post_init__(self):
        self.grid  # noqa: B018  raises if the patch does not divide the image
        self.network.check()

    @property
    def dim(self) -> int:
        return self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.image_px, self.patch_size)

    @property
    def flops(self) -> float:
        return flops.plain_vit(self.network)

    @property
    def network(self) -> PlainVit:
        fields = dataclasses.asdict(self) | {"dtype": jnp.dtype(self.dtype)}
        return PlainVit(**fields, **self.design)

    def init(self, key: jax.Array) -> dict:
        return self.network.init(key, jnp.zeros((1, self.image_px, self.image_px, 3)))

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, dim]. Raises ValueError: the image has another size than `image_px`."""
        tokens = self.network.apply(variables,
                                    preprocess.normalise(image01, self.mean, self.std))
        return jax.lax.stop_gradient(tokens[:, 1:])


@dataclasses.dataclass(frozen=True)
class DinoVitb16(VitTeacher):
    """DINO's ViT-B/16: patch tokens behind the final norm.

    Source: DINO (arXiv 2104.14294); facebookresearch/dino vision_transformer.py; the choice of
      tokens: microsoft/unilm beit2/vqkd_teacher/dino.py.
    """


@dataclasses.dataclass(frozen=True)
class DinoVits16(DinoVitb16):
    """DINO's ViT-S/16; all else as DinoVitb16."""

    width: Count = 384
    num_heads: Count = 6


@dataclasses.dataclass(frozen=True)
class Dinov2Vitb14(VitTeacher):
    """DINOv2's ViT-B/14: DINO's network with layer scale; patch tokens behind the final norm.

    Attributes: as VitTeacher, but
      image_px: the released positions are for 518 px; load them with
        adapt=("resize_pos_embed_offset",), those of a network with registers with
        ("resize_pos_embed_antialias",). 196 px give the grid of a student of 224 px.
      num_registers: 4 for the variants with registers.
    Source: DINOv2 (arXiv 2304.07193), registers: arXiv 2309.16588; facebookresearch/dinov2
      dinov2/models/vision_transformer.py.
    """

    image_px: Count = 196
    patch_size: Count = 14
    num_registers: Natural = 0

    design = {"layer_scale_init": 1.0}


@dataclasses.dataclass(frozen=True)
class Dinov2Vits14(Dinov2Vitb14):
    """DINOv2's ViT-S/14; all else as Dinov2Vitb14."""

    width: Count = 384
    num_heads: Count = 6


@dataclasses.dataclass(frozen=True)
class Dinov2Vitl14(Dinov2Vitb14):
    """DINOv2's ViT-L/14; all else as Dinov2Vitb14."""

    width: Count = 1024
    depth: Count = 24
    num_heads: Count = 16


@dataclasses.dataclass(frozen=True)
class ClipVitb16(VitTeacher):
    """CLIP's image tower ViT-B/16: patch tokens, normed and projected into the joint space.

    OpenAI norms and projects the class token alone; that patch tokens go the same way is BEiT v2's
    choice.

    Attributes: as VitTeacher; output_dim: width of the joint space.
    Source: CLIP (arXiv 2103.00020); openai/CLIP clip/model.py; microsoft/unilm
      beit2/vqkd_teacher/clip/model.py.
    """

    output_dim: Count = 512

    mean, std = preprocess.CLIP
    design = {"activation": "quick_gelu", "patch_bias": False, "use_pre_norm": True,
              "epsilon": 1e-5}

    @property
    def dim(self) -> int:
        return self.output_dim


@dataclasses.dataclass(frozen=True)
class MaeVitb16(VitTeacher):
    """MAE's ViT-B/16, nothing hidden: patch tokens behind the final norm.

    The network is the one that this code trains too, so that a file converted for fine-tuning, or
    a run of task mae_pretrain, is a teacher as it is.
    Source: MAE (arXiv 2111.06377); facebookresearch/mae models_mae.py.
    """

    @property
    def flops(self) -> float:
        return flops.vit(self)

    @property
    def network(self) -> MaeEncoder:
        return MaeEncoder(**dataclasses.asdict(self) | {"dtype": jnp.dtype(self.dtype)})

    def init(self, key: jax.Array) -> dict:
        return self.network.init(key, jnp.zeros((1, self.image_px, self.image_px, 3)),
                                 method="features")

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, dim]. Raises ValueError: the image has another size than `image_px`."""
        image = preprocess.normalise(image01, self.mean, self.std)
        tokens = self.network.apply(variables, image, method="features")[:, 1:]
        return jax.lax.stop_gradient(tokens)


@dataclasses.dataclass(frozen=True)
class MaeVitl16(MaeVitb16):
    """MAE's ViT-L/16; all else as MaeVitb16."""

    width: Count = 1024
    depth: Count = 24
    num_heads: Count = 16
