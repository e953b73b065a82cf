"""Codes of a frozen tokenizer as targets: what all masked-image tasks share. `config.target`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from beit_jax import flops, options
from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.targets.vqkd import VqkdTokenizer
from beit_jax.tasks import task as contract

TOKENIZERS = {"dvae": DvaeTokenizer, "vqkd": VqkdTokenizer}


class ImageCodes(NamedTuple):
    """A tokenizer as a task needs it.

    Attributes:
      vocab_size: number of codes.
      frozen: for Task.frozen.
      codes: (frozen, batch, positions int [b, m] or None for all) -> int32 [b, m], no gradient.
      flops: work per image, as flops.py counts.
    """

    vocab_size: int
    frozen: dict[str, contract.Frozen]
    codes: Callable
    flops: float


def make(config, num_patches: int) -> ImageCodes:
    """The tokenizer that config.target names by `kind`, with its sizes.

    Args: num_patches: n, patches of the model that predicts.
    Raises: ValueError: an unknown kind or key.
    """
    kind = contract.kind_of(config.target, TOKENIZERS, "config.target", "dvae")
    section = contract.network_fields(config.target, "config.target")
    tokenizer = options.build(TOKENIZERS[kind], section, "config.target")

    def codes(frozen, batch, positions=None):
        image01 = batch.get("image_for_target", batch["image"]).astype(jnp.float32) / 255.0
        given = tokenizer.num_codes(image01.shape[1])
        if given != num_patches:
            raise ValueError(
                f"the tokenizer gives {given} codes for images of {image01.shape[1]} px, the model "
                f"has {num_patches} patches: set data.target_px so that the two grids agree")
        return jax.lax.stop_gradient(tokenizer.codes(frozen[kind], image01, positions))

    frozen = contract.Frozen(tokenizer.init, "target", contract.statistics_of_network(tokenizer))
    px = config.data.get("target_px") or config.data.image_px
    work = flops.dvae_encoder(tokenizer, px) if kind == "dvae" else flops.vqkd_encoder(tokenizer)
    return ImageCodes(tokenizer.vocab_size, {kind: frozen}, codes, work)


def check_vocab_size(config, num_outputs: int, what: str = "codes") -> None:
    """Refuses a model.vocab_size that the target contradicts. Raises: ValueError."""
    if config.model.get("vocab_size", num_outputs) != num_outputs:
        raise ValueError(f"model.vocab_size={config.model.vocab_size}, but the target has "
                         f"{num_outputs} {what}: leave it out, it follows from config.target")
