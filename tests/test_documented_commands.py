"""Every command that the documentation tells somebody to type is one that works."""

import argparse
import importlib
import os
import re
import subprocess
import tomllib

import documented
import foreign_files
import pytest
from documented import CHAINS, PAGES, ROOT, SCRIPTS
from PIL import Image

from beit_jax import main, tasks
from beit_jax.training import recipe

SHELL = [block for path in PAGES for block in documented.blocks_of_page(path)]
SHELL += [block for path in SCRIPTS for block in documented.blocks_of_script(path)]
BLOCKS = SHELL + [block for path in PAGES for block in documented.sentences(path)]
CLASSES, WORDS = 1_000, 64_010  # what the data of published recipes have


def test_commands_were_found_where_they_stand():
    places = {block.where.partition(":")[0] for block in BLOCKS}
    assert len(BLOCKS) > 60
    assert places >= {"README.md", "docs/checkpoints.md", "docs/multihost.md", "docs/results.md",
                      "configs/beit/pretrain_in1k.py", "benchmarks/train_step.py"}
    recipes = {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/*.py")
               if path.stem != "__init__"}
    assert recipes <= places  # every recipe says how it is started


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_hides_in_a_block_that_is_not_tagged_as_one(path):
    for block in documented.other_blocks(path):
        assert not re.search(r"^\s*(python|pip|make|tensorboard|launch/)\b", block.text, re.M), (
            block.where)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_documented_command_is_understood_by_its_program(
        block, tmp_path, flags_of, monkeypatch):
    started = documented.expand(block, tmp_path)
    assert started, f"{block.where} starts nothing"
    for program, *arguments in started:
        JUDGES[program](arguments, flags_of, monkeypatch)


@pytest.fixture
def flags_of(monkeypatch, new_flags):
    """(*arguments of beit_jax.main) -> (its config with all overrides, its workdir)."""
    def parse(*arguments):
        argv = new_flags(*arguments)
        monkeypatch.chdir(ROOT)
        rest = main.flags.FLAGS(argv)
        assert rest == ["beit_jax"], f"{rest[1:]} belong to no flag"
        return main.CONFIG.value, main.WORKDIR.value
    return parse


def judge_python(arguments, flags_of, monkeypatch):
    if arguments[:2] == ["-m", "venv"]:
        return
    assert arguments[0] == "-m"
    module, flags = arguments[1], arguments[2:]
    if module != "beit_jax.main":
        assert_parses(module, flags, monkeypatch)
        return
    config, workdir = flags_of(*flags)
    assert workdir
    for stage in dict(config.stages).values() or [config]:
        recipe.read(stage)
        for section in (stage.model, stage.probe, stage.target):
            if section.get("num_classes") == -1:
                section.num_classes = CLASSES
        if stage.model.get("vocab_size") == -1:
            stage.model.vocab_size = WORDS
        tasks.make(stage)


def program_of(module):
    """What `python -m MODULE` runs."""
    package = ROOT.joinpath(*module.split(".")).is_dir()
    return importlib.import_module(f"{module}.__main__" if package else module)


class Parsed(Exception):
    """A program has understood its arguments."""


def assert_parses(module, flags, monkeypatch):
    assert module.partition(".")[0] in ("beit_jax", "benchmarks")
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *_):
        real(self, flags)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        program_of(module).main()


def judge_pip(arguments, flags_of, monkeypatch):
    del flags_of, monkeypatch
    assert arguments[:2] == ["install", "-e"] or arguments == ["install", "tensorboard"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"]
    for wanted in arguments[2:]:
        found = re.fullmatch(r"\.(\[(\S+)\])?", wanted)
        assert found and (found[2] is None or found[2] in extras)


def judge_make(arguments, flags_of, monkeypatch):
    del flags_of, monkeypatch
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | {"VENV": "/nonexistent"})
    assert done.returncode == 0, done.stderr


def judge_tensorboard(arguments, flags_of, monkeypatch):
    del flags_of, monkeypatch
    assert arguments[0] == "--logdir"


JUDGES = {"python": judge_python, "python3": judge_python, "pip": judge_pip, "make": judge_make,
          "tensorboard": judge_tensorboard}


# a flag of a documented command that says how large something is -> what it is here
TOY = {"--config.total_epochs": ("--config.total_epochs=0", "--config.total_steps=2"),
       "--config.optim.warmup_epochs": ("--config.optim.warmup_epochs=0",),
       "--config.data.global_batch_size": ("--config.data.global_batch_size=4",),
       "--config.data.holdout_per_class": ("--config.data.holdout_per_class=2",)}
# flags that name files of data sets
DATA = re.compile(r"--config\.data\.(streams\.\w+\.)?(path|annotations|questions|tokenizer)=")


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_documented_commands_run_one_after_the_other(chain, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for color, kind in enumerate(("cat", "dog")):
        for number in range(6):
            path = tmp_path / "photos" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), (80 * color, 40 * number, 90)).save(path)
    for place in CHAINS[chain]:
        for block in (block for block in SHELL if block.where.startswith(place + ":")):
            for program, *arguments in documented.expand(block, tmp_path):
                if program == "python":
                    run(arguments, tmp_path, command)


def run(arguments, folder, command):
    """Runs `python ARGUMENTS` in this process."""
    module, flags = arguments[1], arguments[2:]
    if module == "beit_jax.convert":
        for name in foreign_files.ORIGINS.keys() & set(flags):
            foreign_files.write(folder, name)
        assert program_of(module).main(flags) == 0, flags
        return
    assert module == "beit_jax.main"
    place, workdir = flags.index("--config") + 1, folder / flags[flags.index("--workdir") + 1]
    file, _, variant = flags[place].partition(":")
    flags[place] = f"{file}:{variant}_smoke" if variant else f"{file}:smoke"
    if "--config.data.name=folder" not in flags:
        flags = [flag for flag in flags if not DATA.match(flag)]
    more = [flag for given in flags for flag in TOY.get(given.partition("=")[0], ())]
    code, lines, _ = command(*flags, *more, "--config.log.tensorboard=False")
    assert code == 0, (flags, lines[-3:])
    assert "--evaluate" in flags or (workdir / "result.json").is_file()
