"""How thoroughly XLA compiles what a test runs; conftest.py says what is usual."""

import contextlib
import os

import jax

USUALLY_QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0") not in ("0", "false", "")


@contextlib.contextmanager
def optimised():
    """For programs that run hundreds of times."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", USUALLY_QUICK)
