"""The folder of compiled programs stays small, and what was used last stays in it."""

import os
import subprocess
import sys
from pathlib import Path

from beit_jax import compile_cache

ROOT = Path(__file__).parents[1]


def fill(folder, ages):
    """Files of 100 bytes that were last used so many seconds after some moment."""
    for name, (read, written) in ages.items():
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (read, written))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_used_longest_ago_goes_first(tmp_path):
    fill(tmp_path, {"a": (40, 10), "b": (20, 20), "c": (10, 30), "d": (15, 15)})
    compile_cache.trim(tmp_path, 400)
    assert names(tmp_path) == ["a", "b", "c", "d"]
    compile_cache.trim(tmp_path, 250)
    assert names(tmp_path) == ["a", "c"]


def test_a_folder_that_is_not_there_and_one_that_cannot_be_emptied_are_no_errors(tmp_path):
    compile_cache.trim(tmp_path / "none", 1)
    (tmp_path / "folder").mkdir()
    compile_cache.trim(tmp_path, 0)
    assert names(tmp_path) == ["folder"]


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    code = ("import sys, jax; from beit_jax import compile_cache\n"
            "compile_cache.enable(sys.argv[1], 10**6)\n"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)\n"
            "jax.jit(lambda x: x * 2 + 1)(1.0)")
    env = {key: value for key, value in os.environ.items()
           if not key.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT"))}
    (tmp_path / "old").write_bytes(bytes(10**6 + 1))
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=env)
        found.append([name for name in names(tmp_path) if name.endswith("-cache")])
    assert found[0] and found[0] == found[1]
    assert "old" not in names(tmp_path)
