"""Published layouts of captions, questions and statements, from files to batches."""

import dataclasses
import json

import index_corpora
import numpy as np
import pytest
from text_corpora import (
    BASE,
    SPLITS,
    WORDS,
    assert_resumes_and_splits,
    captions_of,
    is_filler,
    picture_of,
    pixel,
    take,
    write_image,
    write_json,
    write_lines,
)

from beit_jax.data import pipeline
from beit_jax.data.options import DataOptions
from beit_jax.data.source import MissingSplit
from beit_jax.options import build


@pytest.fixture
def make(tmp_path, tokenizer_path):
    """make(**keys of config.data) -> DataOptions; images lie below images/."""
    def options(**keys):
        return DataOptions(**(BASE | dict(path=str(tmp_path / "images"), tokenizer=tokenizer_path,
                                          global_batch_size=2) | keys))
    return options


def coco(folder, sizes=(16,)):
    """dataset_coco.json and its images."""
    images = []
    for number, split in enumerate(SPLITS):
        part = "val2014" if split != "train" else "train2014"
        name = f"COCO_{part}_{number:012d}.jpg"
        write_image(folder / "images" / part / name, number, sizes[number % len(sizes)])
        images.append({"filepath": part, "filename": name, "imgid": number, "split": split,
                       "cocoid": 100 + number, "sentids": [], "sentences": [
                           {"raw": text, "tokens": text.split(), "imgid": number, "sentid": 0}
                           for text in captions_of(number)]})
    return write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})


def flickr(folder):
    images = []
    for number, split in enumerate(SPLITS):
        split = split.replace("restval", "train")
        write_image(folder / "images" / f"{1000 + number}.jpg", number)
        images.append({"filename": f"{1000 + number}.jpg", "imgid": number, "split": split,
                       "sentids": [], "sentences": [{"raw": text} for text in captions_of(number)]})
    return write_json(folder / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})


def pairs(folder):
    """train.jsonl and val.jsonl; the second caption of an image stands on a line of its own."""
    for split in ("train", "val"):
        lines = []
        for number, of in enumerate(SPLITS):
            if of.replace("restval", "train") == split:
                write_image(folder / "images" / f"{number}.png", number)
                lines += [{"image": f"{number}.png", "caption": c} for c in captions_of(number)]
        write_lines(folder / f"{split}.jsonl", lines)
    return str(folder / "{split}.jsonl")


CAPTION_FILES = {"coco": ("karpathy", coco, "train+restval", 100),
                 "flickr": ("karpathy", flickr, "train", 0),
                 "pairs": ("pairs", pairs, "train", 0),
                 "index": ("index", index_corpora.captions, "train", 0)}


@pytest.fixture(params=CAPTION_FILES)
def captioned(request, make, tmp_path):
    name, write, train_split, first_id = CAPTION_FILES[request.param]
    return make(name=name, annotations=write(tmp_path), train_split=train_split,
                eval_split="val"), first_id


def decode(info, rows):
    return [info.tokenizer.decode(row) for row in rows]


def test_an_image_shows_one_of_its_own_captions_drawn_anew(captioned):
    options, _ = captioned
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.vocab_size) == (3, 3, 90)
    tokens = pipeline.split_info(options, "train")
    seen = set()
    for batch in take(pipeline.train_batches(options, seed=0), 24):
        assert batch["text"].shape == (2, 8) and batch["label"].tolist() == [-1, -1]
        for number, text in zip(picture_of(batch["image"]), decode(tokens, batch["text"]),
                                strict=True):
            seen.add((number, text))
    assert seen == {(n, text) for n in range(3) for text in captions_of(n)}


def test_every_caption_is_an_example_where_each_is_asked_for(captioned):
    options = dataclasses.replace(captioned[0], captions="each")
    assert pipeline.describe(options).num_train == 6
    tokens = pipeline.split_info(options, "train")
    shown = [pair for batch in take(pipeline.train_batches(options, seed=0), 3)
             for pair in zip(picture_of(batch["image"]).tolist(), decode(tokens, batch["text"]),
                             strict=True)]
    assert sorted(shown) == sorted((n, text) for n in range(3) for text in captions_of(n))


def test_evaluation_shows_all_captions_of_an_image_and_its_record(captioned):
    options, first_id = captioned
    info = pipeline.split_info(options)
    first, last = pipeline.eval_batches(options)
    assert first["text"].shape == first["text_is_valid"].shape == (2, 3, 8)
    assert first["text_is_valid"].any(-1).tolist() == [[True, False, False], [True, True, False]]
    for number, rows, index in zip(picture_of(first["image"]), first["text"], first["index"],
                                   strict=True):
        said = [text.strip() for text in info.records[index].captions]
        assert decode(info, rows)[:len(said)] == said == captions_of(number)
    if first_id:
        assert [record.image_id for record in info.records] == [103, 104, 105]
    assert last["is_example"].tolist() == [True, False]
    assert is_filler({key: rows[1:] for key, rows in last.items()})
    limited = pipeline.split_info(options, "validation", limit=2)
    assert [r.image_id for r in limited.records] == [info.records[i].image_id for i in (0, 1)]


@pytest.mark.parametrize("captions", ["drawn", "each"])
def test_captions_resume_on_any_number_of_processes(captioned, captions):
    assert_resumes_and_splits(dataclasses.replace(captioned[0], captions=captions, flip=0.5,
                                                  crop="resized"))


def test_large_images_are_read_one_by_one(make, tmp_path):
    options = make(name="karpathy", annotations=coco(tmp_path, sizes=(100, 110)), crop="resized",
                   train_split="train", eval_split="val", captions="each")
    assert pipeline.load(options, "train").read is not None
    batches = assert_resumes_and_splits(options)
    tokens = pipeline.split_info(options, "train")
    for batch in batches:
        for number, text in zip(picture_of(batch["image"]), decode(tokens, batch["text"]),
                                strict=True):
            assert text in captions_of(number)


def test_a_split_that_is_not_there_is_no_evaluation_unless_it_was_asked_for(make, tmp_path):
    options = make(name="karpathy", annotations=coco(tmp_path), eval_split="validation")
    assert pipeline.describe(options).num_eval == 0
    options = make(name="karpathy", annotations=coco(tmp_path), eval_split="dev")
    for use in (pipeline.describe, pipeline.eval_batches):
        with pytest.raises(MissingSplit, match="no image of split dev; it has restval, test"):
            use(options)
    options = make(name="pairs", annotations=pairs(tmp_path).replace("{split}", "train"))
    assert pipeline.describe(options).num_eval == 0
    with pytest.raises(MissingSplit, match="has no split 'validation': write {split}"):
        pipeline.eval_batches(options)
    options = make(name="pairs", annotations=pairs(tmp_path), train_split="dev")
    with pytest.raises(FileNotFoundError, match=r"config.data.annotations=.*dev.jsonl is no file"):
        pipeline.describe(options)


def change_coco(folder, change):
    path = folder / "dataset_coco.json"
    content = json.loads(path.read_text())
    change(content["images"])
    write_json(path, content)


DEFECTS = {
    "same_id": (lambda f: change_coco(f, lambda i: i[2].update(cocoid=100)), "id 100 occurs twice"),
    "empty": (lambda f: change_coco(f, lambda i: i[2]["sentences"][0].update(raw=" ")) or
              change_coco(f, lambda i: i[2].update(sentences=i[2]["sentences"][:1])), "is empty"),
    "missing": (lambda f: (f / "images/train2014/COCO_train2014_000000000002.jpg").unlink(),
                "image train2014/COCO_train2014_000000000002.jpg is not in"),
    "broken": (lambda f: (f / "images/train2014/COCO_train2014_000000000002.jpg").write_bytes(
        b"GIF"), "COCO_train2014_000000000002.jpg is broken .not an image"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_one_line_or_left_out(defect, make, tmp_path):
    spoil, message = DEFECTS[defect]
    options = make(name="karpathy", annotations=coco(tmp_path), train_split="train+restval")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=f"dataset_coco.json, .*{message}.*skip_defects") as error:
        pipeline.describe(options)
    assert "\n" not in str(error.value)
    options = dataclasses.replace(options, skip_defects=True)
    assert pipeline.describe(options).num_train == 2
    batch = next(pipeline.train_batches(options, seed=0))
    assert set(picture_of(batch["image"])) == {0, 1}


@pytest.mark.parametrize(("changes", "message"), [
    (dict(annotations=""), "name='karpathy' needs config.data.annotations"),
    (dict(tokenizer=""), "needs config.data.tokenizer"),
    (dict(text_length=0), "needs config.data.text_length"), (dict(path=""), "config.data.path")])
def test_what_a_source_needs_is_one_line(changes, message, make, tmp_path):
    with pytest.raises(ValueError, match=message):
        pipeline.describe(make(**(dict(name="karpathy", annotations=coco(tmp_path)) | changes)))


def test_documents_are_texts_without_images(make, tmp_path):
    (tmp_path / "train.txt").write_text("red cat\nblue dog\nthe bus is left\n\ngreen bus\n\ndog\n")
    (tmp_path / "val.txt").write_text("what is red\n\nmany\n\nleft\n")
    options = make(name="documents", annotations=str(tmp_path / "{split}.txt"), path="",
                   eval_split="val")
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.num_classes) == (4, 3, 0)
    whole = assert_resumes_and_splits(options)
    assert whole[0].keys() == {"text", "text_is_valid", "label", "index", "is_example"}
    tokens = pipeline.split_info(options, "train")
    assert {text for batch in whole[:2] for text in decode(tokens, batch["text"])} == {
        "red cat blue dog", "the bus is left", "green bus", "dog"}
    *_, last = pipeline.eval_batches(options)
    assert decode(tokens, last["text"]) == ["left", ""] and last["label"].tolist() == [-1, -1]


def vqa(folder):
    """Questions and annotations of train2014 and val2014, questions of test2015."""
    asked = {"train2014": [(0, "red"), (1, "blue"), (1, "red"), (2, "green")],
             "val2014": [(3, "red"), (4, "blue"), (4, "zebra"), (5, "red")],
             "test2015": [(6, None), (6, None)]}
    for part, entries in asked.items():
        numbers = [1000 * image + i for i, (image, _) in enumerate(entries)]
        for image, _ in entries:
            write_image(folder / "images" / part / f"COCO_{part}_{image:012d}.jpg", image)
        write_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {
            "data_subtype": part, "questions": [
                {"question_id": number, "image_id": image, "question": f"what is {answer}"}
                for number, (image, answer) in zip(numbers, entries, strict=True)]})
        if part == "test2015":
            continue
        write_json(folder / f"v2_mscoco_{part}_annotations.json", {"annotations": [
            {"question_id": number, "image_id": image, "multiple_choice_answer": answer,
             "answers": [{"answer": said, "answer_id": 1}
                         for said in [answer] * 7 + ["blue"] * 2 + ["many"]]}
            for number, (image, answer) in zip(numbers, entries, strict=True)]})
    return dict(questions=str(folder / "v2_OpenEnded_mscoco_{split}_questions.json"),
                annotations=str(folder / "v2_mscoco_{split}_annotations.json"))


@pytest.fixture
def asked(make, tmp_path):
    return make(name="vqa", **vqa(tmp_path), train_split="train2014", eval_split="val2014",
                answers_min_count=1)


def test_questions_come_with_soft_scores_of_listed_answers(asked):
    info = pipeline.describe(asked)
    assert info.class_names == ("red", "blue", "green") and info.num_classes == 3
    assert (info.num_train, info.num_eval) == (4, 4)
    whole = assert_resumes_and_splits(asked)
    records = pipeline.split_info(asked, "train").records
    for batch in whole:
        assert batch["answer_labels"].dtype == np.int32 and batch["text"].shape == (2, 8)
        assert batch["answer_scores"].dtype == np.float32
        for row, index in enumerate(batch["index"]):
            pixels, record = batch["image"][row], records[index]
            assert f"{picture_of(pixels[None])[0]:012d}" in record.image
            scores = dict(zip(batch["answer_labels"][row], batch["answer_scores"][row],
                              strict=True))
            scores.pop(-1, None)
            assert scores == pytest.approx(dict(zip(record.labels, record.scores, strict=True)))
            assert info.class_names[batch["label"][row]] == record.question.split()[-1]


def test_an_answer_outside_the_list_is_kept_for_evaluation_alone(asked):
    records = pipeline.split_info(asked).records
    assert [record.answers[0] for record in records] == ["red", "blue", "zebra", "red"]
    first, last = pipeline.eval_batches(asked)
    assert first["label"].tolist() == [0, 1] and last["label"].tolist() == [1, 0]  # two said blue
    swapped = dataclasses.replace(asked, train_split="val2014", answers_min_count=2)
    assert pipeline.describe(swapped).class_names == ("red",)
    assert pipeline.describe(swapped).num_train == 2
    filler = list(pipeline.eval_batches(dataclasses.replace(asked, eval_batch_size=6)))[0]
    assert (filler["answer_labels"][4:] == -1).all() and (filler["answer_scores"][4:] == 0).all()
    assert is_filler({key: rows[4:] for key, rows in filler.items()})


def test_test_questions_need_no_annotations_and_a_list_may_be_given(asked, tmp_path):
    answers = write_lines(tmp_path / "answer2label.txt", [
        {"answer": a, "label": i} for i, a in enumerate(("zebra", "red", "many"))])
    options = dataclasses.replace(asked, eval_split="test2015", answers=answers)
    info = pipeline.describe(options)
    assert info.class_names == ("zebra", "red", "many") and info.num_eval == 2
    batch, = pipeline.eval_batches(options)
    assert batch["label"].tolist() == [-1, -1] and (batch["answer_labels"] == -1).all()
    with pytest.raises(FileNotFoundError, match="answers.txt is no file"):
        pipeline.describe(dataclasses.replace(asked, answers=str(tmp_path / "answers.txt")))


def test_questions_of_ones_own_with_capitals_and_names_for_images(make, tmp_path, caplog):
    said = ["yes", "No", "Red bird", "Two"]
    for number in range(4):
        write_image(tmp_path / "images" / "mine" / f"shot_{number}.png", number)
    write_json(tmp_path / "q_mine.json", {"questions": [  # without a data_subtype
        {"question_id": f"q{i}", "image_id": f"shot_{i}", "question": "what is"}
        for i in range(4)]})
    write_json(tmp_path / "a_mine.json", {"annotations": [
        {"question_id": f"q{i}", "multiple_choice_answer": a, "answers": [{"answer": a}]}
        for i, a in enumerate(said)]})
    options = make(name="vqa", questions=str(tmp_path / "q_{split}.json"),
                   annotations=str(tmp_path / "a_{split}.json"), train_split="mine",
                   eval_split="mine", answers_min_count=1, image_pattern="{split}/{id}.png")
    caplog.set_level("INFO", logger="beit_jax")
    info = pipeline.describe(options)
    assert (info.num_train, info.class_names) == (4, ("yes", "no", "red bird", "2"))
    assert "answers count in normal form" in caplog.text
    batch = next(pipeline.eval_batches(dataclasses.replace(options, eval_batch_size=4)))
    np.testing.assert_array_equal(batch["answer_labels"], np.arange(4)[:, None])
    np.testing.assert_array_equal(batch["answer_scores"], np.ones((4, 1)))  # of the one asked
    written = dataclasses.replace(options, answer_matching="written")
    assert pipeline.describe(written).num_train == 1  # as the original would: "yes" alone
    with pytest.raises(ValueError, match="data.answer_matching='loose' is none of auto"):
        build(DataOptions, vars(options) | {"answer_matching": "loose"}, "config.data")
    with pytest.raises(ValueError, match="q_mine.json, question q0: 'image_id' is 'shot_0'"):
        pipeline.describe(dataclasses.replace(
            options, image_pattern="{split}/COCO_{id:012d}.png"))


def test_held_out_images_are_those_of_the_last_training_split_and_never_trained_on(asked):
    options = dataclasses.replace(asked, train_split="train2014+val2014", eval_split="holdout",
                                  holdout_images=1)
    train, held = (pipeline.split_info(options, split).records
                   for split in ("train", "validation"))
    assert len({record.image for record in held}) == 1 and "val2014" in held[0].image
    assert not {record.image for record in held} & {record.image for record in train}
    assert len(train) + len(held) == 8 and pipeline.describe(options).num_eval == len(held)
    with pytest.raises(ValueError, match="holdout_images=3 leaves nothing of val2014"):
        pipeline.describe(dataclasses.replace(options, holdout_images=3))
    with pytest.raises(MissingSplit, match="needs config.data.holdout_images"):
        pipeline.split_info(dataclasses.replace(options, holdout_images=0))


def nlvr2(folder, size=16):
    """train.json, whose images lie in numbered folders, and dev.json."""
    for split, sets in (("train", 3), ("dev", 3)):
        lines = []
        for number in range(sets):
            inside = f"{number}/" if split == "train" else ""
            for side in (0, 1):
                write_image(folder / "images" / split / inside
                            / f"{split}-{number}-0-img{side}.png", 2 * number + side, size)
            extra = {"directory": number} if split == "train" else {}
            lines += [{"identifier": f"{split}-{number}-0-{i}", "sentence": f"{WORDS[number]} dog",
                       "label": label} | extra for i, label in enumerate(("True", "False"))]
        write_lines(folder / f"{split}.json", lines)
    return dict(annotations=str(folder / "{split}.json"), path=str(folder / "images/{split}"))


@pytest.mark.parametrize(("size", "kind"), [
    (16, dict()), (104, dict()), (16, dict(crop="resized", flip=0.5, target_px=8)),
    # four graphs with thirty-odd branches each
    pytest.param(16, dict(crop="resized", randaugment="rand-m9-mstd0.5-inc1"),
                 marks=pytest.mark.slow)],
    ids=["in_memory", "singly", "two_views", "randaugment"])
def test_a_statement_keeps_its_two_images(make, tmp_path, size, kind):
    options = make(name="nlvr2", **nlvr2(tmp_path, size), eval_split="dev", **kind)
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.class_names) == (6, 6, ("False", "True"))
    whole = assert_resumes_and_splits(options)
    records = pipeline.split_info(options, "train").records
    for batch in whole:
        assert batch["image"].shape == (2, 2, 16, 16, 3) and batch["text"].shape == (2, 8)
        assert batch["label"].tolist() == [records[i].label for i in batch["index"]]
        for row, index in enumerate(batch["index"]):
            number = int(records[index].identifier.split("-")[1])
            if "randaugment" not in kind:
                assert picture_of(batch["image"][row]).tolist() == [2 * number, 2 * number + 1]
            if "target_px" in kind:
                view = batch["image_for_target"][row]
                assert view.shape == (2, 8, 8, 3) and view[1, 0, 0, 0] == pixel(2 * number + 1)
    first = next(pipeline.eval_batches(options))
    assert picture_of(first["image"][0]).tolist() == [0, 1]


def test_the_two_images_are_augmented_independently(make, tmp_path):
    options = make(name="nlvr2", **nlvr2(tmp_path), eval_split="dev", color_jitter=0.4)
    batch = assert_resumes_and_splits(options)[0]
    records = pipeline.split_info(options, "train").records
    number = np.array([int(records[i].identifier.split("-")[1]) for i in batch["index"]])
    stored = pixel(2 * number[:, None] + np.arange(2))
    brightness = batch["image"].astype(float).mean((2, 3, 4)) / stored
    assert (np.abs(brightness[:, 0] - brightness[:, 1]) > 0.05).all()


def test_the_digest_follows_the_texts(make, tmp_path):
    pairs(tmp_path)
    train, val = ((tmp_path / f"{split}.jsonl").read_text() for split in ("train", "val"))
    digests = []
    for i, lines in enumerate((train, train, train.replace("cat", "dog"))):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "train.jsonl").write_text(lines)
        (folder / "val.jsonl").write_text(val)
        digests.append(pipeline.describe(make(
            name="pairs", annotations=str(folder / "{split}.jsonl"), eval_split="val")).digest)
    assert digests[0] == digests[1] != digests[2]
