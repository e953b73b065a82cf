"""Loss and accuracy curves out of metrics.jsonl."""

import collections
import re
from collections.abc import Mapping, Sequence

from matplotlib import colormaps
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
_BAR = "#b9d0e0"
_STYLES = ("-", "--", ":")  # neighbours of one map look alike
_SEED = re.compile(r"_seed\d+$")


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
    """Panels of loss, accuracy and learning rate of one run; None if it has none."""
    curves = read_curves(workdir)
    # 0 throughout, learning rate and loss are those of a task that trains nothing
    shown = [name for name in sorted(curves)
             if not name.startswith("perf/") and any(curves[name][1])]
    panels = [(label, unit, [(name, *curves[name]) for name in shown
                             if name.split("/")[-1] in keys]) for label, unit, keys in PANELS]
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
        tidy(axes)
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
    """One metric of several runs; None if no run has it.

    Runs whose names differ only in a trailing _seed<number> share a bar or a colour.

    Args:
      workdirs: {label: workdir}.
      metric: as in metrics.jsonl.
    Returns: a panel of bars for the runs that measured once, and one of lines for the others.
    """
    ends, lines = collections.defaultdict(list), collections.defaultdict(list)
    for label, workdir in workdirs.items():
        steps, values = read_curves(workdir).get(metric, ((), ()))
        if len(values) == 1:
            ends[_SEED.sub("", label)].append(values[0])
        elif values:
            lines[_SEED.sub("", label)].append((steps, values))
    drawn = [(draw, groups) for draw, groups in ((_draw_ends, ends), (_draw_groups, lines))
             if groups]
    if not drawn:
        return None
    tallest = max(len(groups) for _, groups in drawn)
    figure = Figure(figsize=(7.2 * len(drawn), max(3.6, 1.2 + 0.28 * tallest)),
                    layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axes, (draw, groups) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn,
                                    strict=True):
        draw(axes, groups, metric)
        tidy(axes)
    return figure


def _draw_ends(axes, groups: Mapping[str, Sequence[float]], metric: str) -> None:
    """A bar for the mean of each group, a dot for each of its runs."""
    means = [sum(values) / len(values) for values in groups.values()]
    rows = range(len(groups))
    axes.barh(rows, means, height=0.62, color=_BAR)
    for row, values in zip(rows, groups.values(), strict=True):
        axes.plot(values, [row] * len(values), "o", color=_COLOURS["eval"], markersize=3.5,
                  alpha=0.8)
        axes.annotate(f"{means[row]:.3f}", (max(values), row), (6, 0), va="center", fontsize=8,
                      textcoords="offset points")
    axes.set_yticks(rows, list(groups), fontsize=8)
    axes.invert_yaxis()  # the first name on top
    axes.margins(x=0.1)
    axes.set_xlabel(f"{metric} at the end: mean, and single runs")


def _draw_groups(axes, groups: Mapping[str, Sequence[tuple]], metric: str) -> None:
    """A line for each run, a colour for each group."""
    colours = colormaps["turbo"].resampled(len(groups))
    for row, (name, runs) in enumerate(groups.items()):
        label = name if len(runs) == 1 else f"{name} ({len(runs)} runs)"
        for steps, values in runs:
            axes.plot(steps, values, "o", linestyle=_STYLES[row % len(_STYLES)], markersize=3,
                      linewidth=1.2, color=colours(row), label=label)
            label = None  # named once
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0),
                ncols=1 + len(groups) // 30)


def tidy(axes) -> None:
    """Light grid, no box."""
    axes.grid(True, color="#e3e7ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
