"""metrics.jsonl, pictures and the progress line."""

import errno
import io
import json
import shutil
import types

import numpy as np
import pytest
import rich.console
from PIL import Image

from beit_jax.training import chips, event_file, metric_writer
from beit_jax.training.metric_writer import LogOptions, MetricWriter, Stopwatch, read_metrics

QUIET = LogOptions(tensorboard=False)


def test_lines_after_the_checkpoint_and_torn_ones_are_dropped_at_resume(tmp_path):
    with MetricWriter(tmp_path, "run", 0, 9, QUIET) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": step / 3})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole) + '\n{"step": 6, "train/l')
    with MetricWriter(tmp_path, "run", 4, 9, QUIET) as writer:
        writer.write(5, {"train/loss": -1.0})
    assert path.read_text().splitlines() == [*whole[:4], '{"step": 5, "train/loss": -1.0}']
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_every_line_is_json_also_where_a_value_is_not_finite(tmp_path):
    with MetricWriter(tmp_path, "run", 0, 9, QUIET) as writer:
        writer.write(1, {"a": float("nan"), "b": np.float32(0.5)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda _: 1 / 0) == {
        "step": 1, "a": None, "b": 0.5}


def test_events_and_pictures(tmp_path):
    images = np.zeros((3, 5, 4, 3), np.uint8)
    images[1] = 200
    with MetricWriter(tmp_path, "run", 0, 9, LogOptions()) as writer:
        writer.write(1, {"train/loss": 0.25})
        writer.pictures(1, {"masks": images})
    sheet = np.asarray(Image.open(tmp_path / "figures" / "masks.png"))
    scale = sheet.shape[0] // 5
    assert sheet.shape == (5 * scale, 12 * scale, 3) and scale > 1
    assert (sheet[:, :4 * scale] == 0).all() and (sheet[:, 4 * scale:8 * scale] == 200).all()
    events = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    assert b"train/loss" in events and b"masks" in events and b"PNG" in events


def points(folder):
    """What TensorBoard shows of one curve: steps in the order of the files."""
    steps = []
    for path in sorted(folder.iterdir()):
        for event in event_file.events(path.read_bytes()):
            if event.HasField("session_log"):
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == "train/loss"]
    return steps


@pytest.mark.parametrize("torn", [0, 5], ids=["whole_records", "torn_record"])
def test_events_that_a_kill_has_cut_off_are_written_at_the_restart(tmp_path, torn):
    (tmp_path / "run").mkdir()
    with MetricWriter(tmp_path / "run", "run", 0, 9, LogOptions()) as writer:
        for step in range(1, 7):
            writer.write(step, {"train/loss": step / 3, "train/other": 1.0})
            if step == 3:
                writer.flush()
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
    folder = tmp_path / "killed" / "tensorboard"
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-torn or None])
    assert points(folder) == [1, 2, 3]
    with MetricWriter(tmp_path / "killed", "run", 5, 9, LogOptions()) as writer:
        writer.write(6, {"train/loss": 0.5})
    assert points(folder) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("line", [
    b"[1, 2]", b'"step"', b"null", b'{"train/loss": 1}', b'{"step": "2", "train/loss": 1}',
    b'{"step": 2.5}', b'{"step": true}', b'{"step": 2, "train/loss": "low"}',
    b'{"step": 2, "a": {}}',
    b'{"step": 2, "train/loss": \xff}', b"[" * 100_000, b"{"])
def test_a_damaged_line_is_told_with_its_file_and_left_out(tmp_path, caplog, line):
    whole = [b'{"step": 1, "train/loss": 0.5}', b'{"step": 3, "train/loss": null}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([whole[0], line, whole[1], b'{"st']))
    assert read_metrics(tmp_path) == [json.loads(text) for text in whole]
    (record,) = caplog.records  # not of the last one: a kill leaves such
    assert f"{tmp_path}/metrics.jsonl: line 2 is not" in record.getMessage()


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_told_with_the_file(tmp_path, name):
    full = open("/dev/full", "w")
    with pytest.raises(OSError) as caught:
        with MetricWriter(tmp_path, "run", 0, 9, LogOptions()) as writer:
            if name == "metrics.jsonl":
                writer._file = full
            else:
                writer._events._writer._py_recordio_writer._writer = full.buffer
            writer.write(1, {"train/loss": 1.0})
            writer.flush()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / name)


def shown(tmp_path, monkeypatch, **console):
    out = io.StringIO()
    made = rich.console.Console(file=out, width=150, **console)
    monkeypatch.setattr(metric_writer.rich.console, "Console", lambda: made)
    with MetricWriter(tmp_path, "pretrain", 0, 200, QUIET) as writer:
        for step in (50, 100):
            writer.write(step, {"train/loss": 2.5, "train/accuracy": 0.125,
                                "perf/images_per_second": 1234.5})
        writer.write(100, {"eval/validation/top1": 0.75})
    return out.getvalue()


def test_plain_lines_where_nobody_looks(tmp_path, monkeypatch):
    lines = shown(tmp_path, monkeypatch).splitlines()
    assert lines[0] == "pretrain  step 50/200  loss 2.5  accuracy 0.125  images/s 1,234"
    assert lines[1].startswith(lines[0].replace("50/", "100/") + "  ETA 0:00:")
    assert lines[2] == "pretrain  step 100  validation/top1 0.75"


def test_one_live_line_on_a_terminal(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, force_terminal=True)
    last = text.splitlines()[-2]  # the very last one shows the cursor again
    for part in ("pretrain", "100/200", "loss 2.5", "accuracy 0.125", "images/s 1,234", "ETA"):
        assert part in last, last
    assert "\x1b[" in text and "validation/top1 0.75" in text


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writer.jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path, "run", 0, 9, LogOptions()) as writer:
        writer.write(1, {"a": 1.0})
        writer.pictures(1, {"p": np.zeros((1, 2, 2, 3), np.uint8)})
    assert not list(tmp_path.iterdir())


def test_the_stopwatch_counts_only_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metric_writer.time, "monotonic", lambda: now[0])
    watch = Stopwatch(global_batch_size=32)

    class Ready:
        def block_until_ready(self):
            now[0] += 50.0  # compiling

    watch.begin(Ready())
    assert watch.read(1) == {}
    for _ in range(4):
        with watch.waiting():
            now[0] += 0.5
        now[0] += 1.5
    with watch.paused():
        now[0] += 1000.0
    assert watch.read(5) == {"perf/images_per_second": 16.0, "perf/step_seconds": 2.0,
                             "perf/input_wait_fraction": 0.25}


@pytest.mark.parametrize(("kind", "work", "mfu"), [
    ("NVIDIA H200", 989e9, 0.02), ("NVIDIA H200", None, None), ("cpu", 989e9, None),
    ("NVIDIA H200 MIG 1g.18gb", 989e9, None)])
def test_mfu_is_a_share_of_all_peaks_and_absent_where_one_part_is_unknown(
        monkeypatch, kind, work, mfu):
    now = [0.0]
    monkeypatch.setattr(metric_writer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(chips.jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)] * 2)
    monkeypatch.setattr(chips.jax, "device_count", lambda: 2)
    watch = Stopwatch(40, work)
    watch.begin(types.SimpleNamespace(block_until_ready=lambda: None))
    now[0] = 1.0
    values = watch.read(2)
    assert values["perf/images_per_second"] == 40.0
    assert values.get("perf/mfu") == (None if mfu is None else pytest.approx(mfu))
