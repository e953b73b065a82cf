"""Nearest neighbours: a case by hand, scikit-learn, many devices, and the way through the loop."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import pretended
from sklearn.neighbors import KNeighborsClassifier

from beit_jax import data, options, tasks
from beit_jax.data import pipeline
from beit_jax.data.source import MissingSplit, Source
from beit_jax.models.beit import BeitForMim
from beit_jax.tasks.task import Task, mean_of_sums
from beit_jax.training import evaluate, knn, loop
from beit_jax.training.state import TrainState

ROOT = Path(__file__).parents[2]


def unit(degrees):
    """Vectors of the plane with these angles, of different lengths."""
    angle = np.radians(degrees)
    length = 1.0 + np.arange(len(angle))[:, None]
    return (length * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def test_three_angles_by_hand(mesh):
    """At 0 degrees: one neighbour at 10 (class 0), two at 20 and 340 (class 1)."""
    bank, bank_label = unit([10, 20, 340, 180]), np.array([0, 1, 1, 2])
    query, label = unit([0]), np.array([1])

    def share(k, temperature):
        return knn.accuracy(bank, bank_label, query, label, (k,), temperature, mesh)[f"knn_{k}"]

    assert share(1, 0.07) == 0.0  # the nearest is of class 0
    # exp(0.985 / T) against 2 exp(0.940 / T): 2 wins above T = 0.045 / ln 2 = 0.065
    assert share(3, 0.07) == 1.0
    assert share(3, 0.06) == 0.0
    assert share(4, 0.001) == 0.0  # exp(985) is no float32


def made_up(seed=0, size=157, queries=43, classes=5, width=6):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    label, query_label = rng.integers(0, classes, size), rng.integers(0, classes, queries)
    return (centres[label] + rng.normal(size=(size, width)), label,
            centres[query_label] + rng.normal(size=(queries, width)), query_label)


def sklearn_accuracy(bank, bank_label, queries, label, k, temperature):
    votes = KNeighborsClassifier(k, metric="cosine", algorithm="brute",
                                 weights=lambda distance: np.exp((1 - distance) / temperature))
    return votes.fit(bank, bank_label).score(queries, label)


@pytest.mark.parametrize("similarities", [1, 1000, 2 ** 26], ids=lambda n: f"{n}_at_once")
def test_equals_scikit_learn_however_many_at_once(mesh, monkeypatch, similarities):
    monkeypatch.setattr(knn, "_SIMILARITIES", similarities)
    data, ks = made_up(), (1, 7, 40, 157)
    found = knn.accuracy(*data, ks, 0.07, mesh)
    for k in ks:
        assert found[f"knn_{k}"] == pytest.approx(sklearn_accuracy(*data, k, 0.07)), k
    assert len(set(found.values())) > 1  # the ks differ, or the case would prove little


def test_rows_without_label_neither_vote_nor_count(mesh):
    bank, bank_label, queries, label = made_up()
    expected = knn.accuracy(bank, bank_label, queries, label, (7,), 0.07, mesh)
    found = knn.accuracy(np.concatenate([queries, bank]),
                         np.concatenate([np.full(len(queries), -1), bank_label]),
                         np.concatenate([queries, bank]),
                         np.concatenate([label, np.full(len(bank), -1)]), (7,), 0.07, mesh)
    assert found == expected


def test_rows_that_fill_up_a_part_of_the_bank_never_vote(mesh):
    """The filler (label -1) would be the nearest of all."""
    vote = knn._compiled(mesh, (1, 2), 3)
    bank, label = unit([0, 30, 60]) / [[1], [2], [3]], np.array([[-1, 2, 1]])
    bank = bank[None].astype(np.float32)
    assert vote(bank, label, unit([0])[None], np.float32(1.0)).tolist() == [[[2, 2]]]


@pytest.mark.parametrize("changes, message", [
    (dict(ks=(1, 3)), r"knn=\(1, 3\), but there are 2 labelled"),
    (dict(bank_label=np.array([-1, 0]), ks=(2,)), "there are 1 labelled"),
    (dict(label=np.array([-1])), "the evaluation split has none"),
], ids=["small_bank", "unlabelled_bank", "unlabelled_split"])
def test_what_cannot_be_counted_is_one_line(mesh, changes, message):
    case = dict(bank=unit([0, 90]), bank_label=np.array([0, 1]), queries=unit([0]),
                label=np.array([0]), ks=(1,), temperature=0.07, mesh=mesh) | changes
    with pytest.raises(ValueError, match=message) as error:
        knn.accuracy(**case)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes, message", [
    (dict(knn=(0,)), "knn=.0,.: 0 must be 1 or more"), (dict(knn=(10,), knn_bank=9), "cannot hold"),
    (dict(knn_temperature=0.0), "must be above 0"), (dict(knn_bank=-1), "knn_bank=-1"),
], ids=str)
def test_impossible_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        options.build(evaluate.EvalOptions, changes, "config.eval")


def test_measure_adds_neighbours_to_what_the_task_measures(mesh):
    """The bank is the other split, fillers and limit as asked for."""
    asked = []

    def rows(split="validation", limit=0):
        asked.append((split, limit))
        x = np.array([[1, 0], [0, 1], [1, 0.1], [9, 9]], np.float32)
        yield {"x": x, "label": np.array([0, 1, 1 if split == "train" else 0, 0]),
               "is_example": np.array([True, True, True, False])}

    task = Task(None, None, lambda v, f, b: {"loss": 2.0 * jnp.sum(b["is_example"]),
                                             "count": jnp.sum(b["is_example"])}, mean_of_sums,
                features=lambda v, f, b: b["x"] * v["params"])
    state = TrainState(jnp.zeros(()), jnp.array([1.0, 0.0]), {}, (), jnp.array([1.0, 1.0]))
    options = evaluate.EvalOptions(knn=(1, 3), knn_bank=3)
    measure = evaluate.make_measure(task, options, mesh)
    # averaged weights keep both numbers: each finds itself, but the third is labelled otherwise;
    # the others would make the second a zero, which finds the first
    values, files = measure(state, {}, rows, None)
    assert values == {"loss": 2.0, "knn_1": pytest.approx(2 / 3), "knn_3": pytest.approx(2 / 3)}
    assert files == {}
    assert sorted(set(asked)) == [("train", 3), ("validation", 0)]
    plain = evaluate.make_measure(task, dataclasses.replace(options, knn=()), mesh)
    assert plain(state, {}, rows, None) == ({"loss": 2.0}, {})


def test_a_run_reports_them_and_a_task_without_features_says_so(toy, tmp_path, monkeypatch):
    config = toy.get_config(eval__knn=(1, 5), eval__knn_bank=16)
    with pytest.raises(ValueError, match="knn=.*this task has no features"):
        loop.run(config, tmp_path / "without")

    def make(config):
        return toy.make(config)._replace(features=lambda variables, frozen, batch: jnp.mean(
            batch["image"].astype(jnp.float32), axis=(1, 2)) - 100.0)

    monkeypatch.setitem(tasks.TASKS, "toy", make)
    result = loop.run(config, tmp_path / "with")
    assert result["eval/validation/knn_1"] == 1.0  # the toy's splits are one
    assert 0.25 < result["eval/validation/knn_5"] <= 1.0
    assert "eval/validation/top1" in result


@pytest.mark.parametrize("changes, message", [
    (dict(knn=(5, 12)), r"knn=\(5, 12\), but there are 11 labelled examples of the split train"),
    (dict(split="tset"), "no split tset"), (dict(knn=(1,), knn_split="tset"), "no split tset"),
    (dict(knn=(1,), split="unlabelled"), "the split unlabelled has none"),
], ids=["small_bank", "split", "bank", "no_labels"])
def test_what_the_data_cannot_give_is_known_before_training(monkeypatch, changes, message):
    def load(options, split):
        labels = {"train": np.arange(-1, 11), "validation": np.arange(3),
                  "unlabelled": np.full(3, -1)}.get(split)
        if labels is None:
            raise MissingSplit(f"no split {split}")
        return Source(len(labels), tuple("abcdefghijk"), "few", labels=labels)

    monkeypatch.setitem(data.SOURCES, "few", load)
    asked = pipeline.DataOptions("few", 4, 8), pipeline.DataInfo(12, 3, 11, tuple("abcdefghijk"))
    evaluate.check_data(evaluate.EvalOptions(knn=(11,)), *asked)
    with pytest.raises(ValueError, match=message):
        evaluate.check_data(evaluate.EvalOptions(**changes), *asked)


@pytest.mark.multidevice
@pytest.mark.slow
def test_eight_devices_find_the_same_neighbours_and_do_not_copy_the_bank():
    """Every device looks through its own part: no part is gathered."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import jax, jax.numpy as jnp, numpy as np
from beit_jax.training import knn, sharding
from training.test_knn import made_up
found = []
for options in (sharding.MeshOptions(), sharding.MeshOptions(2, 2, 2)):
    mesh = sharding.make_mesh(options)
    with sharding.use(mesh):
        found.append(knn.accuracy(*made_up(), (1, 7, 100), 0.07, mesh))
        split = jax.NamedSharding(mesh, sharding.BATCH)
        whole = sharding.replicated(mesh)
        shapes = [jax.ShapeDtypeStruct((parts := sharding.rows_multiple(mesh), 500, 33),
                                       jnp.float32, sharding=split),
                  jax.ShapeDtypeStruct((parts, 500), jnp.int32, sharding=split),
                  jax.ShapeDtypeStruct((2, 3, 33), jnp.float32, sharding=whole),
                  jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)]
        text = knn._compiled(mesh, (7,), 5).lower(*shapes).compile().as_text()
        gathered = [line for line in text.splitlines() if " all-gather" in line]
        assert gathered and not [line for line in gathered if "500" in line], gathered
print("FOUND", found)
"""
    done = subprocess.run([sys.executable, "-c", code], env=pretended(8), capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    data, line = made_up(), done.stdout.split("FOUND")[1]
    expected = {f"knn_{k}": sklearn_accuracy(*data, k, 0.07) for k in (1, 7, 100)}
    found = eval(line)
    assert found[0] == pytest.approx(expected) and found[1] == pytest.approx(expected)


def test_features_of_beit_are_the_mean_patch_with_nothing_hidden():
    from configs.beit import pretrain_in1k

    config = pretrain_in1k.get_config("smoke")
    config.update(dtype="float32")
    task = tasks.make(config)
    image = jax.random.randint(jax.random.key(0), (3, 32, 32, 3), 0, 256).astype(jnp.uint8)
    batch = {"image": image, "index": jnp.arange(3)}
    variables = jax.jit(task.init)(jax.random.key(1), batch)
    found = jax.jit(task.features)(variables, {}, batch)
    assert found.shape == (3, config.model.width) and found.dtype == jnp.float32
    model = BeitForMim(**config.model, vocab_size=32)
    pixels = (image / 255.0 - jnp.array(config.data.mean)) / jnp.array(config.data.std)
    tokens = jax.jit(lambda *args: model.apply(*args, None, method="features"))(variables, pixels)
    np.testing.assert_allclose(found, tokens[:, 1:].mean(axis=1), atol=1e-5)
    hidden = jax.tree.map(lambda leaf: leaf, variables)
    hidden["params"]["mask_token"] = 9.0 + hidden["params"]["mask_token"]
    np.testing.assert_array_equal(jax.jit(task.features)(hidden, {}, batch), found)
