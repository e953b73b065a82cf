"""SIGTERM and Ctrl-C: the first saves and ends, a second Ctrl-C ends at once."""

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}

_calls = itertools.count(1)  # of Requests.stop in this process, over all its runs
_listening = None  # the Requests that signals go to


class Stopped(Exception):
    """The run was asked to end, and its state is saved.

    Attributes: code: what the process should exit with, 128 + the signal's number as a shell does.
    """

    def __init__(self, text: str, code: int = 128 + signal.SIGTERM):
        super().__init__(text)
        self.code = code


class Interrupted(Exception):
    """An evaluation was left because the run is asked to end."""


class Requests:
    """What signals have asked for so far.

    Attributes:
      number: the first signal that came; 0: none.
      has_news: whether steps were done that are worth a save; if not, a signal ends at once.
      kept: what is saved so far, in words.
    """

    def __init__(self):
        self.number = 0
        self.has_news = False
        self.kept: Callable[[], str] = lambda: "nothing was begun"

    @property
    def name(self) -> str:
        """Of the signal, for messages; with several processes another one may have had it."""
        return NAMES.get(self.number, "SIGTERM")

    @property
    def code(self) -> int:
        """See Stopped."""
        return 128 + (self.number or signal.SIGTERM)

    def stop(self) -> bool:
        """Whether all processes should save and end now. All must call it equally often."""
        number = next(_calls)
        if jax.process_count() > 1:  # jax lets all of them agree on a call
            return multihost_utils.reached_preemption_sync_point(number)
        return bool(self.number)

    def watched(self, batches: Iterable) -> Iterator:
        """The batches of an evaluation, which may be long. Raises: Interrupted."""
        for batch in batches:
            if self.stop():
                raise Interrupted
            yield batch

    def arrived(self, number: int) -> None:
        """Takes down a signal, or ends the process: nothing to save, or a second Ctrl-C."""
        if not self.has_news or (self.number and number == signal.SIGINT):
            _leave(f"stopped at once by {NAMES[number]}: {self.kept()}", 128 + number)
        elif not self.number:
            self.number = number
            if jax.process_count() > 1:  # to jax, which tells the other processes
                os.kill(os.getpid(), signal.SIGTERM)
            _tell(f"{NAMES[number]}: saving, then ending; Ctrl-C "
                  f"{'again ' if number == signal.SIGINT else ''}ends at once")


@contextlib.contextmanager
def listen(*numbers: int) -> Iterator[Requests]:
    """Inside, these signals are taken down in place of what they usually do.

    A thread takes them, so that they are heard while the main one compiles or waits for a device.
    Inside of another `listen`, or outside the main thread, where signals cannot be caught, nothing
    changes. With several processes jax itself catches SIGTERM.
    """
    global _listening
    if _listening is not None:
        yield _listening
        return
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    heard = [number for number in numbers
             if number != signal.SIGTERM or jax.process_count() == 1]
    ours, signals = socket.socketpair()
    signals.setblocking(False)

    def take() -> None:
        while number := ours.recv(1):  # one byte a signal; b"" once the other end is closed
            if number[0] in heard:
                requests.arrived(number[0])

    thread = threading.Thread(target=take, name="signals", daemon=True)
    # the handlers do nothing, but there must be one, or the signal does what it usually does
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    fd_before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    _listening = requests
    thread.start()
    try:
        yield requests
    finally:
        _listening = None
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.close()
        thread.join()
        ours.close()


def _tell(text: str) -> None:
    """One line on stderr, whatever locks other threads hold on Python's own."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _leave(text: str, code: int) -> None:
    """Ends the process, whatever its threads wait for: Python would join them first."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # the live progress line has hidden the cursor
    _tell(text)
    os._exit(code)
