"""A step of retrieval, computed again by loops."""

import numpy as np
import pytest
from beit3_steps import (
    COUNTS,
    LENGTH,
    case_of,
    log_softmax,
    normalized,
    other_padding,
    texts,
    untrained,
)

from configs.beit3 import retrieval

B = len(COUNTS)


@pytest.fixture(scope="module")
def case():
    """Task, weights, batch and both programs."""
    return case_of(retrieval)


@pytest.fixture(scope="module")
def first(case):
    """(loss, metrics, gradients, calls)."""
    return case.step(case.params, {}, case.batch)


def test_each_image_finds_its_text_and_each_text_its_image_among_all_of_the_batch(case, first):
    total, metrics, grads, calls = first
    (image, text, is_valid), (image_vectors, text_vectors, factor) = calls["__call__"][0]
    np.testing.assert_allclose(image, normalized(case.batch["image"]), atol=1e-5)
    np.testing.assert_array_equal(text, case.batch["text"])
    np.testing.assert_array_equal(is_valid, case.batch["text_is_valid"])
    assert factor == pytest.approx(7.0, rel=1e-5)
    cosines = np.zeros((B, B))
    for i, a in enumerate(np.float64(image_vectors)):
        for j, b in enumerate(np.float64(text_vectors)):
            cosines[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    losses, slope, right = [], [], []
    for i in range(B):
        for scores in (7 * cosines[i], 7 * cosines[:, i]):
            log_p = log_softmax(scores)
            losses.append(-log_p[i])
            slope.append(np.exp(log_p) @ scores - scores[i])
            right.append(scores.argmax() == i)
    np.testing.assert_allclose([total, metrics["loss"]], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(grads["logit_scale"], np.mean(slope), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["factor"], 7.0, rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_padding_does_not_matter(case, first):
    total, _, grads, _ = case.step(case.params, {}, other_padding(case.batch))
    np.testing.assert_allclose(total, first[0], rtol=1e-6)
    np.testing.assert_allclose(grads["language_head"]["kernel"],
                               first[2]["language_head"]["kernel"], atol=1e-6)


def test_evaluation_gives_a_vector_of_each_image_and_of_each_of_its_texts(case):
    rng = np.random.default_rng(1)
    other = texts(rng, COUNTS[::-1], LENGTH)
    batch = case.batch | {name: np.stack([case.batch[name], other[name]], axis=1)
                          for name in other}
    batch["text_is_valid"][3, 1] = False  # image 3 has one text alone
    rows, _ = case.evaluate(case.params, batch)
    np.testing.assert_array_equal(rows["index"], np.arange(B))
    np.testing.assert_array_equal(rows["has_text"], [[True, row != 3] for row in range(B)])
    # in another order each image and each text has the vector that it had
    order = np.array([2, 0, 1, 4, 3])
    again, _ = case.evaluate(case.params, {name: value[order] for name, value in batch.items()})
    for name in ("index", "image", "text"):
        np.testing.assert_allclose(again[name], rows[name][order], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows["image"], axis=-1), 1.0, rtol=1e-5)
    assert np.abs(rows["text"][0, 0] - rows["text"][0, 1]).max() > 1e-3
    assert rows["image"].shape == rows["text"][:, 0].shape


def test_branches_are_dropped(case):
    losses = [case.step(case.params, {}, case.batch, number)[0] for number in range(4)]
    assert np.ptp(losses) > 1e-4


def test_every_weight_is_trained(first):
    assert untrained(first[2]) == {"vision_embed/mask_token"}
