"""How thoroughly XLA compiles what a test runs; conftest.py says what is usual."""

import contextlib
import os

import jax

USUALLY_QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0") not in ("0", "false", "")


def pretended(devices: int) -> dict[str, str]:
    """Environment of a process that takes the CPU for so many devices and compiles as this one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}


@contextlib.contextmanager
def optimised():
    """For programs that run hundreds of times."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", USUALLY_QUICK)
