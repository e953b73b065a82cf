"""Answers: the official normal form case by case, soft scores, and the accuracy over all people."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import metrics, vqa_metrics


@pytest.mark.parametrize("answer, expected", [
    ("Yes", "yes"), ("  two\tcats\n", "2 cats"), ("none", "0"), ("the man", "man"),
    ("a", ""), ("An apple.", "apple"), ("2.5", "2.5"), (".5", ".5"), ("st. louis", "st louis"),
    ("1,000", "1000"), ("1,000-2", "10002"), ("red/white", "red white"),
    ("red, white", "red white"), ("red ,white", "red white"), ("red,white", "red white"),
    ("t-shirt", "t shirt"), ("t-shirt - blue", "tshirt blue"),
    ("t-shirt -blue", "tshirt blue"), ("dont", "don't"),
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
def test_of_ten_people_each_is_left_out_once(right, expected):
    answers = ["2"] * right + [f"other {i}" for i in range(10 - right)]
    found = vqa_metrics.answer_accuracy("2" if right == 10 else "Two", answers)
    assert found == pytest.approx(expected)
    others = [right - (answer == "2") for answer in answers]
    assert found == pytest.approx(np.mean([min(n / 3, 1) for n in others]))


OFFICIAL = [  # predicted, answers, accuracy by the official program since March 2021
    ("man", ["the man"] * 9 + ["boy"], 1.0), ("2", ["two"] * 9 + ["2"], 1.0),
    ("1,000", ["1,000"] * 10, 1.0), ("yes", ["Yes"] * 6 + ["no"] * 4, 1.0),
    ("don't walk", ["dont walk"] * 9 + ["stop"], 1.0), ("none", ["none"] * 10, 1.0),
    # all agree: nothing is processed, on neither side
    ("1000", ["1,000"] * 10, 0.0), ("0", ["none"] * 10, 0.0), ("Yes.", ["yes"] * 10, 0.0),
    (" yes\n", ["yes"] * 10, 1.0), ("yes", ["yes", "yes "] * 5, 1.0),
    # they differ: both sides are
    ("1000", ["1,000"] * 9 + ["10"], 1.0), ("yes", ["yes! "] * 9 + ["no"], 1.0),
    ("red white", ["red/white"] * 9 + ["red"], 1.0), ("The\tman.", ["man"] * 2 + ["boy"] * 8, 0.6),
]


@pytest.mark.parametrize("predicted, answers, expected", OFFICIAL,
                         ids=lambda value: repr(value)[:20])
def test_peoples_answers_are_in_normal_form_only_where_they_differ(predicted, answers, expected):
    assert vqa_metrics.answer_accuracy(predicted, answers) == pytest.approx(expected)


NUMBERS = dict(none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6",
               seven="7", eight="8", nine="9", ten="10")
RESTORED = {"aint": "ain't", "arent": "aren't", "cant": "can't", "couldnt": "couldn't",
            "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "didnt": "didn't",
            "dont": "don't", "isnt": "isn't", "maam": "ma'am", "oclock": "o'clock",
            "shouldve": "should've", "somebody'd": "somebodyd", "thats": "that's",
            "theyre": "they're", "wasnt": "wasn't", "whats": "what's", "wheres": "where's",
            "wont": "won't", "yall": "y'all", "youre": "you're"}


def official(predicted: str, answers: list[str]) -> float:
    """The official program's accuracy, written anew with loops over letters.

    Source: GT-Vision-Lab/VQA, vqaEval.py, as described in the tests above.
    """
    def one_line(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    def without_signs(text):
        has_number = any(a.isdigit() and sign == "," and b.isdigit()
                         for a, sign, b in zip(text, text[1:], text[2:]))
        kept = ""
        for letter in text:
            if letter not in ';/[]"{}()=+\\_-><@`,?!':
                kept += letter
            elif not (has_number or letter + " " in text or " " + letter in text):
                kept += " "
        return "".join(letter for i, letter in enumerate(kept)
                       if letter != "." or kept[i + 1:i + 2].isdigit())

    def without_articles(text):
        words = [NUMBERS.get(word, word) for word in text.lower().split()]
        return " ".join(RESTORED.get(word, word) for word in words
                        if word not in ("a", "an", "the"))

    said, found = [one_line(answer) for answer in answers], one_line(predicted)
    if any(answer != said[0] for answer in said):
        said = [without_articles(without_signs(answer)) for answer in said]
        found = without_articles(without_signs(found))
    total = 0.0
    for left_out in range(len(said)):
        agree = sum(answer == found for i, answer in enumerate(said) if i != left_out)
        total += min(1.0, agree / 3)
    return total / len(said)


# spellings of one answer each, or of answers that look alike
SPELLINGS = (
    ("yes", "Yes", "yes!", "yes.", "YES", " yes"), ("no", "No", "no.", "no\n", "no, sir"),
    ("2", "two", "Two", "2.", "the two", "2.0"), ("none", "0", "zero", "None.", "no one"),
    ("1,000", "1000", "1,000.", "1.000", "1,000-2"),
    ("man", "the man", "a man", "Man.", "The\tman"),
    ("don't walk", "dont walk", "DONT WALK", "don't  walk", "do not walk"),
    ("red/white", "red white", "red, white", "red and white", "red ,white", "Red-White"),
    ("t-shirt", "t shirt", "tshirt", "T-Shirt", "t - shirt", "a t-shirt"),
    ("st. louis", "St Louis", "st louis", "st.louis", "St. Louis."),
    ("2.5", "2.5.", "2. 5", ".5", "$2.5", "2.5%"), ("she's out", "shes out", "she s out"),
    ("10 o'clock", "ten oclock", "10 oclock", "10:00", "10 (ten) oclock"),
    ("(left)", "left", "left;", "to the left", "[left]"), ("somebody'd", "somebodyd", "somebody d"),
    ("couldn't've", "couldnt've", "couldn'tve", "couldntve", "could not have"),
)


def test_the_accuracy_is_that_of_the_official_program_on_400_questions():
    rng, seen, changed = random.Random(0), {}, 0
    for number in range(400):
        first, second = rng.sample(SPELLINGS, 2)
        if number % 8 == 0:  # all say the same
            answers = [rng.choice(first)] * 10
        else:
            answers = [rng.choice(first[:rng.randint(1, 4)] if rng.random() < 0.6 else second)
                       for _ in range(10)]
        predicted = rng.choice(first if rng.random() < 0.7 else second)
        wanted = official(predicted, answers)
        assert vqa_metrics.answer_accuracy(predicted, answers) == pytest.approx(wanted), (
            predicted, answers)
        seen[round(wanted, 6)] = seen.get(round(wanted, 6), 0) + 1
        agree = answers.count(predicted)
        changed += wanted != pytest.approx(min(1, 0.3 * agree))
    assert seen.keys() == {0.0, 0.3, 0.6, 0.9, 1.0} and min(seen.values()) > 15
    assert changed > 100  # what the normal form decides


@pytest.mark.parametrize("predicted, answers, expected", OFFICIAL)
def test_the_loops_of_these_tests_give_the_table_too(predicted, answers, expected):
    assert official(predicted, answers) == pytest.approx(expected)


@pytest.mark.parametrize("answers, expected", [
    (["red"], 1.0), (["blue"], 0.0), (["Red", "red", "blue"], 1.0), (["red"] + ["blue"] * 2, 1.0),
    (["red"] + ["blue"] * 4, 0.6), (["red"] * 2 + ["blue"] * 3, 1.0),
    (["red"] * 3 + ["blue"] * 17, 0.45)])
def test_a_right_answer_is_right_by_any_number_of_people(answers, expected):
    """Full marks for what a third of them say; of ten, this is the official accuracy."""
    assert vqa_metrics.answer_accuracy("red", answers) == pytest.approx(expected)
    if "Red" not in answers:
        assert vqa_metrics.soft_scores(answers).get("red", 0.0) == pytest.approx(expected)


def test_other_numbers_of_people_are_compared_in_normal_form_even_if_they_agree():
    assert vqa_metrics.answer_accuracy("yes", ["Yes"]) == 1.0
    assert vqa_metrics.answer_accuracy("2", ["Two."] * 3) == 1.0


def test_accuracy_of_a_set_is_the_mean_in_percent():
    answers = {7: ["yes"] * 9 + ["no"], "nine": ["no"] * 8 + ["yes"] * 2}
    assert vqa_metrics.accuracy({7: "Yes.", "nine": "yes"}, answers) == pytest.approx(80.0)


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
