"""The final table of a recipe with stages: mean and spread over the runs of each row."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import rich.console
import rich.table

from beit_jax import options
from beit_jax.checkpoint import absolute
from beit_jax.options import Finite, Natural

SORTS = ("", "ascending", "descending")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """config.report.

    Attributes:
      metric: what rows are judged by, "eval/validation/top1"; a leading "-": smaller is better.
      rows: {row: {group: stages}}. A group holds the same setting with several seeds; a row is
        judged by its best group, as a learning rate would be chosen.
      title, head, setting: of the table, of the metric's column ("": its name), of the groups'
        ("": no such column).
      unit: stands behind the metric's name.
      scale: the metric is multiplied by it.
      digits: after the decimal point.
      columns: {title: metric}: further numbers of the same stages, or {title: {metric, scale,
        stages: {row: stages}}} where they were measured in others; with the spread behind, where
        there are several. "-": not measured there.
      sort: rows by the metric, "ascending" or "descending"; "": as written.
    Raises: ValueError: a value that nothing could be done with.
    """

    metric: str
    rows: Mapping[str, Any]
    title: str = "Result"
    head: str = ""
    setting: str = "setting"
    unit: str = ""
    scale: Finite = 1.0
    digits: Natural = 2
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sort: str = ""

    def __post_init__(self):
        if self.sort not in SORTS:
            raise ValueError(f"config.report.sort={self.sort!r} is none of {', '.join(SORTS[1:])}; "
                             "leave it empty to keep the order of the rows")


@dataclasses.dataclass(frozen=True)
class Column:
    """One of `ReportOptions.columns`; rows that `stages` does not name take their own stages."""

    metric: str
    scale: Finite = 1.0
    stages: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(report: Mapping[str, Any], stages: Iterable[str]) -> ReportOptions:
    """Checks config.report before anything runs; its columns become `Column`s.

    Args: stages: names of config.stages.
    Raises: ValueError: an unknown key or value, or a stage or row that is not there.
    """
    opts = options.build(ReportOptions, report, "config.report")
    columns = {}
    for title, column in opts.columns.items():
        where = f"config.report.columns.{title}"
        section = {"metric": column} if isinstance(column, str) else column
        columns[title] = options.build(Column, section, where)
        for row in columns[title].stages:
            if row not in opts.rows:
                raise ValueError(f"{where}.stages names the row {row!r}, which is not in "
                                 "config.report.rows")
        _check_stages(columns[title].stages.values(), stages, f"{where}.stages")
    for groups in opts.rows.values():
        _check_stages(groups.values(), stages, "config.report.rows")
    return dataclasses.replace(opts, columns=columns)


def check_metrics(report: Mapping[str, Any], measured: Mapping[str, Iterable[str]]) -> None:
    """Refuses metrics that no run will measure.

    Args:
      report: see `ReportOptions`.
      measured: {stage: names of what it measures}, before anything runs.
    Raises: ValueError: naming the key, and what is measured.
    """
    summarise(report, {stage: dict.fromkeys(names, 0.0) for stage, names in measured.items()})


def _check_stages(groups: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuses names of stages that are not there."""
    for group in groups:
        for stage in _listed(group):
            if stage not in known:
                raise ValueError(f"{where} names the stage {stage!r}, which is not in "
                                 "config.stages")


def _listed(stages: Any) -> list[str]:
    """One stage or several as a list."""
    return [stages] if isinstance(stages, str) else list(stages)


def summarise(report: Mapping[str, Any], results: Mapping[str, Mapping[str, float]],
              ) -> list[dict[str, Any]]:
    """Picks the best group of every row.

    Args:
      report: see `ReportOptions`.
      results: {stage: metrics}.
    Returns: one dict a row: row, group, mean, spread (standard deviation, n - 1; None for one
      run), n, values, groups: {group: mean}, columns: {title: mean, or None where nothing was
      measured}, and of those the spreads of columns that name stages of their own.
    Raises: ValueError: a stage or metric that is not there.
    """
    opts = read(report, results)
    metric = opts.metric.removeprefix("-")
    sign, table = -1 if opts.metric.startswith("-") else 1, []
    for row, groups in opts.rows.items():
        values = {}
        for group, stages in groups.items():
            for stage in _listed(stages):
                if metric not in results[stage]:
                    raise ValueError(
                        f"config.report.metric={metric!r} was not measured in stage {stage}; "
                        f"measured: {', '.join(results[stage]) or 'nothing'}")
            values[group] = [results[stage][metric] * opts.scale for stage in _listed(stages)]
        means = {group: statistics.fmean(numbers) for group, numbers in values.items()}
        best = max(means, key=lambda group: sign * means[group])
        numbers = values[best]
        measured = {title: _values_of(column, column.stages.get(row, groups[best]), results)
                    for title, column in opts.columns.items()}
        table.append({
            "row": row, "group": best, "mean": means[best], "spread": _spread(numbers),
            "n": len(numbers), "values": numbers, "groups": means,
            "columns": {title: statistics.fmean(of_column) if of_column else None
                        for title, of_column in measured.items()},
            "spreads": {title: _spread(of_column) for title, of_column in measured.items()
                        if row in opts.columns[title].stages}})
    for title, column in opts.columns.items():
        if all(row["columns"][title] is None for row in table):
            looked = [stage for row in table for stage in _listed(
                column.stages.get(row["row"], opts.rows[row["row"]][row["group"]]))]
            measured = dict.fromkeys(name for stage in looked for name in results[stage])
            raise ValueError(f"config.report.columns.{title}={column.metric!r} was measured in "
                             f"none of its stages; measured: {', '.join(measured)}")
    if opts.sort:
        table.sort(key=lambda row: row["mean"], reverse=opts.sort == "descending")
    return table


def _values_of(column: Column, stages: Any, results: Mapping[str, Mapping[str, float]],
               ) -> list[float]:
    """A column's numbers for one row, of those stages that measured it."""
    return [results[stage][column.metric] * column.scale for stage in _listed(stages)
            if column.metric in results[stage]]


def _spread(values: list[float]) -> float | None:
    """Standard deviation, n - 1; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def make(report: Mapping[str, Any], results: Mapping[str, Mapping[str, float]],
         workdir: str) -> list[dict[str, Any]]:
    """Prints the table, and writes report.json and report.md into the workdir.

    Args: see `summarise`.
    Returns: the rows.
    """
    rows, opts = summarise(report, results), read(report, results)
    metric = opts.metric.removeprefix("-")
    head = opts.head or metric
    # beside further columns there is room for spread and runs only if they say something
    has_spread = not opts.columns or any(row["n"] > 1 for row in rows)
    names = ["", opts.setting] if opts.setting else [""]
    heads = [*names, f"{head} [{opts.unit}]" if opts.unit else head]
    cells = [[*(row["row"], row["group"])[:len(names)], f"{row['mean']:.{opts.digits}f}"]
             for row in rows]
    intro = f"{head}: {metric}." if head != metric else ""
    if has_spread:
        heads += ["spread", "runs"]
        chosen = "; each row at its best setting" if opts.setting else ""
        intro = ("Mean and standard deviation over runs with different seeds"
                 f"{chosen}. {intro}".rstrip())
        for line, row in zip(cells, rows):
            line += ["-" if row["spread"] is None else f"{row['spread']:.{opts.digits}f}",
                     str(row["n"])]
    for title in opts.columns:
        heads.append(title)
        column = [row["columns"][title] for row in rows]
        whole = all(value is None or value == round(value) for value in column)
        for line, row, value in zip(cells, rows, column):
            spread = row["spreads"].get(title)
            line.append("-" if value is None else f"{value:.{0 if whole else opts.digits}f}"
                        + ("" if spread is None else f" ± {spread:.{opts.digits}f}"))
    table = rich.table.Table(title=opts.title)
    for i, name in enumerate(heads):
        # where many columns do not fit, settings are broken, names are not
        table.add_column(name, justify="left" if i < len(names) else "right", overflow="fold",
                         no_wrap=bool(opts.columns) and i == 0)
    for line in cells:
        table.add_row(*line)
    rich.console.Console().print(table)
    markdown = [f"# {opts.title}", "", *([intro, ""] if intro else [])]
    markdown += ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    folder = absolute(workdir)
    (folder / "report.md").write_text("\n".join(markdown) + "\n")
    (folder / "report.json").write_text(json.dumps(
        {"title": opts.title, "metric": metric, "unit": opts.unit, "rows": rows}, indent=1) + "\n")
    return rows
