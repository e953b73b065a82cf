"""A workdir and its config: what has changed is told, or refused; two runs never share one."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy as toy_module

from beit_jax import main, tasks
from beit_jax.training import loop, records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Workdir of a finished run of 4 steps, not to be written to."""
    workdir = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TASKS", dict(tasks.TASKS))
        toy_module.install(patch.setattr)
        loop.run(toy_module.get_config(total_steps=4), workdir)
    return workdir


@pytest.fixture
def ended(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("change, told", [
    (dict(model__width=32), "model.width was 16, is 32"),
    (dict(model__widht=32), "model.widht was not set, is 32"),
    (dict(optim__learning_rate=0.1), "optim.learning_rate was 0.05, is 0.1"),
    (dict(optim__b1=0.5), "optim.b1 was 0.9, is 0.5"), (dict(seed=3), "seed was 0, is 3"),
    (dict(data__path="other"), "data.path was , is other"),
    (dict(data__global_batch_size=16), "data.global_batch_size was 8, is 16"),
    (dict(init__checkpoint="random"), "init.checkpoint was , is random"),
    (dict(eval__limit=5), "eval.limit was 0, is 5"),
], ids=lambda value: None if isinstance(value, dict) else value.split()[0])
def test_the_numbers_of_a_finished_run_are_not_given_for_another_config(
        toy, ended, change, told, caplog):
    before = (ended / "result.json").read_text(), (ended / "config.json").read_text()
    with pytest.raises(ValueError, match="holds a finished run of another config") as caught:
        loop.run(toy.get_config(total_steps=4, **change), ended)
    assert told in str(caught.value) and "--force" in str(caught.value)
    forced = loop.run(toy.get_config(total_steps=4, **change), ended, force=True)
    assert forced == json.loads(before[0])["metrics"] and told in caplog.text
    assert before == ((ended / "result.json").read_text(), (ended / "config.json").read_text())


def test_what_cannot_change_the_numbers_of_a_finished_run_passes(toy, ended):
    numbers = json.loads((ended / "result.json").read_text())["metrics"]
    config = toy.get_config(
        total_steps=4, log__every_steps=2, eval__every_steps=3, eval__pictures=1,
        checkpoint__every_steps=1, data__threads=3, mesh__fsdp=1, optim__b1=0.9,
        model__num_classes=-1, data__flip=records._defaults()["data"]["flip"])
    assert loop.run(config, ended) == numbers


def test_a_changed_finished_stage_stops_the_recipe_before_the_first_stage(
        toy, tmp_path, monkeypatch):
    monkeypatch.setattr("beit_jax.visualize.__main__.collect", lambda workdir: [])

    def two():
        config = toy.get_config("stages")
        del config.stages.alpha, config.report
        return config

    config = two()
    main.run(config, str(tmp_path))
    (tmp_path / "zeta" / "result.json").unlink()
    config.stages.beta.optim.learning_rate = 0.1
    with pytest.raises(ValueError, match="stage beta: workdir .*optim.learning_rate was 0.05"):
        main.run(config, str(tmp_path))
    assert not (tmp_path / "zeta" / "result.json").exists()
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)  # the stages' weights lie elsewhere, and are the same
    main.run(two(), str(moved))


def test_a_finished_stage_is_not_taken_where_the_one_before_it_is_to_go_on(
        toy, tmp_path, monkeypatch):
    monkeypatch.setattr("beit_jax.visualize.__main__.collect", lambda workdir: [])
    config = toy.get_config("stages")
    del config.stages.alpha, config.report
    main.run(config, str(tmp_path))
    config.stages.zeta.total_steps = 8
    with pytest.raises(ValueError, match="stage beta is finished, but stage zeta, whose weights"):
        main.run(config, str(tmp_path))
    assert sorted(p.name for p in (tmp_path / "zeta" / "checkpoints").iterdir()) == ["4", "6"]
    shutil.rmtree(tmp_path / "beta")
    main.run(config, str(tmp_path))


def test_a_forced_config_that_does_not_fit_leaves_the_one_that_does(toy, ended):
    before = {name: (ended / name).read_text() for name in ("config.json", records.DATA)}
    with pytest.raises(ValueError, match="does not fit this config's model"):
        loop.run(toy.get_config(total_steps=6, model__width=32), ended, force=True)
    assert {name: (ended / name).read_text() for name in before} == before
    assert not (ended / records.HISTORY).exists()
    loop.run(toy.get_config(total_steps=6), ended)


@pytest.mark.parametrize("length", [dict(total_steps=2), dict(total_steps=0, total_epochs=0.25)])
def test_a_run_never_ends_before_the_step_it_is_at(toy, ended, length):
    for force in (False, True):
        with pytest.raises(ValueError, match="is at step 4 already, and this config ends at step 2 "
                           r"\(total_(epochs|steps) was"):
            loop.run(toy.get_config(**length), ended, force=force)
    assert json.loads((ended / "result.json").read_text())["step"] == 4


def test_another_batch_is_refused_on_resume_unless_forced(toy, tmp_path):
    half = dict(total_steps=0, total_epochs=1.0)  # 8 steps of 8 examples
    loop.run(toy.get_config(**half), tmp_path)
    config = toy.get_config(total_steps=0, total_epochs=2.0, data__global_batch_size=16)
    with pytest.raises(ValueError, match="is at step 8 of a run with another batch .data.global_"
                       "batch_size was 8, is 16"):
        loop.run(config, tmp_path)
    with pytest.raises(ValueError, match="nothing is left to train"):  # 2 epochs are 8 steps now
        loop.run(config, tmp_path, force=True)
    config.total_epochs = 2.5
    loop.run(config, tmp_path, force=True)
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 10


def test_a_run_that_saved_nothing_may_change_altogether(toy, tmp_path):
    config = toy.get_config(model__width=4, data__global_batch_size=16)
    config.loss.blow_up_at = 1
    with pytest.raises(FloatingPointError):
        loop.run(config, tmp_path)
    loop.run(toy.get_config(total_steps=1), tmp_path)


def test_accepted_changes_are_remembered(toy, ended):
    assert not (ended / records.HISTORY).exists()
    for force, steps, batch in ((False, 5, 8), (True, 6, 16)):
        loop.run(toy.get_config(total_steps=steps, data__global_batch_size=batch), ended,
                 force=force)
    first, second = map(json.loads, (ended / records.HISTORY).read_text().splitlines())
    assert (first["step"], first["forced"]) == (4, False) and "time" in first
    assert first["changed"] == {"total_steps": [4, 5]}
    assert second["changed"] == {"total_steps": [5, 6], "data.global_batch_size": [8, 16]}
    assert (second["step"], second["forced"]) == (5, True)


@pytest.mark.parametrize("change, told", [
    (dict(num_train=63), "there were 64 training examples, there are 63"),
    (dict(class_names=("a", "kat", "c", "d")), "class b is gone; class kat is new"),
    (dict(class_names=("b", "a", "c", "d")), "the classes have another order"),
    (dict(digest="2"), "names, sizes, labels or texts of the training examples are others"),
], ids=["number", "renamed", "order", "list"])
def test_other_data_are_refused_on_resume_unless_accepted(
        toy, ended, monkeypatch, caplog, change, told):
    info = dataclasses.replace(toy.describe(None), **change)
    monkeypatch.setattr("beit_jax.data.pipeline.describe", lambda options: info)
    before = (ended / "data.json").read_text()
    with pytest.raises(ValueError, match=f"up to step 4: {told}.*accept_changed=True"):
        loop.run(toy.get_config(total_steps=5), ended)
    assert (ended / "data.json").read_text() == before
    loop.run(toy.get_config(total_steps=5, data__accept_changed=True), ended)
    assert json.loads((ended / "data.json").read_text()) == json.loads(before) | {
        key: list(value) if isinstance(value, tuple) else value for key, value in change.items()}
    loop.run(toy.get_config(total_steps=6), ended)  # accepted once and for all
    line = json.loads((ended / records.HISTORY).read_text().splitlines()[0])
    assert line["step"] == 4 and line["changed"]["data.accept_changed"] == [False, True]


def test_other_data_of_an_evaluation_are_told(toy, ended, monkeypatch, caplog):
    info = dataclasses.replace(toy.describe(None), num_eval=3)
    monkeypatch.setattr("beit_jax.data.pipeline.describe", lambda options: info)
    loop.run(toy.get_config(total_steps=5), ended)
    assert "data.json.num_eval was 21, is 3" in caplog.text


@pytest.mark.parametrize("text", ["[1]", '"a"', "null", "{", "", "[" * 100_000, '{"data": 3}'],
                         ids=lambda text: text[:12] or "empty")
def test_a_damaged_config_is_named(toy, ended, text):
    (ended / "config.json").write_text(text)
    for steps in (4, 5):  # a finished run, and one that would go on
        with pytest.raises(ValueError) as caught:
            loop.run(toy.get_config(total_steps=steps), ended)
        assert str(ended) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", '{"length": 4}', '{"length": [4, 0.0]}',
                                  '{"length": [4, 0.0], "metrics": {"a": null}}',
                                  '{"length": [4, 0.0], "metrics": [1]}'])
def test_a_damaged_result_is_named_and_measured_again(toy, ended, text, caplog):
    path = ended / "result.json"
    before = json.loads(path.read_text())
    path.write_text(text)
    assert loop.run(toy.get_config(total_steps=4), ended) == before["metrics"]
    assert f"{path} is damaged" in caplog.text and json.loads(path.read_text()) == before


def test_two_runs_do_not_share_a_workdir(toy, tmp_path):
    with records.lock(tmp_path):
        for config in (toy.get_config(), toy.get_config("stages").stages.zeta):
            with pytest.raises(ValueError, match=r"is in use by another run \(process \d+ on "):
                loop.run(config, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    loop.run(toy.get_config(total_steps=1), tmp_path)
    with records.lock(tmp_path):  # to measure and to tell the end need no lock
        loop.run(toy.get_config(total_steps=1), tmp_path)
        loop.run(toy.get_config(total_steps=1), tmp_path, evaluate_only=True)


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = ("import sys, time; from beit_jax.training import records\n"
            "with records.lock(sys.argv[1]): print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {process.pid} on"), records.lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with records.lock(tmp_path):
            pass


def test_a_file_system_without_locks_is_told(toy, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(records.fcntl, "flock", flock)
    with contextlib.suppress(ValueError), records.lock(tmp_path):
        pass
    assert "cannot be locked (Operation not supported): start no second run in it" in caplog.text
