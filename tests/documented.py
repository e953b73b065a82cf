"""The commands that the documentation tells somebody to type, found and expanded by a shell.

Commands stand in blocks of README.md, docs/ and launch/ that are tagged sh, in the first lines of
recipes and benchmarks, and in sentences, as `python -m ...`.
"""

import ast
import pathlib
import re
import subprocess
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SCRIPTS = sorted(path for part in ("configs", "benchmarks", "beit_jax")
                 for path in (ROOT / part).rglob("*.py"))
# programs that a block may start; here each of them only notes what it was given
PROGRAMS = ("python", "python3", "pip", "make", "tensorboard")

# Commands that follow from each other, run in one folder at toy size, in this order: those of a
# page's blocks and of recipes' first lines. What other people make lies there
# before: weights (tests/foreign_files.py) and a folder of photographs; in place of their data sets
# there is noise of the same kind (tests/data/test_text_runs.py has those of texts).
# Understood by their programs, and not run from here: docs/multihost.md, whose two processes
# tests/multidevice starts; docs/results.md, as demos take minutes (their smoke runs:
# test_configs.py); benchmarks (test_benchmarks.py); make, pip and venv, which need a network and
# which whoever starts the tests has run; tensorboard, which is no requirement.
CHAINS = {
    "checkpoints": ["docs/checkpoints.md"],
    "photographs": ["README.md", "docs/data.md"],
    "BEiT": ["docs/beit.md", *(f"configs/beit/{name}.py" for name in (
        "pretrain_in22k", "finetune_in22k", "finetune_in22k_to_in1k", "pretrain_in1k",
        "finetune_in1k", "finetune_in1k_plain", "finetune_cifar100", "linear_probe"))],
    "own tokenizer": ["docs/dvae.md"],
    "BEiT v2": ["docs/beitv2.md", "configs/beitv2/vqkd.py", "configs/beitv2/pretrain.py",
                "configs/beitv2/finetune.py", "configs/beitv2/linear_probe.py"],
    "MAE": ["docs/mae.md", "configs/mae/pretrain.py", "configs/mae/finetune.py",
            "configs/mae/linear_probe.py"],
    "Img2Vec": ["docs/img2vec.md", "configs/img2vec/pretrain.py", "configs/img2vec/finetune.py",
                "configs/img2vec/linear_probe.py"],
    "BEiT-3": ["docs/beitv2.md", "configs/beit3/pretrain.py", "configs/beit3/itc.py",
               "configs/beit3/retrieval.py", "configs/beit3/vqa.py", "configs/beit3/nlvr2.py",
               "configs/beit3/captioning.py", "configs/beit3/finetune.py"],
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """Lines for a shell. where: file and line."""
    where: str
    text: str


def _block(path: pathlib.Path, text: str, start: int, code: str) -> Block:
    return Block(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, start) + 1}", code)


def blocks_of_page(path: pathlib.Path) -> list[Block]:
    """The blocks tagged sh."""
    text = path.read_text()
    return [_block(path, text, found.start(), found[2]) for found in _FENCE.finditer(text)
            if found[1] == "sh"]


def other_blocks(path: pathlib.Path) -> list[Block]:
    """The blocks with another tag, or none: what is no command."""
    text = path.read_text()
    return [_block(path, text, found.start(), found[2]) for found in _FENCE.finditer(text)
            if found[1] != "sh"]


def sentences(path: pathlib.Path) -> list[Block]:
    """Commands in running text: `python -m ... --flag ...`, possibly over a line's end."""
    text = path.read_text()
    return [_block(path, text, found.start(), " ".join(found[1].split()))
            for found in re.finditer(r"(?<!`)`(python -m [^`]*--[^`]*)`", text)
            if "..." not in found[1]]


def blocks_of_script(path: pathlib.Path) -> list[Block]:
    """Commands in a file's docstring: lines that begin with python, and their continuations."""
    doc = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    blocks, lines = [], iter(enumerate(doc.split("\n"), start=1))
    for number, line in lines:
        if not line.startswith("python -m "):
            continue
        code = line
        while code.endswith("\\"):
            code += "\n" + next(lines)[1]
        blocks.append(Block(f"{path.relative_to(ROOT)}:{number}", code))
    return blocks


def expand(block: Block, folder: pathlib.Path) -> list[list[str]]:
    """What a shell starts for a block: [[program, argument, ...], ...], in order.

    Nothing is run: every program of `PROGRAMS` only notes its arguments. Any other one, and an
    unset variable, is an error.
    """
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.touch()
    environment = stand_ins(folder, PROGRAMS)
    done = subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", block.text], cwd=folder,
                          env=environment, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, f"{block.where}: {done.stderr}"
    return noted(folder)


def stand_ins(folder: pathlib.Path, programs, does: str = "") -> dict[str, str]:
    """Puts programs into `folder` that only note what they are given, for `noted`.

    Args:
      does: lines of a shell that each of them runs afterwards.
    Returns: the environment in which they are found, and nothing else is.
    """
    fakes = folder / "bin"
    fakes.mkdir(exist_ok=True)
    for program in programs:
        fake = fakes / program
        # in one piece, as several may be started at once
        fake.write_text('#!/bin/bash\nprintf "%s\036" "$(printf "%s\037" "${0##*/}" "$@")" '
                        f'>> "$RECORD"\n{does}\n')
        fake.chmod(0o755)
    (folder / "record").write_text("")
    return {"PATH": str(fakes), "RECORD": str(folder / "record"), "HOME": str(folder)}


def noted(folder: pathlib.Path) -> list[list[str]]:
    """[[program, argument, ...], ...] of what was started of `stand_ins`."""
    return [command.split("\x1f")[:-1]
            for command in (folder / "record").read_text().split("\x1e")[:-1]]
