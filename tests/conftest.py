"""What all tests share: CPU by default, one compilation cache, and the toy task."""

import collections
import gc
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# before jax starts; JAX_PLATFORMS=cuda python -m pytest runs them on a GPU
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# most programs run a few times: not worth XLA's optimisations, which take longer than all the rest
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # XLA exits at a flag that it does not know
    # simpler code for the CPU, in one piece and in plain order: compiled in half the time;
    # what the user sets comes last and wins
    os.environ["XLA_FLAGS"] = " ".join((
        "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        os.environ.get("XLA_FLAGS", "")))
sys.path.insert(0, str(TESTS))


def pytest_terminal_summary(terminalreporter):
    """With TIMES=1: how long each file took, set-up included, in seconds of one worker."""
    if os.environ.get("TIMES", "0") in ("", "0"):
        return
    seconds, number = collections.Counter(), collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = report.nodeid.partition("::")[0]
                seconds[file] += report.duration
                number[file] += report.when == "call"
    terminalreporter.section("seconds and tests of each file")
    for file, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:8.1f} {number[file]:5d}  {file}")
    terminalreporter.write_line(f"{seconds.total():8.1f} {number.total():5d}  all")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Runs that are started again, in this process or another, do not compile again.

    Whoever works on the tests names a lasting folder by JAX_COMPILATION_CACHE_DIR.
    """
    import jax

    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # of all workers: what one has compiled the others read
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(run / "xla")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # a worker comes to hold millions of objects, all of them looked at whenever some are collected
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def toy(monkeypatch):
    """The module tests/toy.py, installed as task "toy" with its own data."""
    import toy as module

    from beit_jax import tasks

    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    module.install(monkeypatch.setattr)
    return module


@pytest.fixture
def mesh():
    """One device."""
    from beit_jax.training import sharding

    made = sharding.make_mesh(sharding.MeshOptions())
    with sharding.use(made):
        yield made


@pytest.fixture
def new_flags(monkeypatch):
    """(*arguments) -> argv of a command line of its own: flags forget what was parsed before."""
    from beit_jax import main

    def forget(*arguments):
        flags = main.flags.FLAGS
        for name in [name for name in flags if name.startswith("config.")]:
            delattr(flags, name)  # overrides that an earlier call has defined
        for flag in main.__dict__.values():
            if isinstance(flag, main.flags.FlagHolder):
                flags[flag.name].unparse()
        flags.unparse_flags()
        argv = ["beit_jax", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads its overrides from there
        return argv

    return forget


@pytest.fixture
def command(monkeypatch, capfd, new_flags):
    """The command line in this process: (*arguments) -> (exit code, lines of stderr, stdout)."""
    from beit_jax import main

    for logger in (main.log, logging.getLogger("absl")):
        for name in ("handlers", "level", "propagate"):
            monkeypatch.setattr(logger, name, getattr(logger, name))  # main sets them

    def run(*arguments):
        argv = new_flags(*arguments)
        capfd.readouterr()
        code = main.main(argv)
        out, err = capfd.readouterr()
        return code, err.splitlines(), out

    return run
