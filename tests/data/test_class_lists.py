"""The shipped class lists agree with those of the data sets; other lists are read and checked."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from beit_jax.data import class_lists

# the first classes of the 200, by their place among the 1,000 (robustness sets of timm 1.0.31)
FIRST = {"imagenet_a": [6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57],
         "imagenet_r": [1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47]}


def test_the_thousand_are_those_of_tfds():
    found = importlib.util.find_spec("tensorflow_datasets").submodule_search_locations[0]
    labels = Path(found) / "datasets/imagenet2012/labels.txt"
    assert class_lists.read("imagenet_1k") == tuple(labels.read_text().split())


@pytest.mark.parametrize("name", FIRST)
def test_the_two_hundred_stand_where_they_should(name):
    whole = class_lists.read("imagenet_1k")
    found = class_lists.positions(class_lists.read(name), whole)
    assert found.dtype == np.int32 and len(found) == 200 and (np.diff(found) > 0).all()
    assert found[:15].tolist() == FIRST[name]


def test_a_file_is_read_sorted_and_without_comments(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\ndog\n\ncat \n")
    assert class_lists.read(str(path)) == ("cat", "dog")
    assert class_lists.positions(("cat", "dog"), ("bee", "cat", "cow", "dog")).tolist() == [1, 3]


@pytest.mark.parametrize("text, message", [("# none\n", "is empty"), ("a\nb\na\n", "a twice")])
def test_a_broken_file_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        class_lists.read(str(path))


def test_an_unknown_list_or_class_is_one_line():
    with pytest.raises(FileNotFoundError, match="'imagenet_b'.*imagenet_1k, imagenet_a, imag"):
        class_lists.read("imagenet_b")
    with pytest.raises(ValueError, match="1 of 2 classes .* the 2 of the model, e.g. ant"):
        class_lists.positions(("ant", "cat"), ("bee", "cat"))
