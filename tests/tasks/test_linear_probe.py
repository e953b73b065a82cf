"""What stands between frozen features and their classifiers: layer and batch normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import tasks
from beit_jax.models import layers
from beit_jax.models.vit import VisionTransformer
from beit_jax.training import optim
from configs import common

VIT = dict(image_px=16, patch_size=8, width=12, depth=2, num_heads=2)
ENCODE = jax.jit(functools.partial(VisionTransformer(**VIT).apply, all_blocks=True,
                                   method="encode"))


def make(**probe):
    config = common.base()
    config.update(task="linear_probe", dtype="float32")
    config.model, config.probe = VIT, dict(num_classes=4, **probe)
    return tasks.make(config)


def batch_of(seed, size=6):
    image = jax.random.randint(jax.random.key(seed), (size, 16, 16, 3), 0, 256)
    return {"image": image.astype(jnp.uint8), "label": jnp.arange(size) % 4,
            "is_example": jnp.ones(size, bool)}


def parts_of(task):
    """(variables, frozen); weights larger than at the start, so that features matter."""
    frozen = {"backbone": jax.jit(task.frozen["backbone"].init)(jax.random.key(9))}
    frozen = jax.tree.map(lambda leaf: 5.0 * leaf, frozen)
    variables = task.init(jax.random.key(0), batch_of(0))
    variables["params"]["block_classifiers"]["kernel"] *= 50.0
    return variables, frozen


def tokens_of(frozen, batch):
    """Outputs of all blocks, [l, b, n + 1, d]."""
    image = (batch["image"] / 255.0 - 0.5) / 0.5
    _, tokens = ENCODE(frozen["backbone"], image)
    return np.asarray(tokens, np.float64)


def error_by_hand(features, params, label):
    """Summed cross-entropy of every block, [l]: features [l, b, f]."""
    kernel, bias = (np.asarray(params["block_classifiers"][name], np.float64)
                    for name in ("kernel", "bias"))
    logits = np.einsum("lbf,lfc->lbc", features, kernel) + bias[:, None]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -logits[:, np.arange(len(label)), np.asarray(label)].sum(1)


@pytest.mark.parametrize("feature", ["cls", "mean", "cls+mean"])
def test_layer_normalises_class_token_and_mean_patch_each(feature):
    task, batch = make(feature=feature, normalise="layer"), batch_of(1)
    variables, frozen = parts_of(task)
    tokens = tokens_of(frozen, batch)

    def standard(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    made = {"cls": standard(tokens[:, :, 0]), "mean": standard(tokens[:, :, 1:].mean(2))}
    features = np.concatenate([made[name] for name in feature.split("+")], axis=-1)
    sums = jax.jit(task.eval_step)(variables, frozen, batch)
    expected = error_by_hand(features, variables["params"], batch["label"])
    assert set(variables) == {"params"}
    assert sums["loss"] == pytest.approx(expected.sum(), rel=1e-4)


def test_batch_statistics_train_and_running_averages_evaluate():
    task = make(feature="cls", normalise="batch")
    variables, frozen = parts_of(task)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(2, 12)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    mean, var = np.zeros((2, 12)), np.ones((2, 12))
    for seed in (1, 2):
        batch = batch_of(seed)
        cls = tokens_of(frozen, batch)[:, :, 0]
        own_mean, own_var = cls.mean(1), cls.var(1)  # over the batch, biased
        mean, var = 0.9 * mean + 0.1 * own_mean, 0.9 * var + 0.1 * own_var
        total, (state, metrics) = jax.jit(task.loss)(params, state, frozen, batch,
                                                     jax.random.key(0))
        features = (cls - own_mean[:, None]) / np.sqrt(own_var[:, None] + 1e-6)
        expected = error_by_hand(features, params, batch["label"]).sum() / len(cls[0])
        assert float(total) == pytest.approx(expected, rel=1e-3)
        np.testing.assert_allclose(state["batch_stats"]["norm"]["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(state["batch_stats"]["norm"]["var"], var, rtol=1e-4)
    batch = batch_of(3)
    cls = tokens_of(frozen, batch)[:, :, 0]
    features = (cls - mean[:, None]) / np.sqrt(var[:, None] + 1e-6)
    sums = jax.jit(task.eval_step)({"params": params, **state}, frozen, batch)
    expected = error_by_hand(features, params, batch["label"]).sum()
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-4)
    at_start = jax.jit(task.eval_step)(variables, frozen, batch)["loss"]  # averages 0 and 1
    assert float(at_start) != pytest.approx(expected, rel=1e-3)


def test_without_normalisation_there_is_no_state_and_features_are_raw():
    task, batch = make(feature="mean"), batch_of(1)
    variables, frozen = parts_of(task)
    features = tokens_of(frozen, batch)[:, :, 1:].mean(2)
    expected = error_by_hand(features, variables["params"], batch["label"]).sum()
    total, (state, _) = jax.jit(task.loss)(variables["params"], {}, frozen, batch,
                                           jax.random.key(0))
    assert set(variables) == {"params"} and state == {}
    assert float(total) == pytest.approx(expected / 6, rel=1e-5)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="probe.normalise='group' is none of none, layer, batch, "):
        make(normalise="group")


def test_a_classifier_of_standardised_tokens_absorbs_scale_and_shift():
    """What the docstring says: W (s x + t) + c = (W s) x + (W t + c)."""
    x, s, t = (jax.random.normal(jax.random.key(i), shape) for i, shape in
               enumerate([(5, 12), (12,), (12,)]))
    w = jax.random.normal(jax.random.key(3), (12, 4))
    x = layers.standardise(3.0 + 2.0 * x)
    np.testing.assert_allclose((x * s + t) @ w, x @ (s[:, None] * w) + t @ w, atol=1e-4)


def test_layer_and_batch_are_maes_probe_behind_the_final_norm():
    """Docstring: scale and shift of the backbone's final norm are undone but for signs."""
    task = make(feature="cls", normalise="layer+batch")
    variables, frozen = parts_of(task)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    batch = batch_of(1)
    cls = tokens_of(frozen, batch)[-1, :, 0]  # [b, d]
    rng = np.random.default_rng(0)
    scale, shift = rng.choice([-1.0, 1.0], 12) * rng.uniform(0.5, 2.0, 12), rng.standard_normal(12)
    x = (cls - cls.mean(-1, keepdims=True)) / np.sqrt(cls.var(-1, keepdims=True) + 1e-6)
    normed = scale * x + shift  # what MAE's final norm gives
    probed = (normed - normed.mean(0)) / np.sqrt(normed.var(0) + 1e-6)
    kernel = np.asarray(params["block_classifiers"]["kernel"][-1], np.float64)
    logits = (probed * np.sign(scale)) @ kernel  # the classifier absorbs the signs; biases are 0
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -logits[np.arange(6), np.asarray(batch["label"])].mean()
    # one block alone, to see its loss: the other one's classifier is made to say nothing
    params["block_classifiers"]["kernel"] *= jnp.asarray([0.0, 1.0])[:, None, None]
    total, (state, _) = jax.jit(task.loss)(params, state, frozen, batch, jax.random.key(0))
    assert float(total) - np.log(4) == pytest.approx(expected, rel=1e-3)
    own = state["batch_stats"]["norm"]
    np.testing.assert_allclose(own["mean"][-1], 0.1 * x.mean(0), atol=1e-5)
    np.testing.assert_allclose(own["var"][-1], 0.9 + 0.1 * x.var(0), rtol=1e-4)


def test_lars_gives_the_classifier_of_each_block_its_own_ratio():
    """By the scope's name, which tasks and optimizer have to agree on."""
    task = make(feature="cls")
    params = task.init(jax.random.key(0), batch_of(0))["params"]
    grads = jax.tree.map(jnp.ones_like, params)
    grads["block_classifiers"]["kernel"] = grads["block_classifiers"]["kernel"].at[0].mul(1e3)
    opts = optim.OptimOptions(learning_rate=1.0, name="lars", weight_decay=0.0,
                              schedule="constant")
    tx, _ = optim.make_optimizer(opts, params, 10, 1)
    updates, _ = tx.update(grads, tx.init(params), params)
    before, step = (tree["block_classifiers"]["kernel"] for tree in (params, updates))
    lengths = np.linalg.norm(np.asarray(step).reshape(2, -1), axis=1)
    np.testing.assert_allclose(lengths, 1e-3 * np.linalg.norm(before.reshape(2, -1), axis=1),
                               rtol=1e-5)
    np.testing.assert_allclose(updates["block_classifiers"]["bias"], -1.0)
