"""LARS, the decay rule of MAE and its schedule: against their definitions, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import options as config_options
from beit_jax.training import optim

STEPS = 5
SHAPES = {  # the leading axis of the last scope counts layers
    "matrix": (4, 3), "convolution": (2, 2, 3, 4), "bias": (4,),
    "block_classifiers": {"kernel": (3, 5, 4), "bias": (3, 4)},
}


def tree_of(seed: int, scale=1.0):
    """Normal draws of SHAPES."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: scale * rng.standard_normal(shape).astype(np.float32), SHAPES,
                        is_leaf=lambda value: isinstance(value, tuple))


def options(**changes):
    return optim.OptimOptions(**dict(
        learning_rate=2.0, name="lars", weight_decay=0.0, schedule="cosine_continuous",
        warmup_steps=2) | changes)


def train(opts, params, gradients):
    """Parameters after a step with each of the gradients."""
    tx, _ = optim.make_optimizer(opts, params, len(gradients), 1)
    state = tx.init(params)
    for grads in gradients:
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def lars_by_hand(p, gradients, rates, *, decay=0.0, momentum=0.9, trust=0.001):
    """One tensor; facebookresearch/mae util/lars.py says the same in torch."""
    p, mu = p.astype(np.float64), 0.0
    for g, rate in zip(gradients, rates, strict=True):
        if p.ndim > 1:
            g = g + decay * p
            norms = np.linalg.norm(p), np.linalg.norm(g)
            g = g * (trust * norms[0] / norms[1] if all(norms) else 1.0)
        mu = momentum * mu + g
        p = p - rate * mu
    return p


@pytest.mark.parametrize(("decay", "momentum", "trust"), [
    (0.0, 0.9, 0.001), (0.1, 0.9, 0.001), (0.1, 0.5, 0.01)])
def test_lars_makes_the_published_steps(decay, momentum, trust):
    """The rate rises and falls, so that it matters that it stands behind the momentum."""
    params, gradients = tree_of(0), [tree_of(1 + step, 0.1) for step in range(STEPS)]
    opts = options(weight_decay=decay, decay_rule="not_vectors", momentum=momentum,
                   trust_coefficient=trust)
    numbers = dict(decay=decay, momentum=momentum, trust=trust)
    rates = [2.0 * t / 2 if t < 2 else 1.0 + np.cos(np.pi * (t - 2) / 3) for t in range(STEPS)]
    ours = train(opts, params, gradients)

    def by_hand(path, p, *grads):
        if optim.path_of(path).startswith("block_classifiers"):  # every layer on its own
            return np.stack([lars_by_hand(one, [g[i] for g in grads], rates, **numbers)
                             for i, one in enumerate(p)])
        return lars_by_hand(p, grads, rates, **numbers)

    expected = jax.tree_util.tree_map_with_path(by_hand, params, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), ours,
                 expected)


def test_what_one_layer_does_leaves_the_others_alone():
    params, gradients = tree_of(0), [tree_of(1)]
    louder = tree_of(1)
    louder["block_classifiers"]["kernel"][1] *= 100.0
    first, second = (train(options(warmup_steps=0), params, grads)["block_classifiers"]["kernel"]
                     for grads in (gradients, [louder]))
    np.testing.assert_allclose(first, second, rtol=1e-6)  # of each only the direction counts


def test_where_a_length_is_zero_the_update_is_taken_as_it_is():
    params = {"zero": jnp.zeros((2, 2)), "matrix": jnp.ones((2, 2))}
    gradients = [{"zero": jnp.ones((2, 2)), "matrix": jnp.zeros((2, 2))}]
    ours = train(options(learning_rate=0.5, warmup_steps=0), params, gradients)
    np.testing.assert_array_equal(ours["zero"], np.full((2, 2), -0.5))
    np.testing.assert_array_equal(ours["matrix"], np.ones((2, 2)))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(name="sgd"), "optim.name='sgd' is none of adamw, lars"),
    (dict(b2=0.95), "optim.b2=0.95 has no effect here: optim.name=lars does not read it"),
    (dict(mu_dtype="bfloat16"), "optim.mu_dtype=bfloat16 has no effect here"),
    (dict(name="adamw", momentum=0.5), "optim.momentum=0.5 has no effect here: optim.name=adamw"),
    (dict(name="adamw", trust_coefficient=1.0), "optim.trust_coefficient=1.0 has no effect"),
], ids=lambda value: "" if isinstance(value, str) else next(iter(value)))
def test_an_unknown_optimizer_and_keys_of_the_other_one_are_refused(changes, message):
    section = dict(learning_rate=0.1, name="lars") | changes
    with pytest.raises(ValueError, match=message):
        config_options.build(optim.OptimOptions, section, "config.optim")


def test_a_masked_autoencoder_decays_tokens_but_no_vectors_and_no_tables():
    """What MAE's optimizer does: tensors of one axis are spared, frozen tables are not its own."""
    leaf = jax.ShapeDtypeStruct

    def shape(*sizes):
        return leaf(sizes, jnp.float32)

    params = {
        "cls_token": shape(1, 1, 8), "mask_token": shape(1, 1, 4), "pos_embed": shape(1, 5, 8),
        "decoder_pos_embed": shape(1, 5, 4),
        "patch_embed": {"proj": {"kernel": shape(2, 2, 3, 8), "bias": shape(8)}},
        "blocks": {"attn": {"qkv": {"kernel": shape(3, 8, 24)}, "k_bias": shape(3, 8)},
                   "norm1": {"scale": shape(3, 8)}},
        "decoder_blocks": {"mlp": {"fc1": {"kernel": shape(2, 4, 16), "bias": shape(2, 16)}}},
        "decoder_pred": {"kernel": shape(4, 12), "bias": shape(12)},
    }
    decayed = {"cls_token", "mask_token", "patch_embed/proj/kernel", "blocks/attn/qkv/kernel",
               "decoder_blocks/mlp/fc1/kernel", "decoder_pred/kernel"}
    for rule, expected in (("not_vectors", decayed),
                           ("matrices", decayed - {"cls_token"})):
        mask = optim.decay_mask(params, optim.OptimOptions(learning_rate=1.0, decay_rule=rule))
        found = {optim.path_of(path) for path, value in jax.tree_util.tree_leaves_with_path(mask)
                 if value}
        assert found == expected


@pytest.mark.parametrize(("peak", "end", "warmup", "epochs", "expected"), [
    (2.4e-3, 0.0, 40, 800, {0: 0.0, 10: 6e-4, 20: 1.2e-3, 40: 2.4e-3, 230: 2.048528e-3,
                            420: 1.2e-3, 610: 3.514719e-4, 800: 0.0}),
    (2e-3, 1e-6, 5, 100, {0: 0.0, 2.5: 1e-3, 5: 2e-3, 52.5: 1.0005e-3, 100: 1e-6}),
    (6.4, 0.0, 10, 90, {0: 0.0, 5: 3.2, 10: 6.4, 50: 3.2, 90: 0.0}),
], ids=["pretraining", "finetuning", "linear_probe"])
def test_continuous_schedule_is_maes_at_fractions_of_epochs(peak, end, warmup, epochs, expected):
    per_epoch = 312
    opts = optim.OptimOptions(learning_rate=peak, min_learning_rate=end, warmup_epochs=warmup,
                              schedule="cosine_continuous")
    schedule = optim.learning_rate_schedule(opts, epochs * per_epoch, per_epoch)
    for epoch, value in expected.items():
        step = round(epoch * per_epoch)
        assert step == epoch * per_epoch
        assert schedule(step) == pytest.approx(value, rel=1e-6, abs=1e-12), epoch
    for step in (1, warmup * per_epoch - 1):  # where BEiT's warm-up is further on
        assert schedule(step) == pytest.approx(peak * step / per_epoch / warmup, rel=1e-6)


@pytest.mark.parametrize(("depth", "decay", "expected"), [
    (12, 0.65, (0.003697206, 0.005688009, 0.008750783, 0.4225, 0.65, 1.0)),
    (32, 0.75, (7.533932e-5, 1.004524e-4, 1.339366e-4, 0.5625, 0.75, 1.0))], ids=["base", "huge"])
def test_layer_rates_of_maes_finetuning(depth, decay, expected):
    leaf = jax.ShapeDtypeStruct
    params = {"pos_embed": leaf((1, 5, 2), np.float32),
              "blocks": {"attn": {"k_bias": leaf((depth, 2), np.float32)}},
              "fc_norm": {"scale": leaf((2,), np.float32)}}
    rates = optim.layer_multipliers(params, decay)
    blocks = rates["blocks"]["attn"]["k_bias"].ravel()
    ours = (rates["pos_embed"], *blocks[[0, 1, -2, -1]], rates["fc_norm"]["scale"])
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
