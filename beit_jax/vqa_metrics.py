"""Answers to visual questions: their official normal form, soft scores and accuracy."""

import itertools
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
            "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# What is restored: a word that lacks exactly one of these apostrophes. "she'd" and "we'd" are not
# here, so "shed" and "wed" stay what they are.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've""".split()
_RESTORED = {word[:i] + word[i + 1:]: word for word in _CONTRACTIONS
             for i, letter in enumerate(word) if letter == "'"}
# A slip of the original that removes an apostrophe; kept, since its answer list was made with it.
_RESTORED["somebody'd"] = "somebodyd"
_OFFICIAL_PEOPLE = 10  # whom VQAv2 asked each question


def strip_punctuation(answer: str) -> str:
    """Removes punctuation, or puts a blank for it where it stands between letters.

    A sign goes without a trace where it has a blank beside it, and all signs do in an answer with
    a comma between digits. A period stays before a digit: "2.5", ".5".
    Source: GT-Vision-Lab/VQA, vqaEval.py, processPunctuation. Its pattern for periods means to
      look behind for a digit too, and does not; the answers were made so.
    """
    has_number = _COMMA_IN_NUMBER.search(answer) is not None
    stripped = answer
    for sign in _PUNCTUATION:
        beside_blank = f"{sign} " in answer or f" {sign}" in answer
        stripped = stripped.replace(sign, "" if has_number or beside_blank else " ")
    return _PERIOD.sub("", stripped)


def normalize_answer(answer: str) -> str:
    """The official normal form: no punctuation or articles, digits for words, small letters.

    Source: GT-Vision-Lab/VQA, vqaEval.py; BEiT-3 builds its answer list with the same rules.
    """
    words = strip_punctuation(" ".join(answer.split())).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def share_score(num_agree: int, num_asked: int) -> float:
    """What an answer is worth that `num_agree` of `num_asked` people gave: 3 a / n, at most 1.

    Of ten people: 0, 0.3, 0.6, 0.9 and 1. That is VQAv2's rule "min(others who agree / 3, 1),
    each person left out once, averaged", which is made for ten and would give the only person
    asked 0; as a share it holds for any number: full marks for what a third of them say.
    """
    return min(3 * num_agree / num_asked, 1.0)


def soft_scores(answers: Sequence[Hashable]) -> dict:
    """{answer: `share_score` of it}: 0.3, 0.6, 0.9, 1.0 for 1, 2, 3, 4 and more of ten people.

    Source: microsoft/unilm beit3/datasets.py, VQAv2Dataset, for ten.
    """
    return {answer: share_score(n, len(answers)) for answer, n in Counter(answers).items()}


def soft_targets(labels: Sequence[int], scores: Sequence[float], num_answers: int) -> np.ndarray:
    """Targets of one question: float32 [num_answers], `scores` at `labels`, else 0."""
    targets = np.zeros(num_answers, np.float32)
    targets[np.asarray(labels, np.int64)] = scores
    return targets


def answer_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Official accuracy of one answer among ten people's, and the same idea for other numbers.

    The `share_score` of the people who agree. Answers and the predicted one are compared in normal
    form, but for ten people who all wrote the same: then nothing is changed, "1,000" is right and
    "1000" is wrong. Blanks at the ends and line breaks never matter.

    Args: answers: of all people asked, ten in VQAv2.
    Returns: in [0, 1].
    Raises: ValueError: nobody answered.
    Source: GT-Vision-Lab/VQA, vqaEval.py, evaluate, as it is since March 2021; before, people's
      answers only lost their punctuation, and the predicted one was always in normal form.
    """
    if not answers:
        raise ValueError(f"answer {predicted!r} cannot be scored: the question has no answers")
    said, found = [_one_line(answer) for answer in answers], _one_line(predicted)
    if len(set(said)) > 1 or len(said) != _OFFICIAL_PEOPLE:
        said, found = [normalize_answer(answer) for answer in said], normalize_answer(found)
    return share_score(said.count(found), len(said))


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def accuracy(predicted: Mapping[int | str, str],
             answers: Mapping[int | str, Sequence[str]]) -> float:
    """Official accuracy in percent: {question id: answer} against {question id: answers}.

    Raises: ValueError: a question is not answered, or an unknown one is.
    """
    odd = next(itertools.chain((q for q in answers if q not in predicted),
                               (q for q in predicted if q not in answers)), None)
    if odd is not None or not answers:
        raise ValueError("no questions to score" if odd is None else
                         f"question {odd} has {'no' if odd in answers else 'a'} prediction and is "
                         f"{'' if odd in answers else 'not '}among the {len(answers)} to score")
    return 100 * sum(answer_accuracy(predicted[q], a) for q, a in answers.items()) / len(answers)
