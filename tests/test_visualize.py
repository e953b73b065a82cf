"""Figures: curves, and the command that collects them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from beit_jax.visualize import __main__ as figures
from beit_jax.visualize import against, captions, curves, diversity
from configs.beit3 import captioning

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


def log_evaluations(folder, values):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(
        json.dumps({"step": 10 * (i + 1), "eval/validation/top1": value})
        for i, value in enumerate(values)))


def test_a_comparison_has_a_bar_for_runs_that_differ_in_their_seed(tmp_path):
    single = {"probe_seed0": 0.25, "probe_seed1": 0.35, "probe_seed12": 0.6, "tuned": 0.5}
    for name, value in single.items():
        log_evaluations(tmp_path / name, [value])
    runs = {name: tmp_path / name for name in single}
    figure = curves.draw_comparison(runs, "eval/validation/top1", "accuracy")
    axes, = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["probe", "tuned"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 0.5])
    dots = [sorted(line.get_xdata()) for line in axes.lines]
    assert dots == [[0.25, 0.35, 0.6], [0.5]]
    assert curves.draw_comparison(runs, "eval/validation/mae", "none has it") is None


def test_a_comparison_of_many_curves_gives_each_group_its_look_and_its_name(tmp_path):
    names = [f"rate{i:02}_seed{seed}" for i in range(24) for seed in range(2)]
    for name in names:
        log_evaluations(tmp_path / name, [0.1, 0.2])
    log_evaluations(tmp_path / "once", [0.5])
    runs = {name: tmp_path / name for name in [*names, "once"]}
    ends, lines = curves.draw_comparison(runs, "eval/validation/top1", "accuracy").axes
    assert len(ends.patches) == 1 and len(lines.lines) == 48
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.lines}
    assert len(looks) == 24
    legend = [text.get_text() for text in lines.get_legend().get_texts()]
    assert legend == [f"rate{i:02} (2 runs)" for i in range(24)]


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


def log_similarity(folder, raw, centred, split="train"):
    folder.mkdir(parents=True)
    lines = [{"step": 1, "train/loss": 0.0, "train/learning_rate": 0.0},
             {"step": 2, f"eval/{split}/similarity": 0.0, f"eval/{split}/similarity_centred": 0.0},
             {"step": 3, f"eval/{split}/similarity": raw,
              f"eval/{split}/similarity_centred": centred}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_diversity_has_two_bars_a_teacher_the_most_diverse_on_top(tmp_path):
    log_similarity(tmp_path / "vit", 0.75, 0.125)
    log_similarity(tmp_path / "resnet", 0.5, -0.25, split="validation")
    log_run(tmp_path / "student")  # measured no similarity
    folders = {name: tmp_path / name for name in ("vit", "student", "resnet")}
    axes, = diversity.draw_bars(folders).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["resnet", "vit"]
    assert axes.yaxis_inverted()
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.75, -0.25, 0.125]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["S", "S centred"]
    assert diversity.draw_bars({"student": tmp_path / "student"}) is None


def test_a_run_that_trained_nothing_has_bars_and_no_curve(tmp_path):
    log_similarity(tmp_path / "all" / "vit", 0.75, 0.125)
    assert figures.collect(tmp_path / "all") == ["token_diversity.png"]
    Image.open(tmp_path / "all" / "figures" / "token_diversity.png").verify()


def thesis():
    """report.json of a recipe whose table has a column."""
    rows = [{"row": f"{what}: teacher {i}", "mean": 50.0 + i, "spread": 1.0,
             "columns": {"diversity": 0.2 * i}} for what in ("probe", "fine-tuned")
            for i in range(3)]
    rows.append({"row": "probe: none", "mean": 20.0, "spread": None,
                 "columns": {"diversity": None}})
    return {"title": "Teachers", "metric": "eval/validation/top1", "unit": "%", "rows": rows}


def test_a_column_of_the_report_is_an_axis_with_a_series_for_each_kind_of_row(tmp_path):
    log_run(tmp_path / "stage")
    (tmp_path / "report.json").write_text(json.dumps(thesis()))
    assert "report_against_diversity.png" in figures.collect(str(tmp_path))
    figure = against.draw(thesis(), "diversity")
    axes, = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["fine-tuned", "probe", "probe: none"]
    assert sorted(text.get_text() for text in axes.texts) == sorted(2 * [f"teacher {i}"
                                                                         for i in range(3)])
    assert axes.get_xlabel() == "diversity" and axes.get_ylabel() == "eval/validation/top1 [%]"


def test_two_points_and_rows_of_no_kind_are_no_figure():
    report = thesis()
    rows = report["rows"]
    report["rows"] = rows[:2]
    assert against.draw(report, "diversity") is None
    report["rows"] = [row | {"row": f"row {i}"} for i, row in enumerate(rows)]
    assert against.draw(report, "diversity") is None


def test_written_captions_stand_beside_their_pictures(tmp_path):
    config = captioning.get_config("smoke")
    config.data.synthetic_examples = 5
    run = tmp_path / "run"
    assert captions.draw(run) is None
    (run / "predictions" / "validation").mkdir(parents=True)
    (run / "config.json").write_text(config.to_json())
    assert captions.draw(run) is None
    (run / "predictions" / "validation" / "captions.json").write_text(json.dumps(
        [{"image_id": i, "caption": f"picture number {i}" if i != 3 else ""} for i in range(5)]))
    figure = captions.draw(run)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["picture number 0", "picture number 1", "picture number 2", "(nothing)",
                      "picture number 4", "", "", ""]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["a black picture",
                                                               "a dark picture"]
    assert all(len(axes.images) == (i < 5) for i, axes in enumerate(figure.axes))
