"""The final table of a recipe with stages: mean and spread over the runs of each row."""

import json
import statistics
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from beit_jax.checkpoint import absolute


def summarise(report: Mapping[str, Any], results: Mapping[str, Mapping[str, float]],
              ) -> list[dict[str, Any]]:
    """Picks the best group of every row.

    Args:
      report: metric (a leading "-": smaller is better), scale, unit, title, and rows: {row:
        {group: stages}}. A group holds the same setting with several seeds; a row is judged by its
        best group, as a learning rate would be chosen.
      results: {stage: metrics}.
    Returns: one dict a row: row, group, mean, spread (standard deviation, n - 1; None for one
      run), n, values, and groups: {group: mean}.
    Raises: ValueError: a stage or metric that is not there.
    """
    metric = report["metric"]
    sign, metric = (-1, metric[1:]) if metric.startswith("-") else (1, metric)
    scale, table = report.get("scale", 1.0), []
    for row, groups in report["rows"].items():
        values = {}
        for group, stages in groups.items():
            stages = [stages] if isinstance(stages, str) else list(stages)
            for stage in stages:
                if stage not in results:
                    raise ValueError(f"config.report.rows names the stage {stage!r}, which is not "
                                     "in config.stages")
                if metric not in results[stage]:
                    raise ValueError(
                        f"config.report.metric={metric!r} was not measured in stage {stage}; "
                        f"measured: {', '.join(results[stage]) or 'nothing'}")
            values[group] = [results[stage][metric] * scale for stage in stages]
        means = {group: statistics.fmean(numbers) for group, numbers in values.items()}
        best = max(means, key=lambda group: sign * means[group])
        numbers = values[best]
        table.append({"row": row, "group": best, "mean": means[best],
                      "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
                      "n": len(numbers), "values": numbers, "groups": means})
    return table


def make(report: Mapping[str, Any], results: Mapping[str, Mapping[str, float]],
         workdir: str) -> list[dict[str, Any]]:
    """Prints the table, and writes report.json and report.md into the workdir.

    Args: see `summarise`.
    Returns: the rows.
    """
    rows, unit = summarise(report, results), report.get("unit", "")
    title = report.get("title", "Result")
    metric = report["metric"].removeprefix("-")
    heads = ("", "setting", f"{metric} [{unit}]" if unit else metric, "spread", "runs")
    cells = [(row["row"], row["group"], f"{row['mean']:.2f}",
              "-" if row["spread"] is None else f"{row['spread']:.2f}", str(row["n"]))
             for row in rows]
    table = rich.table.Table(title=title)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right")
    for line in cells:
        table.add_row(*line)
    rich.console.Console().print(table)
    markdown = [f"# {title}", "", "Mean and standard deviation over runs with different seeds; "
                "each row at its best setting.", ""]
    markdown += ["| " + " | ".join(line) + " |" for line in (heads, ("---",) * len(heads), *cells)]
    folder = absolute(workdir)
    (folder / "report.md").write_text("\n".join(markdown) + "\n")
    (folder / "report.json").write_text(json.dumps(
        {"title": title, "metric": metric, "unit": unit, "rows": rows}, indent=1) + "\n")
    return rows
