"""The self-contained numbers of the specification, page of BEiT-3, section 12.1 and 12.2.

Weights follow from their names, images from sines: no file is read. The numbers are those of the
released modules in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import convert, losses
from beit_jax.models import beit3_heads
from beit_jax.models.beit3 import Beit3

TINY = dict(image_px=16, patch_size=4, width=32, depth=2, num_heads=4, mlp_ratio=2.0,
            vocab_size=50, text_positions=24)
NORMS = ("layer_norm", "layernorm", "inner_attn_ln", "fc_norm.weight", "pooler.norm.weight",
         "head.1.weight", "head.norm1.weight", "head.norm2.weight")
IMAGE = np.sin(0.1 * np.arange(2 * 3 * 16 * 16)).reshape(2, 3, 16, 16).transpose(0, 2, 3, 1)
IMAGE = IMAGE.astype(np.float32)
IDS = np.array([[0, 5, 9, 12, 2, 1], [0, 7, 2, 1, 1, 1]])
IS_VALID = IDS != 1
IS_MASKED = np.zeros((2, 16), bool)
IS_MASKED[[0, 0, 0, 1, 1], [0, 1, 5, 3, 10]] = True
WHOLE = {  # case -> method, arguments, keywords; RMS, first four numbers, last
    "image": ("encode_image", (IMAGE,), {},
              (1.010646, (-0.672564, -1.722414, -0.773353, 0.834139), -1.009841)),
    "image_masked": ("encode_image", (IMAGE, IS_MASKED), {},
                     (1.012567, (-0.440105, -1.736121, -0.966536, 0.607279), -1.041400)),
    "text": ("encode_text", (IDS, IS_VALID), {},
             (1.036215, (-0.093292, -1.884155, -1.184128, 1.040926), -1.436568)),
    "pair": ("encode_pair", (IMAGE, IDS, IS_VALID), {},
             (1.017028, (0.506276, -1.085486, -0.640962, 0.461911), -1.293166)),
    "pair_causal": ("encode_pair", (IMAGE, IDS, IS_VALID), dict(causal_text=True),
                    (1.017897, (-0.672564, -1.722414, -0.773353, 0.834139), -1.297102)),
}


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def filled(cls, *args, fmt="beit3", **sizes):
    """(model, variables): element i of the k-th name, sorted, is 0.2 sin(0.37 i + 1.3 k)."""
    model = cls(**TINY | sizes)
    method = "encode_pair" if cls is Beit3 else None
    made = jax.eval_shape(lambda key: model.init(key, *args, method=method), jax.random.key(0))
    zeros = {k: np.zeros(v.shape, np.float32) for k, v in convert.flatten(made["params"]).items()}
    shapes = {name: value.shape for name, value in convert.to_reference(zeros, fmt).items()}
    reference = {}
    for k, name in enumerate(sorted(shapes)):
        values = 0.2 * np.sin(0.37 * np.arange(np.prod(shapes[name])) + 1.3 * k)
        if name.endswith("weight") and any(part in name for part in NORMS):
            values = 1 + 0.5 * values
        if name == "logit_scale":
            values = np.ones(1)
        reference[name] = values.reshape(shapes[name]).astype(np.float32)
    return model, {"params": convert.unflatten(convert.to_ours(reference, fmt))}


def apply(model, variables, *args, **keywords):
    return np.asarray(model.apply(variables, *args, **keywords))


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.fixture(scope="module")
def backbone():
    return filled(Beit3, IMAGE, IDS, IS_VALID)


def test_the_tiny_model_has_91_tensors(backbone):
    reference = convert.to_reference(convert.flatten(backbone[1]["params"]), "beit3")
    assert len(reference) == 91
    assert sum(value.size for value in reference.values()) == 39_680


@pytest.mark.parametrize("case", WHOLE)
def test_every_use_of_the_backbone(backbone, case):
    method, args, keywords, (scale, first, last) = WHOLE[case]
    out = apply(*backbone, *args, method=method, **keywords)
    assert rms(out) == pytest.approx(scale, abs=1e-5)
    np.testing.assert_allclose(out.ravel()[:4], first, atol=1e-5)
    assert out.ravel()[-1] == pytest.approx(last, abs=1e-5)


def test_tokens_that_are_no_padding(backbone):
    text = apply(*backbone, IDS, IS_VALID, method="encode_text")
    assert rms(text[0, :5]) == pytest.approx(1.0379416, abs=1e-5)
    assert rms(text[1, :3]) == pytest.approx(1.0391920, abs=1e-5)
    pair = apply(*backbone, IMAGE, IDS, IS_VALID, method="encode_pair")
    assert rms(pair[:, :17]) == pytest.approx(1.0093593, abs=1e-5)
    assert rms(pair[0, 17:22]) == pytest.approx(1.0398703, abs=1e-5)


def test_classification():
    model = filled(beit3_heads.Beit3ForClassification, IMAGE, num_classes=10)
    logits = apply(*model, IMAGE)
    assert rms(logits) == pytest.approx(0.588176, abs=1e-5)
    np.testing.assert_allclose(logits.ravel()[[0, 1, 2, 3, -1]], [
        -0.119250, -0.788179, -1.046796, -0.791727, -0.569653], atol=1e-5)


def test_question_answering():
    args = (IMAGE, IDS, IS_VALID)
    logits = apply(*filled(beit3_heads.Beit3ForVqa, *args, num_classes=11), *args)
    assert rms(logits) == pytest.approx(1.583715, abs=1e-5)
    np.testing.assert_allclose(logits.ravel()[[0, 1, 2, 3, -1]], [
        1.605190, -1.123934, -2.082455, 0.524571, -1.748251], atol=1e-5)


def test_two_images_and_a_sentence():
    args = (np.stack([IMAGE, IMAGE[::-1]], axis=1), IDS, IS_VALID)
    logits = apply(*filled(beit3_heads.Beit3ForNlvr2, *args), *args)
    np.testing.assert_allclose(logits, [[-0.494096, 0.392272], [-0.497617, 0.388752]], atol=1e-5)


def test_retrieval():
    args = (IMAGE, IDS, IS_VALID)
    model, variables = filled(beit3_heads.Beit3ForRetrieval, *args)
    images, texts, factor = model.apply(variables, *args)
    np.testing.assert_allclose(images @ texts.T, [[0.007617, -0.003996], [0.230550, 0.219235]],
                               atol=1e-5)
    assert losses.contrastive(images, texts, factor) == pytest.approx(0.715645, abs=1e-5)


def test_captioning():
    args = (IMAGE, IDS, IS_VALID)
    logits = apply(*filled(beit3_heads.Beit3ForCaptioning, *args), *args)
    logits = logits[[0, 0, 1], [2, 4, 1]]
    assert rms(logits) == pytest.approx(1.107806, abs=1e-5)
    np.testing.assert_allclose(logits.ravel()[[0, 1, 2, 3, -1]], [
        -0.005055, 1.118952, 1.629893, 1.293351, -1.674937], atol=1e-5)


def test_pretraining():
    hidden = np.zeros(IDS.shape, bool)
    hidden[[0, 1], [2, 1]] = True
    ids = np.where(hidden, 49, IDS)
    codes = (7 * np.arange(2)[:, None] + 3 * np.arange(16)) % 40
    args = (IMAGE, ids, IS_VALID, IS_MASKED)
    model, variables = filled(beit3_heads.Beit3ForPretraining, *args, codebook_size=40)

    def mean(logits, targets, is_hidden):
        return losses.weighted_mean(losses.cross_entropy(logits, jnp.asarray(targets)),
                                    jnp.asarray(is_hidden))

    of_images = model.apply(variables, IMAGE, IS_MASKED, method="predict_patches")
    of_texts = model.apply(variables, ids, IS_VALID, method="predict_words")
    pair_patches, pair_words = model.apply(variables, *args)
    assert mean(of_images, codes, IS_MASKED) == pytest.approx(3.788721, abs=1e-5)
    assert mean(of_texts, IDS, hidden) == pytest.approx(4.878755, abs=1e-5)
    assert mean(pair_patches, codes, IS_MASKED) == pytest.approx(3.860971, abs=1e-5)
    assert mean(pair_words, IDS, hidden) == pytest.approx(4.903286, abs=1e-5)


def test_losses_of_the_published_formulas():
    logits, target = jnp.array([[1, -1, 0.5], [0, 2, -3]]), jnp.array([[1, 0, 0.3], [0, 0.6, 0]])
    error = jnp.mean(losses.binary_cross_entropy(logits, target))
    assert error == pytest.approx(1.5596315, abs=1e-6)
    images, texts = jnp.array([[1, 0], [0.6, 0.8]]), jnp.array([[0.8, 0.6], [0, 1.0]])
    assert losses.contrastive(images, texts, 1 / 0.07) == pytest.approx(1.1912904, abs=1e-5)
    logits = jnp.array([[2, 0, -1, 0.5, 0], [0, 1, 0, 0, -2], [0.1, 0.2, 0.3, 0.4, 0.5]])
    errors = losses.smoothed_divergence(logits, jnp.array([0, 2, 4]), 0.1)
    assert jnp.mean(errors) == pytest.approx(0.8306494, abs=1e-6)
    # the places that do not count are the smallest, and must not be taken
    errors = jnp.concatenate([jnp.zeros(4), errors])
    late = losses.mean_of_smallest(errors, jnp.arange(7) >= 4, 0.8)
    assert late == pytest.approx(0.5818005, abs=1e-6)
