"""Signals: what the first and the second one do."""

import os
import signal
import threading
import time

import pytest

from beit_jax.training import preemption


@pytest.fixture
def left(monkeypatch):
    """(text, code) with which the process would have ended."""
    calls = []
    monkeypatch.setattr(preemption, "_leave", lambda *call: calls.append(call))
    return calls


def send(number, until):
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_first_signal_is_taken_down_and_a_second_ctrl_c_ends_at_once(left, capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with preemption.listen(signal.SIGINT, signal.SIGTERM) as requests:
        requests.has_news, requests.kept = True, lambda: "step 7 is kept"
        assert not requests.stop()
        send(signal.SIGTERM, lambda: requests.number)
        assert requests.stop() and (requests.name, requests.code) == ("SIGTERM", 143)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may repeat itself: it is being saved
        send(signal.SIGINT, lambda: left)
    assert left == [("stopped at once by Ctrl-C: step 7 is kept", 130)]
    assert "SIGTERM: saving, then ending; Ctrl-C ends at once" in capfd.readouterr().err
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_no_step_is_done_the_first_one_ends_at_once(left, number, code):
    """While the first step compiles, Python's own handlers would not run."""
    with preemption.listen(signal.SIGINT, signal.SIGTERM):
        with preemption.listen(signal.SIGTERM) as requests:  # of a run inside the command line
            send(number, lambda: left)
        assert not requests.number
    assert left == [(f"stopped at once by {preemption.NAMES[number]}: nothing was begun", code)]


def test_an_evaluation_is_left_between_two_batches():
    requests, seen = preemption.Requests(), []
    with pytest.raises(preemption.Interrupted):
        for batch in requests.watched(range(9)):
            seen.append(batch)
            requests.number = signal.SIGTERM * (batch == 2)
    assert seen == [0, 1, 2]


def test_outside_the_main_thread_nothing_is_caught():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with preemption.listen(signal.SIGTERM) as requests:
            found.append((requests.stop(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]
