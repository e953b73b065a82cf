"""Our heads on BEiT-3 against the original's: logits, losses and gradients of each use."""

import functools
import re

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beit3_models import (
    apply_of,
    assert_grads_close,
    assert_tree_is_that_of_the_original,
    image_and_text,
    model_of,
    params_of,
    text_of,
)
from vit_models import image_of

from beit_jax import convert, losses, masking, metrics
from beit_jax.models import beam_search, beit3_heads

VQA, NLVR2 = golden_files.load("vqa"), golden_files.load("nlvr2")
CAPTIONING, DECODE = golden_files.load("captioning"), golden_files.load("caption_decode")
RETRIEVAL, CLASSES = golden_files.load("retrieval"), golden_files.load("multiway_classes")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def assert_loss_and_grads(golden, loss_of):
    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params_of(golden))
    golden_files.assert_close(loss, golden.outputs["loss"])
    assert golden.config["grad_of"] == "out/loss"
    assert_grads_close(grads, golden)


@pytest.mark.parametrize("golden", VQA, ids=golden_files.name)
def test_question_answering(golden):
    model = model_of(golden, beit3_heads.Beit3ForVqa, num_classes=golden.config["num_classes"])
    args, target = image_and_text(golden), jnp.asarray(golden.inputs["labels"])
    assert_tree_is_that_of_the_original(golden, model, *args)
    logits = apply_of(golden, model)(*args)
    golden_files.assert_close(logits, golden.outputs["logits"])
    score = jnp.mean(metrics.score_of_best(logits, target))
    golden_files.assert_close(score, golden.outputs["vqa_score"])
    assert_loss_and_grads(golden, lambda params: jnp.mean(
        losses.binary_cross_entropy(model.apply({"params": params}, *args), target)))


@pytest.mark.parametrize("golden", NLVR2, ids=golden_files.name)
def test_two_images_and_a_sentence(golden):
    model = model_of(golden, beit3_heads.Beit3ForNlvr2, num_classes=golden.config["num_classes"])
    images = jnp.stack([image_of(golden), image_of(golden, "image2")], axis=1)
    args = (images, *text_of(golden))
    assert_tree_is_that_of_the_original(golden, model, *args)
    golden_files.assert_close(apply_of(golden, model)(*args), golden.outputs["logits"])
    assert_loss_and_grads(golden, lambda params: jnp.mean(losses.cross_entropy(
        model.apply({"params": params}, *args), golden.inputs["label"])))


@pytest.mark.parametrize("golden", CLASSES, ids=golden_files.name)
def test_classification(golden):
    cls, image = beit3_heads.Beit3ForClassification, image_of(golden)
    model = model_of(golden, cls, num_classes=golden.config["num_classes"])
    assert_tree_is_that_of_the_original(golden, model, image)
    golden_files.assert_close(apply_of(golden, model)(image), golden.outputs["logits"])
    assert_loss_and_grads(golden, lambda params: jnp.mean(losses.cross_entropy(
        model.apply({"params": params}, image), golden.inputs["label"])))


@pytest.mark.parametrize("golden", RETRIEVAL, ids=golden_files.name)
def test_retrieval(golden):
    model, args = model_of(golden, beit3_heads.Beit3ForRetrieval), image_and_text(golden)
    assert_tree_is_that_of_the_original(golden, model, *args)
    images, texts, factor = apply_of(golden, model)(*args)
    golden_files.assert_close(images, golden.outputs["vision_cls"])
    golden_files.assert_close(texts, golden.outputs["language_cls"])
    golden_files.assert_close(factor * images @ texts.T, golden.outputs["logits_per_image"])
    assert_loss_and_grads(golden, lambda params: losses.contrastive(
        *model.apply({"params": params}, *args)))


@pytest.mark.parametrize("golden", CAPTIONING, ids=golden_files.name)
def test_captioning_of_gathered_words(golden):
    model, image = model_of(golden, beit3_heads.Beit3ForCaptioning), image_of(golden)
    ids, is_valid = text_of(golden, "masked_ids")
    is_masked = jnp.asarray(golden.inputs["language_masked_pos"] == 1)
    args, config = (image, ids, is_valid), golden.config
    assert_tree_is_that_of_the_original(golden, model, *args)
    logits = apply_of(golden, model)(*args)
    golden_files.assert_close(logits, golden.outputs["logits_all"])
    golden_files.assert_close(np.asarray(logits)[np.asarray(is_masked)],
                              golden.outputs["logits_masked"])
    slots = int(is_masked.sum(axis=1).max()) + 1  # one slot more than any text needs
    words, is_hidden = masking.masked_positions(is_masked, slots)
    targets = jnp.take_along_axis(text_of(golden)[0], words, axis=1)

    def errors_of(params, smoothing):
        predicted = model.apply({"params": params}, *args, words)
        return losses.smoothed_divergence(predicted, targets, smoothing)

    smoothing = config["label_smoothing"]
    assert_loss_and_grads(
        golden, lambda params: losses.weighted_mean(errors_of(params, smoothing), is_hidden))
    errors = errors_of(params_of(golden), smoothing)
    late = losses.mean_of_smallest(errors, is_hidden, 1.0 - config["drop_worst_ratio"])
    golden_files.assert_close(late, golden.outputs["loss_drop_worst"])
    plain = losses.weighted_mean(errors_of(params_of(golden), 0.0), is_hidden)
    golden_files.assert_close(plain, golden.outputs["loss_no_smoothing"])


@pytest.mark.parametrize("golden", DECODE, ids=golden_files.name)
def test_decoding_with_a_cache_equals_the_original_and_full_decoding(golden):
    model, image = model_of(golden, beit3_heads.Beit3ForCaptioning), image_of(golden)
    apply, forced = apply_of(golden, model), jnp.asarray(golden.inputs["forced_ids"])
    b, steps = forced.shape
    first = jnp.full((b, 1), golden.config["cls_token_id"])
    mask = jnp.full((b, 1), golden.config["mask_token_id"])
    assert_tree_is_that_of_the_original(golden, model, image, first, first == first)
    text = jnp.concatenate([first, forced], axis=1)
    cache = apply(image, max_length=steps + 1, method="start_text")
    for step in range(steps):
        last_two = jnp.concatenate([text[:, step:step + 1], mask], axis=1)
        logits, cache = apply(cache, last_two, step, method="decode_step")
        golden_files.assert_close(jax.nn.log_softmax(logits),
                                  golden.outputs[f"step{step}/log_probs"])
        ids = jnp.concatenate([text[:, :step + 1], mask], axis=1)
        full = apply(image, ids, jnp.ones(ids.shape, bool))[:, -1]
        golden_files.assert_close(logits, np.asarray(full))


SEARCHES = [(golden, key) for golden in DECODE for key in golden.outputs if "/decoded" in key]


@pytest.mark.parametrize(("golden", "key"), SEARCHES,
                         ids=lambda value: value if isinstance(value, str) else "")
def test_beam_search(golden, key):
    model, image, config = (model_of(golden, beit3_heads.Beit3ForCaptioning), image_of(golden),
                            golden.config)
    beams, length, penalty = re.fullmatch(r"beam(\d+)_len(\d+)_lp([\d.]+)/decoded", key).groups()
    beams, length, wanted = int(beams), int(length), golden.outputs[key]

    @jax.jit
    def search(params):
        apply = functools.partial(model.apply, {"params": params})
        return beam_search.beam_search(
            functools.partial(apply, method="decode_step"),
            apply(image, length, method="start_text"), len(image),
            first_id=config["cls_token_id"], last_id=config["sep_token_id"],
            mask_id=config["mask_token_id"], beams=beams, max_length=length,
            length_penalty=float(penalty))

    found = search(params_of(golden))
    for row, words, is_valid in zip(wanted, found.words, found.is_valid, strict=True):
        ours = [config["cls_token_id"], *np.asarray(words)[np.asarray(is_valid)],
                  config["mask_token_id"], config["sep_token_id"]]
        ours += [config["pad_token_id"]] * (length - len(ours))
        np.testing.assert_array_equal(ours, row)


HEADS = VQA + NLVR2 + CAPTIONING + RETRIEVAL + CLASSES


@pytest.mark.parametrize("golden", HEADS, ids=golden_files.name)
def test_the_round_trip_of_names_is_exact(golden):
    back = convert.to_reference(convert.to_ours(golden.params, "beit3"), "beit3")
    assert back.keys() == golden.params.keys()
    for name, value in golden.params.items():
        np.testing.assert_array_equal(back[name], value)
