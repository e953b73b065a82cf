"""Builds our BEiT-3 models from the `config` entry of a golden file."""

import functools

import golden as golden_files
import jax
import jax.numpy as jnp
from vit_models import image_of, weights_of

from beit_jax import convert
from beit_jax.models.beit3 import Beit3


def model_of(golden, cls=Beit3, **more):
    """The model of class `cls` that a golden configuration describes."""
    config = golden.config
    assert config["drop_path_rate"] == 0 and not config["layernorm_embedding"]
    return cls(
        image_px=config["img_size"], patch_size=config["patch_size"],
        width=config["encoder_embed_dim"], depth=config["encoder_layers"],
        num_heads=config["encoder_attention_heads"],
        mlp_ratio=config["encoder_ffn_embed_dim"] / config["encoder_embed_dim"],
        vocab_size=config["vocab_size"], text_positions=config["max_source_positions"],
        epsilon=config["layernorm_eps"], final_norm=config["normalize_output"], **more)


def text_of(golden, ids: str = "text_ids"):
    """(ids int [b, l], is_valid bool [b, l])."""
    return jnp.asarray(golden.inputs[ids]), jnp.asarray(golden.inputs["text_padding"] == 0)


def format_of(golden) -> str:
    """A backbone alone bears torchscale's names, without "beit3." in front."""
    return "beit3" if any(name.startswith("beit3.") for name in golden.params) else "torchscale"


def params_of(golden) -> dict:
    """Our parameter tree of a golden file."""
    return weights_of(golden, format_of(golden))


def apply_of(golden, model):
    """(*args, method) -> result on the file's weights, compiled."""
    apply = jax.jit(model.apply, static_argnames=("method", "causal_text", "max_length"))
    return functools.partial(apply, {"params": params_of(golden)})


def image_and_text(golden):
    """(image, ids, is_valid)."""
    return image_of(golden), *text_of(golden)


def assert_tree_is_that_of_the_original(golden, model, *args, method=None):
    """Whatever the first input is, `init` makes every leaf of the file, and no other."""
    made = jax.eval_shape(lambda key: model.init(key, *args, method=method), jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in convert.flatten(params_of(golden)).items()}
    assert {name: leaf.shape for name, leaf in convert.flatten(made["params"]).items()} == wanted


def assert_grads_close(grads, golden) -> dict:
    """Of the leaves that the file has; returns the others, by the original's names."""
    ours = convert.to_reference(convert.flatten(grads), format_of(golden))
    scale = golden_files.largest_grad(golden)
    assert scale > 0
    for name, grad in golden.grads.items():
        golden_files.assert_close(ours.pop(name), grad, scale=scale)
    return ours
