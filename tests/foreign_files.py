"""Small files in other people's formats, under the names that the documentation gives them."""

import importlib
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import checkpoint, convert, tasks
from beit_jax.convert import files


class Origin(NamedTuple):
    """Whose network a file holds, at toy size.

    source: the format. recipe: whose ":smoke" has the network. frozen: its name in Task.frozen; "":
      the network that the recipe trains.
    """
    source: str
    recipe: str
    frozen: str = ""


# the file names of the documentation
ORIGINS = {
    "beit_base_patch16_224_pt22k.pth": Origin("microsoft", "beit.pretrain_in22k"),
    "encoder.pkl": Origin("dalle", "dvae.debug"),
    "decoder.pkl": Origin("dalle", "dvae.debug"),
    "vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth": Origin("vqkd", "beitv2.vqkd"),
    "ViT-B-16.pt": Origin("clip", "beitv2.vqkd", "teacher"),
    "dino_vitbase16_pretrain.pth": Origin("dino", "beitv2.vqkd:dino", "teacher"),
    "dino_resnet50_pretrain.pth": Origin("resnet50", "img2vec.pretrain", "teacher"),
    "dinov2_vitb14_pretrain.pth": Origin("dinov2", "img2vec.diversity:dinov2_vitb14", "teacher"),
    "mae_pretrain_vit_base.pth": Origin("mae", "mae.pretrain"),
    "beit3_base_itc_patch16_224.pth": Origin("beit3", "beit3.itc"),
}


# what files hold beside parameters: a codebook, running averages
COLLECTIONS = ("codebook", "batch_stats")


def smoke(recipe: str):
    """The config of "package.name" or "package.name:variant" at toy size."""
    name, _, variant = recipe.partition(":")
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(f"{variant}_smoke" if variant else "smoke")
    for stage in dict(config.stages).values():
        config = stage  # of several stages the last
    with config.unlocked():
        for section in (config.model, config.target):
            if section.get("num_classes") == -1:
                section.num_classes = 2
        if config.model.get("vocab_size") == -1:
            config.model.vocab_size = 210
    return config


def weights(origin: Origin) -> dict[str, np.ndarray]:
    """Made-up weights of the network, by our flat names; above 0, as variances must be."""
    config = smoke(origin.recipe)
    task = tasks.make(config)
    if origin.frozen:
        shapes = jax.eval_shape(task.frozen[origin.frozen].init, jax.random.key(0))
    else:
        px, length = config.data.image_px, config.data.text_length
        batch = {"image": jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8),
                 "text": jax.ShapeDtypeStruct((1, length), jnp.int32),
                 "text_is_valid": jax.ShapeDtypeStruct((1, length), bool)}
        shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    kept = {name: shapes[name] for name in COLLECTIONS if name in shapes}
    flat = checkpoint.flatten(shapes["params"]) | checkpoint.flatten(kept)
    random = np.random.default_rng(0)
    return {name: random.uniform(0.0, 0.05, leaf.shape).astype(leaf.dtype)
            for name, leaf in flat.items()}


def write(folder: pathlib.Path, name: str) -> None:
    """Makes the file of that name, as the other program would have written it."""
    origin = ORIGINS[name]
    theirs = convert.to_reference(weights(origin), origin.source)
    if origin.source == "dalle":
        part = name.partition(".")[0] + "/"
        theirs = {key.removeprefix(part): value for key, value in theirs.items()
                  if key.startswith(part)}
    target = folder / name
    files.write(str(target.with_suffix(".pth")), theirs,
                "model" if origin.source in ("microsoft", "vqkd", "mae", "beit3") else "")
    target.with_suffix(".pth").rename(target)
