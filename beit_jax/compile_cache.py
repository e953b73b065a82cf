"""Compiled programs on disk, so that the next run need not wait for XLA, up to a size."""

import contextlib
import os
import pathlib

# a program of XLA takes 0.1 to 100 MB, and every change of a config or of the code makes new ones
LIMIT_BYTES = 5 * 2**30


def enable(folder: str, limit_bytes: int = LIMIT_BYTES) -> None:
    """Keeps compiled programs in `folder`, where the environment does not say otherwise.

    JAX's own jax_compilation_cache_max_size needs one more package, waits for a lock at every
    program, and gives up on a folder that was filled without it: we trim at the start instead.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        trim(folder, limit_bytes)
        jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # a recipe of many short stages compiles the same programs again and again
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def trim(folder: str, limit_bytes: int) -> None:
    """Deletes the files that have not been used for longest until the others fit the limit.

    Other processes may read, write and trim at the same time: JAX compiles what it cannot read.
    """
    used = []
    with contextlib.suppress(FileNotFoundError):  # nothing has been compiled yet
        for path in pathlib.Path(folder).iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                # a file system may note reading seldom or never; then the time of writing counts
                used.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= limit_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size
