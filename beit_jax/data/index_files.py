"""Index files of the released BEiT-3 programs: one JSON object a line, texts as token ids.

Which data they hold is told by the keys of their lines alone: `kind_of`.
Source: microsoft/unilm beit3/datasets.py, which writes and reads them.
"""

from collections.abc import Iterator
from typing import NamedTuple

from beit_jax import token_ids
from beit_jax.data import annotations
from beit_jax.data.image_text import Captioned
from beit_jax.data.nlvr2 import Statement
from beit_jax.data.text_ops import Tokenizer
from beit_jax.data.vqa import Question

_MOST_CLASSES = 1_000_000  # a label beyond is a slip, and would make as many names of classes
# the first of these keys that a line has tells its kind
_TELLING = {"image2_path": "statements", "qid": "questions", "text_segment": "captions",
            "label": "labels"}


class Labelled(NamedTuple):
    """An image (path) and the number of its class."""
    image: str
    label: int


def kind_of(path: str) -> str:
    """What a file holds: "captions", "questions", "statements" or "labels".

    Raises: FileNotFoundError: no such file. ValueError: it is empty, or of another layout.
    """
    for where, entry in annotations.read_json_lines(path):
        for key, kind in _TELLING.items():
            if key in entry:
                return kind
        raise ValueError(f"{path}, {where} has none of {', '.join(_TELLING)}: is this the right "
                         "file?")
    raise ValueError(f"{path} is empty: it holds one JSON object a line")


def read(path: str, image_folder: str, tokenizer: Tokenizer | None = None, *,
         is_training: bool = True, num_labels: int = 0,
         skip_defects: bool = False) -> tuple[list, list[list[list[int]]]]:
    """What a file says of its images, and the ids of its texts.

    Lines of one image_id are captions of one image; a caption that is null is none.

    Args:
      path: of the file.
      image_folder: the data root, below which its image_path and image2_path lie.
      tokenizer: what made the ids, to write them as words again; None: the records have "" in
        place of texts, and ids are those of the released tokenizer.
      is_training: True: an image without captions or a question without answers is a defect.
      num_labels: answers or classes that there are; 0: any number of them.
      skip_defects: True leaves out entries with a defect, and says so in the log.
    Returns: (records of the file's kind in its order: Captioned, Question (without people's own
      words), Statement, Labelled; of each record its texts, ids without <s> and </s>).
    Raises: FileNotFoundError: no such file or folder. ValueError: another layout, or without
      `skip_defects` an id that occurs twice, a text that is no list of ids of pieces, a label out
      of range, an image that is not on disk, or what `is_training` asks for.
    """
    file = _File(path, image_folder, tokenizer, is_training, num_labels)
    found = list(_READERS[kind_of(path)](file))
    annotations.settle(path, file.defects, skip_defects)
    return [record for record, _ in found], [texts for _, texts in found]


class _File:
    """A file as it is read, and what was wrong with its lines."""

    def __init__(self, path: str, image_folder: str, tokenizer: Tokenizer | None,
                 is_training: bool, num_labels: int):
        self.path, self.image_folder, self.tokenizer = path, image_folder, tokenizer
        self.is_training, self.num_labels = is_training, num_labels
        self.num_pieces = tokenizer.num_pieces if tokenizer else token_ids.RELEASED_PIECES
        self.defects: list[str] = []

    def lines(self) -> Iterator[tuple[str, dict]]:
        """("line 1", object) of each line."""
        return annotations.read_json_lines(self.path)

    def field(self, where: str, entry: dict, key: str, kind: str = "any"):
        """entry[key]. Raises: as `annotations.field`."""
        return annotations.field(entry, key, self.path, where, kind)

    def image(self, where: str, name: str) -> str | None:
        """The path of an image, or None and a defect."""
        return annotations.find_image(self.image_folder, name, self.defects, where)

    def ids(self, where: str, text) -> list[int]:
        """The ids of a text, or [] and a defect."""
        if not isinstance(text, list) or not text:
            self.defects.append(f"{where}: text_segment {annotations.short(text)} is no list of "
                                "token ids")
            return []
        for token in text:
            if not (isinstance(token, int) and token_ids.UNKNOWN <= token <= self.num_pieces):
                self.defects.append(
                    f"{where}: token {annotations.short(token)} of text_segment is no piece of a "
                    f"text, which are {token_ids.UNKNOWN} to {self.num_pieces}; <s> and </s> do "
                    "not stand there")
                return []
        return text

    def said(self, ids: list[int]) -> str:
        """A text as words, "" where no tokenizer can tell."""
        return self.tokenizer.decode(ids) if self.tokenizer else ""

    def is_right(self, where: str, wrong: str | None) -> bool:
        """Notes what is wrong with a line, if anything is."""
        if wrong:
            self.defects.append(f"{where}: {wrong}")
        return not wrong

    def has_label(self, label) -> bool:
        """Whether there is such a label. True and False are none."""
        return (isinstance(label, int) and not isinstance(label, bool)
                and 0 <= label < (self.num_labels or _MOST_CLASSES))

    def several(self, where: str, entry: dict, key: str) -> list:
        """entry[key], a list; [] where it is null or not there. Raises: Defect: something else."""
        value = entry.get(key)
        return [] if value is None else annotations.check(value, key, self.path, where, "list")


def _captions(file: _File) -> Iterator[tuple[Captioned, list[list[int]]]]:
    images: dict = {}  # (image_id, image_path) -> (first line, texts: None where a line has none)
    ids, names = {}, {}  # image_path -> image_id, and back
    for where, entry in file.lines():
        with annotations.noting(file.defects):
            number = file.field(where, entry, "image_id", "id")
            name = file.field(where, entry, "image_path", "name")
            text = file.field(where, entry, "text_segment")
            if file.is_right(
                    where, None if (ids.setdefault(name, number) == number
                                    and names.setdefault(number, name) == name)
                    else f"image_id {number} or image {name} stands with another one before"):
                texts = images.setdefault((number, name), (where, []))[1]
                texts.append(None if text is None else file.ids(where, text))
    for (number, name), (where, texts) in images.items():
        is_bare = all(text is None for text in texts)
        is_right = file.is_right(where, "it has no caption" if is_bare and file.is_training
                                 else None)
        image = file.image(where, name)
        texts = [text for text in texts if text]
        if is_right and image and (texts or is_bare):
            yield Captioned(number, image, tuple(map(file.said, texts))), texts


def _questions(file: _File) -> Iterator[tuple[Question, list[list[int]]]]:
    seen = set()
    for where, entry in file.lines():
        with annotations.noting(file.defects):
            number = file.field(where, entry, "qid", "id")
            is_new = number not in seen
            seen.add(number)
            name = file.field(where, entry, "image_path", "name")
            labels, scores = (tuple(file.several(where, entry, key))
                              for key in ("labels", "scores"))
            unknown = [label for label in labels if not file.has_label(label)]
            odd = [score for score in scores if not _is_score(score)]
            is_right = file.is_right(
                where, f"qid {number} occurs twice" if not is_new else
                f"{len(labels)} labels with {len(scores)} scores" if len(labels) != len(scores) else
                f"label {annotations.short(unknown[0])} is none of the {file.num_labels} answers"
                if unknown else
                f"score {annotations.short(odd[0])} is no number from 0 to 1" if odd else
                "it has no answers" if file.is_training and not labels else None)
            image = file.image(where, name)
            ids = file.ids(where, file.field(where, entry, "text_segment"))
            if is_right and image and ids:
                yield Question(number, image, file.said(ids), (), labels, scores), [ids]


def _is_score(value) -> bool:
    """Whether it is a number from 0 to 1: neither a truth value nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _statements(file: _File) -> Iterator[tuple[Statement, list[list[int]]]]:
    seen = set()
    for where, entry in file.lines():
        with annotations.noting(file.defects):
            identifier = file.field(where, entry, "identifier", "id")
            is_new = identifier not in seen
            seen.add(identifier)
            names = [file.field(where, entry, key, "name") for key in ("image_path", "image2_path")]
            label = entry.get("label")
            is_right = file.is_right(
                where, f"identifier {identifier} occurs twice" if not is_new else
                f"label {annotations.short(label)} is neither 0 nor 1"
                if label not in (0, 1, None) else None)
            left, right = (file.image(where, name) for name in names)
            ids = file.ids(where, file.field(where, entry, "text_segment"))
            if is_right and left and right and ids:
                yield Statement(identifier, left, right, file.said(ids),
                                -1 if label is None else int(label)), [ids]


def _labels(file: _File) -> Iterator[tuple[Labelled, list[list[int]]]]:
    for where, entry in file.lines():
        with annotations.noting(file.defects):
            name = file.field(where, entry, "image_path", "name")
            label = file.field(where, entry, "label")
            last = f", 0 to {(file.num_labels or _MOST_CLASSES) - 1}"
            is_right = file.is_right(
                where, None if file.has_label(label) else
                f"label {annotations.short(label)} is no number of a class{last}")
            image = file.image(where, name)
            if is_right and image:
                yield Labelled(image, label), []


_READERS = {"captions": _captions, "questions": _questions, "statements": _statements,
            "labels": _labels}
