"""A step of captioning, computed again by loops: which words are hidden, shown and asked."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from beit3_steps import (
    MASK,
    ROWS,
    compiled_step,
    images,
    last_block_of,
    log_softmax,
    normalized,
    other_padding,
    smoke,
    started,
    texts,
    untrained,
)

from beit_jax import tasks, token_ids
from configs.beit3 import captioning

B, LENGTH, SMOOTHING, LATE = 6, 12, 0.1, 12_001
COUNTS = (10, 10, 7, 5, 3, 1)  # pieces of the captions
HIDDEN = (8, 8, 6, 5, 4, 2)  # 0.7 of all tokens, rounded, and never all of them


@pytest.fixture(scope="module")
def case():
    """Task, weights, state, batch and compiled step."""
    rng = np.random.default_rng(0)
    batch = {"image": images(rng, B), **texts(rng, COUNTS, LENGTH)}
    task = tasks.make(smoke(captioning))
    params, state = started(task, batch)
    params["mlm_head"]["bias"][token_ids.EOS] = 2.0  # some guesses are right
    return SimpleNamespace(batch=batch, params=params, state=state, step=compiled_step(task, {}))


@pytest.fixture(scope="module")
def first(case):
    """(loss, metrics, gradients, calls)."""
    return case.step(case.params, case.state, case.batch)


def places_of(calls):
    """[row] -> the hidden places: those asked for, without place 0, of <s>, of empty slots."""
    return [sorted({*row} - {0}) for row in calls["__call__"][0][0][3]]


def words(case, calls):
    """[(log probabilities, targets with smoothing, the word), ...] of all hidden words."""
    (*_, slots), logits = calls["__call__"][0]
    found = []
    for row, hidden in enumerate(places_of(calls)):
        for place in hidden:
            word = case.batch["text"][row, place]
            q = np.full(ROWS, SMOOTHING / (ROWS - 1))
            q[word] = 1 - SMOOTHING
            found.append((log_softmax(logits[row, list(slots[row]).index(place)]), q, word))
    return found


def test_the_loss_is_the_divergence_of_hidden_words_alone(case, first):
    total, metrics, grads, calls = first
    found = words(case, calls)
    assert len(found) == sum(HIDDEN)
    losses = [np.sum(q * (np.log(q) - log_p)) for log_p, q, _ in found]
    np.testing.assert_allclose([total, metrics["loss"]], np.mean(losses), rtol=1e-5)
    right = [log_p.argmax() == word for log_p, _, word in found]
    assert any(right)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-5)
    np.testing.assert_allclose(grads["mlm_head"]["bias"],
                               np.mean([np.exp(log_p) - q for log_p, q, _ in found], axis=0),
                               atol=1e-6)


def test_late_in_training_a_fifth_of_the_hidden_words_counts_nothing_the_worst(case):
    state = {"counter": {"step": np.int32(LATE)}}
    total, metrics, grads, calls = case.step(case.params, state, case.batch)
    found = sorted(words(case, calls), key=lambda each: np.sum(each[1] * (
        np.log(each[1]) - each[0])))[:int(0.8 * sum(HIDDEN))]
    losses = [np.sum(q * (np.log(q) - log_p)) for log_p, q, _ in found]
    np.testing.assert_allclose([total, metrics["loss"]], np.mean(losses), rtol=1e-5)
    early = case.step(case.params, {"counter": {"step": np.int32(LATE - 1)}}, case.batch)
    assert early[0] > 1.001 * total
    assert not np.allclose(grads["mlm_head"]["bias"], early[2]["mlm_head"]["bias"], atol=1e-4)


def test_words_are_hidden_and_mostly_shown_as_the_mask(case, first):
    (image, shown, is_valid, _), _ = first[3]["__call__"][0]
    text, hidden = case.batch["text"], places_of(first[3])
    np.testing.assert_allclose(image, normalized(case.batch["image"]), atol=1e-5)
    np.testing.assert_array_equal(is_valid, case.batch["text_is_valid"])
    assert tuple(len(places) for places in hidden) == HIDDEN
    is_hidden = np.zeros((B, LENGTH), bool)
    for row, places in enumerate(hidden):
        is_hidden[row, places] = True
    assert np.all(is_valid[is_hidden]) and token_ids.EOS in text[is_hidden]
    np.testing.assert_array_equal(shown[~is_hidden], text[~is_hidden])
    # 80 %; of 33 words less than half would be a chance of 1 to 20,000
    assert np.mean(shown[is_hidden] == MASK) > 0.5


def test_masks_differ_from_row_to_row_and_from_step_to_step(case, first):
    hidden = places_of(first[3])
    assert hidden[0] != hidden[1]  # two captions of ten pieces
    later = case.step(case.params, case.state, case.batch, 1)[3]
    assert places_of(later) != hidden
    again = case.step(case.params, case.state, case.batch)[3]
    jax.tree.map(np.testing.assert_array_equal, again["__call__"][0][0], first[3]["__call__"][0][0])


def test_padding_does_not_matter(case, first):
    total, _, grads, _ = case.step(case.params, case.state, other_padding(case.batch))
    np.testing.assert_allclose(total, first[0], rtol=1e-6)
    np.testing.assert_allclose(grads["vision_embed"]["proj"]["kernel"],
                               first[2]["vision_embed"]["proj"]["kernel"], atol=1e-6)


def test_branches_are_dropped(case):
    """Nothing that a mask decides can be seen here: both tokens behind <s> are hidden, and all
    words look alike."""
    params = jax.tree.map(np.copy, case.params)
    params["text_embed"]["embedding"][:] = params["text_embed"]["embedding"][:1]
    batch = case.batch | texts(np.random.default_rng(1), (1,) * B, LENGTH)
    losses = [case.step(params, case.state, batch, number)[0] for number in range(4)]
    assert np.ptp(losses) > 1e-4


def test_every_weight_is_trained_but_what_serves_no_word(first):
    # the image sees no word: behind its last keys and values nothing is read
    assert untrained(first[2]) == {"vision_embed/mask_token", "layer_norm/A/scale",
                                   "layer_norm/A/bias", *last_block_of("A")}
