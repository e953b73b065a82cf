"""The sentences of digit scenes as examples: captions, questions, statements, texts alone."""

import os

import numpy as np
import pytest
from text_corpora import assert_resumes_and_splits, take

from beit_jax import token_ids, vqa_metrics
from beit_jax.data import digit_scenes, digit_scenes_builder, digit_scenes_text, pipeline

TRAIN, VALIDATION = 30, 7


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes_builder, "SIZES", {
            name: (TRAIN, VALIDATION) for name in digit_scenes.CONFIGS})
        digit_scenes_builder.prepare("multi", str(folder))
    return str(folder)


@pytest.fixture
def make(cache, monkeypatch):
    monkeypatch.setattr(digit_scenes_text, "NUM_PIECES", 120)  # there are few words in few scenes

    def options(text, **keys):
        return pipeline.DataOptions(**dict(
            name="digit_scenes/multi", path=cache, text=text, text_length=24, image_px=64,
            crop="none", flip=0.0, global_batch_size=4, threads=2) | keys)
    return options


def pixels(split):
    """Scenes as they were drawn, uint8 [n, 64, 64, 3]."""
    return digit_scenes.make_scenes("multi", split, TRAIN if split == "train" else VALIDATION,
                                    0)["image"]


def decoded(options, batch):
    tokenizer = pipeline.split_info(options, "train").tokenizer
    return [tokenizer.decode(row) for row in batch["text"]]


def test_captions_belong_to_their_scenes(make):
    options = make("captions")
    info = pipeline.describe(options)
    assert (info.num_train, info.num_eval, info.vocab_size) == (TRAIN, VALIDATION, 130)
    records = pipeline.split_info(options, "train").records
    for batch in assert_resumes_and_splits(options):
        np.testing.assert_array_equal(batch["image"], pixels("train")[batch["index"]])
        for text, index in zip(decoded(options, batch), batch["index"], strict=True):
            assert text in records[index].captions
    batch = next(pipeline.eval_batches(options))
    assert batch["text"].shape == (4, 2, 24) and batch["text_is_valid"].any(-1).all()
    assert pipeline.describe(make("captions", captions="each")).num_train == 2 * TRAIN


def test_a_scene_has_three_questions_whose_classes_are_the_training_answers(make):
    options = make("questions")
    info, records = pipeline.describe(options), pipeline.split_info(options, "train").records
    assert (info.num_train, info.num_eval) == (3 * TRAIN, 3 * VALIDATION)
    assert info.class_names == tuple(sorted({a for r in records for a in r.answers}))
    assert len(pipeline.load(options, "train").images) == TRAIN  # not three times as many
    for batch in assert_resumes_and_splits(options):
        np.testing.assert_array_equal(batch["image"], pixels("train")[batch["index"] // 3])
        for row, index in enumerate(batch["index"]):
            record = records[index]
            assert decoded(options, batch)[row] == record.question and len(record.answers) == 10
            found = dict(zip(batch["answer_labels"][row].tolist(), batch["answer_scores"][row],
                             strict=True))
            found.pop(-1, None)
            assert {info.class_names[label]: score for label, score in found.items()
                    } == pytest.approx(vqa_metrics.soft_scores(record.answers))
            best = max(set(record.answers), key=record.answers.count)
            assert info.class_names[batch["label"][row]] == best


def test_a_statement_is_about_the_scene_and_another(make):
    options = make("statements")
    records = pipeline.split_info(options, "train").records
    assert pipeline.describe(options).class_names == ("False", "True")
    for batch in assert_resumes_and_splits(options):
        left, right = ([int(getattr(records[i], side).split()[1]) for i in batch["index"]]
                       for side in ("left", "right"))
        assert left == batch["index"].tolist()
        drawn = pixels("train")
        np.testing.assert_array_equal(batch["image"], np.stack([drawn[left], drawn[right]], 1))
        assert batch["label"].tolist() == [records[i].label for i in batch["index"]]
        assert decoded(options, batch) == [records[i].sentence for i in batch["index"]]


def test_all_sentences_are_texts_without_images(make):
    options = make("sentences")
    whole = assert_resumes_and_splits(options)
    assert "image" not in whole[0] and whole[0]["text"].shape == (4, 24)
    asked = {r.question for r in pipeline.split_info(make("questions"), "train").records}
    said = " ".join(decoded(options, batch)[0] for batch in take(
        pipeline.train_batches(options, seed=0), 20))
    assert any(question in said for question in asked)


def test_the_tokenizer_is_made_once_and_kept_beside_the_scenes(make, cache):
    pipeline.describe(make("captions"))
    path, = (os.path.join(folder, "tokenizer.spm") for folder, _, files in os.walk(cache)
             if "tokenizer.spm" in files)
    with open(path, "rb") as file:
        model = file.read()
    digit_scenes_text.load.cache_clear()
    os.remove(path)
    again = pipeline.split_info(make("statements"), "train").tokenizer
    with open(path, "rb") as file:
        assert file.read() == model  # other machines make the same
    assert again.num_pieces == token_ids.num_pieces(130) == 120
    assert not [name for name in os.listdir(os.path.dirname(os.path.dirname(path)))
                if name.startswith(".building")]


def test_an_unknown_kind_of_text_is_one_line(make):
    with pytest.raises(ValueError, match="text='caption' is none of captions, questions"):
        pipeline.describe(make("caption"))
