"""Karpathy's files, pairs and plain text, in small, and what is wrong with files of that kind."""

import copy
import json

import pytest

from beit_jax.data import image_text


def sentences(number, *texts):
    return [{"tokens": text.lower().split(), "raw": text, "imgid": number,
             "sentid": 10 * number + i} for i, text in enumerate(texts)]


COCO = {"dataset": "coco", "images": [
    {"filepath": "val2014", "sentids": [0, 1], "filename": "COCO_val2014_000000000042.jpg",
     "imgid": 0, "split": "test", "cocoid": 42,
     "sentences": sentences(0, "A cat on a mat.", " A Cat. ")},
    {"filepath": "train2014", "sentids": [10], "filename": "COCO_train2014_000000000007.jpg",
     "imgid": 1, "split": "train", "cocoid": 7, "sentences": sentences(1, "Two dogs.")},
    {"filepath": "val2014", "sentids": [20], "filename": "COCO_val2014_000000000009.jpg",
     "imgid": 2, "split": "restval", "cocoid": 9, "sentences": sentences(2, "A bus.")}]}
FLICKR = {"dataset": "flickr30k", "images": [
    {"sentids": [0], "imgid": 5, "sentences": sentences(5, "A man."), "split": "train",
     "filename": "1000092795.jpg"}]}


def write(folder, content, name="dataset.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def images(tmp_path):
    for entry in COCO["images"] + FLICKR["images"]:
        file = tmp_path / "images" / entry.get("filepath", "") / entry["filename"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return str(tmp_path / "images")


def test_coco_by_split_with_its_own_ids_and_captions_as_written(tmp_path, images):
    path = write(tmp_path, COCO)
    test, = image_text.read_karpathy(path, images, ("test",))
    assert test == (42, f"{images}/val2014/COCO_val2014_000000000042.jpg",
                    ("A cat on a mat.", " A Cat. "))
    train = image_text.read_karpathy(path, images, ("train", "restval"))
    assert [record.image_id for record in train] == [7, 9]


def test_images_without_captions_are_kept_where_none_are_needed(tmp_path, images):
    path = write(tmp_path, spoil(lambda x: x[1].update(sentences=[])))
    records = image_text.read_karpathy(path, images, ("train",), needs_captions=False)
    assert [(r.image_id, len(r.captions)) for r in records] == [(42, 2), (7, 0), (9, 1)]
    path = write(tmp_path, spoil(lambda x: x[1]["sentences"][0].update(raw="")))
    with pytest.raises(ValueError, match="image 1 .*'' is empty"):  # a defect in any case
        image_text.read_karpathy(path, images, ("train",), needs_captions=False)
    path = write(tmp_path, lines({"image": "1000092795.jpg", "caption": None},
                                 {"image": "val2014/COCO_val2014_000000000009.jpg",
                                  "caption": []}), "pairs.jsonl")
    records = image_text.read_pairs(path, images, needs_captions=False)
    assert [record.captions for record in records] == [(), ()]
    with pytest.raises(ValueError, match=r"image 1000092795.jpg: it has no caption \(2 such"):
        image_text.read_pairs(path, images)


def test_flickr_has_no_folders_and_ids_of_its_own(tmp_path, images):
    record, = image_text.read_karpathy(write(tmp_path, FLICKR), images, ("train",))
    assert record == (5, f"{images}/1000092795.jpg", ("A man.",))


def spoil(change):
    content = copy.deepcopy(COCO)
    for entry in content["images"]:
        entry["split"] = "train"
    change(content["images"])
    return content


DEFECTS = {
    "id_twice": (lambda x: x[2].update(cocoid=7), "image 2 .*its id 7 occurs twice", [42, 7]),
    "file_twice": (lambda x: x[2].update(filename=x[0]["filename"]),
                   "image 2 .*its name .*042.jpg occurs twice", [42, 7]),
    "empty_caption": (lambda x: x[0]["sentences"][1].update(raw=" \n"),
                      "image 0 .*caption ' .n' is empty", [42, 7, 9]),
    "only_empty_ones": (lambda x: x[1]["sentences"][0].update(raw=""), "image 1 .*'' is empty",
                        [42, 9]),
    "no_caption": (lambda x: x[1].update(sentences=[]), "image 1 .*no caption", [42, 9]),
    "no_image": (lambda x: x[1].update(filename="lost.jpg"),
                 "image 1 .*image train2014/lost.jpg is not in", [42, 9]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_line_or_left_out(defect, tmp_path, images):
    change, message, left = DEFECTS[defect]
    path = write(tmp_path, spoil(change))
    with pytest.raises(ValueError, match=f"dataset.json, {message}.*skip_defects=True") as error:
        image_text.read_karpathy(path, images, ("train",))
    assert "\n" not in str(error.value)
    records = image_text.read_karpathy(path, images, ("train",), skip_defects=True)
    assert [record.image_id for record in records] == left
    assert all(caption.strip() for record in records for caption in record.captions)


def test_the_number_of_defects_is_told(tmp_path, images):
    path = write(tmp_path, spoil(lambda x: [e.update(filename="no.jpg", cocoid=3) for e in x[1:]]))
    with pytest.raises(ValueError, match=r"image 1 .*\(2 such defects in all\)"):
        image_text.read_karpathy(path, images, ("train",))


@pytest.mark.parametrize("content, message", [
    ("{", "no JSON at line 1"), ({"annotations": []}, "the top level has no 'images'"),
    ({"images": [{"filename": "a.jpg"}]}, "image 0 has no 'split'"),
    ({"images": [{"split": "dev", "filename": "a.jpg"}]}, "no image of split dev2; it has dev")])
def test_another_layout_is_one_line(content, message, tmp_path, images):
    with pytest.raises(ValueError, match=message):
        image_text.read_karpathy(write(tmp_path, content), images, ("dev2",))


def test_missing_files_are_one_line(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="none.json is no file"):
        image_text.read_karpathy(str(tmp_path / "none.json"), images, ("test",))
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere is no folder"):
        image_text.read_karpathy(write(tmp_path, FLICKR), str(tmp_path / "nowhere"), ("train",))


def lines(*entries):
    return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n\n"


def test_pairs_of_one_image_become_one_record(tmp_path, images):
    name = "1000092795.jpg"
    other = "val2014/COCO_val2014_000000000009.jpg"
    path = write(tmp_path, lines({"image": name, "caption": "A man."},
                                 {"image": other, "caption": ["A bus.", "A\u2028red bus."]},
                                 {"image": name, "caption": "Somebody."}), "pairs.jsonl")
    assert image_text.read_pairs(path, images) == [
        (name, f"{images}/{name}", ("A man.", "Somebody.")),
        (other, f"{images}/{other}", ("A bus.", "A\u2028red bus."))]


@pytest.mark.parametrize("content, message", [
    (lines(*[{"image": "1000092795.jpg", "caption": "A man."}] * 2),
     "line 2: the same pair stands at line 1"),
    (lines({"image": "1000092795.jpg", "caption": ""}), "image 1000092795.jpg: its caption '' is"),
    (lines({"image": "lost.jpg", "caption": "a"}), "image lost.jpg is not in"),
    (lines({"image": "a.jpg"}), "line 1 has no 'caption'"), ("[1]\n", "line 1 is list"),
    ('\n{"image": ', "line 2 is no JSON"), (" \n", "is empty: write")])
def test_broken_pairs_are_one_line(content, message, tmp_path, images):
    with pytest.raises(ValueError, match=message):
        image_text.read_pairs(write(tmp_path, content, "pairs.jsonl"), images)


def test_documents_stand_apart_by_blank_lines(tmp_path):
    path = write(tmp_path, "\n\n One. \nTwo.\n\n \nThree.\n", "text.txt")
    assert image_text.read_documents(path) == [("One.", "Two."), ("Three.",)]


def test_a_text_without_words_or_of_another_coding_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="text.txt is empty"):
        image_text.read_documents(write(tmp_path, " \n\n", "text.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 at byte 3"):
        image_text.read_documents(str(tmp_path / "latin.txt"))
