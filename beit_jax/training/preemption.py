"""SIGTERM, as a cluster sends it before it takes a machine away: save, then end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to end by SIGTERM, and its state is saved."""


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Gives step -> whether all processes should save and end after this step."""
    if jax.process_count() > 1:  # jax catches the signal and lets all processes agree on a step
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # may not set signal handlers
        yield lambda step: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
