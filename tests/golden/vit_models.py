"""Builds our models from the `config` entry of a golden file."""

import jax.numpy as jnp
import numpy as np

from beit_jax import convert
from beit_jax.models.beit import BeitForClassification, BeitForMim


def model_of(config: dict, cls=None):
    """The model that a golden configuration describes; cls None: by its keys."""
    cls = cls or (BeitForMim if "vocab_size" in config else BeitForClassification)
    sizes = dict(
        image_px=config["img_size"], patch_size=config["patch_size"], width=config["embed_dim"],
        depth=config["depth"], num_heads=config["num_heads"],
        mlp_ratio=config.get("mlp_ratio", 4.0), layer_scale_init=config.get("init_values") or 0.0,
        epsilon=config.get("norm_eps", 1e-6), use_abs_pos=config.get("use_abs_pos_emb", False),
        use_shared_rel_pos=config.get("use_shared_rel_pos_bias", False),
        use_rel_pos=config.get("use_rel_pos_bias", False))
    if cls is BeitForMim:
        return cls(**sizes, vocab_size=config["vocab_size"])
    return cls(**sizes, num_classes=config["num_classes"],
               pool="mean" if config.get("use_mean_pooling", True) else "cls")


def weights_of(golden, fmt: str = "microsoft") -> dict:
    """Our parameter tree of a golden file."""
    return convert.unflatten(convert.to_ours(golden.params, fmt))


def image_of(golden, key: str = "image"):
    """NHWC float32."""
    return jnp.asarray(np.moveaxis(golden.inputs[key].astype(np.float32), -3, -1))
