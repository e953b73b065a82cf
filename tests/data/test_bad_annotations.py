"""Valid JSON that is not what a reader of annotations needs: one line that names file and entry.

Also files as other systems write them: with a byte order mark, with CRLF.
"""

import copy
import json

import pytest
from text_corpora import WORDS

from beit_jax.data import class_lists, image_text, index_files, nlvr2, text_ops, vqa

IMAGES = ("a.jpg", "b.jpg", "a-img0.png", "a-img1.png",
          "val/COCO_val_000000000001.jpg", "val/COCO_val_000000000002.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    (path / "val").mkdir()
    for name in IMAGES:
        (path / name).touch()
    return path


def karpathy(path, images, **kwargs):
    return image_text.read_karpathy(path, images, ("train",), **kwargs)


def questions(path, images, **kwargs):
    """The file holds both: questions and annotations."""
    return vqa.read(path, path, images, ("yes",), **kwargs)


def answers(path, images, **kwargs):
    return vqa.make_answer_list([path], min_count=1, expected=None)


def answer_list(path, images, **kwargs):
    return vqa.read_answer_list(path)


def index(path, images, **kwargs):
    return index_files.read(path, images, **kwargs)[0]


GOOD = {  # reader -> two entries that it reads, and what stands around them in a file
    karpathy: ([{"split": "train", "filename": f"{name}.jpg", "cocoid": i, "sentences": [
        {"raw": f"a {name}"}]} for i, name in enumerate("ab")], "images"),
    image_text.read_pairs: ([{"image": f"{name}.jpg", "caption": f"a {name}"} for name in "ab"],
                            None),
    nlvr2.read: ([{"identifier": f"a-{i}", "sentence": "Two.", "label": "True"} for i in "01"],
                 None),
    questions: ([{"question_id": i, "image_id": i, "question": "Is it?", "answers": [
        {"answer": "yes"}]} for i in (1, 2)], "questions"),
    answers: ([{"question_id": i, "multiple_choice_answer": answer}
               for i, answer in enumerate(("yes", "no"))], "annotations"),
    answer_list: ([{"answer": answer, "label": i} for i, answer in enumerate(("yes", "no"))], None),
    index: ([{"image_path": f"{name}.jpg", "image_id": name, "text_segment": [3, 4]}
             for name in "ab"], None),
}


def write(path, reader, entries):
    around = GOOD[reader][1]
    if around is None:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    else:
        whole = {"data_subtype": "val", around: entries}
        path.write_text(json.dumps(whole | {"annotations": entries}))
    return str(path)


NAN, NESTED = float("nan"), [["a", "b"]]
CASES = [  # reader, change of the second entry, message
    *[(karpathy, {"sentences": [{"raw": raw}]}, f"image 1 .*caption {said} is empty or no text")
      for raw, said in ((5, "5"), (True, "True"), (NAN, "nan"), (NESTED, r"\[\['a', 'b'\]\]"),
                        ({"a": 1}, r"\{'a': 1\}"), (None, "None"), ("\ud800", r".*ud800'"))],
    (karpathy, {"sentences": ["a b"]}, "a sentence of image 1 is 'a b', not an object .* 'raw'"),
    *[(karpathy, {key: value}, f"image 1: '{key}' is .*{said}.*, not a {kind}")
      for key, value, said, kind in (
          ("sentences", None, "None", "list"), ("sentences", {"raw": "a"}, "raw", "list"),
          ("sentences", 5, "5", "list"), ("cocoid", [1], r"\[1\]", "whole number or a name"),
          ("cocoid", NAN, "nan", "whole number or a name"),
          ("cocoid", True, "True", "whole number or a name"),
          ("filename", None, "None", "name"), ("filename", 7, "7", "name"),
          ("filepath", {}, "{}", "text"), ("split", [], r"\[\]", "text"))],
    *[(image_text.read_pairs, {"caption": value}, f"line 2: 'caption' is {said}.*, not a text")
      for value, said in ((5, "5"), (True, "True"), (NAN, "nan"), (NESTED, r"\['a', 'b'\]"),
                          ({"a": "b"}, r"\{'a': 'b'\}"), (["a", 5], "5"))],
    *[(image_text.read_pairs, {"image": value}, "line 2: 'image' is .*, not a name")
      for value in (None, 5, ["b.jpg"], "")],
    (nlvr2.read, {"identifier": None}, "line 2: 'identifier' is None, not a name"),
    (nlvr2.read, {"identifier": ["a-1"]}, "line 2: 'identifier' is .*, not a name"),
    (nlvr2.read, {"sentence": 5}, "line 2: 'sentence' is 5, not a text"),
    (nlvr2.read, {"label": [1]}, r"line 2 \(a-1\): label \[1\] is neither True nor False"),
    (nlvr2.read, {"directory": {}}, "'directory' is {}, not a whole number or a name"),
    *[(questions, {"answers": value}, "annotation of question 2: 'answers' is .*, not a list")
      for value in (None, "yes", {"answer": "yes"}, 3)],
    (questions, {"answers": [{"answer": None}]}, "question 2: 'answer' is None, not a text"),
    (questions, {"answers": ["yes"]}, "question 2 is 'yes', not an object .* with 'answer'"),
    (questions, {"image_id": "abc"}, "question 2: 'image_id' is 'abc', not a number.*pattern"),
    (questions, {"image_id": None}, "questions 1: 'image_id' is None, not a whole number"),
    (questions, {"question_id": [2]}, "1: 'question_id' is .*, not a whole number or a name"),
    (questions, {"question": 5}, "questions 1: 'question' is 5, not a text"),
    (answers, {"multiple_choice_answer": None}, "'multiple_choice_answer' is None, not a text"),
    (answer_list, {"answer": ["no"]}, "line 2: 'answer' is .*, not a text"),
    (answer_list, {"label": None}, "line 2: 'label' is None, not a whole number"),
    (answer_list, {"label": True}, "line 2: 'label' is True, not a whole number"),
    (index, {"image_path": None}, "line 2: 'image_path' is None, not a name"),
    (index, {"image_id": [1]}, r"line 2: 'image_id' is \[1\], not a whole number or a name"),
    *[(index, {"text_segment": value}, "line 2: .*text_segment")
      for value in (5, "a b", {}, [[3]], [True], [3.0], [NAN])],
    *[(index, {"qid": 1, **more}, f"line 2: {said}") for more, said in (
        ({"labels": 5}, "'labels' is 5, not a list"), ({"labels": {"a": 1}}, "'labels' is .*list"),
        ({"labels": [True], "scores": [1.0]}, "label True is none of"),
        ({"labels": [0], "scores": ["1"]}, "score '1' is no number"),
        ({"labels": [0], "scores": [NAN]}, "score nan is no number"))],
    (index, {"image_path": "b.jpg", "label": 2**40}, "label 1099511627776 is no number of a class"),
    (index, {"image_path": "b.jpg", "label": True}, "label True is no number of a class"),
    (index, {"image2_path": [], "identifier": 1}, r"line 2: 'image2_path' is \[\], not a name"),
]


def entries_of(reader, change):
    """The good entries and the changed second one, all of the kind that the change makes it."""
    entries = copy.deepcopy(GOOD[reader][0])
    if "qid" in change:
        entries = [entry | {"qid": i, "labels": [0], "scores": [1.0]}
                   for i, entry in enumerate(entries)]
    if "label" in change and reader is index:
        entries = [{"image_path": "a.jpg", "label": 0}, {}]
    if "image2_path" in change:
        entries = [entry | {"image2_path": "b.jpg", "identifier": i, "label": 1}
                   for i, entry in enumerate(entries)]
    entries[1] |= change
    return entries


@pytest.mark.parametrize("reader, change, message", CASES, ids=lambda value: (
    value.__name__ if callable(value) else str(value)[:40] if isinstance(value, dict) else "is"))
def test_a_wrong_value_is_one_line_with_file_entry_key_and_value(
        reader, change, message, folder, tmp_path):
    path = write(tmp_path / "bad.json", reader, entries_of(reader, change))
    with pytest.raises(ValueError, match=f"bad.json, .*{message}") as error:
        reader(path, str(folder))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert type(error.value) is ValueError or reader in (answers, answer_list)
    if "skip_defects" in str(error.value):
        assert len(reader(path, str(folder), skip_defects=True)) >= 1  # the good one


@pytest.mark.parametrize("reader", GOOD, ids=lambda reader: reader.__name__)
def test_a_torn_file_and_odd_ones_name_the_file(reader, folder, tmp_path):
    """Cut in the middle; an array without end; a number too long for Python; no object."""
    text = write(tmp_path / "bad.json", reader, GOOD[reader][0])
    whole = (tmp_path / "bad.json").read_text()
    for content in (whole[:len(whole) * 2 // 3], "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "5",
                    "[]", "null", '"a"', '{"images": 5, "questions": {}, "annotations": "a"}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="bad.json") as error:
            reader(text, str(folder))
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("reader", GOOD, ids=lambda reader: reader.__name__)
def test_a_byte_order_mark_and_crlf_change_nothing(reader, folder, tmp_path):
    path = write(tmp_path / "file.json", reader, GOOD[reader][0])
    plain = reader(path, str(folder))
    assert len(plain) == 2 if reader is not questions else len(plain) > 0
    text = (tmp_path / "file.json").read_text().replace("\n", "\r\n")
    (tmp_path / "file.json").write_bytes(text.encode("utf-8-sig"))
    assert reader(path, str(folder)) == plain


def test_plain_text_with_a_byte_order_mark_too(tmp_path):
    path = tmp_path / "file.txt"
    text = "dog\r\nant\r\n\r\ncat"
    path.write_bytes(text.encode("utf-8-sig"))
    assert image_text.read_documents(str(path)) == [("dog", "ant"), ("cat",)]
    assert class_lists.read(str(path)) == ("ant", "cat", "dog")
    words = "\r\n".join(" ".join(WORDS) for _ in range(20))
    models = []
    for coding in ("utf-8", "utf-8-sig"):
        path.write_bytes(words.encode(coding))
        models.append(text_ops.train([str(path)], 60, kind="bpe"))
    assert models[0] == models[1]
