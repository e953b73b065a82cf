"""NLVR2: sentences about two images, true or false, in the files of its repository."""

from typing import NamedTuple

from beit_jax.data import annotations

CLASS_NAMES = ("False", "True")
_LABELS = {name: label for label, name in enumerate(CLASS_NAMES)}


class Statement(NamedTuple):
    """A sentence about a left and a right image (paths). label: 1 true, 0 false, -1 not told."""
    identifier: str
    left: str
    right: str
    sentence: str
    label: int


def read(path: str, image_folder: str, *, skip_defects: bool = False) -> list[Statement]:
    """Statements of train.json, dev.json or test1.json, one JSON object a line.

    An identifier such as dev-850-0-1 names statement 1 of the images dev-850-0-img0.png (left) and
    dev-850-0-img1.png (right); those of train lie in sub-folders, named by "directory".

    Args:
      path: of the file.
      image_folder: images/train, dev or test1 of the unpacked images.
      skip_defects: True leaves out entries with a defect, and says so in the log.
    Returns: in the file's order.
    Raises: FileNotFoundError: no such file or folder. ValueError: another layout, or without
      `skip_defects` an identifier that occurs twice, a label that is neither True nor False, an
      empty sentence, an image that is not on disk.
    """
    found: list[Statement] = []
    seen: set[str] = set()
    defects: list[str] = []
    for where, entry in annotations.read_json_lines(path):
        with annotations.noting(defects):
            statement = _statement(entry, path, where, image_folder, defects, seen)
            if statement is not None:
                found.append(statement)
    if not (seen or defects):
        raise ValueError(f"{path} is empty: it holds one JSON object a line")
    annotations.settle(path, defects, skip_defects)
    return found


def _statement(entry: dict, path: str, where: str, image_folder: str, defects: list[str],
               seen: set[str]) -> Statement | None:
    """One line, or None and what is wrong with it. seen: identifiers; grows."""
    identifier = annotations.field(entry, "identifier", path, where, "name")
    is_new = identifier not in seen
    seen.add(identifier)
    sentence = annotations.field(entry, "sentence", path, where, "text")
    label = str(entry["label"]) if "label" in entry else None  # JSON's true and false will do
    where = f"{where} ({identifier})"
    wrong = (f"identifier {identifier} occurs twice" if not is_new else
             f"label {annotations.short(entry['label'])} is neither True nor False"
             if label not in (*_LABELS, None) else
             "the sentence is empty" if annotations.is_blank(sentence) else None)
    if wrong:
        raise annotations.Defect(path, f"{where}: {wrong}")
    name = identifier.rpartition("-")[0]
    if "directory" in entry:
        name = f"{annotations.field(entry, 'directory', path, where, 'id')}/{name}"
    left, right = (annotations.find_image(image_folder, f"{name}-img{side}.png", defects, where)
                   for side in (0, 1))
    if not (left and right):
        return None
    return Statement(identifier, left, right, sentence, -1 if label is None else _LABELS[label])
