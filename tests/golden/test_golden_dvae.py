"""Our dVAE against the original encoder and decoder, through the converter."""

import golden as golden_files
import jax
import numpy as np
import pytest

from beit_jax import convert
from beit_jax.models.dvae import map_pixels
from beit_jax.targets.dvae import DvaeTokenizer

FILES = golden_files.load("dvae")


def tokenizer_and_weights(golden):
    config = golden.config
    tokenizer = DvaeTokenizer(
        vocab_size=config["vocab_size"],
        n_hid=config["n_hid"],
        n_init=config["n_init"],
        num_groups=config.get("group_count", 4),
        blocks_per_group=config["n_blk_per_group"],
    )
    weights = convert.unflatten(convert.to_ours(golden.params, "dalle"))
    return tokenizer, {"params": weights}, golden.inputs["image_0_1"].transpose(0, 2, 3, 1) / 255.0


def as_ours(array):  # NCHW -> NHWC
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("golden", FILES, ids=golden_files.name)
def test_parameter_tree_is_that_of_the_original(golden):
    tokenizer, weights, _ = tokenizer_and_weights(golden)
    made = jax.eval_shape(tokenizer.init_with_decoder, jax.random.key(0))
    shapes = {k: v.shape for k, v in convert.flatten(made["params"]).items()}
    assert shapes == {k: v.shape for k, v in convert.flatten(weights["params"]).items()}


@pytest.mark.parametrize("golden", FILES, ids=golden_files.name)
def test_encoder_gives_the_logits_and_exactly_the_codes_of_the_original(golden):
    tokenizer, weights, image = tokenizer_and_weights(golden)
    with jax.default_matmul_precision("highest"):
        golden_files.assert_close(map_pixels(image), as_ours(golden.outputs["mapped_pixels"]))
        logits = jax.jit(tokenizer.encode_logits)(weights, image)
        golden_files.assert_close(logits, as_ours(golden.outputs["logits"]))
        codes = jax.jit(tokenizer.codes)(weights, image)
    golden_codes = golden.outputs["codes"]
    np.testing.assert_array_equal(codes, golden_codes.reshape(len(golden_codes), -1))


@pytest.mark.parametrize("golden", FILES, ids=golden_files.name)
@pytest.mark.parametrize("form", ["integers", "one_hot"])
def test_decoder_gives_the_statistics_and_images_of_the_original(golden, form):
    tokenizer, weights, image = tokenizer_and_weights(golden)
    codes = golden.outputs["codes"].astype(np.int32)
    if form == "one_hot":
        codes = np.eye(tokenizer.vocab_size, dtype=np.float32)[codes]
    with jax.default_matmul_precision("highest"):
        stats = jax.jit(tokenizer.decode_stats)(weights, codes)
        golden_files.assert_close(stats, as_ours(golden.outputs["decoder_raw"]))
        reconstruction = as_ours(golden.outputs["reconstruction_0_1"])
        golden_files.assert_close(tokenizer.decode(weights, codes), reconstruction)
        golden_files.assert_close(tokenizer.reconstruct(weights, image), reconstruction)
