"""TensorBoard's scalars and pictures. Written by the caller itself: its errors are heard."""

import contextlib
import io
import os
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from google.protobuf.message import DecodeError

# a quarter of a second to import, with protobuf: whoever wants no events imports no such file
from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

FLUSH_SECONDS = 60.0


class EventFile:
    """A new file of events beside those of earlier starts of the run.

    Args:
      folder: <workdir>/tensorboard.
      lines: all of metrics.jsonl before the steps that follow; what a killed process had not yet
        written of it is written now.
      first_step: of the steps that follow: TensorBoard forgets what it has seen from there on.
    Raises: OSError: the file cannot be written; its name is told.
    """

    def __init__(self, folder: epath.Path, lines: Iterable[Mapping[str, Any]], first_step: int):
        self._path, self._flushed = folder, 0.0
        lines, seen = list(lines), _seen(folder)
        missing = [line["step"] for line in lines
                   if any((line["step"], _scalar(name, 0.0).value[0].tag) not in seen
                          for name, value in line.items() if name != "step" and value is not None)]
        # in order of steps, so that curves do not run back: all from the first one that is missing
        begin = min([first_step, *missing])
        with self._named():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = event_file_writer.EventsWriter(
                os.fspath(folder / "events"), f".{time.time_ns()}")  # twice in a second
        self._add(begin, session_log=SessionLog(status=SessionLog.START))
        for line in lines:
            for name, value in line.items():
                if line["step"] >= begin and name != "step" and value is not None:
                    self._add(line["step"], summary=_scalar(name, value))
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve. Now and then onto the disk, for who is watching."""
        for name, value in values.items():
            self._add(step, summary=_scalar(name, value))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 [h, w, 3]."""
        self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Onto the disk."""
        with self._named():
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Onto the disk, and no more."""
        with self._named():
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        with self._named():
            self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    @contextlib.contextmanager
    def _named(self):
        """A full disk tells which file is too much."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error),
                          os.fspath(self._path)) from error


def _scalar(name: str, value: float) -> summary.Summary:
    """One point."""
    return summary.scalar(name, value)


def _seen(folder: epath.Path) -> set[tuple[int, str]]:
    """(step, name) of all that TensorBoard would show of the files that are there."""
    seen = set()
    if not folder.is_dir():
        return seen
    for path in sorted(p for p in folder.iterdir() if ".tfevents." in p.name):
        for event in events(path.read_bytes()):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                seen = {(step, name) for step, name in seen if step < event.step}
            seen |= {(event.step, value.tag) for value in event.summary.value}
    return seen


def events(content: bytes) -> Iterable[Event]:
    """The events of a file up to where a killed process was writing."""
    file = io.BytesIO(content)
    while len(head := file.read(12)) == 12:  # length, and its checksum
        size, = struct.unpack("<Q", head[:8])
        if len(body := file.read(size + 4)) < size + 4:
            return
        try:
            yield Event.FromString(body[:size])
        except DecodeError:
            return
