"""Benchmarks measure what they say: their configs build, two networks are comparable."""

import argparse
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import tasks
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from benchmarks import masked_encoder, train_step

TINY = dict(image_px=16, patch_size=4, width=12, depth=2, num_heads=2, decoder_width=8,
            decoder_depth=1, decoder_num_heads=2, target_dim=48)


@pytest.mark.parametrize("name", ["train_step", "masked_encoder"])
def test_speed_of_steps_is_measured_without_tensorflow_and_ml_collections(name):
    code = (f"import sys, benchmarks.{name}; import beit_jax.tasks, beit_jax.training.step; "
            "print(sorted({'tensorflow', 'ml_collections'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("task", "patch_size", "num_masked"), [
    ("mim", 16, 75), ("mim_stored_codes", 16, 75), ("classify", 16, None), ("mae", 16, 147),
    ("img2vec", 16, 120), ("img2vec", 14, 156)])
def test_the_step_that_is_timed_has_the_recipes_mask(task, patch_size, num_masked):
    """And its shapes fit: the whole step is traced, not run."""
    args = argparse.Namespace(
        task=task, size="base", batch=8, image_px=224, patch_size=patch_size, dtype="float32",
        tokenizer_dtype="float32", attention="xla", token_multiple=1, unroll=0, remat="none")
    config = train_step.make_config(args)
    made = tasks.make(config)
    assert config.mask.get("num_masked") == num_masked

    def loss(key, batch):
        variables = dict(made.init(key, batch))
        frozen = {name: network.init(key) for name, network in made.frozen.items()}
        return made.loss(variables.pop("params"), variables, frozen, batch, key)[0]

    batch = jax.tree.map(jnp.asarray, train_step.make_batch(config, 2))
    assert jax.eval_shape(loss, jax.random.key(0), batch).shape == ()


def predict_with(model, image):
    """Predictions for the hidden half [2, 8, 48], and parameters."""
    is_masked = jnp.asarray(np.random.default_rng(0).permuted(np.tile([True, False], (2, 8)),
                                                              axis=1))
    params = jax.jit(model.init, static_argnums=3)(jax.random.key(0), image, is_masked, 8)
    slots = jnp.argsort(~is_masked, axis=1, stable=True)[:, :8]
    hidden = jnp.repeat(jnp.repeat(is_masked.reshape(2, 4, 4), 4, 1), 4, 2)[..., None]
    outputs = [jax.jit(model.apply, static_argnums=3)(params, view, is_masked, 8, slots).patches
               for view in (image, jnp.where(hidden, image + 1.0, image),
                            jnp.where(hidden, image, image + 1.0))]
    return outputs, params["params"]


def test_the_network_of_full_sequences_is_maes_with_mask_tokens_in_the_encoder():
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    (full, other_hidden, other_seen), params = predict_with(masked_encoder.full_sequence(TINY),
                                                           image)
    _, visible = predict_with(MaskedAutoencoder(**TINY), image)
    assert full.shape == (2, 8, 48)
    np.testing.assert_array_equal(full, other_hidden)  # no pixel of a hidden patch gets through
    assert not np.allclose(full, other_seen, atol=1e-3)
    assert params.keys() - visible.keys() == {"encoder_mask_token"}
    assert not visible.keys() - params.keys()


def test_predicted_ratio_is_that_of_the_counts():
    """Encoder of ViT-B on 197 tokens over 50: 35.1 and 8.8 GF; the decoder's 10.8 in both."""
    fields = dict(image_px=224, patch_size=16, **masked_encoder.SIZES["base"], target_dim=768)
    work = {kind: masked_encoder.make_task(kind, fields, 147).flops_per_image / 3e9
            for kind in masked_encoder.KINDS}
    assert work["visible"] == pytest.approx(19.5, abs=0.05)
    assert work["full"] - work["visible"] == pytest.approx(35.1 - 8.8, abs=0.3)
