"""Evaluation among some of a classifier's classes, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import tasks
from beit_jax.training import recipe
from configs import common
from configs.beitv2 import robustness

ALL = ("ant", "bee", "cat", "cow", "dog", "eel", "fox")
KEPT = ("cat", "dog", "fox")  # places 2, 4 and 6


@pytest.fixture
def lists(tmp_path):
    """{"classes", "all_classes"}: paths of two lists, not in order."""
    paths = {}
    for name, classes in (("classes", KEPT), ("all_classes", ALL)):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(reversed(classes)))
        paths[name] = str(path)
    return paths


def make(target):
    config = common.base()
    config.update(task="classification", dtype="float32")
    config.model = dict(image_px=16, patch_size=8, width=8, depth=1, num_heads=2,
                        num_classes=len(ALL), head_init_scale=50.0)
    config.target = target
    return tasks.make(config)


def batch_of(label):
    image = jax.random.randint(jax.random.key(0), (len(label), 16, 16, 3), 0, 256)
    return {"image": image.astype(jnp.uint8), "label": jnp.asarray(label),
            "is_example": jnp.arange(len(label)) != 5, "index": jnp.arange(len(label))}


@pytest.mark.parametrize("labels", ["of_all", "of_subset"])
def test_softmax_and_top1_run_over_the_kept_classes_only(lists, labels):
    """Rows: 5 is filler, 4 has no label, 6 and 7 another class where labels tell it."""
    of_all = labels == "of_all"
    task = make(dict(**lists, num_classes=len(ALL) if of_all else len(KEPT)))
    place = np.array([0, 2, 1, 1, -1, 0, -1, -1])
    label = np.where(place >= 0, np.array([2, 4, 6])[place], [-1, -1, -1, -1, -1, -1, 0, 3])
    batch = batch_of(label if of_all else place)
    variables = jax.jit(task.init)(jax.random.key(1), batch)
    # the head's bias as logits: every other class would win
    bias = np.array([9.0, 9.0, 1.0, 9.0, 2.5, 9.0, 2.0], np.float32)
    variables["params"]["head"] = {"kernel": jnp.zeros((8, 7)), "bias": jnp.asarray(bias)}
    sums = jax.jit(task.eval_step)(variables, {}, batch)
    kept = np.exp([1.0, 2.5, 2.0])
    errors = -np.log(kept / kept.sum())[[0, 2, 1, 1]]
    assert sums["count"] == 4
    assert sums["loss"] == pytest.approx(errors.sum(), rel=1e-5)
    assert sums["top1"] == 2 and sums["top3"] == 4  # "dog" wins; there are but three classes


def test_all_classes_of_the_model_are_evaluated_without_a_list(lists):
    whole, part = make({}), make(dict(**lists, num_classes=7))
    batch = batch_of([0, 1, 2, 3, 4, 5, 6, 2])
    variables = jax.jit(whole.init)(jax.random.key(1), batch)
    assert jax.jit(whole.eval_step)(variables, {}, batch)["count"] == 7
    assert jax.jit(part.eval_step)(variables, {}, batch)["count"] == 4


def test_labels_of_the_subset_are_trained_as_classes_of_the_model(lists):
    place = np.array([0, 1, 2, -1])
    label = np.array([2, 4, 6, -1])
    key, losses = jax.random.key(2), []
    for count, rows in ((3, place), (7, label)):
        task = make(dict(**lists, num_classes=count))
        batch = batch_of(rows)
        params = jax.jit(task.init)(jax.random.key(1), batch)["params"]
        losses.append(float(jax.jit(task.loss)(params, {}, {}, batch, key)[0]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("changes, message", [
    (dict(num_classes=5), "num_classes=5: data .* have 3 classes, or all 7"),
    (dict(all_classes="imagenet_1k"), "lists 1000 classes, but model.num_classes=7"),
    (dict(classes="imagenet_a"), "200 of 200 classes are not among the 7"),
    (dict(classes=""), "num_classes has no effect while target.classes is empty"),
    (dict(clases="x"), "config.target.clases is unknown"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_nonsense_is_refused_in_one_line(lists, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make(lists | dict(num_classes=7) | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["imagenet_a", "imagenet_r_large", "imagenet_sketch"])
def test_the_data_tell_which_labels_they_have(variant):
    class Info:
        num_classes = 1000
        vocab_size = 0
    config = robustness.get_config(variant)
    assert config.model.width == (1024 if "large" in variant else 768)
    tasks.make(recipe.with_data(config, Info))  # as TFDS counts
    Info.num_classes = 200                      # a folder of 200 folders
    tasks.make(recipe.with_data(config, Info))
    Info.num_classes = 10
    if variant != "imagenet_sketch":
        with pytest.raises(ValueError, match="target.num_classes=10"):
            tasks.make(recipe.with_data(config, Info))
