"""NLVR2's lines in small: where its images lie, its labels, and what can be wrong."""

import json

import pytest

from beit_jax.data import nlvr2

DEV = {"sentence": "There are two dogs.", "left_url": "l", "right_url": "r", "writer": 53,
       "label": "True", "validation": {"0": "True"}, "identifier": "dev-850-0-1",
       "synset": "dog", "query": "two dogs", "extra_validations": {}}
TRAIN = DEV | {"identifier": "train-10171-0-0", "directory": 8, "label": "False"}


@pytest.fixture
def images(tmp_path):
    for name in ("dev-850-0", "8/train-10171-0"):
        for side in (0, 1):
            file = tmp_path / "images" / f"{name}-img{side}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return str(tmp_path / "images")


def write(folder, *entries):
    path = folder / "dev.json"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_images_and_labels(tmp_path, images):
    hidden = {k: v for k, v in DEV.items() if k != "label"} | {"identifier": "dev-850-0-2"}
    found = nlvr2.read(write(tmp_path, DEV, TRAIN, hidden), images)
    assert found[0] == ("dev-850-0-1", f"{images}/dev-850-0-img0.png",
                        f"{images}/dev-850-0-img1.png", "There are two dogs.", 1)
    assert found[1].left == f"{images}/8/train-10171-0-img0.png"
    assert [statement.label for statement in found] == [1, 0, -1]


@pytest.mark.parametrize("change, message", [
    ({}, "identifier dev-850-0-1 occurs twice"), ({"label": "Yes"}, "label 'Yes' is neither"),
    ({"sentence": " "}, "the sentence is empty"),
    ({"identifier": "dev-851-0-0"}, "image dev-851-0-img0.png is not in")],
    ids=["twice", "label", "empty", "image"])
def test_a_defect_is_one_line_or_left_out(change, message, tmp_path, images):
    other = {"identifier": "dev-850-0-0"} if change else {}
    path = write(tmp_path, DEV, DEV | other | change)
    with pytest.raises(ValueError, match=rf"dev.json, line 2 \(.*\): {message}") as error:
        nlvr2.read(path, images)
    assert "\n" not in str(error.value)
    assert len(nlvr2.read(path, images, skip_defects=True)) == 1


def test_a_missing_folder_an_empty_file_and_another_layout_are_one_line(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="image folder .*none is no folder"):
        nlvr2.read(write(tmp_path, DEV), str(tmp_path / "none"))
    with pytest.raises(ValueError, match="dev.json is empty"):
        nlvr2.read(write(tmp_path), images)
    with pytest.raises(ValueError, match="line 1 has no 'identifier'"):
        nlvr2.read(write(tmp_path, {"sentence": "a"}), images)
