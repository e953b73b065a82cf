"""A report's accuracy against one of its columns: does one quantity go with another?"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from beit_jax.visualize import curves

_COLOURS = ("#1f5f8b", "#c2410c", "#3f7d20", "#7a3e9d")


def draw(report: Mapping[str, Any], column: str) -> Figure | None:
    """Means and spreads of the rows against `column`; None if fewer than three rows have it.

    Args:
      report: report.json of a recipe; rows called "kind: name" form one series for each kind, rows
        without a value in `column` become dashed lines. A table without such rows is no figure.
    """
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    if not any(": " in row["row"] for row in rows):
        return None
    series = list(dict.fromkeys(row["row"].partition(":")[0] for row in rows))
    placed = [row for row in rows if (row.get("columns") or {}).get(column) is not None]
    if len({row["columns"][column] for row in placed}) < 3:
        return None
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (name, colour) in enumerate(zip(series, _COLOURS)):
        own = [row for row in rows if row["row"].partition(":")[0] == name]
        points = sorted((row for row in own if row in placed),
                        key=lambda row: row["columns"][column])
        axes.errorbar([row["columns"][column] for row in points],
                      [row["mean"] for row in points], [row["spread"] or 0.0 for row in points],
                      fmt="o", color=colour, capsize=3, label=name)
        for row in points:
            axes.annotate(row["row"].partition(":")[2].strip(),
                          (row["columns"][column], row["mean"]), (5, 5 - 14 * (place % 2)),
                          fontsize=8, textcoords="offset points", color=colour)
        for row in own:
            if row not in placed:
                axes.axhline(row["mean"], color=colour, linestyle="--", linewidth=0.9,
                             label=row["row"])
    axes.set_xlabel(column)
    axes.set_ylabel(f"{report['metric']} [{report['unit']}]" if report["unit"]
                    else report["metric"])
    axes.set_title(report["title"], fontsize=11)
    axes.margins(x=0.15)
    curves.tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
