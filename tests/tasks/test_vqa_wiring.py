"""A step of visual question answering, computed again by loops."""

import numpy as np
import pytest
from beit3_steps import (
    COUNTS,
    case_of,
    last_block_of,
    normalized,
    other_padding,
    untrained,
)

from configs.beit3 import vqa

B, ANSWERS = len(COUNTS), 7
LABELS = np.array([[2, -1, -1], [0, 6, -1], [3, 1, 5], [-1, -1, -1], [0, -1, -1]], np.int32)
SCORES = np.array([[1.0, 0, 0], [0.6, 0.9, 0], [0.3, 1.0, 0.6], [0, 0, 0], [0.9, 0, 0]],
                  np.float32)


@pytest.fixture(scope="module")
def case():
    """Task, weights, batch and both programs."""
    return case_of(vqa, model=dict(num_classes=ANSWERS), answer_labels=LABELS,
                   answer_scores=SCORES)


@pytest.fixture(scope="module")
def first(case):
    """(loss, metrics, gradients, calls)."""
    return case.step(case.params, {}, case.batch)


def rows_of(logits):
    """Of each question: (loss, score of the best answer, probabilities less targets)."""
    found = []
    for row, labels, scores in zip(np.asarray(logits, np.float64), LABELS, SCORES, strict=True):
        target = np.zeros(ANSWERS)
        for label, score in zip(labels, scores, strict=True):
            if label >= 0:
                target[label] = score
        p = 1 / (1 + np.exp(-row))
        found.append((-np.sum(target * np.log(p) + (1 - target) * np.log(1 - p)),
                      target[row.argmax()], p - target))
    return found


def test_the_loss_is_summed_over_answers_and_averaged_over_questions(case, first):
    total, metrics, grads, calls = first
    (image, text, is_valid), logits = calls["__call__"][0]
    np.testing.assert_allclose(image, normalized(case.batch["image"]), atol=1e-5)
    np.testing.assert_array_equal(text, case.batch["text"])
    np.testing.assert_array_equal(is_valid, case.batch["text_is_valid"])
    losses, scores, errors = zip(*rows_of(logits))
    np.testing.assert_allclose([total, metrics["loss"]], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(scores), rtol=1e-5)
    np.testing.assert_allclose(grads["head"]["fc2"]["bias"], np.mean(errors, axis=0), atol=1e-6)


def test_evaluation_gives_rows_of_the_network_without_dropped_branches(case):
    rows, calls = case.evaluate(case.params, case.batch)
    losses, scores, _ = zip(*rows_of(calls["__call__"][0][1]))
    np.testing.assert_array_equal(rows["index"], np.arange(B))
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(rows["score"], scores, rtol=1e-6)
    np.testing.assert_array_equal(rows["label"], calls["__call__"][0][1].argmax(axis=-1))
    np.testing.assert_array_equal(rows["is_answered"], [True, True, True, False, True])


def test_answers_that_are_not_listed_and_padding_do_not_matter(case, first):
    batch = other_padding(case.batch)
    batch["answer_scores"] = np.where(LABELS >= 0, SCORES, 0.7).astype(np.float32)
    total, metrics, grads, _ = case.step(case.params, {}, batch)
    np.testing.assert_allclose(total, first[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], first[1]["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(grads["head"]["fc2"]["bias"], first[2]["head"]["fc2"]["bias"],
                               atol=1e-7)


def test_branches_are_dropped(case):
    losses = [case.step(case.params, {}, case.batch, number)[0] for number in range(4)]
    assert np.ptp(losses) > 1e-4


def test_every_weight_is_trained_but_what_serves_no_class_token(first):
    # that token is the image's: behind the last keys and values of words nothing is read
    assert untrained(first[2]) == {"vision_embed/mask_token", *last_block_of("B")}
