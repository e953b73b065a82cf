"""Loss and accuracy curves out of metrics.jsonl."""

import collections
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from beit_jax.training.metric_writer import read_metrics

# one panel each, where a run has them; the names stand for what comes after "train/" or the split
PANELS = (
    ("loss", "loss", ("loss",)),
    ("accuracy", "accuracy", ("top1", "accuracy")),
    ("learning rate", "learning rate", ("learning_rate",)),
)
_COLOURS = {"train": "#9aa7b5", "eval": "#c2410c"}
_SMOOTHED = "#1f5f8b"


def read_curves(workdir: str) -> dict[str, tuple[list[int], list[float]]]:
    """{metric: (steps, values)} of a run, without values that were not finite."""
    curves = collections.defaultdict(lambda: ([], []))
    for line in read_metrics(workdir):
        for name, value in line.items():
            if name != "step" and value is not None:
                curves[name][0].append(line["step"])
                curves[name][1].append(value)
    return dict(curves)


def smooth(values: Sequence[float], half_life: float) -> list[float]:
    """Moving average that forgets half in `half_life` points and does not start biased."""
    keep, total, weight, result = 0.5 ** (1 / half_life), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def draw_run(workdir: str, title: str) -> Figure | None:
    """Panels of loss, accuracy and learning rate of one run; None if nothing was logged."""
    curves = read_curves(workdir)
    panels = [(label, unit, [(name, *curves[name]) for name in sorted(curves)
                             if name.split("/")[-1] in keys and not name.startswith("perf/")])
              for label, unit, keys in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, (label, unit, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0],
                                          panels, strict=True):
        for name, steps, values in lines:
            _draw_line(axes, name, steps, values)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        _tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_line(axes, name: str, steps: list[int], values: list[float]) -> None:
    """Training as a pale line with its moving average, evaluations as dots."""
    kind, *_, key = name.split("/")
    if kind == "eval":
        axes.plot(steps, values, "o-", color=_COLOURS["eval"], markersize=3, linewidth=1.2,
                  label=f"{name.split('/')[1]} {key}", zorder=3)
    elif len(values) > 20 and key != "learning_rate":
        axes.plot(steps, values, color=_COLOURS["train"], linewidth=0.7, alpha=0.6)
        axes.plot(steps, smooth(values, len(values) / 30), color=_SMOOTHED, linewidth=1.5,
                  label=f"training {key}")
    else:
        axes.plot(steps, values, color=_SMOOTHED, linewidth=1.5, label=f"training {key}")


def draw_comparison(workdirs: Mapping[str, str], metric: str, title: str) -> Figure | None:
    """One metric of several runs in one panel; None if no run has it.

    Args:
      workdirs: {label: workdir}.
      metric: as in metrics.jsonl.
    """
    found = {label: read_curves(workdir).get(metric) for label, workdir in workdirs.items()}
    found = {label: curve for label, curve in found.items() if curve}
    if not found:
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, (steps, values) in found.items():
        axes.plot(steps, values, "o-", markersize=3, linewidth=1.2, label=label)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    _tidy(axes)
    axes.legend(frameon=False, fontsize=7, ncols=1 + len(found) // 12)
    return figure


def _tidy(axes) -> None:
    """Light grid, no box."""
    axes.grid(True, color="#e3e7ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
