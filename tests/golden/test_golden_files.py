"""No golden file may lie there unread: a file of a kind that no test reads is a failure."""

import pathlib
import re

import golden as golden_files
import pytest

TESTS = {path: path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py")}


@pytest.mark.parametrize("path", golden_files.files(), ids=lambda path: path.stem)
def test_file_is_of_a_kind_that_some_test_reads(path):
    kind = golden_files.kind(golden_files.read(path))
    assert kind, f"nobody knows what {path.name} is a test of"
    reads = re.compile(rf"\bload\(\s*[\"']{kind}[\"']")
    readers = [test.name for test, text in TESTS.items() if reads.search(text)]
    assert readers, f"{path.name} is of kind {kind!r}, which no test of this folder loads"


def test_there_are_files_at_all():
    assert golden_files.files(), f"no .npz in {golden_files.folder()}"


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="none of mim, finetune"):
        golden_files.load("dvea")
