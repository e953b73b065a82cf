"""Deliberate faults, one at a time: which of them does no test notice?

python tests/mutations.py [--only TEXT] [--jobs N] [--list]: each fault of tests/mutants/ is put
into a copy of the project, and the tests named beside it run there. A fault whose tests stay green
has survived. Not part of `make test`: it takes an hour or more.
"""

import argparse
import importlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "mutants"
SECONDS = 900  # for the tests of one fault: a hang is noticed too


class Mutation(NamedTuple):
    """A plausible mistake.

    Attributes:
      file: path below the project's root.
      before: text that occurs there exactly once.
      after: what stands there in its place.
      why: what goes wrong, in a few words.
      tests: arguments of pytest, separated by blanks: those that have to notice it.
    """

    file: str
    before: str
    after: str
    why: str
    tests: str


def load() -> list[Mutation]:
    """All faults. Raises: ValueError: one that does not apply any more, or is there twice."""
    sys.path.insert(0, str(FOLDER.parent))
    found = [mutation for path in sorted(FOLDER.glob("[a-z]*.py"))
             for mutation in importlib.import_module(f"mutants.{path.stem}").MUTATIONS]
    texts = {}
    for mutation in found:
        path = ROOT / mutation.file
        if path not in texts:
            texts[path] = path.read_text() if path.exists() else ""
        times = texts[path].count(mutation.before)
        if times != 1 or mutation.before == mutation.after:
            raise ValueError(f"{mutation.file}: {mutation.before!r} occurs {times} times, and has "
                             f"to be there once and to be changed ({mutation.why})")
    if len({mutation[:3] for mutation in found}) < len(found):
        raise ValueError("a fault is on the list twice")
    return found


def copy_to(folder: Path) -> Path:
    """The files that git knows, below `folder`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


def passes(folder: Path, tests: str) -> bool:
    """Whether tests pass in a copy. Raises: RuntimeError: they could not be run."""
    # bytecode of the text before would be taken where size and second of a change agree
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
               *tests.split()]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, text=True, timeout=SECONDS,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return False
    # 2: an error while tests are collected, as where a module cannot be imported
    if done.returncode not in (0, 1, 2) or "no tests ran" in done.stdout:
        raise RuntimeError(f"{tests}: pytest ended with {done.returncode}: {done.stdout[-500:]}")
    return done.returncode == 0


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests of a fault pass with it."""
    path = folder / mutation.file
    whole = path.read_text()
    path.write_text(whole.replace(mutation.before, mutation.after))
    try:
        return passes(folder, mutation.tests)
    finally:
        path.write_text(whole)


def run(mutations: list[Mutation], jobs: int) -> list[Mutation]:
    """Tries all faults, and says what became of each. Returns: those that survived.

    Raises: RuntimeError: tests that fail without any fault prove nothing.
    """
    waiting, survivors, failures = queue.SimpleQueue(), [], []
    tests = dict.fromkeys(mutation.tests for mutation in mutations)
    for task in [*tests, *mutations]:
        waiting.put(task)

    def work(folder: Path) -> None:
        while not failures:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            try:
                if isinstance(task, str):
                    if not passes(folder, task):
                        raise RuntimeError(f"{task} fail without any fault")
                    continue
                survived = survives(task, folder)
            except RuntimeError as error:
                failures.append(error)
                return
            if survived:
                survivors.append(task)
            print(f"{'SURVIVED' if survived else 'noticed '} {time.monotonic() - start:5.0f} s  "
                  f"{task.file}: {task.why}", flush=True)

    with tempfile.TemporaryDirectory() as top:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(top, "xla"))
        threads = [threading.Thread(target=work, args=(copy_to(Path(top) / str(i)),))
                   for i in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return survivors


def main() -> int:
    """The command line. Returns: 0, 1 where faults survived, 2 where the list is wrong."""
    parser = argparse.ArgumentParser(prog="python tests/mutations.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose file or reason has this text")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried beside each other")
    parser.add_argument("--list", action="store_true", help="name them, and run nothing")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        mutations = [mutation for mutation in load()
                     if arguments.only in f"{mutation.file}: {mutation.why}"]
        if arguments.list:
            print(*(f"{mutation.file}: {mutation.why}" for mutation in mutations), sep="\n")
            print(f"{len(mutations)} faults")
            return 0
        survivors = run(mutations, arguments.jobs)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(mutations)} faults, {len(survivors)} survivors, "
          f"{time.monotonic() - start:.0f} s with {arguments.jobs} jobs")
    for mutation in survivors:
        print(f"{mutation.file}: {mutation.why}\n  - {mutation.before}\n  + {mutation.after}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
