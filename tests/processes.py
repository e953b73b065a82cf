"""Environments of processes that tests start."""

import os


def pretended(devices: int) -> dict[str, str]:
    """Environment of a process that takes the CPU for so many devices and compiles as this one."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
