"""Codes of chosen patches alone, and what an image goes through before it is tokenized."""

import functools

import jax
import numpy as np
import pytest

from beit_jax.models.vqkd import Vqkd
from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.targets.vqkd import VqkdTokenizer

VIT = dict(image_px=16, patch_size=4, width=16, depth=1, num_heads=2)
TOKENIZERS = {
    "dvae": DvaeTokenizer(vocab_size=16, n_hid=8, n_init=8, num_groups=3, blocks_per_group=1),
    "vqkd": VqkdTokenizer(**VIT, code_dim=8, codebook_size=32, mean=(0.1, 0.5, 0.9),
                          std=(0.2, 0.4, 0.6)),
}
# one color a patch, so that patches differ in more than noise
IMAGE = np.random.RandomState(0).rand(2, 4, 4, 3).repeat(4, 1).repeat(4, 2).astype(np.float32)
POSITIONS = np.array([[5, 0, 6, 11], [7, 4, 9, 4]])


@functools.cache
def tokenized(kind):
    """(variables, codes of all patches)."""
    random = np.random.RandomState(1)
    made = TOKENIZERS[kind]
    variables = jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5,
                             jax.eval_shape(made.init, jax.random.key(0)))
    if kind == "vqkd":
        codebook = variables["codebook"]["embedding"]
        codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
        for layer in (*variables["params"]["encode_task_layer"].values(),
                      variables["params"]["encoder"]["fc_norm"]):
            layer["bias"][:] = 0.0  # what all patches have in common would make them alike
    codes = jax.jit(made.codes)(variables, IMAGE)
    return variables, np.asarray(codes)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_codes_of_positions_are_those_of_all_patches_there(kind):
    variables, codes = tokenized(kind)
    assert codes.shape == (2, 16) and len(np.unique(codes)) > 2
    some = jax.jit(TOKENIZERS[kind].codes)(variables, IMAGE, POSITIONS)
    assert np.any(codes[:, :4] != np.take_along_axis(codes, POSITIONS, axis=1), axis=1).all()
    for row in range(2):
        assert list(some[row]) == [codes[row, patch] for patch in POSITIONS[row]]


def test_vqkd_codes_are_the_nearest_to_the_encoded_normalized_image():
    variables, codes = tokenized("vqkd")
    image = (IMAGE - np.array([0.1, 0.5, 0.9])) / np.array([0.2, 0.4, 0.6])
    network = Vqkd(**VIT, code_dim=8, codebook_size=32)
    vectors = np.asarray(jax.jit(lambda params, image: network.apply(
        {"params": params}, image, method="encode"))(variables["params"], image), np.float64)
    checked = 0
    for row in range(2):
        for patch in range(16):
            unit = vectors[row, patch] / np.linalg.norm(vectors[row, patch])
            distance = np.sum((unit - variables["codebook"]["embedding"]) ** 2, axis=1)
            if np.diff(np.sort(distance)[:2]) > 1e-3:  # no near tie
                assert codes[row, patch] == np.argmin(distance)
                checked += 1
    assert checked > 24
