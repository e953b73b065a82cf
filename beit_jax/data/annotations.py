"""Annotation files: read them, and say in one line which entry of which file is wrong.

Readers collect the defects of a file and hand them to `settle`: strict unless told otherwise.
"""

import contextlib
import json
import logging
import os
import reprlib
from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

_NAMED = 10  # defects that the log names
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
short = _SHORT.repr  # of a value in a message: some of it will do


def _is_text(value) -> bool:
    """Whether a value is a string that can be written as UTF-8: half a surrogate pair cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_blank(text) -> bool:
    """Whether there is nothing to read: no text, or only blanks."""
    return not _is_text(text) or not text.strip()


# what a value may have to be -> (whether it is, how a message says so)
_KINDS = {
    "text": (_is_text, 'a text "..."'),
    "name": (lambda value: not is_blank(value), 'a name "..."'),
    "id": (lambda value: _is_int(value) or not is_blank(value), 'a whole number or a name "..."'),
    "integer": (_is_int, "a whole number"),
    "text or list of texts": (_is_text, 'a text "...", a list of texts, or null'),
    "list": (lambda value: isinstance(value, list), "a list [...]"),
}


class Defect(ValueError):
    """What is wrong with one entry of a file, whose others may be good.

    text: without the file, for `settle`, which names it.
    """

    def __init__(self, path: str, text: str):
        super().__init__(f"{path}, {text}")
        self.text = text


@contextlib.contextmanager
def noting(defects: list[str], *, with_file: bool = False):
    """Notes a Defect and goes on behind the block: the entry is left out.

    Args: with_file: True where `settle` will name another file.
    """
    try:
        yield
    except Defect as defect:
        defects.append(str(defect) if with_file else defect.text)


def read_json(path: str):
    """The content of a JSON file. Raises: FileNotFoundError; ValueError: it is no JSON."""
    return _parse(read_text(path), path)


def read_json_lines(path: str) -> Iterator[tuple[str, dict]]:
    """("line 1", object) of each line of a file that is not blank.

    Raises: FileNotFoundError: no such file. ValueError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # U+2028 may stand in a text
        if not line.strip():
            continue
        entry = _parse(line, path, f"line {number}")
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number} is {type(entry).__name__}, not an object "
                             "{...}")
        yield f"line {number}", entry


def _parse(text: str, path: str, where: str = ""):
    """JSON. where: which part of the file it is, if not all of it. Raises: ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, {where} is no JSON" if where else f"{path} is no JSON at line " + str(
            error.lineno)
        raise ValueError(f"{place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number without end, or lists in lists
        raise ValueError(f"{path}{where and f', {where}'} cannot be read: {error}") from None


def read_text(path: str) -> str:
    """A UTF-8 text file, with or without a byte order mark; every line ends with "\\n".

    Raises: FileNotFoundError; ValueError: it is not UTF-8.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is no file: check the spelling")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: convert it") from None


def field(entry, name: str, path: str, where: str, kind: str):
    """entry[name].

    Args: where: the entry in messages. kind: what the value must be: "text", "name" (of a file),
      "id", "integer", "list"; "any".
    Raises: ValueError: it is not there; the file has another layout. Defect: it is not of the kind.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{path}, {where} is {short(entry)}, not an object {{...}} with "
                         f"{name!r}: is this the right file?")
    if name not in entry:
        raise ValueError(f"{path}, {where} has no {name!r}: is this the right file?")
    return check(entry[name], name, path, where, kind)


def check(value, name: str, path: str, where: str, kind: str):
    """A value as it stands. Args, Raises: as of `field`."""
    is_right, expected = _KINDS.get(kind, (lambda value: True, ""))
    if not is_right(value):
        raise Defect(path, f"{where}: {name!r} is {short(value)}, not {expected}")
    return value


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
