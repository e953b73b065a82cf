"""The vision transformer: sizes, initial values, and what must not change its result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models import layers, position
from beit_jax.models.beit import BeitForClassification, BeitForMim
from beit_jax.models.vit import VisionTransformer

TINY = dict(patch_size=16, width=192, depth=12, num_heads=3)
SMALL = dict(patch_size=16, width=384, depth=12, num_heads=6)
BASE = dict(patch_size=16, width=768, depth=12, num_heads=12)
LARGE = dict(patch_size=16, width=1024, depth=24, num_heads=16, layer_scale_init=1e-5)
MIM_RELATIVE, MIM_PLAIN = dict(use_shared_rel_pos=True), dict(use_abs_pos=True, layer_scale_init=0)
COUNTS = {  # published sizes and ours, instantiated from the original modules
    "mim_base": (BeitForMim, BASE | MIM_RELATIVE, 224, 91_965_776),
    "mim_base_plain": (BeitForMim, BASE | MIM_PLAIN, 224, 92_089_856),
    "mim_large": (BeitForMim, LARGE | MIM_RELATIVE, 224, 311_534_016),
    "mim_large_plain": (BeitForMim, LARGE | MIM_PLAIN, 224, 311_674_880),
    "mim_tiny": (BeitForMim, TINY | MIM_RELATIVE, 224, 7_072_340),
    "mim_small": (BeitForMim, SMALL | MIM_RELATIVE, 224, 24_753_320),
    "base_224": (BeitForClassification, BASE, 224, 86_530_984),
    "base_384": (BeitForClassification, BASE, 384, 86_744_104),
    "large_224": (BeitForClassification, LARGE, 224, 304_430_568),
    "large_384": (BeitForClassification, LARGE, 384, 304_998_888),
    "large_512": (BeitForClassification, LARGE, 512, 305_674_728),
    "base_22k": (BeitForClassification, BASE | dict(num_classes=21_841), 224, 102_557_713),
    "large_22k": (BeitForClassification, LARGE | dict(num_classes=21_841), 224, 325_792_593),
    "base_headless": (BeitForClassification, BASE | dict(num_classes=0), 224, 85_761_984),
    "large_headless": (BeitForClassification, LARGE | dict(num_classes=0), 224, 303_405_568),
    "tiny_224": (BeitForClassification, TINY, 224, 5_708_248),
    "small_224": (BeitForClassification, SMALL, 224, 22_032_328),
    "24x544": (BeitForClassification, dict(patch_size=16, width=544, depth=24, num_heads=16), 224,
               86_658_408),
    "huge_14": (BeitForClassification, dict(patch_size=14, width=1280, depth=32, num_heads=16), 224,
                632_251_368),
    "giant_14": (BeitForClassification,
                 dict(patch_size=14, width=1408, depth=40, num_heads=16, mlp_ratio=6144 / 1408,
                      layer_scale_init=0), 224, 1_012_810_216),
}


def make(cls, sizes, image_px):
    relative = {} if cls is BeitForMim else dict(use_rel_pos=True)
    return cls(image_px=image_px, **(relative | sizes))


def init_shapes(model):
    image = jnp.zeros((1, model.image_px, model.image_px, 3))
    args = (image, jnp.zeros((1, model.num_patches), bool)) if isinstance(model, BeitForMim) else (
        image,)
    return jax.eval_shape(lambda key: model.init(key, *args), jax.random.key(0))["params"]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    cls, sizes, image_px, count = COUNTS[name]
    shapes = init_shapes(make(cls, sizes, image_px))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_relative_position_index_of_the_published_examples():
    np.testing.assert_array_equal(position.relative_position_index((2, 2)), [
        [11, 9, 9, 9, 9], [10, 4, 3, 1, 0], [10, 5, 4, 2, 1], [10, 7, 6, 4, 3], [10, 8, 7, 5, 4]])
    index = position.relative_position_index((14, 14))
    expected = {(0, 0): 731, (0, 5): 729, (5, 0): 730, (1, 1): 364, (1, 2): 363, (2, 1): 365,
                (1, 15): 337, (15, 1): 391, (1, 196): 0, (196, 1): 728}
    assert {at: index[at] for at in expected} == expected
    assert index[1:, 1:].sum() == 13_983_424


@pytest.fixture(scope="module")
def mim():
    model = BeitForMim(image_px=32, patch_size=8, width=64, depth=3, num_heads=4, vocab_size=16,
                       use_shared_rel_pos=True, unroll=1)
    image = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    is_masked = jax.random.bernoulli(jax.random.key(2), 0.4, (3, 16))
    params = jax.jit(model.init)(jax.random.key(0), image, is_masked)["params"]
    noisy = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(3), p.shape), params)
    return model, noisy, image, is_masked


def test_initial_loss_of_base_size_statistics():
    """A uniform guess costs ln 8192 = 9.011; logits of std 0.30 add about half their variance."""
    model = BeitForMim(image_px=224, use_shared_rel_pos=True, **BASE | dict(depth=1))
    image = jax.random.normal(jax.random.key(1), (1, 224, 224, 3))
    is_masked = jnp.zeros((1, 196), bool).at[:, :75].set(True)
    variables = jax.jit(model.init)(jax.random.key(0), image, is_masked)
    logits = jax.jit(model.apply)(variables, image, is_masked, jnp.arange(75)[None])
    # the mean over all codes as the target: patches that see the same noise share one guess
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1))
    assert jnp.std(logits) == pytest.approx(0.30, abs=0.02)
    assert loss == pytest.approx(9.05, abs=0.03)


def test_hidden_pixels_do_not_reach_the_prediction(mim):
    model, params, image, is_masked = mim
    hidden = jnp.repeat(jnp.repeat(is_masked.reshape(3, 4, 4), 8, 1), 8, 2)[..., None]
    gradient = jax.jit(jax.grad(
        lambda x: jnp.sum(model.apply({"params": params}, x, is_masked) ** 2)))(image)
    assert jnp.abs(jnp.where(hidden, gradient, 0)).max() == 0
    assert jnp.abs(jnp.where(hidden, 0, gradient)).max() > 0


def test_selected_positions_equal_rows_of_the_full_prediction(mim):
    model, params, image, is_masked = mim
    positions = jnp.array([[3, 1], [15, 0], [7, 8]])
    full = jax.jit(model.apply)({"params": params}, image, is_masked)
    chosen = jax.jit(model.apply)({"params": params}, image, is_masked, positions)
    np.testing.assert_allclose(chosen, jnp.take_along_axis(full, positions[..., None], 1),
                               atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(model, params, image, is_masked):
    return jnp.mean(model.apply({"params": params}, image, is_masked) ** 2)


@pytest.mark.parametrize("change", [dict(token_multiple=8), dict(unroll=0), dict(remat="dots"),
                                    dict(remat="full")], ids=lambda change: str(change))
def test_result_and_gradient_do_not_depend_on(mim, change):
    model, *args = mim
    value, grads = loss_and_gradient(model, *args)
    other_value, other_grads = loss_and_gradient(model.clone(**change), *args)
    assert float(value) == pytest.approx(float(other_value), rel=1e-5)
    bound = 1e-5 * max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        np.asarray(a), np.asarray(b), rtol=0, atol=float(bound)), grads, other_grads)


def test_padding_tokens_are_never_attended_to_without_a_bias():
    model = BeitForClassification(image_px=32, patch_size=8, width=32, depth=2, num_heads=2,
                                  num_classes=5, use_abs_pos=True, head_init_scale=1.0)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    padded = model.clone(token_multiple=8)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, image),
                               jax.jit(padded.apply)(variables, image), atol=1e-6)


def test_drop_path_draws_per_sample_and_spares_the_first_block():
    model = VisionTransformer(image_px=16, patch_size=8, width=32, depth=2, num_heads=2,
                              drop_path_rate=0.5)
    image = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 16, 16, 3)), (64, 16, 16, 3))
    variables = jax.jit(functools.partial(model.init, method="encode"))(jax.random.key(1), image)
    _, blocks = jax.jit(functools.partial(model.apply, train=True, all_blocks=True,
                                          method="encode"))(
        variables, image, rngs={"drop_path": jax.random.key(2)})
    first, second = (len({row.tobytes() for row in np.asarray(b)}) for b in blocks)
    assert first == 1
    assert second == 4  # each of the two branches kept or dropped


def test_bfloat16_stays_near_float32(mim):
    model, params, image, is_masked = mim
    exact = jax.jit(model.apply)({"params": params}, image, is_masked)
    rough = jax.jit(model.clone(dtype=jnp.bfloat16).apply)({"params": params}, image, is_masked)
    assert rough.dtype == jnp.float32
    assert jnp.abs(exact - rough).max() < 0.05 * jnp.abs(exact).max()


@pytest.mark.parametrize(("change", "message"), [
    (dict(patch_size=10), "nearest: 30"), (dict(num_heads=5), "model.width=64"),
    (dict(remat="some"), "model.remat"), (dict(initializer="zeros"), "model.initializer"),
    (dict(attention="fast"), "attention='fast'")])
def test_impossible_models_are_refused_in_one_line(mim, change, message):
    model, _, image, is_masked = mim
    with pytest.raises(ValueError, match=message) as error:
        model.clone(**change).init(jax.random.key(0), image, is_masked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_layer_norm_forward_and_backward(scale):
    """Against float64, also where the mean is 300 times the standard deviation."""
    x = np.random.default_rng(0).normal(size=(5, 64)) + scale
    gain, shift, dy = np.random.default_rng(1).normal(size=(3, 64))

    def reference(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gain + shift

    y, pull = jax.vjp(lambda x, g, b: layers.layer_norm(x, g, b, 1e-6), jnp.float32(x),
                      jnp.float32(gain), jnp.float32(shift))
    np.testing.assert_allclose(y, reference(np.float32(x).astype(np.float64)), atol=2e-4)
    dx, d_gain, d_shift = pull(jnp.broadcast_to(jnp.float32(dy), y.shape))
    step = 1e-5
    numeric = np.stack([(reference(x + step * e) - reference(x - step * e)) @ dy / (2 * step)
                        for e in np.eye(64)], axis=-1)
    np.testing.assert_allclose(dx, numeric, atol=2e-3)
    np.testing.assert_allclose(d_gain, ((reference(x) - shift) / gain * dy).sum(0), rtol=2e-3,
                               atol=2e-3)
    np.testing.assert_allclose(d_shift, 5 * dy, rtol=1e-6)


def test_gelu_is_exact_with_its_own_backward():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(layers.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    ours = jax.vmap(jax.grad(layers.gelu))(x)
    theirs = jax.vmap(jax.grad(lambda v: jax.nn.gelu(v, approximate=False)))(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_truncated_normal_is_cut_at_one_sigma():
    draws = layers.truncated_normal(0.02)(jax.random.key(0), (400, 400))
    assert jnp.abs(draws).max() <= 0.02
    assert jnp.std(draws) == pytest.approx(0.010789, rel=0.01)
