"""The tasks of BEiT: what they learn, what they refuse, and what evaluation adds up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import tasks
from configs import common

VIT = dict(image_px=32, patch_size=8, width=48, depth=2, num_heads=4)
DVAE = dict(vocab_size=32, n_hid=8, n_init=8, num_groups=2, blocks_per_group=1)


def config_of(task, **sections):
    config = common.base()
    config.task = task
    config.dtype = "float32"
    for name, section in sections.items():
        config[name] = section
    return config


def pretraining(**changes):
    sections = dict(model=VIT | dict(use_shared_rel_pos=True), mask=dict(num_masked=6, min_block=2),
                    target=dict(kind="dvae", **DVAE)) | changes
    return config_of("beit_pretrain", **sections)


def batch_of(size=16, seed=0):
    key = jax.random.key(seed)
    image = jax.random.randint(key, (size, 32, 32, 3), 0, 256).astype(jnp.uint8)
    view = image.reshape(size, 8, 4, 8, 4, 3).mean((2, 4)).astype(jnp.uint8)
    return {"image": image, "image_for_target": view, "label": jnp.arange(size) % 4,
            "index": jnp.arange(size), "is_example": jnp.ones(size, bool)}


def frozen_of(task):
    return {name: network.init(jax.random.key(9)) for name, network in task.frozen.items()}


def fit(task, batch, steps, learning_rate=3e-3, *, one_key=False):
    """Trains on one batch; returns parameters and the metrics of the first and the last step."""
    params = jax.jit(task.init)(jax.random.key(0), batch)["params"]
    tx, frozen = optax.adam(learning_rate), frozen_of(task)

    @jax.jit
    def step(params, opt_state, key):
        grads, (_, metrics) = jax.grad(task.loss, has_aux=True)(params, {}, frozen, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, history = tx.init(params), []
    for i in range(steps):
        key = jax.random.key(1 if one_key else i)
        params, opt_state, metrics = step(params, opt_state, key)
        history.append({name: float(value) for name, value in metrics.items()})
    return params, history[0], history[-1]


@pytest.mark.slow
def test_fixed_masks_of_fixed_images_are_learnt_by_heart():
    task = tasks.make(pretraining())
    _, first, last = fit(task, batch_of(8), 150, one_key=True)
    assert first["loss"] == pytest.approx(np.log(32), abs=0.5)
    assert last["loss"] < 0.2
    assert last["accuracy"] > 0.95


@pytest.mark.parametrize("changes", [
    dict(target=dict(kind="pixels")), dict(target=dict(kind="normalised_pixels")),
    dict(mask=dict(kind="none"), loss=dict(positions="all")), dict(loss=dict(positions="all")),
    dict(mask=dict(kind="random", num_masked=6))], ids=str)
def test_every_ablation_lowers_its_loss(changes):
    task = tasks.make(pretraining(**changes))
    _, first, last = fit(task, batch_of(8), 25, one_key=True)
    assert last["loss"] < 0.95 * first["loss"]


def test_filler_rows_do_not_count_and_masks_of_evaluation_are_fixed():
    task, batch = tasks.make(pretraining()), batch_of(8)
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    evaluate = jax.jit(task.eval_step)
    whole = evaluate(variables, frozen_of(task), batch)
    padded = {key: jnp.concatenate([rows[:5], rows[:3]]) for key, rows in batch.items()}
    padded["is_example"] = jnp.arange(8) < 5
    part = evaluate(variables, frozen_of(task), padded)
    rest = {key: jnp.roll(rows, -5, axis=0) for key, rows in batch.items()}
    rest["is_example"] = jnp.arange(8) < 3
    other = evaluate(variables, frozen_of(task), rest)
    for name, total in whole.items():
        np.testing.assert_allclose(part[name] + other[name], total, rtol=1e-5)
    assert whole["count"] <= 8 * 6


def test_the_tokenizer_gets_no_gradient():
    task, batch = tasks.make(pretraining()), batch_of(4)
    params = jax.jit(task.init)(jax.random.key(0), batch)["params"]
    grads = jax.jit(jax.grad(lambda frozen: task.loss(
        params, {}, frozen, batch, jax.random.key(1))[0]))(frozen_of(task))
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_pictures_hide_the_masked_patches():
    task, batch = tasks.make(pretraining()), batch_of(4)
    sheet = task.pictures({}, {}, batch, jax.random.key(0))["masks"]
    assert sheet.shape == (4, 32, 64, 3) and sheet.dtype == jnp.uint8
    np.testing.assert_array_equal(sheet[:, :, :32], batch["image"])
    grey = np.asarray((sheet[:, :, 32:] == 128).all(-1)).reshape(4, 4, 8, 4, 8).all((2, 4))
    assert (grey.sum((1, 2)) <= 6).all() and grey.sum() > 4


@pytest.mark.parametrize(("config", "message"), [
    (pretraining(target=dict(kind="dvae", **DVAE | dict(num_groups=3))), "4 codes.*16 patches"),
    (pretraining(mask=dict(num_masked=16)), "mask.num_masked=16"),
    (pretraining(mask=dict(kind="none")), "nothing to predict"),
    (pretraining(target=dict(kind="sift")), "target.kind='sift'"),
    (pretraining(target=dict(kind="pixels", checkpoint="x")), "config.target.checkpoint is set"),
    (pretraining(probe=dict(feature="cls")), "config.probe is set"),
    (pretraining(model=VIT | dict(vocab_size=8)), "model.vocab_size=8"),
    (pretraining(mask=dict(kind="random", num_masked=6, max_block=8)), "mask.max_block=8 has no"),
    (pretraining(mask=dict(kind="none", min_block=2), loss=dict(positions="all")),
     "mask.min_block=2 has no"),
    (pretraining(target=dict(kind="pixels"), data=dict(common.base().data, target_px=8)),
     "data.target_px=8 has no"),
    (config_of("classification", model=VIT | dict(num_classes=1)), "model.num_classes=1"),
    (config_of("linear_probe", model=VIT, probe=dict(num_classes=4, feature="max")), "feature"),
    (config_of("beit"), "config.task='beit'"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_impossible_recipes_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        task, batch = tasks.make(config), batch_of(2)
        params = jax.eval_shape(task.init, jax.random.key(0), batch)["params"]
        jax.eval_shape(lambda p: task.loss(p, {}, frozen_of(task), batch, jax.random.key(1)),
                       params)
    assert "\n" not in str(error.value)


def test_a_classifier_learns_its_batch_and_ignores_rows_without_label():
    config = config_of("classification", loss=dict(label_smoothing=0.1),
                       model=VIT | dict(use_rel_pos=True, num_classes=4, head_init_scale=1.0))
    task, batch = tasks.make(config), batch_of(16)
    params, _, _ = fit(task, batch, 60)
    sums = jax.jit(task.eval_step)({"params": params}, {}, batch)
    assert task.summarize(sums)["top1"] == 1.0
    batch["label"] = batch["label"].at[:6].set(-1)
    assert jax.jit(task.eval_step)({"params": params}, {}, batch)["count"] == 10


@pytest.mark.parametrize("sums", [
    ("classification", dict(loss=0.0, top1=0.0, top5=0.0, count=0.0)),
    ("linear_probe", dict(loss=0.0, top1_of_blocks=np.zeros(2), count=0.0))], ids=lambda c: c[0])
def test_an_evaluation_without_labels_reports_no_number_and_says_so(sums, caplog):
    """A top1 of 0.0 would be believed by keep_best, and by people."""
    name, sums = sums
    config = config_of(name, model=VIT | (dict(num_classes=4) if name == "classification" else {}),
                       **({} if name == "classification" else dict(probe=dict(num_classes=4))))
    assert tasks.make(config).summarize(sums) == {}
    assert "no number is reported" in caplog.text


def test_a_probe_trains_classifiers_of_all_blocks_and_not_the_backbone():
    config = config_of("linear_probe", model=VIT | dict(use_shared_rel_pos=True),
                       probe=dict(num_classes=4, feature="cls+mean"))
    task, batch = tasks.make(config), batch_of(16)
    params, first, last = fit(task, batch, 80, 1e-1)
    assert params["block_classifiers"]["kernel"].shape == (2, 96, 4)
    assert last["loss"] < first["loss"]
    summary = task.summarize(jax.tree.map(np.asarray, jax.jit(task.eval_step)(
        {"params": params}, frozen_of(task), batch)))
    assert summary["top1"] == max(summary["top1_block_0"], summary["top1_block_1"])
    grads = jax.jit(jax.grad(lambda frozen: task.loss(
        params, {}, frozen, batch, jax.random.key(1))[0]))(frozen_of(task))
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))
