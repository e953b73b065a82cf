"""Our BEiT against the original: tokens, logits, losses and gradients."""

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of, model_of, weights_of

from beit_jax import convert, losses, masking, metrics
from beit_jax.models.beit import BeitForMim
from beit_jax.models.vit import VisionTransformer

MIM = golden_files.load("mim")
FINETUNE = golden_files.load("finetune")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def assert_grads_close(ours, golden):
    ours = convert.to_reference(convert.flatten(ours), "microsoft")
    scale = golden_files.largest_grad(golden)
    assert scale > 0
    assert set(golden.grads) <= set(ours)
    for name, grad in golden.grads.items():
        golden_files.assert_close(ours[name], grad, scale=scale)


@pytest.mark.parametrize("golden", MIM + FINETUNE, ids=golden_files.name)
def test_parameter_tree_is_that_of_the_original(golden):
    model, image = model_of(golden.config), image_of(golden)
    args = (golden.inputs["mask"],) if isinstance(model, BeitForMim) else ()
    made = jax.eval_shape(lambda key: model.init(key, image, *args), jax.random.key(0))["params"]
    wanted = {k: v.shape for k, v in convert.flatten(weights_of(golden)).items()}
    assert {k: v.shape for k, v in convert.flatten(made).items()} == wanted


@pytest.mark.parametrize("golden", MIM, ids=golden_files.name)
def test_mim_features_and_logits(golden):
    model, params, image = model_of(golden.config), weights_of(golden), image_of(golden)
    is_masked = jnp.asarray(golden.inputs["mask"])
    features = jax.jit(lambda p: model.apply({"params": p}, image, is_masked, method="features"))(
        params)
    logits = jax.jit(lambda p: model.apply({"params": p}, image, is_masked))(params)
    golden_files.assert_close(features, golden.outputs["features"])
    golden_files.assert_close(logits, golden.outputs["logits_all"])
    golden_files.assert_close(np.asarray(logits)[np.asarray(is_masked)],
                              golden.outputs["logits_masked"])


@pytest.mark.parametrize("golden", MIM, ids=golden_files.name)
def test_mim_loss_accuracy_and_gradients_over_gathered_positions(golden):
    model, image = model_of(golden.config), image_of(golden)
    is_masked = jnp.asarray(golden.inputs["mask"])
    slots = int(is_masked.sum(axis=1).max()) + 1  # one slot more than any image needs
    positions, is_hidden = masking.masked_positions(is_masked, slots)
    codes = jnp.take_along_axis(jnp.asarray(golden.inputs["target_ids"]), positions, axis=1)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = model.apply({"params": params}, image, is_masked, positions)
        return losses.weighted_mean(losses.cross_entropy(logits, codes), is_hidden)

    value, grads = loss(weights_of(golden))
    golden_files.assert_close(value, golden.outputs["loss"])
    assert_grads_close(grads, golden)
    logits = model.apply({"params": weights_of(golden)}, image, is_masked, positions)
    accuracy = losses.weighted_mean(jnp.argmax(logits, -1) == codes, is_hidden)
    golden_files.assert_close(accuracy, golden.outputs["acc"])


@pytest.mark.parametrize("golden", FINETUNE, ids=golden_files.name)
def test_classifier_blocks_feature_and_logits(golden):
    model, params, image = model_of(golden.config), weights_of(golden), image_of(golden)
    pooled = jax.jit(lambda p: model.apply({"params": p}, image, method="pooled"))(params)
    logits = jax.jit(lambda p: model.apply({"params": p}, image))(params)
    _, blocks = jax.jit(lambda p: model.apply({"params": p}, image, all_blocks=True,
                                              method=VisionTransformer.encode))(params)
    golden_files.assert_close(pooled, golden.outputs["pooled"])
    golden_files.assert_close(logits, golden.outputs["logits"])
    for index, block in enumerate(blocks):
        golden_files.assert_close(block, golden.outputs[f"block{index}"])


@pytest.mark.parametrize("golden", [g for g in FINETUNE if "label" in g.inputs],
                         ids=golden_files.name)
def test_classifier_losses_and_gradients(golden):
    model, image, config = model_of(golden.config), image_of(golden), golden.config
    label, soft = (jnp.asarray(golden.inputs[key]) for key in ("label", "soft_target"))
    smooth = losses.smooth_targets(label, config["num_classes"], config["label_smoothing"])

    def all_losses(params):
        logits = model.apply({"params": params}, image)
        return {"loss_ce": losses.cross_entropy(logits, label).mean(),
                "loss_label_smoothing": losses.soft_target_cross_entropy(logits, smooth).mean(),
                "loss_soft_target": losses.soft_target_cross_entropy(logits, soft).mean()}

    params = weights_of(golden)
    for name, value in jax.jit(all_losses)(params).items():
        golden_files.assert_close(value, golden.outputs[name])
    wanted = config["grad_of"].removeprefix("out/")
    grads = jax.jit(jax.grad(lambda p: all_losses(p)[wanted]))(params)
    assert_grads_close(grads, golden)


def drawn_by_rule(reference: dict) -> dict:
    """Parameters that follow from their names alone (spec page of BEiT, section 17.8)."""
    def draw(name, shape):
        offset = sum(map(ord, name)) % 97
        k = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
        v = np.sin(0.7 * k**1.5 + offset).reshape(shape)
        if v.ndim >= 2:
            v = 1.5 * v / np.sqrt(v.size / shape[0])
        elif name.split(".")[-1].startswith("gamma_"):
            v = 0.5 + 0.1 * v
        elif "norm" in name and name.endswith("weight"):
            v = 1 + 0.1 * v
        else:
            v = 0.1 * v
        return v.astype(np.float32)

    return {name: draw(name, array.shape) for name, array in reference.items()}


RULE = dict(img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=4, norm_eps=1e-6)
CLASSIFIERS = {
    "mean_pool": (dict(init_values=0.1, use_rel_pos_bias=True, num_classes=5), 63_701,
                  [[1.331107, 0.061886, 0.793053, -1.148341, 0.105130],
                   [1.061873, -0.797043, 0.191407, -2.406458, -0.186869]]),
    "class_token": (dict(use_abs_pos_emb=True, use_mean_pooling=False, num_classes=5), None,
                    [[0.581788, 0.670625, 0.881786, -0.798571, 1.443146],
                     [-0.096855, -1.525813, 0.458359, -1.632022, 0.011994]]),
}


def rule_weights(model, *args):
    made = jax.eval_shape(lambda key: model.init(key, *args), jax.random.key(0))["params"]
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in convert.flatten(made).items()}
    drawn = drawn_by_rule(convert.to_reference(zeros, "microsoft"))
    return convert.unflatten(convert.to_ours(drawn, "microsoft"))


def rule_image():
    k = np.arange(1, 2 * 3 * 64 * 64 + 1, dtype=np.float64)
    nchw = np.sin(0.01 * k**1.2).reshape(2, 3, 64, 64).astype(np.float32)
    return jnp.asarray(nchw.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_classifier_with_weights_from_names(case):
    config, count, logits = CLASSIFIERS[case]
    model = model_of(RULE | config)
    params = rule_weights(model, rule_image())
    if count:
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    ours = jax.jit(lambda p: model.apply({"params": p}, rule_image()))(params)
    np.testing.assert_allclose(ours, logits, atol=1e-4)


def test_mim_with_weights_from_names():
    model = model_of(RULE | dict(vocab_size=16, init_values=0.1, use_shared_rel_pos_bias=True))
    positions = jnp.array([[1, 2, 5, 6], [0, 7, 8, 15]])
    is_masked = jnp.zeros((2, 16), bool).at[jnp.arange(2)[:, None], positions].set(True)
    params = rule_weights(model, rule_image(), is_masked)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 63_680
    logits = jax.jit(lambda p: model.apply({"params": p}, rule_image(), is_masked, positions))(
        params)
    codes = jnp.arange(8).reshape(2, 4)
    assert losses.cross_entropy(logits, codes).mean() == pytest.approx(3.239272, abs=1e-4)
    np.testing.assert_allclose(logits[0, 0, :4], [-0.516996, -1.337904, 0.505913, 0.437739],
                               atol=1e-4)
    np.testing.assert_allclose(logits[1, 3, :4], [-1.291227, -0.665682, 1.379582, -0.344790],
                               atol=1e-4)


def test_top_k_hits_match_a_sort():
    logits = jax.random.normal(jax.random.key(0), (50, 10))
    label = jax.random.randint(jax.random.key(1), (50,), 0, 10)
    order = np.argsort(-np.asarray(logits), axis=1)
    for k in (1, 5):
        expected = [int(label[i]) in order[i, :k] for i in range(50)]
        np.testing.assert_array_equal(metrics.is_correct(logits, label, k), expected)
    assert not metrics.is_correct(jnp.full((2, 10), jnp.nan), jnp.array([0, 3])).any()
