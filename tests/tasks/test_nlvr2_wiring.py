"""A step of NLVR2, computed again by loops."""

import numpy as np
import pytest
from beit3_steps import (
    COUNTS,
    case_of,
    log_softmax,
    normalized,
    other_padding,
    untrained,
)

from configs.beit3 import nlvr2

B = len(COUNTS)
LABEL = np.array([1, 0, -1, 1, 1], np.int32)
KNOWN = (0, 1, 3, 4)


@pytest.fixture(scope="module")
def case():
    """Task, weights, batch and both programs."""
    return case_of(nlvr2, 2, model=dict(num_classes=2), label=LABEL)


@pytest.fixture(scope="module")
def first(case):
    """(loss, metrics, gradients, calls)."""
    return case.step(case.params, {}, case.batch)


def test_the_loss_is_the_mean_over_sentences_with_a_label(case, first):
    total, metrics, grads, calls = first
    (image, text, is_valid), logits = calls["__call__"][0]
    np.testing.assert_allclose(image, normalized(case.batch["image"]), atol=1e-5)
    np.testing.assert_array_equal(text, case.batch["text"])
    np.testing.assert_array_equal(is_valid, case.batch["text_is_valid"])
    log_p = log_softmax(logits)
    np.testing.assert_allclose([total, metrics["loss"]],
                               np.mean([-log_p[row, LABEL[row]] for row in KNOWN]), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(
        [log_p[row].argmax() == LABEL[row] for row in KNOWN]), rtol=1e-6)
    np.testing.assert_allclose(
        grads["head"]["dense2"]["bias"],
        np.mean([np.exp(log_p[row]) - np.eye(2)[LABEL[row]] for row in KNOWN], axis=0), atol=1e-6)


def test_a_sentence_without_a_label_and_padding_do_not_matter(case, first):
    batch = other_padding(case.batch)
    for name in ("image", "text", "text_is_valid"):
        batch[name] = batch[name].copy()
        batch[name][2] = batch[name][0]
    total, metrics, grads, _ = case.step(case.params, {}, batch)
    np.testing.assert_allclose(total, first[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], first[1]["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(grads["vision_embed"]["proj"]["kernel"],
                               first[2]["vision_embed"]["proj"]["kernel"], atol=1e-6)


def test_evaluation_gives_rows_and_both_images_count_in_their_order(case):
    rows, calls = case.evaluate(case.params, case.batch)
    log_p = log_softmax(calls["__call__"][0][1])
    np.testing.assert_array_equal(rows["index"], np.arange(B))
    np.testing.assert_array_equal(rows["is_true"], log_p.argmax(axis=-1) == 1)
    np.testing.assert_array_equal(rows["is_labelled"], LABEL >= 0)
    for row in KNOWN:
        assert rows["loss"][row] == pytest.approx(-log_p[row, LABEL[row]], rel=1e-5)
        assert rows["is_correct"][row] == (log_p[row].argmax() == LABEL[row])
    swapped, _ = case.evaluate(case.params, case.batch | {"image": case.batch["image"][:, ::-1]})
    assert np.all(np.abs(swapped["loss"] - rows["loss"]) > 1e-6)
    for half in (0, 1):
        image = case.batch["image"].copy()
        image[:, half] = 255 - image[:, half]
        other, _ = case.evaluate(case.params, case.batch | {"image": image})
        assert np.all(np.abs(other["loss"] - rows["loss"]) > 1e-6)


def test_branches_are_dropped(case):
    losses = [case.step(case.params, {}, case.batch, number)[0] for number in range(4)]
    assert np.ptp(losses) > 1e-4


def test_every_weight_is_trained(first):
    assert untrained(first[2]) == {"vision_embed/mask_token"}
