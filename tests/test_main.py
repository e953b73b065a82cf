"""The command line: stages, flags, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy as toy_module

from beit_jax import main

TOY = toy_module.__file__


def test_stages_run_in_the_order_of_the_file_and_the_second_time_not_at_all(toy, command, tmp_path):
    code, err, out = command("--config", f"{TOY}:stages", "--workdir", tmp_path)
    assert code == 0, err
    order = [line.split(": ")[1] for line in err if line.startswith("stage ")]
    assert order == ["zeta", "alpha", "beta"]  # by name, alpha would be first
    assert "Toy" in out and "tuned" in out
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"zeta_curves.png", "zeta_inputs.png", "all_top1.png"} <= figures
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["row"], row["n"]) for row in rows][0] == ("scratch", 1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/*/*")}
    code, err, _ = command("--config", f"{TOY}:stages", "--workdir", tmp_path)
    assert code == 0 and sum("is finished" in line for line in err) == 3
    assert before == {path: path.stat().st_mtime_ns
                      for path in tmp_path.glob("*/checkpoints/*/*")}
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == rows


def test_a_stage_starts_from_the_weights_of_the_one_it_names(toy, tmp_path):
    from beit_jax import checkpoint

    config = toy.get_config("stages")
    config.stages.alpha.optim.learning_rate = 0.0
    config.stages.alpha.optim.weight_decay = 0.0
    main.run(config, str(tmp_path))
    zeta = checkpoint.load_variables(tmp_path / "zeta")
    alpha = checkpoint.load_variables(tmp_path / "alpha")
    beta = checkpoint.load_variables(tmp_path / "beta")
    assert all((alpha[name] == value).all() for name, value in zeta.items())
    assert any((beta[name] != value).any() for name, value in zeta.items())


@pytest.mark.parametrize("name", ["beta", "nowhere"])
def test_a_stage_cannot_name_a_later_or_unknown_stage(toy, name):
    config = toy.get_config("stages")
    config.stages.alpha.init.checkpoint = f"stage:{name}"
    with pytest.raises(ValueError, match="is no stage before alpha; those are: zeta"):
        main.run(config, "unused")


def test_a_typo_in_the_last_stage_stops_the_first(toy, tmp_path):
    config = toy.get_config("stages")
    config.stages.beta.optim.learning_rat = 1.0
    with pytest.raises(ValueError, match="stage beta: .*did you mean learning_rate"):
        main.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_overrides_evaluate_and_resume_by_flags(toy, command, tmp_path):
    code, err, _ = command("--config", TOY, "--workdir", tmp_path, "--config.total_steps=3",
                           "--config.eval.pictures=2")
    assert code == 0, err
    assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 3
    assert {"curves.png", "inputs.png"} <= {p.name for p in (tmp_path / "figures").iterdir()}
    lines = (tmp_path / "metrics.jsonl").read_text()
    code, err, _ = command("--config", TOY, "--workdir", tmp_path, "--config.total_steps=3",
                           "--evaluate")
    measured = json.loads(lines.splitlines()[-1])
    assert code == 0
    assert any(f"top1 {measured['eval/validation/top1']:.4g}" in line for line in err)
    assert (tmp_path / "metrics.jsonl").read_text() == lines  # it only looked
    code, err, _ = command("--config", TOY, "--workdir", tmp_path, "--config.total_steps=5")
    assert code == 0 and any("goes on from step 3 of 5" in line for line in err)


@pytest.mark.parametrize("arguments, code, message", [
    (("--config", TOY), 2, "--config and --workdir are needed"),
    (("--config", "no/such.py", "--workdir", "w"), 2, "no/such.py"),
    (("--config", TOY, "--workdir", "w", "--config.data.globl_batch_size=8"), 1,
     "did you mean global_batch_size?"),
    (("--config", TOY, "--workdir", "w", "--config.total_steps=many"), 2, "many"),
    (("--config", TOY, "--workdir", "w", "--bogus"), 2, "bogus"),
    (("--config", TOY, "--workdir", "w", "--num_processes=2"), 1, "go together"),
], ids=lambda value: None if isinstance(value, tuple | int) else value.split()[0])
def test_a_wrong_command_line_is_one_line(toy, command, arguments, code, message):
    found, err, _ = command(*arguments)
    # the first line of a command that could be read says what it runs on
    assert found == code and len(err) <= (1 if code == 2 else 2)
    assert err[-1].startswith("error: ") and message in err[-1]


def test_traceback_on_request(toy, command, monkeypatch):
    monkeypatch.setenv("BEIT_JAX_TRACEBACK", "1")
    _, err, _ = command("--config", "no/such.py", "--workdir", "w")
    assert any(line.startswith("Traceback") for line in err) and err[-1].startswith("error: ")


def test_an_unexpected_error_keeps_its_traceback(toy, command, monkeypatch, tmp_path):
    monkeypatch.setattr(main, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("--config", TOY, "--workdir", tmp_path)


def test_importing_the_whole_program_loads_no_tensorflow_and_needs_no_device():
    code = ("import sys, beit_jax.main, beit_jax.training.loop, beit_jax.report\n"
            "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
            "import jax; assert not jax._src.xla_bridge._backends")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(TOY).parents[1])


def test_a_typo_in_the_report_stops_the_first_stage(toy, tmp_path):
    config = toy.get_config("stages")
    config.report.metrics = "eval/validation/top1"
    with pytest.raises(ValueError, match=r"config\.report\.metrics is unknown"):
        main.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_a_recipe_of_stages_would_not_read_is_refused(toy, command, tmp_path):
    code, err, _ = command("--config", f"{TOY}:stages", "--workdir", tmp_path, "--config.seed=7")
    assert code == 1
    assert err[-1] == ("error: config.seed has no effect in a recipe with stages: set it in a "
                       "stage, for example config.stages.zeta.seed")
