"""What the documentation promises to log of the data, as the user of the command line sees it."""

import logging

import pytest
import toy
from test_text_sources import pairs, vqa
from text_corpora import WORDS, write_image, write_lines

from beit_jax import main, tasks
from beit_jax.data import pipeline
from beit_jax.data.vqa import write_answer_list
from beit_jax.training import recipe


@pytest.fixture
def console(command, monkeypatch, tokenizer_path):
    """console(**keys of config.data) -> what a run prints while it looks at its data."""
    monkeypatch.setattr(tasks, "TASKS", tasks.TASKS | {"toy": toy.make})  # and not its own data
    monkeypatch.setattr(main, "run", lambda config, *_: pipeline.describe(recipe.read(config).data))

    def run(**data):
        keys = dict(image_px=16, global_batch_size=2, threads=2) | data
        if "text_length" in keys:
            keys["tokenizer"] = tokenizer_path
        code, err, _ = command("--config", toy.__file__, "--workdir", "unused",
                               *(f"--config.data.{key}={value}" for key, value in keys.items()))
        assert code == 0, err
        return "\n".join(err)
    return run


def test_cut_texts_are_counted(console, tmp_path):
    told = console(name="pairs", annotations=pairs(tmp_path), path=tmp_path / "images",
                   eval_split="val", text_length=3)
    assert "train.jsonl: 5 of 6 texts are longer than config.data.text_length=3 and are cut" in told


def test_questions_without_a_listed_answer_are_counted(console, tmp_path):
    answers = tmp_path / "answers.txt"
    write_answer_list(answers, ("red", "green"))
    told = console(name="vqa", **vqa(tmp_path), path=tmp_path / "images", answers=answers,
                   train_split="train2014", eval_split="val2014", text_length=8)
    assert "1 of 4 questions have no answer on the list and are dropped" in told
    assert "2 answers to choose among, SHA-256 " in told
    assert "warning: VQAv2's list has 3129 answers, this one 2" in told


def test_files_that_are_left_out_are_named(console, tmp_path):
    for label in ("ant", "bee"):
        for number in range(2):
            write_image(tmp_path / "photos" / label / f"{number}.png", number)
    (tmp_path / "photos" / "ant" / "notes.txt").write_text("no image")
    told = console(name="folder", path=tmp_path / "photos", holdout_per_class=1)
    assert "skipped 1 of 5 files" in told and "notes.txt" in told


def test_lines_and_entries_that_are_left_out_are_named(console, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(WORDS) + "\nthe red cat\nis left\nthe blue bus\n")
    told = console(name="documents", annotations=tmp_path / "text.txt", text_length=8)
    assert "text.txt: 1 lines are longer than config.data.text_length=8 and are left out" in told
    path = tmp_path / "pairs.jsonl"
    write_image(tmp_path / "images" / "0.png", 0)
    write_lines(path, [{"image": "0.png", "caption": "red cat"}, {"image": "0.png", "caption": ""},
                       {"image": "0.png", "caption": "the bus"}])
    told = console(name="pairs", annotations=path, path=tmp_path / "images", captions="each",
                   text_length=8, skip_defects=True)
    assert f"warning: {path}: left out: image 0.png: its caption '' is empty" in told


def test_of_other_programs_only_warnings_are_shown(console, command, monkeypatch, tmp_path):
    def run(*_):
        for name in ("absl", "beit_jax.data.folder"):
            logging.getLogger(name).info("%s informs", name)
            logging.getLogger(name).warning("%s warns", name)

    monkeypatch.setattr(tasks, "TASKS", tasks.TASKS | {"toy": toy.make})  # and not its own data
    monkeypatch.setattr(main, "run", run)
    code, err, _ = command("--config", toy.__file__, "--workdir", tmp_path)
    assert code == 0 and err[-3:] == [
        "warning: absl warns", "beit_jax.data.folder informs",
        "warning: beit_jax.data.folder warns"]
