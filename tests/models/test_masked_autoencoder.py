"""The masked autoencoder: sizes of the papers, what it sees, what it fuses, how grids meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models import masked_autoencoder, position
from beit_jax.models.beit import BeitForClassification
from beit_jax.models.masked_autoencoder import MaskedAutoencoder

TOY = dict(image_px=32, patch_size=4, width=24, depth=3, num_heads=2, decoder_width=16,
           decoder_depth=1, decoder_num_heads=2, target_dim=5, unroll=1)
SIZES = {"base": dict(width=768, depth=12, num_heads=12, patch_size=16),
         "large": dict(width=1024, depth=24, num_heads=16, patch_size=16),
         "huge": dict(width=1280, depth=32, num_heads=16, patch_size=14),
         "huge16": dict(width=1280, depth=32, num_heads=16, patch_size=16)}


def counts(model, *args):
    """{first name of the path: parameters}."""
    image = jnp.zeros((1, model.image_px, model.image_px, 3))
    made = jax.eval_shape(lambda key: model.init(key, image, *args), jax.random.key(0))["params"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in made.items()}


def masked(model, num_masked):
    return jnp.zeros((1, model.num_patches), bool).at[:, :num_masked].set(True), num_masked


@pytest.mark.parametrize("size, trained, everything, decoder", [
    ("base", 111_655_680, 111_907_840, 26_008_320),
    ("large", 329_239_296, 329_541_888, 26_139_392),
    ("huge", 656_613_964, 657_074_508, 26_178_124)])
def test_mae_has_the_parameters_of_the_original(size, trained, everything, decoder):
    sizes = SIZES[size]
    model = MaskedAutoencoder(image_px=224, **sizes, target_dim=3 * sizes["patch_size"] ** 2)
    parts = counts(model, *masked(model, 147))
    fixed = parts["pos_embed"] + parts["decoder_pos_embed"]
    assert sum(parts.values()) == everything
    assert sum(parts.values()) - fixed == trained
    of_decoder = sum(v for k, v in parts.items() if k.startswith(("decoder_", "mask_token")))
    assert of_decoder - parts["decoder_pos_embed"] == decoder


@pytest.mark.parametrize("size, depth, px, encoder, decoder, head", [
    ("base", 2, 224, 85_647_360, 7_750_656, 5_771_264),
    ("large", 4, 224, 303_099_904, 14_186_496, 6_295_552),
    ("huge", 4, 224, 630_435_840, 14_317_568, 6_819_840),
    ("huge16", 4, 224, 630_666_240, 14_317_568, 6_819_840)])
def test_img2vec_has_the_parameters_that_its_description_implies(size, depth, px, encoder, decoder,
                                                                 head):
    model = MaskedAutoencoder(
        image_px=px, **SIZES[size], decoder_depth=depth, target_dim=2048, fusion="mean",
        target_grid=(8, 8) if size == "huge" else (7, 7), global_layers=2, global_hidden=2048)
    parts = counts(model, *masked(model, 120))
    of_head = sum(v for k, v in parts.items() if k.startswith("global_head"))
    of_decoder = sum(v for k, v in parts.items() if k.startswith(("decoder_", "mask_token")))
    assert of_head == head
    assert of_decoder - parts["decoder_pos_embed"] == decoder
    assert sum(parts.values()) - of_head - of_decoder - parts["pos_embed"] == encoder


@pytest.mark.parametrize("size, parameters", [
    ("base", 86_567_656), ("large", 304_326_632), ("huge", 632_045_800)])
def test_the_classifier_has_the_parameters_of_the_original(size, parameters):
    model = BeitForClassification(image_px=224, **SIZES[size], layer_scale_init=0.0,
                                  use_abs_pos=True, use_k_bias=True, num_classes=1000)
    assert sum(counts(model).values()) == parameters


def test_positions_tell_the_column_first():
    table = position.sincos_table(768, (14, 14))[0]
    np.testing.assert_array_equal(table[0], 0)
    origin, right, below = table[1], table[2], table[15]
    for part, value in enumerate((0.0, 1.0, 0.0, 1.0)):
        np.testing.assert_array_equal(origin[192 * part:192 * (part + 1)], value)
    np.testing.assert_allclose(right[[0, 1, 192, 384, 576]],
                               [0.84147096, 0.81525064, 0.5403023, 0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(below[[0, 192, 384, 385, 576]],
                               [0.0, 1.0, 0.84147096, 0.81525064, 0.5403023], atol=1e-6)
    assert float(table.astype(np.float64).sum()) == pytest.approx(69594.5, abs=0.1)
    assert float(np.abs(table.astype(np.float64)).sum()) == pytest.approx(84118.4, abs=0.1)


def test_a_width_without_quarters_has_no_positions():
    with pytest.raises(ValueError, match="width=30 is no multiple of 4"):
        position.sincos_table(30, (2, 2))


def test_visible_patches_come_first_row_by_row_and_the_way_back_is_known():
    noise = np.random.RandomState(2).rand(2, 49)
    hidden = np.ones((2, 49), bool)
    np.put_along_axis(hidden, np.argsort(noise, axis=1)[:, :19], False, axis=1)
    cells = hidden.reshape(2, 7, 7).repeat(2, axis=1).repeat(2, axis=2).reshape(2, 196)
    assert list(np.flatnonzero(~hidden[0])) == [1, 5, 6, 8, 9, 12, 14, 19, 21, 23, 24, 26, 27, 28,
                                                29, 31, 35, 38, 43]
    order, back = masked_autoencoder.visible_first(jnp.asarray(cells))
    assert list(order[0, :10]) == [2, 3, 10, 11, 12, 13, 16, 17, 24, 25]
    assert list(back[0, :10]) == [76, 77, 0, 1, 78, 79, 80, 81, 82, 83]
    assert not cells[0][np.asarray(order)[0, :76]].any() and cells[0].sum() == 120


def test_permuting_there_and_back_changes_nothing_and_gradients_follow():
    is_masked = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 16))
    order = masked_autoencoder.visible_first(is_masked)
    x, g = (jax.random.normal(jax.random.key(i), (3, 16, 4)) for i in (1, 2))
    there, pull = jax.vjp(lambda x: masked_autoencoder.permute(x, *order), x)
    np.testing.assert_array_equal(masked_autoencoder.permute(there, *reversed(order)), x)
    plain = jax.vjp(lambda x: jnp.take_along_axis(x, order[0][..., None], axis=1), x)
    np.testing.assert_array_equal(there, plain[0])
    np.testing.assert_array_equal(pull(g)[0], plain[1](g)[0])


# --- what it sees and fuses -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


def cells_masked():
    """Two masks of 12 of 16 cells of 2x2 patches, 48 of 64 patches."""
    cells = np.ones((2, 4, 4), bool)
    cells[0, [0, 0, 2, 2], [0, 1, 1, 2]] = False
    cells[1, [0, 1, 2, 3], [3, 1, 0, 2]] = False
    return jnp.asarray(cells.repeat(2, axis=1).repeat(2, axis=2).reshape(2, 64))


def started(model, image, seed=0):
    """Parameters from numpy: no bias is left at zero."""
    random = np.random.RandomState(seed)
    shapes = jax.eval_shape(lambda key: model.init(key, image, cells_masked(), 48),
                            jax.random.key(0))
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, shapes)


def predicted(model, variables, image, is_masked):
    """In one program: operation by operation takes several times longer to compile."""
    return jax.jit(lambda v: model.apply(v, image, is_masked, 48).patches)(variables)


@pytest.mark.parametrize("fields", [dict(), dict(fusion="mean", target_grid=(4, 4)),
                                    dict(fusion="learned", global_layers=2, global_hidden=7)],
                         ids=["mae", "img2vec", "learned"])
def test_hidden_pixels_do_not_reach_any_prediction(image, fields):
    model = MaskedAutoencoder(**TOY, **fields)
    variables, is_masked = started(model, image), cells_masked()
    hidden = is_masked.reshape(2, 8, 8).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    apply = jax.jit(lambda image: model.apply(variables, image, is_masked, 48))
    before, after = apply(image), apply(jnp.where(hidden, 9.0 - 3.0 * image, image))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    seen = apply(jnp.where(hidden, image, 0.5 * image))
    assert float(jnp.abs(seen.patches - before.patches).max()) > 0.01


def test_the_order_of_visible_patches_changes_nothing(image):
    model = MaskedAutoencoder(**TOY, fusion="mean")
    variables, is_masked = started(model, image), cells_masked()
    order, back = masked_autoencoder.visible_first(is_masked)
    turned = jnp.concatenate([order[:, :16][:, ::-1], order[:, 16:]], axis=1)

    @jax.jit
    def decode(order):
        pair = (order, jnp.argsort(order, axis=1))
        fused, _ = model.apply(variables, image, pair, 16, method="visible_features")
        return model.apply(variables, fused, pair, method="decode")

    np.testing.assert_allclose(decode(order), decode(turned), atol=1e-5)


def fused_by_hand(model, variables, image, rule):
    @jax.jit
    def blocks(variables):
        return model.apply(variables, model.apply(variables, image, method="embed"), method=(
            lambda self, x: self.run(self.blocks, self.depth, x, all_blocks=True)))

    _, outputs, _ = blocks(variables)
    return model.apply(variables, rule(np.asarray(outputs)), method=lambda self, x: self.norm(x))


def standardised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("fields, rule", [
    (dict(fusion="last"), lambda h: h[-1]),
    (dict(fusion="mean"), lambda h: h.mean(0)),
    (dict(fusion="mean", fusion_blocks=(0, 2)), lambda h: (h[0] + h[2]) / 2),
    (dict(fusion="mean_norm"), lambda h: standardised(h).mean(0)),
], ids=["last", "mean", "two_blocks", "mean_norm"])
def test_fusion_is_what_its_name_says(image, fields, rule):
    model = MaskedAutoencoder(**TOY, **fields)
    variables = started(model, image)
    (fused, last), features = jax.jit(lambda v: (
        model.apply(v, model.apply(v, image, method="embed"), method="fuse"),
        model.apply(v, image, method="features")))(variables)
    np.testing.assert_allclose(features, fused, atol=1e-6)
    np.testing.assert_allclose(fused, fused_by_hand(model, variables, image, rule), atol=2e-5)
    np.testing.assert_allclose(last, fused_by_hand(model, variables, image, lambda h: h[-1]),
                               atol=2e-5)


def test_learned_fusion_starts_as_the_mean_and_learns(image):
    learned = MaskedAutoencoder(**TOY, fusion="learned")
    variables, is_masked = started(learned, image), cells_masked()
    variables["params"]["fusion_logits"] = jnp.zeros(3)
    others = {k: v for k, v in variables["params"].items() if k != "fusion_logits"}
    mean = MaskedAutoencoder(**TOY, fusion="mean")
    np.testing.assert_allclose(
        predicted(learned, variables, image, is_masked),
        predicted(mean, {"params": others}, image, is_masked), atol=1e-6)
    grads = jax.jit(jax.grad(
        lambda v: jnp.sum(learned.apply(v, image, is_masked, 48).patches ** 2)))(variables)
    assert np.all(np.abs(grads["params"]["fusion_logits"]) > 0)


def test_pooling_before_the_linear_head_equals_pooling_behind_it(image):
    pooled = MaskedAutoencoder(**TOY, target_grid=(4, 4))
    single = MaskedAutoencoder(**TOY)
    variables, is_masked = started(single, image), cells_masked()
    fine = predicted(single, variables, image, is_masked)  # [2, 64, 5]
    expected = fine.reshape(2, 4, 2, 4, 2, 5).mean(axis=(2, 4)).reshape(2, 16, 5)
    np.testing.assert_allclose(predicted(pooled, variables, image, is_masked), expected,
                               atol=1e-5)


@pytest.mark.parametrize("source", ["fused", "last"])
def test_the_pooled_prediction_is_a_perceptron_of_the_mean_visible_patch(image, source):
    """By hand: neither class token nor hidden patches, and a ReLU between the Linears alone."""
    model = MaskedAutoencoder(**TOY, fusion="mean", global_layers=3, global_hidden=7,
                              global_source=source)
    variables, is_masked = started(model, image), cells_masked()

    @jax.jit
    def both(variables):
        whole = model.apply(variables, image, is_masked, 48)
        order = masked_autoencoder.visible_first(is_masked)
        return whole.pooled, model.apply(variables, image, order, 16, method="visible_features")

    pooled, (fused, last) = both(variables)
    assert fused.shape == last.shape == (2, 17, 24) and np.abs(fused - last).max() > 0.01
    x = np.asarray({"fused": fused, "last": last}[source])[:, 1:].mean(axis=1)
    for i in range(3):
        linear = variables["params"][f"global_head_{i}"]
        x = (np.maximum(x, 0) if i else x) @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(pooled, x, atol=1e-5)


def test_only_the_encoder_drops_paths_and_only_in_training(image):
    model = MaskedAutoencoder(**TOY | dict(decoder_depth=3), fusion="mean", drop_path_rate=0.9)
    variables, is_masked = started(model, image), cells_masked()

    @jax.jit
    def outputs(key):
        rngs = {"drop_path": key}
        order = masked_autoencoder.visible_first(is_masked)
        encode = dict(method="visible_features", rngs=rngs)
        return [model.apply(variables, image, order, 16, train=True, **encode)[0],
                model.apply(variables, image, order, 16, **encode)[0],
                model.apply(variables, image, is_masked, 48, rngs=rngs).patches]

    one, other = outputs(jax.random.key(0)), outputs(jax.random.key(1))
    assert np.abs(one[0] - other[0]).max() > 0.01
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.parametrize("fields, message", [
    (dict(fusion="sum"), "model.fusion='sum' is none of last, mean"),
    (dict(grid_match="nearest"), "grid_match='nearest' is none of pool, repeat"),
    (dict(target_grid=(3, 3)), "target has 3x3 tokens, the model 8x8 patches"),
    (dict(decoder_num_heads=3), "decoder_width=16 is no multiple of model.decoder_num_heads=3"),
    (dict(fusion="mean", fusion_blocks=(0, 3)), "fusion_blocks=.0, 3. must be different numbers"),
    (dict(fusion_blocks=(0,)), "has no effect with model.fusion=last"),
    (dict(use_rel_pos=True), "relative positions need all patches"),
], ids=["fusion", "match", "grid", "heads", "blocks", "unread", "relative"])
def test_values_that_do_not_fit_are_one_clear_line(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(**TOY | fields).check()
