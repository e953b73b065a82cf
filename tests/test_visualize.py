"""Figures: curves, grids, and the command that collects them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit_jax.visualize import __main__ as figures
from beit_jax.visualize import curves, grids

ROOT = Path(__file__).parents[1]


def log_run(folder, steps=60):
    folder.mkdir(parents=True)
    lines = [{"step": step, "train/loss": 3.0 / step, "train/learning_rate": 1e-3,
              "perf/images_per_second": 10.0} for step in range(1, steps + 1)]
    lines += [{"step": step, "eval/validation/top1": step / steps,
               "eval/validation/loss": None if step == 20 else 2.0 / step} for step in (20, 40, 60)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_curves_read_what_was_logged_and_leave_out_what_was_not_finite(tmp_path):
    log_run(tmp_path / "run")
    found = curves.read_curves(tmp_path / "run")
    assert found["eval/validation/loss"] == ([40, 60], [0.05, 2 / 60])
    assert len(found["train/loss"][0]) == 60


def test_a_figure_has_a_labelled_panel_for_each_quantity(tmp_path):
    log_run(tmp_path / "run")
    figure = curves.draw_run(tmp_path / "run", "pre-training")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy", "learning rate"]
    assert all(axes.get_xlabel() == "step" and axes.get_ylabel() for axes in figure.axes)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["validation loss", "training loss"]
    assert len(figure.axes[0].lines) == 3  # evaluation, training, and its moving average
    (tmp_path / "empty").mkdir()
    assert curves.draw_run(tmp_path / "empty", "nothing") is None


def test_smoothing_keeps_a_constant_and_does_not_start_at_zero():
    assert curves.smooth([2.0] * 5, 3) == pytest.approx([2.0] * 5)
    falling = curves.smooth([8.0, 0.0, 0.0], 1.0)
    assert falling[0] == 8.0 and falling[1] == pytest.approx(8 / 3)


def test_grid_puts_every_image_in_its_place():
    images = np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(5)])
    sheet = grids.grid(images, 2, gap=1)
    assert sheet.shape == (3 * 2 + 2, 2 * 3 + 1, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 4, 0] == 1 and sheet[3, 0, 0] == 2
    assert sheet[6, 0, 0] == 4 and (sheet[6:, 4:] == 255).all()
    side = grids.stack([images, images + 10], gap=0)
    assert side.shape == (10, 6, 3) and side[2, 0, 0] == 1 and side[2, 3, 0] == 11
    assert grids.enlarge(images[0], 7).shape == (8, 12, 3)
    with pytest.raises(ValueError, match="uint8 images"):
        grids.grid(images.astype(np.float32), 2)


def test_the_command_collects_the_stages(tmp_path):
    for stage in ("pretrain", "tuned"):
        log_run(tmp_path / stage)
    (tmp_path / "pretrain" / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pretrain" / "figures" / "masks.png")
    done = subprocess.run([sys.executable, "-m", "beit_jax.visualize", "--workdir", tmp_path],
                          capture_output=True, text=True, cwd=ROOT, check=True)
    names = json.loads(done.stdout)["files"]
    assert names == ["all_top1.png", "pretrain_curves.png", "pretrain_masks.png",
                     "tuned_curves.png"]
    for name in names:
        Image.open(tmp_path / "figures" / name).verify()
    missing = subprocess.run([sys.executable, "-m", "beit_jax.visualize", "--workdir", "/no/run"],
                             capture_output=True, text=True, cwd=ROOT)
    assert missing.returncode == 1 and missing.stderr.strip() == (
        "error: workdir /no/run does not exist")


def test_a_single_run_keeps_its_pictures(tmp_path):
    log_run(tmp_path / "run")
    assert figures.collect(tmp_path / "run") == ["curves.png"]
