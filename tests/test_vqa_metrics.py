"""Answers: the official normal form case by case, soft scores, and the accuracy over ten people."""

import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import metrics, vqa_metrics


@pytest.mark.parametrize("answer, expected", [
    ("Yes", "yes"), ("  two\tcats\n", "2 cats"), ("none", "0"), ("the man", "man"),
    ("a", ""), ("An apple.", "apple"), ("2.5", "2.5"), (".5", ".5"), ("st. louis", "st louis"),
    ("1,000", "1000"), ("1,000-2", "10002"), ("red/white", "red white"),
    ("red, white", "red white"), ("red ,white", "red white"), ("red,white", "red white"),
    ("t-shirt", "t shirt"), ("t-shirt - blue", "tshirt blue"), ("dont", "don't"),
    ("wouldnt've", "wouldn't've"), ("wouldn'tve", "wouldn't've"), ("wouldntve", "wouldntve"),
    ("she's", "she's"), ("somebody'd", "somebodyd"), ("shed", "shed"), ("wed", "wed"),
    ("hed", "he'd"), ("one's", "one's"), ("50%", "50%"), ("5:30", "5:30"), ("let's", "let's"),
    ("Im", "im"),
], ids=lambda value: repr(value))
def test_normal_form(answer, expected):
    assert vqa_metrics.normalize_answer(answer) == expected


def test_the_normal_form_is_final():
    for answer in ("An apple.", "1,000", "dont", "two (or) three", "t-shirt"):
        once = vqa_metrics.normalize_answer(answer)
        assert vqa_metrics.normalize_answer(once) == once


def test_soft_scores_count_identical_raw_answers():
    answers = ["red"] * 4 + ["Red"] * 3 + ["blue"] * 2 + ["dark red"]
    assert vqa_metrics.soft_scores(answers) == {"red": 1.0, "Red": 0.9, "blue": 0.6,
                                                "dark red": 0.3}
    assert vqa_metrics.soft_scores(["no"] * 10) == {"no": 1.0}


def test_soft_targets_and_the_score_of_the_best_answer():
    targets = np.stack([vqa_metrics.soft_targets([3, 0], [0.9, 0.3], 4),
                        vqa_metrics.soft_targets([], [], 4)])
    np.testing.assert_allclose(targets, [[0.3, 0, 0, 0.9], [0, 0, 0, 0]])
    logits = jnp.array([[0.0, -1, 1, 2], [1, 0, 0, 0]])
    np.testing.assert_allclose(metrics.score_of_best(logits, targets), [0.9, 0])
    broken = jnp.array([[jnp.nan, 0, 0, 0]])  # argmax alone would choose the NaN, worth 0.3
    assert metrics.score_of_best(broken, targets[:1]) == 0.0


@pytest.mark.parametrize("right, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_leaves_each_person_out_once(right, expected):
    answers = ["2"] * right + [f"other {i}" for i in range(10 - right)]
    assert vqa_metrics.answer_accuracy("Two", answers) == pytest.approx(expected)


def test_peoples_punctuation_goes_only_where_they_differ():
    """As in the original, odd as it is: ten people who agree on "1,000" are never matched."""
    assert vqa_metrics.answer_accuracy("1,000", ["1,000"] * 10) == 0.0
    assert vqa_metrics.answer_accuracy("1,000", ["1,000"] * 9 + ["10"]) == 1.0
    assert vqa_metrics.answer_accuracy("yes", ["yes! "] * 9 + ["no"]) == 0.0  # a blank remains
    assert vqa_metrics.answer_accuracy("red white", ["red/white"] * 9 + ["red"]) == 1.0


def test_accuracy_of_a_set_is_the_mean_in_percent():
    answers = {7: ["yes"] * 10, 9: ["no"] * 8 + ["yes"] * 2}
    assert vqa_metrics.accuracy({7: "Yes.", 9: "yes"}, answers) == pytest.approx(80.0)


@pytest.mark.parametrize("predicted, message", [
    ({7: "yes"}, "question 9 has no prediction and is among"),
    ({7: "yes", 9: "no", 8: "no"}, "question 8 has a prediction and is not among the 2")])
def test_a_prediction_too_few_or_too_many_is_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        vqa_metrics.accuracy(predicted, {7: ["yes"], 9: ["no"]})
    with pytest.raises(ValueError, match="no questions"):
        vqa_metrics.accuracy({}, {})
    with pytest.raises(ValueError, match="'yes' cannot be scored"):
        vqa_metrics.answer_accuracy("yes", [])
