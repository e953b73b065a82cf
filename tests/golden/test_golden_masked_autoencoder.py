"""Our masked autoencoder against facebookresearch/mae: tokens, predictions, losses, gradients."""

import functools
import re

import drawn
import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of, weights_of

from beit_jax import convert, losses, masking
from beit_jax.models import masked_autoencoder, position
from beit_jax.models.beit import BeitForClassification
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from beit_jax.targets import pixels

PRETRAIN = golden_files.load("masked_autoencoder")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def sizes_of(config):
    return dict(image_px=config["img_size"], patch_size=config["patch_size"],
                width=config["embed_dim"], depth=config["depth"], num_heads=config["num_heads"],
                mlp_ratio=config["mlp_ratio"], epsilon=config["norm_eps"])


def model_of(config):
    return MaskedAutoencoder(
        **sizes_of(config), decoder_width=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"], decoder_num_heads=config["decoder_num_heads"],
        target_dim=3 * config["patch_size"] ** 2)


def masks_of(golden):
    """is_masked bool [b, n] and its count; small noise is kept."""
    return jnp.asarray(golden.outputs["mask"] == 1), int(golden.outputs["mask"][0].sum())


@pytest.mark.parametrize("golden", PRETRAIN, ids=golden_files.name)
def test_the_parameter_tree_is_that_of_the_original(golden):
    model, image = model_of(golden.config), image_of(golden)
    is_masked, count = masks_of(golden)
    made = jax.eval_shape(lambda key: model.init(key, image, is_masked, count), jax.random.key(0))
    wanted = convert.flatten(weights_of(golden, "mae"))
    assert {k: v.shape for k, v in convert.flatten(made["params"]).items()} == {
        k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize("golden", PRETRAIN, ids=golden_files.name)
def test_visible_tokens_and_predictions(golden):
    model, params, image = model_of(golden.config), weights_of(golden, "mae"), image_of(golden)
    is_masked, count = masks_of(golden)
    order = masked_autoencoder.visible_first(is_masked)
    n = is_masked.shape[1]
    ours, _ = jax.jit(lambda p: model.apply({"params": p}, image, order, n - count,
                                            method="visible_features"))(params)
    # the original keeps the visible patches in the order of their noise, we row by row
    kept = np.argsort(golden.inputs["noise"], axis=1, kind="stable")[:, :n - count]
    rank = np.argsort(np.argsort(kept, axis=1), axis=1)
    patches = np.take_along_axis(np.asarray(ours)[:, 1:], rank[..., None], axis=1)
    golden_files.assert_close(ours[:, 0], golden.outputs["latent"][:, 0])
    golden_files.assert_close(patches, golden.outputs["latent"][:, 1:])
    predicted = jax.jit(lambda p: model.apply({"params": p}, image, is_masked, count))(params)
    golden_files.assert_close(predicted.patches, golden.outputs["pred"])
    assert predicted.pooled is None


@pytest.mark.parametrize("normalise, key", [(True, "loss_norm_pix"), (False, "loss_plain")])
@pytest.mark.parametrize("golden", PRETRAIN, ids=golden_files.name)
def test_loss_over_gathered_patches_and_its_gradients(golden, normalise, key):
    model, params, image = model_of(golden.config), weights_of(golden, "mae"), image_of(golden)
    is_masked, count = masks_of(golden)
    slots, _ = masking.masked_positions(is_masked, count)
    target = pixels.patch_pixels(image, model.patch_size, normalise=normalise)
    hidden = jnp.take_along_axis(target, slots[..., None], axis=1)

    def loss_of(params):
        out = model.apply({"params": params}, image, is_masked, count, slots)
        return jnp.mean(losses.squared_error(out.patches, hidden))

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    golden_files.assert_close(loss, golden.outputs[key])
    if not normalise:
        golden_files.assert_close(pixels.patch_pixels(image, model.patch_size),
                                  golden.outputs["patchified"])
        return  # the file holds the gradients of the other loss
    ours = convert.to_reference(convert.flatten(grads), "mae")
    scale = golden_files.largest_grad(golden)
    for name, grad in golden.grads.items():
        golden_files.assert_close(ours[name], grad, scale=scale)
    fixed = set(ours) - set(golden.grads)
    assert fixed == {"pos_embed", "decoder_pos_embed"}
    assert not any(np.any(ours[name]) for name in fixed)


@pytest.mark.parametrize("golden", golden_files.load("plain_finetune"), ids=golden_files.name)
def test_the_fine_tuned_classifier_pools_before_the_norm(golden):
    config = golden.config
    model = BeitForClassification(
        **sizes_of(config), layer_scale_init=0.0, use_abs_pos=True, use_k_bias=True,
        num_classes=config["num_classes"], pool="mean")
    params, image = weights_of(golden, "mae"), image_of(golden)
    made = jax.eval_shape(lambda key: model.init(key, image), jax.random.key(0))["params"]
    assert {k: v.shape for k, v in convert.flatten(made).items()} == {
        k: v.shape for k, v in convert.flatten(params).items()}
    apply = functools.partial(jax.jit(model.apply, static_argnames="method"), {"params": params})
    golden_files.assert_close(apply(image, method="pooled"), golden.outputs["pooled"])
    golden_files.assert_close(apply(image), golden.outputs["logits"])


@pytest.mark.parametrize("golden", golden_files.load("sincos"), ids=golden_files.name)
def test_fixed_positions(golden):
    for name, table in golden.outputs.items():
        width, side = map(int, re.fullmatch(r"dim(\d+)_grid(\d+)", name).groups())
        np.testing.assert_allclose(position.sincos_table(width, (side, side))[0], table, atol=1e-6)


@pytest.mark.parametrize("golden", PRETRAIN, ids=golden_files.name)
def test_the_round_trip_of_names_is_exact(golden):
    back = convert.to_reference(convert.to_ours(golden.params, "mae"), "mae")
    assert back.keys() == golden.params.keys()
    for name, value in golden.params.items():
        np.testing.assert_array_equal(back[name], value)


def test_the_networks_of_the_specification_without_stored_weights():
    """Img2Vec page, 11.8: weights from a seed by name, positions from their formula."""
    model = MaskedAutoencoder(image_px=64, patch_size=16, width=48, depth=2, num_heads=3,
                              decoder_width=32, decoder_depth=1, decoder_num_heads=4,
                              target_dim=768)
    image = drawn.image(64)
    order = np.argsort(np.random.RandomState(2).rand(1, 16), axis=1)
    is_masked = np.ones((1, 16), bool)
    np.put_along_axis(is_masked, order[:, :4], False, axis=1)
    assert "".join(map(str, is_masked[0].astype(int))) == "1011110111110101"
    made = jax.eval_shape(lambda key: model.init(key, image, is_masked, 12), jax.random.key(0))
    assert drawn.size_of(made) == 134_672
    zeros = {k: np.zeros(v.shape, np.float32) for k, v in convert.flatten(made["params"]).items()}
    shapes = {k: v.shape for k, v in convert.to_reference(zeros, "mae").items()
              if "pos_embed" not in k}
    ours = convert.to_ours(drawn.draw(shapes), "mae")
    ours |= {"pos_embed": position.sincos_table(48, (4, 4)),
             "decoder_pos_embed": position.sincos_table(32, (4, 4))}
    assert sum(v.size for k, v in ours.items() if "pos_embed" not in k) == 133_312
    variables = {"params": convert.unflatten(ours)}
    predicted = model.apply(variables, image, jnp.asarray(is_masked), 12).patches
    for normalise, expected in ((True, 2.121592), (False, 2.112156)):
        error = losses.squared_error(predicted, pixels.patch_pixels(image, 16, normalise=normalise))
        loss = losses.weighted_mean(error, is_masked)
        assert float(loss) == pytest.approx(expected, abs=2e-6)
    assert float(predicted.mean()) == pytest.approx(-0.022207, abs=2e-6)
    assert float(predicted.std()) == pytest.approx(1.037438, abs=2e-6)
    np.testing.assert_allclose(predicted[0, 0, :5], [-1.388102, 1.814524, 0.115643, 0.321228,
                                                     0.869687], atol=5e-6)
    visible = masked_autoencoder.visible_first(jnp.asarray(is_masked))
    latent, _ = model.apply(variables, image, visible, 4, method="visible_features")
    first = 1 + sorted(order[0, :4]).index(order[0, 0])  # of the noise order, in ours
    np.testing.assert_allclose(latent[0, first, :5], [0.700812, -1.122976, -0.903065, 1.049896,
                                                      -0.125617], atol=5e-6)
