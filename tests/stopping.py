"""Runs that are asked to end, as by a signal, at a certain time."""

import itertools

from beit_jax.training import preemption


def stop_at(patch, call: int) -> None:
    """A run is asked to end when it looks for the `call`-th time whether it is.

    It looks after every step, and before every batch of an evaluation.
    """
    calls = itertools.count(1)
    patch.setattr(preemption.Requests, "stop", lambda self: next(calls) >= call)
