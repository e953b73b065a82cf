"""Index files of the released programs, from lines to batches; images that nobody described."""

import dataclasses
import json

import index_corpora
import numpy as np
import pytest
from text_corpora import (
    BASE,
    WORDS,
    assert_equal,
    assert_resumes_and_splits,
    captions_of,
    picture_of,
    take,
    tokenizer,
    write_json,
    write_lines,
)

from beit_jax.data import index_files, nlvr2, pipeline
from beit_jax.data.options import DataOptions


@pytest.fixture
def make(tmp_path):
    """make(**keys of config.data) -> DataOptions without a tokenizer; images lie below images/."""
    def options(**keys):
        return DataOptions(**(BASE | dict(name="index", path=str(tmp_path / "images"),
                                          global_batch_size=2) | keys))
    return options


def decode(rows):
    return [tokenizer().decode(row) for row in rows]


def test_ids_need_no_tokenizer_and_one_adds_words_to_the_records(make, tmp_path, tokenizer_path):
    bare = make(annotations=index_corpora.captions(tmp_path), eval_split="val")
    told = dataclasses.replace(bare, tokenizer=tokenizer_path)
    assert pipeline.describe(bare).vocab_size == 64_010  # the released table
    assert pipeline.describe(told).vocab_size == 90
    assert_equal(list(pipeline.eval_batches(bare)), list(pipeline.eval_batches(told)))
    assert_equal(take(pipeline.train_batches(bare, seed=0), 3),
                 take(pipeline.train_batches(told, seed=0), 3))
    bare, told = pipeline.split_info(bare), pipeline.split_info(told)
    assert bare.tokenizer is None and told.tokenizer.mask_id == tokenizer().mask_id
    assert [record.captions for record in told.records] == [
        tuple(captions_of(number)) for number in (3, 4, 5)]
    assert [record.captions for record in bare.records] == [("",), ("",) * 2, ("",) * 3]
    assert [record.image_id for record in bare.records] == [0, 1, 2]


def test_questions_come_with_the_scores_that_stand_there(make, tmp_path, tokenizer_path):
    options = make(**index_corpora.questions(tmp_path), tokenizer=tokenizer_path)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.class_names) == (4, 3, index_corpora.ANSWERS)
    whole = assert_resumes_and_splits(options)
    assert whole[0]["answer_labels"].shape == (2, 2) and whole[0]["text"].shape == (2, 8)
    first, last = pipeline.eval_batches(options)
    assert first["answer_labels"].tolist() == [[0, 1], [1, -1]]
    np.testing.assert_array_equal(first["answer_scores"], np.float32([[1, 0.3], [1, 0]]))
    assert first["label"].tolist() == [0, 1] and last["label"].tolist() == [2, -1]
    assert picture_of(first["image"]).tolist() == [3, 4]
    assert decode(first["text"]) == ["what is red", "what is green"]
    records = pipeline.split_info(options).records
    assert [record.question_id for record in records] == [3000, 4001, 4002]
    assert records[1].question == "what is green" and records[1].answers == ()


@pytest.mark.parametrize("split", ["test", "test-dev"])
def test_test_questions_have_no_answers_empty_or_left_out(make, tmp_path, split):
    options = make(**index_corpora.questions(tmp_path) | dict(eval_split=split))
    batch = next(pipeline.eval_batches(options))
    assert (batch["answer_labels"] == -1).all() and (batch["label"] == -1).all()
    assert (batch["answer_scores"] == 0).all()


def test_statements_show_their_images_in_order(make, tmp_path, tokenizer_path):
    options = make(**index_corpora.statements(tmp_path), tokenizer=tokenizer_path)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.class_names) == (6, 6, nlvr2.CLASS_NAMES)
    records = pipeline.split_info(options, "train").records
    for batch in assert_resumes_and_splits(options):
        for row, index in enumerate(batch["index"]):
            _, number, _, label = records[index].identifier.split("-")
            assert picture_of(batch["image"][row]).tolist() == [2 * int(number),
                                                                2 * int(number) + 1]
            assert batch["label"][row] == int(label)
            assert decode(batch["text"][row:row + 1]) == [f"{WORDS[int(number)]} dog"]


def test_labelled_images_have_the_classes_of_training(make, tmp_path):
    options = make(**index_corpora.labels(tmp_path), text_length=0)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.num_classes, info.vocab_size) == (6, 2, 3, 0)
    for batch in assert_resumes_and_splits(options):
        assert batch.keys() == {"image", "label", "index", "is_example"}
        np.testing.assert_array_equal(picture_of(batch["image"]) % 3, batch["label"])
    assert next(pipeline.eval_batches(options))["label"].tolist() == [1, 1]
    write_lines(tmp_path / "imagenet.test.index.jsonl",
                [{"image_path": "val/n01/4.png", "label": 3}])
    options = dataclasses.replace(options, eval_split="test")
    with pytest.raises(ValueError, match=r"test.index.jsonl, line 1: label 3 is no .*, 0 to 2"):
        pipeline.eval_batches(options)


def test_texts_that_are_too_long_are_cut_and_logged(make, tmp_path, caplog):
    options = make(annotations=index_corpora.captions(tmp_path), eval_split="val", text_length=4)
    with caplog.at_level("INFO"):
        batch = next(pipeline.eval_batches(options))
    assert "are longer than config.data.text_length=4 and are cut" in caplog.text
    assert decode(batch["text"][1]) == ["dog cat", "the dog", ""]  # of "the dog dog", and none


def captions_without(folder, described):
    """The same data in the layout of index files, of pairs and of Karpathy: (keys, ids)."""
    annotations = index_corpora.captions(folder, described)
    entries, lines = [], {}
    for split in ("train", "val"):
        file = folder / f"coco_retrieval.{split}.jsonl"
        images = {}
        for entry in map(json.loads, file.read_text().splitlines()):
            said = entry["text_segment"]
            images.setdefault(entry["image_path"], []).extend(
                [] if said is None else [tokenizer().decode(said)])
        lines[split] = [{"image": name, "caption": said} for name, said in images.items()]
        entries += [{"filename": name, "imgid": name, "split": split,
                     "sentences": [{"raw": text} for text in said]}
                    for name, said in images.items()]
        write_lines(folder / f"pairs.{split}.jsonl", lines[split])
    return {"index": dict(annotations=annotations),
            "pairs": dict(name="pairs", annotations=str(folder / "pairs.{split}.jsonl")),
            "karpathy": dict(name="karpathy", annotations=write_json(folder / "dataset.json",
                                                                     {"images": entries}))}


@pytest.mark.parametrize("layout", ["index", "pairs", "karpathy"])
def test_images_without_captions_are_for_evaluation_alone(
        make, tmp_path, tokenizer_path, layout):
    keys = captions_without(tmp_path, described=("train",))[layout]
    options = make(**keys, tokenizer=tokenizer_path, eval_split="val")
    assert pipeline.describe(options).num_eval == 3
    assert_resumes_and_splits(options)
    batches = list(pipeline.eval_batches(options))
    assert [batch["text"].shape for batch in batches] == [(2, 1, 8)] * 2
    assert not batches[0]["text_is_valid"].any() and picture_of(batches[0]["image"])[1] == 4
    assert [record.captions for record in pipeline.split_info(options).records] == [()] * 3
    assert next(pipeline.eval_batches(options, limit=2))["text"].shape == (2, 1, 8)

    options = dataclasses.replace(options, train_split="val", eval_split="train")
    with pytest.raises(ValueError, match="it has no caption.*3 such defects.*skip_") as error:
        pipeline.describe(options)
    assert "\n" not in str(error.value)
    assert next(pipeline.eval_batches(options))["text_is_valid"].any()


def test_some_images_without_captions_stand_among_others(make, tmp_path, tokenizer_path):
    options = make(annotations=index_corpora.captions(tmp_path), eval_split="val",
                   tokenizer=tokenizer_path)
    path = tmp_path / "coco_retrieval.val.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    kept[0]["text_segment"] = None
    write_lines(path, kept)
    first, _ = pipeline.eval_batches(options)
    assert first["text_is_valid"].any(-1).tolist() == [[False] * 3, [True, True, False]]
    options = dataclasses.replace(options, train_split="val", skip_defects=True, captions="each")
    assert pipeline.describe(options).num_train == 5  # captions of the other two images


GOOD = {  # kind -> three lines
    "captions": [{"image_path": f"{i}.png", "text_segment": [4, 3, 64_000], "image_id": i}
                 for i in range(3)],
    "questions": [{"image_path": f"{i}.png", "text_segment": [4], "qid": i, "labels": [0, 1],
                   "scores": [0.3, 1.0]} for i in range(3)],
    "statements": [{"image_path": f"{i}.png", "image2_path": "0.png", "text_segment": [4],
                    "label": i % 2, "identifier": f"dev-{i}"} for i in range(3)],
    "labels": [{"image_path": f"{i}.png", "label": i} for i in range(3)],
}


def write(folder, kind, **changes):
    """The lines of one kind, the second one changed."""
    for number in range(3):
        (folder / f"{number}.png").touch()
    lines = [dict(line) for line in GOOD[kind]]
    lines[1].update(changes)
    return write_lines(folder / "a.jsonl", lines), str(folder)


@pytest.mark.parametrize("kind", GOOD)
def test_lines_become_records_and_ids(kind, tmp_path):
    path, folder = write(tmp_path, kind)
    assert index_files.kind_of(path) == kind
    records, ids = index_files.read(path, folder, num_labels=3)
    assert len(records) == 3
    assert ids[1] == {"captions": [[4, 3, 64_000]], "labels": []}.get(kind, [[4]])
    assert records[1] == {
        "captions": (1, f"{folder}/1.png", ("",)),
        "questions": (1, f"{folder}/1.png", "", (), (0, 1), (0.3, 1.0)),
        "statements": ("dev-1", f"{folder}/1.png", f"{folder}/0.png", "", 1),
        "labels": (f"{folder}/1.png", 1)}[kind]


def test_the_same_words_of_two_lines_are_two_captions(tmp_path):
    path, folder = write(tmp_path, "captions", image_path="0.png", image_id=0)
    records, ids = index_files.read(path, folder)
    assert [record.image_id for record in records] == [0, 2]
    assert ids == [[[4, 3, 64_000]] * 2, [[4, 3, 64_000]]]


DEFECTS = [
    ("captions", dict(text_segment=[4, 64_001]), "token 64001 of text_segment is no .* 3 to 64000"),
    ("captions", dict(text_segment=[0, 4, 2]), "token 0 of text_segment .*<s> and </s> do not"),
    ("captions", dict(text_segment=["4"]), "token '4' of text_segment is no piece"),
    ("captions", dict(text_segment="a cat"), "text_segment 'a cat' is no list of token ids"),
    ("captions", dict(text_segment=[]), r"text_segment \[\] is no list of token ids"),
    ("captions", dict(text_segment=None), "it has no caption"),
    ("captions", dict(image_id=0), "image_id 0 or image 1.png stands with another one before"),
    ("captions", dict(image_path="0.png"), "image_id 1 or image 0.png stands with another one"),
    ("captions", dict(image_path="9.png"), "image 9.png is not in"),
    ("questions", dict(qid=0), "qid 0 occurs twice"),
    ("questions", dict(scores=[1.0]), "2 labels with 1 scores"),
    ("questions", dict(labels=[0, 3]), "label 3 is none of the 3 answers"),
    ("questions", dict(labels=[], scores=[]), "it has no answers"),
    ("questions", dict(text_segment=None), "text_segment None is no list"),
    ("questions", dict(image_path="9.png"), "image 9.png is not in"),
    ("statements", dict(identifier="dev-0"), "identifier dev-0 occurs twice"),
    ("statements", dict(label="True"), "label 'True' is neither 0 nor 1"),
    ("statements", dict(image2_path="9.png"), "image 9.png is not in"),
    ("labels", dict(label=3), "label 3 is no number of a class, 0 to 2"),
    ("labels", dict(label="n01"), "label 'n01' is no number of a class"),
    ("labels", dict(image_path="9.png"), "image 9.png is not in"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), DEFECTS)
def test_a_defect_is_one_line_that_names_its_own_or_left_out(kind, changes, message, tmp_path):
    path, folder = write(tmp_path, kind, **changes)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {message}.*skip_defects") as error:
        index_files.read(path, folder, num_labels=3)
    assert "\n" not in str(error.value) and "such defects" not in str(error.value)
    records, ids = index_files.read(path, folder, num_labels=3, skip_defects=True)
    assert len(records) == len(ids) == 2


def test_a_missing_key_an_empty_file_and_another_layout_are_one_line(tmp_path):
    for kind, lines in GOOD.items():
        for key in lines[0].keys() - {"labels", "scores"}:
            changed = lines[:2] + [{k: v for k, v in lines[2].items() if k != key}]
            path, folder = write(tmp_path, kind)
            write_lines(tmp_path / "a.jsonl", changed)
            if (kind, key) == ("statements", "label"):  # of a test split
                assert index_files.read(path, folder)[0][2].label == -1
                continue
            with pytest.raises(ValueError, match=f"a.jsonl, line 3 has no '{key}'"):
                index_files.read(path, folder)
    path = write_lines(tmp_path / "b.jsonl", [])
    with pytest.raises(ValueError, match="b.jsonl is empty: it holds one JSON object a line"):
        index_files.read(path, folder)
    path = write_lines(tmp_path / "b.jsonl", [{"image": "a.png", "caption": "a"}])
    with pytest.raises(ValueError, match="b.jsonl, line 1 has none of image2_path, qid, text_seg"):
        index_files.read(path, folder)


def test_files_of_several_kinds_and_keys_without_effect_are_one_line(make, tmp_path):
    keys = index_corpora.questions(tmp_path)
    for changes, message in (
            (dict(answers=""), "name='index' needs config.data.answers"),
            (dict(holdout_images=9), "holdout_images=9 has no effect on an index file of quest"),
            (dict(questions="q.json"), "questions='q.json' has no effect .*: set it to ''"),
            (dict(text_length=0), "needs config.data.text_length"),
            (dict(path=""), "needs config.data.path")):
        with pytest.raises(ValueError, match=message) as error:
            pipeline.describe(make(**keys | changes))
        assert "\n" not in str(error.value)
    captions = make(annotations=index_corpora.captions(tmp_path), answers=keys["answers"])
    with pytest.raises(ValueError, match="answers='.*answer2label.txt' has no effect"):
        pipeline.describe(captions)
    (tmp_path / "vqa.other.jsonl").write_text((tmp_path / "coco_retrieval.train.jsonl").read_text())
    with pytest.raises(ValueError, match="vqa.train.jsonl questions, .*vqa.other.jsonl captions"):
        pipeline.describe(make(**keys | dict(train_split="train+other")))


def test_a_broken_image_is_one_line_that_names_it(make, tmp_path):
    options = make(annotations=index_corpora.captions(tmp_path), eval_split="val")
    (tmp_path / "images/train2014/1.png").write_bytes(b"GIF")
    with pytest.raises(ValueError, match="coco_retrieval.train.jsonl, image .*1.png is broken"):
        pipeline.describe(options)
    options = dataclasses.replace(options, skip_defects=True)
    assert pipeline.describe(options).num_train == 2
