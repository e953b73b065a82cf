"""Numbers and pictures of a run: metrics.jsonl, TensorBoard, and progress on the console."""

import contextlib
import dataclasses
import datetime
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
from jax.experimental import multihost_utils
from PIL import Image

from beit_jax.checkpoint import absolute
from beit_jax.options import Count
from beit_jax.training import chips
from beit_jax.training.step import NotFinite

log = logging.getLogger(__name__)

# shown on the progress line if present, under a short name
_SHOWN = (("train/loss", "loss"), ("train/accuracy", "accuracy"), ("train/top1", "top-1"),
          ("perf/images_per_second", "images/s"))


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """config.log: steps between lines, and whether to write TensorBoard events."""

    every_steps: Count = 50
    tensorboard: bool = True


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that are whole; [] if there are none.

    The last one may be torn, by a kill; any other that is no line of ours is told and left out.
    """
    path = absolute(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    *whole, torn = path.read_bytes().split(b"\n")
    for number, text in enumerate([*whole, torn], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # of UTF-8 too
            line = None
        if _is_line(line):
            lines.append(line)
        elif number <= len(whole):
            log.warning("%s: line %d is not {\"step\": ..., numbers}: left out", path, number)
    return lines


def _is_line(value: Any) -> bool:
    """Whether it is what `MetricWriter.write` writes."""
    return (isinstance(value, dict) and type(value.get("step")) is int
            and all(number is None or type(number) in (int, float) for number in value.values()))


class MetricWriter:
    """Writes on process 0 and does nothing on the others. A context manager.

    Args:
      workdir: the run's folder.
      name: what the progress line begins with.
      start_step: the step that the run goes on from; later lines of metrics.jsonl are dropped,
        because their steps are about to be done again.
      total_steps: end of the run.
      options: config.log.
    """

    def __init__(self, workdir: str, name: str, start_step: int, total_steps: int,
                 options: LogOptions):
        self._is_writer = jax.process_index() == 0
        self._total, self._name = total_steps, name
        self._progress = self._events = self._file = None
        self._late = []
        if not self._is_writer:
            return
        folder = absolute(workdir)
        self._figures = folder / "figures"
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        self._measured = {line["step"] for line in kept
                          if any(name.startswith("eval/") for name in line)}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        # a bucket knows no appending: there the whole text is written again
        self._text, self._path = text, path
        with self._named():
            if path.exists() and path.read_bytes() != text.encode():
                unfinished = folder / "metrics.jsonl.tmp"
                unfinished.write_text(text)
                unfinished.replace(path)  # at once: a kill here loses nothing
            self._file = None if "://" in str(path) else path.open("a")
        if options.tensorboard:
            from beit_jax.training.event_file import EventFile

            self._events = EventFile(folder / "tensorboard", kept, start_step + 1)
        self._console = rich.console.Console()
        self._begin(start_step)

    def _begin(self, start_step: int) -> None:
        """Starts the live line, if somebody is looking."""
        self._started, self._first = None, start_step
        if not self._console.is_terminal:
            return
        columns = (
            rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(), rich.progress.TextColumn("{task.fields[shown]}"),
            rich.progress.TextColumn("ETA"), rich.progress.TimeRemainingColumn())
        self._progress = rich.progress.Progress(*columns, console=self._console)
        self._bar = self._progress.add_task(
            self._name, total=self._total, completed=start_step, shown="")
        self._progress.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: {"step": step, **values}; values that are not finite become null."""
        if not self._is_writer or not values:
            return
        values = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step} | finite) + "\n"
        with self._named():
            if self._file:
                self._file.write(line)
                self._file.flush()
            else:
                self._text += line
                self._path.write_text(self._text)
        if self._events:
            self._events.scalars(step, values)
        if any(name.startswith("eval/") for name in values):
            self._print(f"{self._name}  step {step}  " + "  ".join(
                f"{name.removeprefix('eval/')} {value:.4g}" for name, value in values.items()
                if name.startswith("eval/")))
        else:
            self._show(step, values)

    def later(self, step: int, values: Mapping[str, jax.Array], speed: Mapping[str, float]) -> None:
        """A line of a training step for `write_late`; its values may still be computed."""
        if self._is_writer:
            self._late.append((step, values, speed))

    def write_late(self) -> None:
        """Writes the lines of `later`, as train/... and what is there as perf/..."""
        while self._late:
            step, values, speed = self._late.pop(0)
            values = jax.device_get(values)  # all in one transfer
            values = {f"train/{key}": float(value) for key, value in values.items()
                      if key != "is_finite"}
            self.write(step, values | dict(speed))

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        """Moves the live line, or prints a plain one."""
        found = [(label, values[name]) for name, label in _SHOWN if name in values]
        shown = "  ".join(f"{label} {value:,.0f}" if value >= 1000 else f"{label} {value:.4g}"
                          for label, value in found)
        if self._progress:
            self._progress.update(self._bar, completed=step, shown=shown)
            return
        eta, now = "", time.monotonic()
        if self._started is None:  # the first line: before it, the step was compiled
            self._started, self._first = now, step
        elif step > self._first:
            left = (now - self._started) * (self._total - step) / (step - self._first)
            eta = f"  ETA {datetime.timedelta(seconds=round(left))}"
        self._print(f"{self._name}  step {step}/{self._total}  {shown}{eta}")

    def _print(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def pictures(self, step: int, pictures: Mapping[str, Any]) -> None:
        """Writes each uint8 [n, h, w, 3] as one sheet: events and figures/<name>.png."""
        if not self._is_writer:
            return
        self._figures.mkdir(parents=True, exist_ok=True)
        for name, images in pictures.items():
            sheet = _sheet(np.asarray(images))
            if self._events:
                self._events.picture(step, name, sheet)
            scale = max(1, 512 // sheet.shape[0])  # small images would be stamps on the screen
            sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
            with (self._figures / f"{name.replace('/', '_')}.png").open("wb") as file:
                Image.fromarray(sheet).save(file, format="PNG")

    def was_measured(self, step: int) -> bool:
        """Whether metrics.jsonl held an evaluation of the step at the start; alike everywhere."""
        found = np.int32(self._is_writer and step in self._measured)
        return bool(multihost_utils.broadcast_one_to_all(found))

    def flush(self) -> None:
        """Everything onto the disk, before a checkpoint says that its steps are done."""
        if self._events:
            self._events.flush()

    @contextlib.contextmanager
    def _named(self):
        """A full disk tells which file is too much."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None or issubclass(kind, NotFinite):
            self.write_late()
        if self._progress:
            self._progress.stop()
        # all of it, also where one of them fails; an error that is under way is told, not its echo
        with contextlib.suppress(*[OSError] if kind else []), contextlib.ExitStack() as closing:
            if self._events:
                closing.callback(self._events.close)
            if self._file:
                closing.enter_context(self._named())
                closing.callback(self._file.close)


def _sheet(images: np.ndarray) -> np.ndarray:
    """Pictures side by side, about as high as wide: [n, h, w, 3] -> [rows * h, columns * w, 3]."""
    n, h, w, _ = images.shape
    rows = min((r for r in range(1, n + 1) if n % r == 0),
               key=lambda r: abs(math.log(r * h / (n // r * w))))
    return images.reshape(rows, n // rows, h, w, 3).swapaxes(1, 2).reshape(rows * h, -1, 3)


class Stopwatch:
    """Speed of training: evaluations, saves and the compilation of the first step do not count.

    Args:
      global_batch_size: images per step.
      flops_per_image: of a step, or None where nobody has counted them.
    """

    def __init__(self, global_batch_size: int, flops_per_image: float | None = None):
        self._images = global_batch_size
        peak = chips.peak_flops()
        self._mfu_of_one = flops_per_image / peak if flops_per_image and peak else None
        self._since = None
        self._waited = self._paused = 0.0
        self._step = 0

    def begin(self, first_result: jax.Array) -> None:
        """Waits for the first step, which compiles, and starts to count after it."""
        first_result.block_until_ready()
        self._since, self._step = time.monotonic(), 1
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self):
        """Around the fetching of a batch."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    @contextlib.contextmanager
    def paused(self):
        """Around what is not training."""
        begun = time.monotonic()
        yield
        self._paused += time.monotonic() - begun

    def read(self, step: int) -> dict[str, float]:
        """perf/... since the last reading.

        Args:
          step: steps of this process so far.
        Returns: images a second, seconds a step, the share of time that the step waited for its
          batch, and, where work and peak are known, the share of the devices' bfloat16 peak that
          is used (MFU); {} where no whole step has been timed.
        """
        now = time.monotonic()
        steps, seconds = step - self._step, now - self._since - self._paused
        if steps < 1:  # the time goes on to count for the step that is under way
            return {}
        values = {}
        if seconds > 0:
            values = {"perf/images_per_second": steps * self._images / seconds,
                      "perf/step_seconds": seconds / steps,
                      "perf/input_wait_fraction": min(self._waited / seconds, 1.0)}
            if self._mfu_of_one:
                values["perf/mfu"] = values["perf/images_per_second"] * self._mfu_of_one
        self._since, self._step = now, step
        self._waited = self._paused = 0.0
        return values
