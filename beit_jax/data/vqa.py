"""Visual questions in VQAv2's files, the list of answers, and each question's soft targets."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from beit_jax import vqa_metrics
from beit_jax.data import annotations

log = logging.getLogger(__name__)

COCO_IMAGES = "{subset}/COCO_{subset}_{id:012d}.jpg"  # below the folder of images
_PLACE = re.compile(r"\{(?P<what>subset|id)\}|\{id:0(?P<digits>\d{1,2})d\}")
VQAV2_ANSWERS = 3129  # what the annotations of train and val give; the released heads have as many


class Question(NamedTuple):
    """A question about an image.

    Attributes:
      question_id, image: as in the file, a number or a name; path of the image.
      question: its text.
      answers: what people said, as they wrote it; () where nobody tells (the test splits).
      labels, scores: ranks of those of their answers that are on the list, and their soft scores.
    """
    question_id: int | str
    image: str
    question: str
    answers: tuple[str, ...]
    labels: tuple[int, ...]
    scores: tuple[float, ...]


def make_answer_list(annotation_paths: Sequence[str], *, min_count: int = 9,
                     expected: int | None = VQAV2_ANSWERS) -> tuple[str, ...]:
    """The answers that a classifier chooses among; the rank is the label.

    Every question's "multiple_choice_answer" in normal form, those that at least `min_count`
    questions have, in the order in which they first occur.

    Args:
      annotation_paths: train, then val: another order gives other labels, and a released head
        would then answer nonsense.
      expected: how many there must be; None for data of one's own.
    Raises: FileNotFoundError: no such file. ValueError: another layout, or another number.
    Source: microsoft/unilm beit3/datasets.py, VQAv2Dataset.make_dataset_index.
    """
    counts: Counter[str] = Counter()
    for path in annotation_paths:
        for where, entry in _entries(path, "annotations"):
            answer = annotations.field(entry, "multiple_choice_answer", path, where, "text")
            counts[vqa_metrics.normalize_answer(answer)] += 1
    answers = tuple(answer for answer, n in counts.items() if n >= min_count)
    if expected is not None and len(answers) != expected:
        raise ValueError(f"{', '.join(annotation_paths)} give {len(answers)} answers, not "
                         f"{expected}: VQAv2's needs the annotations of train, then val, whole; "
                         "with data of your own say expected=None")
    if not answers:
        raise ValueError(f"{', '.join(annotation_paths)}: no answer occurs {min_count} times: "
                         "lower min_count")
    return answers


def read_answer_list(path: str) -> tuple[str, ...]:
    """The reference's answer2label.txt: {"answer": "yes", "label": 0}, one a line.

    Raises: FileNotFoundError: no such file. ValueError: labels out of order, an answer twice, none.
    """
    answers: dict[str, int] = {}
    for where, entry in annotations.read_json_lines(path):
        answer = annotations.field(entry, "answer", path, where, "text")
        label = annotations.field(entry, "label", path, where, "integer")
        if answer in answers or label != len(answers):
            raise ValueError(f"{path}, {where}: answer {answer!r} with label {label} occurs twice "
                             f"or out of order; label {len(answers)} is next")
        answers[answer] = len(answers)
    if not answers:
        raise ValueError(f"{path} is empty: it lists no answer")
    return tuple(answers)


def write_answer_list(path: str, answers: Sequence[str]) -> None:
    """Writes what `read_answer_list` reads."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"answer": answer, "label": label}) + "\n"
                        for label, answer in enumerate(answers))


def list_hash(answers: Sequence[str]) -> str:
    """SHA-256 of a list: equal hashes, equal labels. 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(answers).encode()).hexdigest()


def label_of(answer: str, answers: Sequence[str]) -> int:
    """The label of an answer. Raises: ValueError: it is not on the list."""
    if answer not in answers:
        raise ValueError(f"answer {answer!r} is none of the {len(answers)} on the list, whose "
                         f"answers are in normal form: {vqa_metrics.normalize_answer(answer)!r}?")
    return answers.index(answer)


def read(questions_path: str, annotations_path: str | None, image_folder: str,
         answers: Sequence[str] = (), *, as_written: bool = True, image_pattern: str = COCO_IMAGES,
         drop_unlisted: bool = True, skip_defects: bool = False) -> list[Question]:
    """Questions in VQAv2's layout, with the soft scores of people's answers.

    Args:
      questions_path: v2_OpenEnded_mscoco_train2014_questions.json and the like.
      annotations_path: v2_mscoco_train2014_annotations.json; None for the test splits.
      image_folder: the one that holds train2014, val2014, test2015.
      answers: the list, by `make_answer_list` or `read_answer_list`.
      as_written: True: people's answers count as they wrote them, though the list is in normal
        form, as the reference does; False: both in normal form, see `label_finder`.
      image_pattern: file of an image, see `image_name`.
      drop_unlisted: True drops questions without any listed answer, for training; False keeps
        them, for the official accuracy.
      skip_defects: True leaves out entries with a defect, and says so in the log.
    Returns: in the file's order.
    Raises: FileNotFoundError: no such file or folder. ValueError: another layout, no listed answer
      anywhere, or without `skip_defects` a question id that occurs twice, an empty question, one
      without annotation or answers, an annotation without question, a value of the wrong kind, an
      image not on disk.
    """
    label_of = label_finder(answers, as_written=as_written)
    defects: list[str] = []
    said = _answers_by_question(annotations_path, defects)
    content = annotations.read_json(questions_path)
    subset = ""
    if "{subset}" in image_pattern:
        subset = annotations.field(content, "data_subtype", questions_path, "the top level", "text")
        subset = "test2015" if subset.startswith("test") else subset  # test-dev is a part of it
    found, seen, unlisted = [], set(), 0
    for where, entry in _entries(questions_path, "questions", content):
        with annotations.noting(defects):
            number = annotations.field(entry, "question_id", questions_path, where, "id")
            is_new = number not in seen
            seen.add(number)
            image_id = annotations.field(entry, "image_id", questions_path, where, "id")
            text = annotations.field(entry, "question", questions_path, where, "text")
            where = f"question {number}"
            name = image_name(image_pattern, subset, image_id, questions_path, where)
            image = annotations.find_image(image_folder, name, defects, where)
            wrong = ("occurs twice" if not is_new else
                     "is empty" if annotations.is_blank(text) else
                     "has no annotation" if said is not None and number not in said else None)
            if wrong:
                raise annotations.Defect(questions_path, f"{where} {wrong}")
            if image is None:
                continue
            spoken = () if said is None else said[number]
            scores = listed_scores(spoken, label_of)
            if said is not None and drop_unlisted and not scores:
                unlisted += 1
                continue
            found.append(Question(number, image, text, spoken, tuple(scores),
                                  tuple(scores.values())))
    defects += [f"{annotations_path}: annotation of question {number}, which is not asked"
                for number in said or () if number not in seen]
    annotations.settle(questions_path, defects, skip_defects)
    if unlisted and not found:
        raise ValueError(f"{annotations_path}: none of {unlisted} questions has an answer among "
                         f"the {len(answers)} on the list, which belongs to other data")
    if unlisted:
        log.info("%s: %d of %d questions have no answer on the list and are dropped",
                 questions_path, unlisted, unlisted + len(found))
    return found


def image_name(pattern: str, subset: str, image_id: int | str, path: str, where: str) -> str:
    """The file of an image, below the folder of images.

    Args:
      pattern: "{id}" stands for the image's id as it is, "{id:012d}" for 12 digits of it,
        "{subset}" for the file's data_subtype. path, where: for messages.
    Raises: ValueError: something else in braces. Defect: digits are asked for, and there is a name.
    """
    if "{id" not in pattern or set("{}") & set(_PLACE.sub("", pattern)):
        raise ValueError(f"config.data.image_pattern={pattern!r} must hold {{id}}, or "
                         "{id:012d} for 12 digits, and may hold {subset}, the data_subtype of the "
                         "questions, and {split}; nothing else stands in braces")

    def written(place) -> str:
        if place["what"] == "subset":
            return subset
        if not place["digits"]:
            return str(image_id)
        if not str(image_id).isdecimal():
            raise annotations.Defect(
                path, f"{where}: 'image_id' is {annotations.short(image_id)}, not a number, of "
                f"which config.data.image_pattern={pattern!r} makes the file's name: set it to "
                "what your images are called, for example '{subset}/{id}.jpg'")
        return f"{int(image_id):0{place['digits']}d}"

    return _PLACE.sub(written, pattern)


def _entries(path: str, name: str, content=None):
    """("questions 0", entry) of each entry. content: the file's, where it has been read."""
    content = annotations.read_json(path) if content is None else content
    entries = annotations.field(content, name, path, "the top level", "list")
    if not entries:
        raise ValueError(f"{path} has no {name}")
    return ((f"{name} {number}", entry) for number, entry in enumerate(entries))


def _answers_by_question(path: str | None, defects: list[str]) -> dict | None:
    """{question id: answers as people wrote them}; None without a file."""
    if path is None:
        return None
    said: dict[int | str, tuple[str, ...]] = {}
    for where, entry in _entries(path, "annotations"):
        with annotations.noting(defects, with_file=True):
            number = annotations.field(entry, "question_id", path, where, "id")
            where = f"annotation of question {number}"
            people = annotations.field(entry, "answers", path, where, "list")
            spoken = tuple(annotations.field(person, "answer", path, where, "text")
                           for person in people)
            wrong = "occurs twice" if number in said else "has no answers" if not spoken else None
            if wrong:
                defects.append(f"question {number} {wrong} in {path}")
            if spoken:  # without answers it counts as not annotated
                said.setdefault(number, spoken)
    return said


def label_finder(answers: Sequence[str], *, as_written: bool) -> Callable[[str], int | None]:
    """answer -> its label, None where it is not on the list.

    Args: as_written: True: only what stands on the list letter by letter; False: also what has the
      same normal form ("The Dog." and "dog"); the first of several on the list counts.
    """
    exact = {answer: label for label, answer in enumerate(answers)}
    if as_written or not answers:
        return exact.get
    normal: dict[str, int] = {}
    for label, answer in enumerate(answers):
        normal.setdefault(vqa_metrics.normalize_answer(answer), label)

    def find(answer: str) -> int | None:
        label = exact.get(answer)
        return normal.get(vqa_metrics.normalize_answer(answer)) if label is None else label

    return find


def listed_scores(spoken: Sequence[str],
                  label_of: Callable[[str], int | None]) -> dict[int, float]:
    """{label: soft score} of those of people's answers that are on the list.

    Args: spoken: as people wrote them. label_of: of `label_finder`.
    """
    scores = vqa_metrics.soft_scores([label_of(answer) for answer in spoken])
    scores.pop(None, None)
    return scores


def answer_arrays(questions: Sequence[Question]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a batch gets of n questions.

    Returns: ({answer_labels int32 [n, k] (-1 = none), answer_scores float32 [n, k]}, the label of
      the highest score int32 [n], -1 = none); k = most listed answers of a question, at least 1.
    """
    most = max([1, *(len(question.labels) for question in questions)])
    labels = np.full((len(questions), most), -1, np.int32)
    scores = np.zeros((len(questions), most), np.float32)
    for row, question in enumerate(questions):
        labels[row, :len(question.labels)] = question.labels
        scores[row, :len(question.scores)] = question.scores
    best = labels[np.arange(len(questions)), scores.argmax(axis=1)]
    return {"answer_labels": labels, "answer_scores": scores}, best
