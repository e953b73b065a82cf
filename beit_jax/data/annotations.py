"""Annotation files: read them, and say in one line which entry of which file is wrong.

Readers collect the defects of a file and hand them to `settle`: strict unless told otherwise.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

_NAMED = 10  # defects that the log names


def read_json(path: str):
    """The content of a JSON file. Raises: FileNotFoundError; ValueError: it is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON at line {error.lineno}: {error.msg}") from None


def read_json_lines(path: str) -> Iterator[tuple[str, dict]]:
    """("line 1", object) of each line of a file that is not blank.

    Raises: FileNotFoundError: no such file. ValueError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # U+2028 may stand in a text
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error.msg}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number} is {type(entry).__name__}, not an object "
                             "{...}")
        yield f"line {number}", entry


def read_text(path: str) -> str:
    """A UTF-8 text file. Raises: FileNotFoundError; ValueError: it is not UTF-8."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file: check the spelling")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: convert it") from None


def field(entry, name: str, path: str, where: str):
    """entry[name]. Raises: ValueError: it is not there; the file has another layout."""
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{path}, {where} has no {name!r}: is this the right file?")
    return entry[name]


def is_blank(text) -> bool:
    """Whether there is nothing to read: no string, or only blanks."""
    return not isinstance(text, str) or not text.strip()


def find_image(folder: str, name: str, defects: list[str], where: str) -> str | None:
    """The path of an image, or None and one more defect where there is no such file.

    Raises: FileNotFoundError: not even the folder is there.
    """
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return path
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"image folder {folder} is no folder: check the spelling")
    defects.append(f"{where}: image {name} is not in {folder}")
    return None


def settle(path: str, defects: Sequence[str], skip_defects: bool) -> None:
    """Refuses a file with defects, or logs what was left out.

    Args: defects: "image 7: its caption is empty" each; skip_defects: True = leave such entries
      out, which the reader has done already.
    Raises: ValueError: naming the first one and how many there are.
    """
    if not defects:
        return
    if not skip_defects:
        more = f" ({len(defects)} such defects in all)" if len(defects) > 1 else ""
        raise ValueError(f"{path}, {defects[0]}{more}: correct it, or leave such entries out with "
                         "skip_defects=True")
    left = f"; and {len(defects) - _NAMED} more" if len(defects) > _NAMED else ""
    log.warning("%s: left out: %s%s", path, "; ".join(defects[:_NAMED]), left)
