"""From files in their official layouts, through a whole run of each task, to what it hands in."""

import importlib
import json
import math

import index_corpora
import pytest
from test_text_sources import coco, flickr, nlvr2, pairs, vqa

from beit_jax import main, tasks
from beit_jax.data import pipeline
from beit_jax.training import recipe as training_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, tokenizer_path):
    """run(recipe, **keys of config.data) -> (last measurement, folder of predictions)."""
    def of(recipe, **data):
        config = importlib.import_module(f"configs.beit3.{recipe}").get_config("smoke")
        config.data.update(dict(text="", path=str(tmp_path / "images"), tokenizer=tokenizer_path,
                                global_batch_size=2, text_length=8, threads=2) | data)
        config.checkpoint.keep_best = ""
        config.log.tensorboard = False
        config.model.unroll = 1  # the loop compiles faster than its blocks one by one
        workdir = tmp_path / "run"
        found = main.run(config, str(workdir))
        judged = tasks.make(training_recipe.with_data(config, pipeline.describe(
            training_recipe.read(config).data))).judged
        assert not judged or {key.rpartition("/")[2] for key in found} <= set(judged)
        return ({key.removeprefix("eval/validation/"): value for key, value in found.items()},
                workdir / "predictions" / "validation")
    return of


def test_captions_of_coco(run, tmp_path):
    found, predictions = run("captioning", name="karpathy", annotations=coco(tmp_path),
                             train_split="train+restval", eval_split="val")
    assert 0 <= found["CIDEr-D"] <= 10 and set(found) >= {"BLEU-1", "BLEU-4", "ROUGE-L"}
    written = json.loads((predictions / "captions.json").read_text())
    assert [entry["image_id"] for entry in written] == [103, 104, 105]
    assert all(isinstance(entry["caption"], str) for entry in written)
    assert (tmp_path / "run" / "figures" / "captions.png").is_file()


def test_captions_of_an_index_file_whose_validation_split_has_none(run, tmp_path, caplog):
    annotations = index_corpora.captions(tmp_path, described=("train",))
    found, predictions = run("captioning", name="index", annotations=annotations,
                             train_split="train", eval_split="val")
    assert found == {}
    assert "3 of 3 images have no captions by people: captions.json is" in caplog.text
    written = json.loads((predictions / "captions.json").read_text())
    assert [entry["image_id"] for entry in written] == [0, 1, 2]
    assert (tmp_path / "run" / "figures" / "captions.png").is_file()


def test_retrieval_on_ids_alone(run, tmp_path):
    found, _ = run("retrieval", name="index", annotations=index_corpora.captions(tmp_path),
                   train_split="train", eval_split="val", tokenizer="")
    assert found["ir_r10"] == 100.0 and 0 <= found["tr_r1"] <= 100  # of three images


def test_answers_of_an_index_file_of_test_questions(run, tmp_path):
    keys = index_corpora.questions(tmp_path) | dict(eval_split="test")
    found, predictions = run("vqa", name="index", tokenizer="", **keys)
    assert found == {}
    answers = json.loads((predictions / "answers.json").read_text())
    assert [entry["question_id"] for entry in answers] == [6000, 6001]
    assert {entry["answer"] for entry in answers} <= set(index_corpora.ANSWERS)


def test_retrieval_on_flickr30k(run, tmp_path):
    found, _ = run("retrieval", name="karpathy", annotations=flickr(tmp_path),
                   train_split="train", eval_split="val")
    assert found["ir_r10"] == 100.0 and 0 <= found["tr_r1"] <= 100  # of three images


def test_answers_of_vqav2(run, tmp_path):
    found, predictions = run(
        "vqa", name="vqa", **vqa(tmp_path), train_split="train2014+val2014", holdout_images=1,
        eval_split="holdout", answers_min_count=1)
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["official_accuracy"] <= 1
    answers = json.loads((predictions / "answers.json").read_text())
    assert answers and set(answers[0]) == {"question_id", "answer"}


def test_statements_of_nlvr2(run, tmp_path):
    found, predictions = run("nlvr2", name="nlvr2", **nlvr2(tmp_path), eval_split="dev")
    assert 0 <= found["accuracy"] <= 1
    lines = (predictions / "predictions.csv").read_text().splitlines()
    assert lines and all(line.rpartition(",")[2] in ("True", "False") for line in lines)


def test_pre_training_on_a_folder_a_text_and_pairs(run, tmp_path):
    annotations = pairs(tmp_path)  # images/*.png, a folder of images too
    (tmp_path / "text.txt").write_text("the red cat\nis left\n\nmany dog\nthe bus is blue\n" * 4)
    found, _ = run("pretrain", name="mixture", global_batch_size=6, crop="none", streams=dict(
        images=dict(name="folder", path=str(tmp_path / "images"), text_length=0),
        texts=dict(name="documents", annotations=str(tmp_path / "text.txt")),
        pairs=dict(name="pairs", annotations=annotations, path=str(tmp_path / "images"),
                   eval_split="val")))
    # only the pairs have a validation split, and nothing is said of the others
    assert set(found) >= {"loss_pair_image", "loss_pair_text", "accuracy_pair_text_mismatched"}
    assert not {"loss_text", "loss_image", "code_usage"} & set(found)
    assert math.isclose(found["loss"], found["loss_pair_image"] + found["loss_pair_text"])
