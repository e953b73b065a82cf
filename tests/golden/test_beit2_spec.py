"""BEiT v2 with weights and images that follow from names and indices alone, against stated numbers.

The numbers are of the original modules (spec page of BEiT v2, sections 17.9 and 17.10).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beit import drawn_by_rule, rule_image, rule_weights

from beit_jax import convert, losses
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.models.vqkd import Vqkd
from beit_jax.targets import quantizer
from beit_jax.targets.vqkd import VqkdTokenizer

MIM = dict(image_px=64, patch_size=16, width=32, depth=3, num_heads=4, layer_scale_init=0.1,
           use_shared_rel_pos=True, vocab_size=16, early_layer=2, head_layers=1)
HIDDEN = jnp.array([[1, 2, 5, 6], [0, 7, 8, 15]])
VQKD = dict(image_px=64, patch_size=16, width=32, depth=2, num_heads=4, code_dim=8,
            codebook_size=16)
CODES = [[9, 9, 1, 10, 9, 1, 1, 2, 1, 2, 2, 6, 6, 14, 10, 1],
         [9, 13, 12, 14, 9, 6, 2, 12, 14, 9, 9, 14, 4, 14, 10, 12]]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def test_both_predictions_with_weights_from_names():
    model, image = BeitV2ForMim(**MIM), rule_image()
    is_masked = jnp.zeros((2, 16), bool).at[jnp.arange(2)[:, None], HIDDEN].set(True)
    params = rule_weights(model, image, is_masked)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 76_416
    both = jax.jit(lambda p: model.apply({"params": p}, image, is_masked, HIDDEN))(params)
    codes = jnp.arange(8).reshape(2, 4)
    for logits, loss, first in zip(both, (3.239272, 3.275480), (
            [-0.516996, -1.337904, 0.505913, 0.437739],
            [-0.262583, -1.358758, 0.463258, 0.688179]), strict=True):
        assert losses.cross_entropy(logits, codes).mean() == pytest.approx(loss, abs=1e-4)
        np.testing.assert_allclose(logits[0, 0, :4], first, atol=1e-4)


@pytest.fixture(scope="module")
def tokenizer():
    """(network, parameters, codebook)."""
    model = Vqkd(**VQKD, decoder_depth=1, teacher_dim=12)
    made = jax.eval_shape(lambda key: model.init(key, rule_image()), jax.random.key(0))["params"]
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in convert.flatten(made).items()}
    drawn = drawn_by_rule(convert.to_reference(zeros, "vqkd"))
    codebook = np.sin(0.9 * np.arange(128, dtype=np.float64) ** 1.5).reshape(16, 8)
    drawn["quantize.embedding.weight"] = (
        codebook / np.linalg.norm(codebook, axis=1, keepdims=True)).astype(np.float32)
    params = convert.unflatten(convert.to_ours(drawn, "vqkd"))
    codebook = params.pop("codebook")
    return model, params, codebook


def test_vqkd_with_weights_from_names(tokenizer):
    model, params, codebook = tokenizer
    vectors = model.apply({"params": params}, rule_image(), method="encode")
    quantized = quantizer.quantize(vectors, codebook["embedding"])
    np.testing.assert_array_equal(quantized.codes, CODES)
    assert quantized.commitment.mean() == pytest.approx(0.103486, abs=1e-4)
    rebuilt = model.apply({"params": params}, quantized.output, method="decode")
    np.testing.assert_allclose(rebuilt[0, 0, :4], [0.543163, 0.950549, -0.175761, 0.858339],
                               atol=1e-4)
    features = np.cos(0.3 * np.arange(2 * 16 * 12)).reshape(2, 16, 12)
    assert losses.cosine_distance(rebuilt, features).mean() == pytest.approx(0.977290, abs=1e-4)


def test_smallest_margin_between_two_codes_is_wide(tokenizer):
    """So that equal codes on another device are no accident."""
    model, params, codebook = tokenizer
    unit = quantizer.to_unit(model.apply({"params": params}, rule_image(), method="encode"))
    cosines = np.sort(np.asarray(unit @ codebook["embedding"].T), axis=-1)
    assert (cosines[..., -1] - cosines[..., -2]).min() == pytest.approx(0.00117, abs=1e-4)


def test_target_reads_out_the_same_codes_of_images_in_0_1(tokenizer):
    _, params, codebook = tokenizer
    needed = {name: params[name] for name in ("encoder", "encode_task_layer")}
    codes = VqkdTokenizer(**VQKD).codes({"params": needed, "codebook": codebook},
                                        (rule_image() + 1) / 2)
    np.testing.assert_array_equal(codes, CODES)
