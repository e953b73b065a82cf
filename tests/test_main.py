"""The command line: stages, flags, exit codes."""

import importlib
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
    (("--config", TOY, "--workdir", "w", "total_steps=3"), 2, "'total_steps=3' is no flag"),
    (("--config", TOY, "--workdir="), 2, "--workdir is empty"),
    (("--config", TOY, "--workdir=foo://x"), 2, "'foo://' is none of gs://"),
    (("--config", TOY, "--workdir", "w", "--config.init.checkpoint=foo://x"), 1,
     "'foo://' is none of gs://"),
    (("--config", TOY + ":stages", "--workdir", "w", "--config.stages.alhpa.seed=1"), 2,
     "--config.stages.alhpa.seed: config.stages.alhpa is unknown (did you mean alpha?); known: "
     "alpha, beta, zeta"),
    (("--config", TOY, "--workdir", "w", "--config.optm.b1=1.0"), 2, "did you mean optim?"),
    (("--config", TOY, "--workdir", "w", "--config.seed.b=1"), 2, "seed=0 is a value, not a"),
    (("--config", TOY + ":stages", "--workdir", "w", "--config.stages.x=3"), 1,
     "config.stages.x=3 is no stage"),
], ids=lambda value: None if isinstance(value, tuple | int) else value.split()[0])
def test_a_wrong_command_line_is_one_line(
        toy, command, monkeypatch, tmp_path, arguments, code, message):
    monkeypatch.chdir(tmp_path)  # where "w" is
    found, err, _ = command(*arguments)
    # the first line of a command that could be read says what it runs on
    assert found == code and len(err) <= (1 if code == 2 else 2)
    assert err[-1].startswith("error: ") and message in err[-1]


@pytest.mark.parametrize("text, message", [
    ("raise RuntimeError('no idea')", "RuntimeError: no idea"),
    ("return {}['lost']", "KeyError: 'lost'"), ("return 1 / 0", "ZeroDivisionError"),
    ("return dict(seed=0)", "get_config() returned dict, not an ml_collections.ConfigDict"),
    ("pass", "get_config() returned NoneType"), ("return [1]", "get_config() returned list"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
], ids=lambda value: value.split("(")[0])
def test_a_config_file_that_cannot_be_used_is_one_line(command, tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(f"def get_config(variant=''):\n    {text}\n")
    found, err, _ = command("--config", path, "--workdir", tmp_path / "w")
    assert found == 2 and err[-1].startswith(f"error: config file {path}: ")
    assert message in err[-1] and not any("Traceback" in line for line in err)


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "-h"])
def test_help_names_the_flags_and_the_values_of_the_config(toy, command, flag):
    code, err, out = command(flag)
    assert (code, err) == (0, [])
    assert all(f"--{holder.name} " in out for holder in vars(main).values()
               if isinstance(holder, main.flags.FlagHolder))
    code, err, out = command("--config", TOY, flag, "--config.optim.learning_rate=0.25")
    assert (code, err) == (0, []) and "learning_rate: 0.25" in out


@pytest.mark.parametrize("name", ["convert", "train_tokenizer", "visualize"])
@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
def test_help_of_the_other_commands(name, flag, monkeypatch, capsys):
    module = importlib.import_module(
        f"beit_jax.{name}" + ("" if name == "train_tokenizer" else ".__main__"))
    monkeypatch.setattr(sys, "argv", [name, flag])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and out.startswith("usage: python -m beit_jax.")


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


OTHER = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_stages_of_other_pixels_stop_the_first(toy, tmp_path):
    config = toy.get_config("stages")
    config.stages.zeta.data.update(HALF)
    config.stages.beta.data.update(OTHER)
    with pytest.raises(ValueError, match="stage beta: .*zeta was trained on pixels .*0.485"):
        main.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_other_pixels_stops_the_stage_that_trains_it(tmp_path):
    from configs.digits import beitv2

    config = beitv2.get_config("smoke")
    config.stages.pretrain_agg_seed0.target.update(OTHER)
    with pytest.raises(ValueError, match=r"stage pretrain_agg_seed0: config.target.checkpoint=.*"
                       r"tokenizer was trained .*0.5.* config.target.mean and .std are \(0.485"):
        main.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_with_other_pixels_only_if_that_is_said(toy, tmp_path):
    config = toy.get_config(total_steps=2)
    config.data.update(HALF)
    main.run(config, str(tmp_path))
    config.total_steps = 3
    config.data.update(OTHER)
    before = (tmp_path / "config.json").read_text()
    for _ in range(2):  # the first try has not made the second one right
        with pytest.raises(ValueError, match="^workdir .* was trained on pixels .*accept_other"):
            main.run(config, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == before
    config.init.accept_other_statistics = True
    main.run(config, str(tmp_path))
    assert (tmp_path / "checkpoints" / "3").is_dir()


def test_measuring_weights_of_other_pixels_is_refused_unless_that_is_said(toy, tmp_path):
    config = toy.get_config(total_steps=2)
    config.data.update(HALF)
    run = str(tmp_path / "run")
    expected = main.run(config, run)
    other = toy.get_config(init__checkpoint=run)
    other.data.update(OTHER)
    for workdir in (run, str(tmp_path / "empty")):  # its own weights, and those of config.init
        other.init.accept_other_statistics = False
        with pytest.raises(ValueError, match="was trained on pixels normalised by .*accept_other"):
            main.run(other, workdir, evaluate_only=True)
        other.init.accept_other_statistics = True
        assert main.run(other, workdir, evaluate_only=True) == expected
