"""Weights from and to other frameworks. FORMATS names every format that is known."""

from collections.abc import Mapping

import numpy as np

from beit_jax.checkpoint import flatten, unflatten
from beit_jax.convert import beit3_tables, engine, layouts, tables

__all__ = ["FORMATS", "flatten", "get_format", "to_ours", "to_reference", "unflatten"]

_TIMM_REFUSED = (
    (
        r"(mask_token|lm_head/.*|cls_pt_.*)",
        "timm's beit has no masked-image-modelling part; drop it first",
    ),
)
_HUGGINGFACE_REFUSED = (
    (r"cls_pt_.*", "transformers' BEiT has no head for patch aggregation; drop it first"),
)

FORMATS = {
    "microsoft": engine.Format(
        tables.VIT, layouts.VIT, tables.VIT_IGNORED, statistics=tables.VIT_STATISTICS
    ),
    "timm": engine.Format(
        tables.VIT, layouts.VIT, tables.VIT_IGNORED, expand_shared_table=True,
        refused=_TIMM_REFUSED, statistics=tables.VIT_STATISTICS
    ),
    "huggingface": engine.Format(
        tables.HUGGINGFACE, layouts.VIT, tables.VIT_IGNORED, refused=_HUGGINGFACE_REFUSED,
        # the same network, pre-trained otherwise
        renamed=((r"data2vec_vision\.", "beit."),)
    ),
    "dalle": engine.Format(tables.DALLE, layouts.DALLE),
    "vqkd": engine.Format(
        tables.VQKD, layouts.VQKD, tables.VQKD_IGNORED, dead_state=tables.vqkd_dead_state,
        left_behind=tables.VQKD_LEFT_BEHIND,
        statistics=tables.ALWAYS_HALF  # the published process type, 2 x - 1
    ),
    "mae": engine.Format(tables.MAE, layouts.MAE, statistics=tables.ALWAYS_IMAGENET),
    "dino": engine.Format(
        tables.DINO, layouts.DINO, tables.DINO_IGNORED, prefix=r"(module\.)?(backbone\.)?",
        statistics=tables.DINO_STATISTICS
    ),
    "dinov2": engine.Format(
        tables.DINOV2, layouts.DINOV2, tables.DINOV2_IGNORED, prefix=r"(module\.)?(backbone\.)?",
        dead_state=tables.dinov2_dead_state, statistics=tables.ALWAYS_IMAGENET
    ),
    "resnet50": engine.Format(
        tables.RESNET, layouts.RESNET, tables.RESNET_IGNORED, prefix=r"(module\.)?(backbone\.)?",
        statistics=tables.ALWAYS_IMAGENET
    ),
    "clip": engine.Format(
        tables.CLIP, layouts.CLIP, tables.CLIP_IGNORED, prefix=r"visual\.",
        outside="not of the image tower", statistics=((r"", tables.STATISTICS["clip"]),)
    ),
    "beit3": engine.Format(
        beit3_tables.WITH_HEADS, layouts.BEIT3, refused=beit3_tables.REFUSED,
        statistics=beit3_tables.STATISTICS
    ),
    "torchscale": engine.Format(beit3_tables.BACKBONE, layouts.BEIT3, refused=beit3_tables.REFUSED),
    "timm_beit3": engine.Format(
        beit3_tables.TIMM, layouts.BEIT3, refused=beit3_tables.REFUSED,
        left_behind=beit3_tables.TIMM_LEFT_BEHIND, statistics=beit3_tables.STATISTICS
    ),
}


def to_ours(reference: Mapping[str, np.ndarray], fmt: str) -> dict[str, np.ndarray]:
    """Reference names and layouts -> our flat "a/b/c" names. Linear: gradients convert likewise.

    Args:
      reference: name -> array, in the reference's layout. For "dalle" the names bear "encoder/"
        or "decoder/" in front.
      fmt: a key of FORMATS.
    Raises: ValueError: an unknown format, a name that the format does not know, a missing block.
    """
    return engine.import_arrays(reference, get_format(fmt))[0]


def to_reference(ours: Mapping[str, np.ndarray], fmt: str) -> dict[str, np.ndarray]:
    """Our flat names -> the reference's names and layouts; undoes `to_ours` exactly.

    Raises: ValueError: an unknown format, a leaf that the format does not know or cannot hold.
    """
    return engine.export_arrays(ours, get_format(fmt))[0]


def get_format(fmt: str) -> engine.Format:
    """FORMATS[fmt]. Raises ValueError naming the known ones."""
    if fmt not in FORMATS:
        raise ValueError(f"format {fmt!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[fmt]
