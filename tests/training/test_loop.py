"""A run: resume, stop, failure, measurement. On the toy task of tests/toy.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from stopping import stop_at

from beit_jax import checkpoint, tasks
from beit_jax.training import loop
from beit_jax.training.metric_writer import read_metrics
from beit_jax.training.preemption import Stopped

ROOT = Path(__file__).parents[2]


def numbers(workdir):
    """All that a run logged but its speed: {(step, name): value}."""
    return {(line["step"], name): value for line in read_metrics(workdir)
            for name, value in line.items() if not name.startswith("perf/")}


def assert_same_run(one, other):
    """Bit-equal numbers and weights."""
    assert numbers(one) == numbers(other)
    weights, others = (checkpoint.load_variables(w, collections=True) for w in (one, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


def start_process(workdir, *flags, step_seconds=0.0):
    """The toy as a command of its own."""
    env = os.environ | {"TOY_STEP_SECONDS": str(step_seconds), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/toy.py", "--config", ROOT / "tests/toy.py", "--workdir",
         workdir, "--config.total_steps=12", "--config.checkpoint.every_steps=3",
         "--config.eval.every_steps=4", "--config.optim.ema_decay=0.9", *flags],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_step(process, workdir, step):
    """Until metrics.jsonl has the step."""
    until = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def unbroken(toy, tmp_path):
    """A run of 12 steps as `start_process` makes it, in this process."""
    workdir = tmp_path / "unbroken"
    loop.run(toy.get_config(total_steps=12, checkpoint__every_steps=3, eval__every_steps=4,
                            optim__ema_decay=0.9), workdir)
    return workdir


@pytest.mark.slow
def test_killed_and_started_again_equals_the_unbroken_run_bit_for_bit(unbroken, tmp_path):
    workdir = tmp_path / "killed"
    process = start_process(workdir, step_seconds=0.3)
    wait_for_step(process, workdir, 7)
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = numbers(workdir)
    assert max(step for step, _ in seen) < 12
    again = start_process(workdir)
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert re.search(r"goes on from step (3|6|9) of 12", err)
    assert_same_run(workdir, unbroken)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(unbroken, toy, tmp_path):
    workdir = tmp_path / "stopped"
    process = start_process(workdir, "--config.checkpoint.every_steps=100", step_seconds=0.3)
    wait_for_step(process, workdir, 4)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    step = int(re.search(r"stopped by SIGTERM at step (\d+) of 12, saved there", err)[1])
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == [str(step)]
    loop.run(toy.get_config(total_steps=12, checkpoint__every_steps=100, eval__every_steps=4,
                            optim__ema_decay=0.9), workdir)
    assert_same_run(workdir, unbroken)


@pytest.mark.slow
def test_ctrl_c_saves_and_where_nothing_is_new_ends_at_once(toy, tmp_path):
    flags = ["--config.checkpoint.every_steps=100", "--config.eval.every_steps=100"]
    process = start_process(tmp_path, *flags, step_seconds=0.3)
    wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "Ctrl-C: saving, then ending; Ctrl-C again ends at once" in err
    step = int(re.search(r"stopped by Ctrl-C at step (\d+) of 12, saved there", err)[1])
    again = start_process(tmp_path, *flags, step_seconds=600)  # waits for its first batch
    while "a long step begins" not in again.stderr.readline():
        assert again.poll() is None
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == (f"stopped at once by Ctrl-C: step {step} is kept: the same "
                                    "command goes on from it")


def test_sigterm_stops_in_every_step_and_the_same_command_finishes(toy, tmp_path, monkeypatch):
    """In the last step too: a recipe of stages must not begin the next one."""
    for step, call in ((5, 5), (6, 1)):
        with monkeypatch.context() as patch:
            stop_at(patch, call)
            with pytest.raises(Stopped, match=f"by SIGTERM at step {step} of 6"):
                loop.run(toy.get_config(), tmp_path)
    assert "eval/validation/top1" in loop.run(toy.get_config(), tmp_path)


def test_a_stop_during_an_evaluation_saves_at_once_and_evaluates_later(
        unbroken, toy, tmp_path, monkeypatch):
    config = toy.get_config(total_steps=12, checkpoint__every_steps=100, eval__every_steps=4,
                            optim__ema_decay=0.9, checkpoint__keep_best="-loss")
    with monkeypatch.context() as patch:
        stop_at(patch, 3 + 2)  # three steps, and the second batch of the first evaluation
        with pytest.raises(Stopped, match="at step 4 of 12, saved there"):
            loop.run(config, tmp_path / "stopped")
    assert not any("eval/validation/loss" in line for line in read_metrics(tmp_path / "stopped"))
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["4"]
    loop.run(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", unbroken)


def test_a_broken_newest_step_costs_only_its_steps(unbroken, toy, tmp_path, caplog):
    workdir = tmp_path / "torn"
    shutil.copytree(unbroken, workdir)
    (workdir / "result.json").unlink()
    step = workdir / "checkpoints" / "12" / "state"
    path = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-7])
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "train/lo')  # and a torn line
    loop.run(toy.get_config(total_steps=12, checkpoint__every_steps=3, eval__every_steps=4,
                            optim__ema_decay=0.9), workdir)
    assert "is broken" in caplog.text
    assert_same_run(workdir, unbroken)


def test_killed_between_the_last_save_and_the_result(unbroken, toy, tmp_path):
    final = json.loads((unbroken / "result.json").read_text())["metrics"]
    (unbroken / "result.json").unlink()
    again = loop.run(toy.get_config(total_steps=12, checkpoint__every_steps=3,
                                    eval__every_steps=4, optim__ema_decay=0.9), unbroken)
    assert again == final


def test_a_finished_run_is_not_touched_and_a_longer_one_goes_on(toy, tmp_path, monkeypatch):
    first = loop.run(toy.get_config(), tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr("beit_jax.data.pipeline.describe")  # not even the data is looked at
        assert loop.run(toy.get_config(), tmp_path) == first
    loop.run(toy.get_config(total_steps=8), tmp_path)
    assert {step for step, _ in numbers(tmp_path)} == set(range(1, 9))


def test_the_final_metrics_are_those_of_the_evaluation_command(toy, tmp_path):
    config = toy.get_config(optim__ema_decay=0.5)
    final = loop.run(config, tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    assert loop.run(config, tmp_path, evaluate_only=True) == final
    assert before == sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))


def test_nothing_to_evaluate(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint to evaluate"):
        loop.run(toy.get_config(), tmp_path / "empty", evaluate_only=True)
    assert not (tmp_path / "empty").exists()


def test_a_loss_that_is_nan_stops_the_run_and_keeps_the_last_good_step(toy, tmp_path):
    config = toy.get_config(total_steps=9, log__every_steps=3, checkpoint__every_steps=2)
    config.loss.blow_up_at = 6
    with pytest.raises(FloatingPointError, match="loss is nan at step 6; last checkpoint: step 4"):
        loop.run(config, tmp_path)
    assert not (tmp_path / "checkpoints" / "6").exists()
    for value in checkpoint.load_variables(tmp_path).values():
        assert np.isfinite(value).all()


def test_a_step_that_ruins_the_weights_is_not_saved(toy, tmp_path):
    config = toy.get_config(optim__learning_rate=1e30, checkpoint__every_steps=1)
    with pytest.raises(FloatingPointError, match="the updated state is not finite at step 1; no "
                                                 "checkpoint was saved. Lower config.optim.learn"):
        loop.run(config, tmp_path)
    config.optim.learning_rate = 0.05
    assert np.isfinite(loop.run(config, tmp_path)["eval/validation/loss"])


def test_a_saved_step_whose_weights_lead_to_no_number_is_set_aside(toy, tmp_path):
    config = toy.get_config(checkpoint__every_steps=1, log__every_steps=6)
    config.loss.blow_up_at = 4
    with pytest.raises(FloatingPointError, match="loss is nan at step 4; last checkpoint: step 2"):
        loop.run(config, tmp_path)
    assert [p.name for p in (tmp_path / checkpoint.BROKEN).iterdir()] == ["3"]
    config.loss.blow_up_at = -1
    loop.run(config, tmp_path)


def test_the_only_saved_step_is_kept_and_told_to_lead_nowhere(toy, tmp_path):
    config = toy.get_config(checkpoint__every_steps=3)
    config.loss.blow_up_at = 4
    with pytest.raises(FloatingPointError, match="step 3, the only checkpoint in .* another --"):
        loop.run(config, tmp_path)
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_an_evaluation_that_is_nan_is_an_error(toy, tmp_path, monkeypatch):
    loop.run(toy.get_config(total_steps=4), tmp_path)
    monkeypatch.setitem(tasks.TASKS, "toy", lambda config: toy.make(config)._replace(
        summarize=lambda sums: {"loss": 1.0, "top1": float("nan")}))
    message = "eval/validation/top1 is nan at step"
    with pytest.raises(FloatingPointError, match=f"{message} 6; last checkpoint: step 4"):
        loop.run(toy.get_config(), tmp_path)
    with pytest.raises(FloatingPointError, match=f"{message} 4; last checkpoint: step 4"):
        loop.run(toy.get_config(), tmp_path, evaluate_only=True)


@pytest.mark.parametrize("change, message", [
    (dict(model__width=32), "another model .model.width was 16, is 32"),
    (dict(optim__ema_decay=0.9), "does not fit this config's model and optimizer: ema_params/"
     "blocks/mlp/fc1/bias is missing; .*. Give the config it was made with"),
], ids=["width", "ema"])
def test_a_workdir_of_another_model_is_refused(toy, tmp_path, change, message):
    loop.run(toy.get_config(total_steps=2), tmp_path)
    with pytest.raises(ValueError, match=message):
        loop.run(toy.get_config(**change), tmp_path)
    assert checkpoint.load_variables(tmp_path)["head/kernel"].shape == (16, 4)


def test_evaluation_of_another_size_names_the_arrays_that_differ(toy, tmp_path):
    loop.run(toy.get_config(total_steps=1), tmp_path)
    with pytest.raises(ValueError, match="does not fit this config's model and optimizer: ") as no:
        loop.run(toy.get_config(total_steps=1, model__width=8), tmp_path, evaluate_only=True)
    assert "params/head/kernel is [16, 4], not [8, 4]" in str(no.value)
    assert f"config.init.checkpoint={tmp_path}" in str(no.value) and len(str(no.value)) < 700


def test_other_changes_of_the_config_are_only_told(toy, tmp_path, caplog):
    loop.run(toy.get_config(total_steps=2), tmp_path)
    loop.run(toy.get_config(total_steps=3, optim__learning_rate=0.01), tmp_path)
    assert "optim.learning_rate was 0.05, is 0.01" in caplog.text


def test_keep_best_saves_at_evaluations_and_keeps_the_best(toy, tmp_path):
    loop.run(toy.get_config(total_steps=12, eval__every_steps=2, checkpoint__every_steps=0,
                            checkpoint__keep_last=1, checkpoint__keep_best="-loss"), tmp_path)
    losses = {step: value for (step, name), value in numbers(tmp_path).items()
              if name == "eval/validation/loss"}
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    best = min(losses, key=losses.get)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 12}


def test_what_a_run_leaves(toy, tmp_path):
    result = loop.run(toy.get_config(eval__pictures=3, log__tensorboard=True,
                                     log__every_steps=4), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", "config.json", "data.json", "checkpoints", "metrics.jsonl", "result.json",
        "tensorboard", "figures"}
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 4
    assert (tmp_path / "figures" / "inputs.png").stat().st_size
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [4, 6, 6]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "perf/images_per_second",
            "perf/step_seconds", "perf/input_wait_fraction"} <= lines[0].keys()
    assert 0 <= lines[0]["perf/input_wait_fraction"] <= 1
    assert lines[-1] == {"step": 6} | result


def test_speed_is_that_of_finished_steps(toy, tmp_path, monkeypatch):
    """A step is given to the device and back at once, long before it is done."""
    def wait(calls):
        time.sleep(0.05)
        return calls

    def slow(config):
        task = toy.make(config)

        def loss(params, state, frozen, batch, key):
            calls = state["counter"]["calls"]
            waited = jax.pure_callback(wait, jax.ShapeDtypeStruct((), calls.dtype), calls)
            return task.loss(params, {"counter": {"calls": waited}}, frozen, batch, key)
        return task._replace(loss=loss)

    monkeypatch.setitem(tasks.TASKS, "toy", slow)
    loop.run(toy.get_config(total_steps=12, log__every_steps=4, checkpoint__every_steps=5),
             tmp_path)
    seconds = [line["perf/step_seconds"] for line in read_metrics(tmp_path)
               if "perf/step_seconds" in line]
    assert seconds[0] > 0.045 and np.mean(seconds) > 0.045, seconds


def test_num_classes_comes_from_the_data(toy, tmp_path):
    loop.run(toy.get_config(total_steps=1, model__num_classes=-1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 4


@pytest.mark.parametrize("section", ["model", "probe", "target"])
def test_data_of_more_classes_than_the_head_are_refused(toy, tmp_path, section):
    """Labels beyond the head once counted as hits."""
    config = toy.get_config(total_steps=1)
    with config.unlocked():
        config[section].num_classes = 3
    with pytest.raises(ValueError, match=f"{section}.num_classes=3, but .*'toy' has 4 classes"):
        loop.run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_epochs_become_steps(toy, tmp_path):
    loop.run(toy.get_config(total_steps=0, total_epochs=1.5, eval__every_epochs=0.5), tmp_path)
    evaluated = [step for step, name in numbers(tmp_path) if name == "eval/validation/top1"]
    assert evaluated == [4, 8, 12]  # 64 examples, batch 8: 8 steps an epoch


def test_training_learns_and_the_seed_matters(toy, tmp_path):
    results = {seed: loop.run(toy.get_config(total_steps=60, seed=seed, log__every_steps=20,
                                             checkpoint__every_steps=0), tmp_path / str(seed))
               for seed in (0, 1)}
    assert results[0]["eval/validation/top1"] > 0.6  # chance: 0.25
    assert results[0] != results[1]


def test_initialised_from_another_run(toy, tmp_path, caplog):
    loop.run(toy.get_config(total_steps=2), tmp_path / "first")
    loop.run(toy.get_config(total_steps=1, optim__learning_rate=0.0, optim__weight_decay=0.0,
                            optim__ema_decay=0.9, init__checkpoint=str(tmp_path / "first")),
             tmp_path / "second")
    first, second = (checkpoint.load_variables(tmp_path / name) for name in ("first", "second"))
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-6)


def test_the_loop_is_short_and_names_no_method():
    folder = ROOT / "beit_jax" / "training"
    assert len((folder / "loop.py").read_text().splitlines()) < 200
    names = {*tasks.TASKS, "beit", "dvae", "vqkd", "mae", "img2vec", "digit", "imagenet", "cifar"}
    for path in folder.glob("*.py"):
        text = re.sub(r"beit_jax|microsoft/unilm beit\S*|BEiT, \S+", "", path.read_text())
        if path.name not in ("optim.py", "sharding.py"):  # tables over parameter names, sources
            found = {name for name in names if name in text.lower()}
            assert not found, (path.name, found)
