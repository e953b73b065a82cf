"""What would stop a run after hours is known before its first step."""

import importlib

import pytest

from beit_jax import main, report, tasks
from beit_jax.training import loop, rehearsal


@pytest.mark.parametrize("name", ["val_acc", "-top5", "knn_20"])
def test_a_wrong_name_of_the_best_metric_is_known_before_the_first_step(toy, tmp_path, name):
    with pytest.raises(ValueError, match=f"keep_best='{name}' is none of the metrics of the "
                       "evaluation: loss, top1"):
        loop.run(toy.get_config(checkpoint__keep_best=name), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("change, message", [
    (dict(metric="eval/validation/topp1"), "metric='eval/validation/topp1' was not measured in "
     "stage zeta; measured: eval/validation/loss, eval/validation/top1"),
    (dict(columns={"five": "eval/validation/top5"}), "columns.five='eval/validation/top5'"),
], ids=["metric", "column"])
def test_a_wrong_metric_of_the_report_stops_the_first_stage(toy, tmp_path, change, message):
    config = toy.get_config("stages")
    config.report.update(change)
    with pytest.raises(ValueError) as caught:
        main.run(config, str(tmp_path))
    assert message in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    lambda stage: stage.model.update(width=0),
    lambda stage: stage.checkpoint.update(keep_best="top2"),
    lambda stage: stage.optim.update(warmup_steps=99),
    lambda stage: stage.init.update(checkpoint="nowhere.npz"),
], ids=["width", "best", "warmup", "file"])
def test_what_the_last_stage_refuses_stops_the_first(toy, tmp_path, monkeypatch, change):
    def refuse(config):
        if not config.model.width:
            raise ValueError("a width of 0")
        return toy.make(config)

    monkeypatch.setitem(tasks.TASKS, "toy", refuse)
    config = toy.get_config("stages")
    change(config.stages.beta)
    with pytest.raises(ValueError, match="stage beta: (a width of 0|config.checkpoint.keep_best|"
                       "warm-up of 99 steps|checkpoint .*nowhere.npz does not exist)"):
        main.run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe, names", [
    ("retrieval", {"tr_r1", "ir_r10", "mean"}),  # asks its data
    ("pretrain", {"loss", "loss_image", "loss_text", "code_usage"})])  # of three streams
def test_names_are_known_of_tasks_with_texts(recipe, names):
    config = importlib.import_module(f"configs.beit3.{recipe}").get_config("smoke")
    found = {name.removeprefix("eval/validation/") for name in rehearsal.of_config(config)}
    assert names <= found


def test_a_network_that_refuses_its_sizes_is_known_in_shapes_alone():
    config = importlib.import_module("configs.beit.finetune_in1k").get_config("smoke")
    assert "eval/validation/top1" in rehearsal.of_config(config)
    config.model.num_heads = 5
    with pytest.raises(ValueError, match="num_heads=5"):
        rehearsal.of_config(config)


def test_metrics_of_a_report_are_compared_with_what_stages_measure():
    table = dict(metric="-a", rows={"x": {"": ("one", "two")}})
    report.check_metrics(table, {"one": ("a", "b"), "two": ("a",)})
    with pytest.raises(ValueError, match="metric='-?a' was not measured in stage two"):
        report.check_metrics(table, {"one": ("a", "b"), "two": ("b",)})
