"""The final table: best group of each row, further columns, order, and what is refused."""

import json

import pytest

from beit_jax import report


def test_report_takes_the_best_group_of_each_row_by_its_mean(tmp_path, capsys):
    results = {f"{group}{i}": {"top1": value} for group, values in {
        "low": (0.1, 0.2), "high": (0.3, 0.5), "only": (0.9,)}.items()
        for i, value in enumerate(values)}
    spec = {"metric": "top1", "scale": 100.0, "unit": "%", "title": "T", "rows": {
        "tuned": {"lr 1": ["low0", "low1"], "lr 2": ["high0", "high1"]}, "probe": {"-": ["only0"]}}}
    tuned, probe = report.make(spec, results, tmp_path)
    assert (tuned["group"], tuned["n"]) == ("lr 2", 2)
    assert tuned["mean"] == pytest.approx(40.0)
    assert tuned["spread"] == pytest.approx(200 ** 0.5)  # n - 1
    assert probe["spread"] is None
    assert "40.00" in capsys.readouterr().out
    assert "| tuned | lr 2 | 40.00 | 14.14 | 2 |" in (tmp_path / "report.md").read_text()
    spec["metric"] = "-top1"
    assert report.summarise(spec, results)[0]["group"] == "lr 1"


@pytest.mark.parametrize("change, message", [
    ({"rows": {"a": {"b": ["gone"]}}}, "'gone', which is not in config.stages"),
    ({"metric": "top5"}, "measured: top1"),
])
def test_report_says_what_is_missing(change, message):
    spec = {"metric": "top1", "rows": {"a": {"b": ["there"]}}} | change
    with pytest.raises(ValueError, match=message):
        report.summarise(spec, {"there": {"top1": 1.0}})


RESULTS = {
    "a0": {"s": 0.5, "tokens": 49.0, "top1": 0.25}, "a1": {"s": 0.7, "tokens": 49.0},
    "b": {"s": 0.9, "tokens": 196.0, "pooled": 0.8}, "c": {"s": 0.1, "tokens": 196.0},
    "probe_a": {"top1": 0.5}, "probe_b": {"top1": 0.75}, "probe_b2": {"top1": 0.25},
}
SPEC = {
    "metric": "s", "head": "S", "setting": "layer", "digits": 3, "sort": "ascending",
    "rows": {"b": {"norm": "b"}, "a": {"ReLU": ["a0", "a1"]}, "c": {"norm": "c"}},
    "columns": {
        "pooled": "pooled", "K": "tokens",
        "probe": {"metric": "top1", "scale": 100.0,
                  "stages": {"a": "probe_a", "b": ["probe_b", "probe_b2"]}}},
}


def test_columns_stand_beside_the_metric_and_rows_are_sorted_by_it(tmp_path, capsys):
    rows = report.make(SPEC, RESULTS, tmp_path)
    assert [row["row"] for row in rows] == ["c", "a", "b"]
    assert [row["columns"] for row in rows] == [
        {"pooled": None, "K": 196.0, "probe": None},  # probe of c: its own stage has no top1
        {"pooled": None, "K": 49.0, "probe": 50.0},
        {"pooled": pytest.approx(0.8), "K": 196.0, "probe": 50.0}]
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[2].endswith("each row at its best setting. S: s.")
    assert lines[4:] == [
        "|  | layer | S | spread | runs | pooled | K | probe |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| c | norm | 0.100 | - | 1 | - | 196 | - |",
        "| a | ReLU | 0.600 | 0.141 | 2 | - | 49 | 50 |",
        "| b | norm | 0.900 | - | 1 | 0.800 | 196 | 50 ± 35.355 |"]
    assert [row["spreads"] for row in rows] == [
        {}, {"probe": None}, {"probe": pytest.approx(1250 ** 0.5)}]
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == rows
    printed = capsys.readouterr().out
    assert "0.800" in printed and printed.index("0.100") < printed.index("0.600")


@pytest.mark.parametrize(("sort", "order"), [
    ("", "cba"), ("ascending", "cab"), ("descending", "bac")])
def test_rows_come_as_written_or_by_the_metric(sort, order):
    spec = SPEC | {"sort": sort, "rows": {row: SPEC["rows"][row] for row in "cba"}}
    assert "".join(row["row"] for row in report.summarise(spec, RESULTS)) == order


def test_spread_and_runs_make_room_for_columns_where_each_row_is_one_run(tmp_path):
    spec = SPEC | {"rows": {"b": {"norm": "b"}, "c": {"norm": "c"}}, "columns": {"K": "tokens"}}
    report.make(spec, RESULTS, tmp_path)
    assert "|  | layer | S | K |" in (tmp_path / "report.md").read_text()
    report.make(spec | {"columns": {}}, RESULTS, tmp_path)
    assert "|  | layer | S | spread | runs |" in (tmp_path / "report.md").read_text()


def test_groups_without_a_name_have_no_column(tmp_path, capsys):
    report.make(SPEC | {"setting": "", "columns": {}}, RESULTS, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[2] == "Mean and standard deviation over runs with different seeds. S: s."
    assert lines[4] == "|  | S | spread | runs |" and "ReLU" not in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [
    ({"metrics": "s"}, r"config\.report\.metrics is unknown \(did you mean metric\?\)"),
    ({"sort": "up"}, "config.report.sort='up' is none of ascending, descending"),
    ({"digits": -1}, "config.report.digits=-1 must be 0 or more"),
    ({"columns": {"K": "tokenz"}}, "columns.K='tokenz' was measured in none.*: s, tokens, po"),
    ({"columns": {"K": {"metrik": "s"}}}, r"config\.report\.columns\.K\.metrik is unknown"),
    ({"columns": {"K": {"metric": "s", "stages": {"z": "b"}}}}, "names the row 'z', which is not"),
    ({"columns": {"K": {"metric": "s", "stages": {"a": "z"}}}}, "stages names the stage 'z'"),
    ({"rows": {"a": {"ReLU": "z"}}, "columns": {}}, "config.report.rows names the stage 'z'"),
])
def test_what_nobody_would_read_or_find_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        report.summarise(SPEC | change, RESULTS)
    assert "\n" not in str(error.value)
