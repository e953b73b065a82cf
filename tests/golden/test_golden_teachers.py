"""The frozen teachers against the originals, at their own image size and at another."""

import dataclasses

import drawn
import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of, model_of

from beit_jax import convert
from beit_jax.models import adapt
from beit_jax.models.plain_vit import PlainVit
from beit_jax.targets import preprocess
from beit_jax.targets.vit_teachers import (
    ClipVitb16,
    Dinov2Vitb14,
    Dinov2Vitl14,
    Dinov2Vits14,
    DinoVitb16,
    DinoVits16,
)

CLIP = golden_files.load("clip_visual")
DINO = golden_files.load("dino_vit")
OTHER_SIZE = golden_files.load("vit_other_size")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def teacher_of(golden, image_px=None):
    config = golden.config
    if "output_dim" in config:
        return ClipVitb16(
            image_px=image_px or config["input_resolution"], patch_size=config["patch_size"],
            width=config["width"], depth=config["layers"], num_heads=config["heads"],
            output_dim=config["output_dim"])
    return DinoVitb16(
        image_px=image_px or config["img_size"], patch_size=config["patch_size"],
        width=config["embed_dim"], depth=config["depth"], num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"])


def format_of(teacher) -> str:
    return "clip" if isinstance(teacher, ClipVitb16) else "dino"


def weights_of(golden, teacher) -> dict:
    """Converted, with positions resized to the teacher's size."""
    flat = convert.to_ours(golden.params, format_of(teacher))
    target = convert.flatten(jax.eval_shape(teacher.init, jax.random.key(0))["params"])
    flat = adapt.resize_pos_embed_offset(flat, target)
    assert {k: v.shape for k, v in flat.items()} == {k: v.shape for k, v in target.items()}
    return {"params": convert.unflatten(flat)}


def features_of(teacher, variables, normalised):
    """Of an image that the original got normalised: brought back to [0, 1] first."""
    mean, std = preprocess.CLIP if format_of(teacher) == "clip" else preprocess.IMAGENET
    return teacher.features(variables, normalised * jnp.asarray(std) + jnp.asarray(mean))


@pytest.mark.parametrize("golden", CLIP, ids=golden_files.name)
def test_clip_tokens_and_image_embedding(golden):
    teacher = teacher_of(golden)
    variables, image = weights_of(golden, teacher), image_of(golden)
    tokens, normed = teacher.network.apply(variables, image, all_blocks=True)
    golden_files.assert_close(normed[-1][:, 1:], golden.outputs["patch_tokens"])
    golden_files.assert_close(tokens, golden.outputs["all_tokens_projected"])
    golden_files.assert_close(tokens[:, 0], golden.outputs["pooled"])
    golden_files.assert_close(features_of(teacher, variables, image),
                              golden.outputs["patch_tokens_projected"])


@pytest.mark.parametrize("golden", DINO, ids=golden_files.name)
def test_dino_tokens_of_all_blocks(golden):
    teacher = teacher_of(golden)
    variables, image = weights_of(golden, teacher), image_of(golden)
    tokens, normed = teacher.network.apply(variables, image, all_blocks=True)
    for index, block in enumerate(normed):
        golden_files.assert_close(block, golden.outputs[f"normed_block{index}"])
    golden_files.assert_close(tokens[:, 0], golden.outputs["cls"])
    golden_files.assert_close(features_of(teacher, variables, image),
                              golden.outputs["patch_tokens"])


@pytest.mark.parametrize("golden", CLIP + DINO, ids=golden_files.name)
def test_teachers_at_another_size(golden):
    teacher = teacher_of(golden, golden.config["other_size"])
    variables = weights_of(golden, teacher)
    golden_files.assert_close(variables["params"]["pos_embed"],
                              golden.outputs["other_size/pos_embed"])
    image = image_of(golden, "image_other_size")
    ours = features_of(teacher, variables, image)
    if "other_size/all_tokens" in golden.outputs:
        golden_files.assert_close(ours, golden.outputs["other_size/all_tokens"][:, 1:])
    else:
        golden_files.assert_close(ours, golden.outputs["other_size/patch_tokens_projected"])


@pytest.mark.parametrize("golden", OTHER_SIZE, ids=golden_files.name)
def test_positions_of_beit_v2_at_another_size(golden):
    config = golden.config | {"img_size": golden.config["input_size"]}
    model, image = model_of(config), image_of(golden)
    target = convert.flatten(
        jax.eval_shape(lambda key: model.init(key, image), jax.random.key(0))["params"])
    flat = adapt.ADAPT["resize_pos_embed_offset"](
        convert.to_ours(golden.params, "microsoft"), target)
    params = {"params": convert.unflatten(flat)}
    golden_files.assert_close(flat["pos_embed"], golden.outputs["pos_embed"])
    golden_files.assert_close(model.apply(params, image), golden.outputs["logits"])
    tokens = model.apply(params, image, method=lambda m, x: m.head(m.fc_norm(m.encode(x))))
    golden_files.assert_close(tokens, golden.outputs["all_tokens"])
    golden_files.assert_close(tokens[:, 1:], golden.outputs["patch_tokens"])


PLAIN_LARGE = DinoVitb16(width=1024, depth=24, num_heads=16)


@pytest.mark.parametrize(("teacher", "count"), [
    (DinoVits16(), 21_665_664), (DinoVitb16(), 85_798_656), (PLAIN_LARGE, 303_301_632),
    (ClipVitb16(), 86_192_640)], ids=["dino_s", "dino_b", "plain_l", "clip_b"])
def test_parameter_counts_of_published_sizes(teacher, count):
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert teacher.grid == (14, 14)
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(teacher.features, shapes, image).shape == (2, 196, teacher.dim)


def test_dino_with_weights_from_a_seed():
    teacher = DinoVitb16(image_px=32, width=48, depth=2, num_heads=3)
    variables = drawn.variables_of(teacher, format_of(teacher))
    assert drawn.size_of(variables) == 93_840
    tokens = teacher.network.apply(variables, drawn.image(32))[0]
    assert float(tokens.mean()) == pytest.approx(0.001806, abs=1e-4)
    assert float(tokens.std()) == pytest.approx(1.021323, abs=1e-4)
    np.testing.assert_allclose(
        tokens[0, :5], [2.294558, 0.339779, -1.825314, 0.858436, 0.488745], atol=1e-4)
    np.testing.assert_allclose(
        tokens[-1, :5], [0.039089, -0.299933, -1.530347, -1.336837, 0.099092], atol=1e-4)


def test_clip_with_weights_from_a_seed():
    teacher = ClipVitb16(image_px=32, width=48, depth=2, num_heads=3, output_dim=24)
    variables = drawn.variables_of(teacher, format_of(teacher))
    assert drawn.size_of(variables) == 95_040
    tokens = teacher.network.apply(variables, drawn.image(32))[0]
    np.testing.assert_allclose(
        tokens[0, :5], [-2.402683, -2.131582, -0.404829, 1.855280, -0.190099], atol=1e-4)
    patches = tokens[1:]
    assert float(patches.mean()) == pytest.approx(-0.061333, abs=1e-4)
    assert float(patches.std()) == pytest.approx(1.351512, abs=1e-4)
    np.testing.assert_allclose(
        patches[0, :5], [2.143883, -0.273385, 0.714650, 0.259023, 0.742559], atol=1e-4)
    np.testing.assert_allclose(
        patches[-1, :5], [-0.549924, -1.253673, -0.341499, 0.572617, 0.586102], atol=1e-4)


def test_the_activation_tells_clip_from_a_usual_vit():
    teacher = ClipVitb16(image_px=32, width=48, depth=2, num_heads=3, output_dim=24)
    variables = drawn.variables_of(teacher, format_of(teacher))
    exact = PlainVit(**dataclasses.asdict(teacher) | {"dtype": jnp.float32}, patch_bias=False,
                     use_pre_norm=True, epsilon=1e-5)
    difference = exact.apply(variables, drawn.image(32)) - teacher.network.apply(
        variables, drawn.image(32))
    assert float(jnp.abs(difference).max()) > 1e-3


DINOV2 = dict(patch_size=14, width=48, depth=2, num_heads=3)


@pytest.mark.parametrize(("teacher", "count"), [
    (Dinov2Vits14(image_px=518), 22_056_576), (Dinov2Vitb14(image_px=518), 86_580_480),
    (Dinov2Vitl14(image_px=518), 304_368_640),
    (Dinov2Vitb14(image_px=518, num_registers=4), 86_583_552),
], ids=["s", "b", "l", "b_with_registers"])
def test_dinov2_has_the_published_numbers_of_parameters(teacher, count):
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    assert drawn.size_of(shapes) + teacher.width == count  # the file's mask token is not ours
    smaller = dataclasses.replace(teacher, image_px=196)
    assert smaller.grid == (14, 14)
    shapes = jax.eval_shape(smaller.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, 196, 196, 3), jnp.float32)
    assert jax.eval_shape(smaller.features, shapes, image).shape == (2, 196, teacher.dim)


def test_dinov2_with_weights_from_a_seed_at_another_size():
    file = drawn.reference_of(Dinov2Vitb14(image_px=56, **DINOV2), "dinov2")
    assert drawn.size_of(file) == 86_016
    assert file["mask_token"].shape == (1, 48) and file["blocks.1.ls2.gamma"].shape == (48,)
    teacher = Dinov2Vitb14(image_px=84, **DINOV2)
    flat = convert.to_ours(file, "dinov2")
    target = drawn.flat(jax.eval_shape(teacher.init, jax.random.key(0)))
    variables = drawn.tree(adapt.resize_pos_embed_offset(flat, target))
    tokens = teacher.network.apply(variables, drawn.image(84))[0]
    assert tokens.shape == (37, 48)
    np.testing.assert_allclose(
        tokens[0, :5], [1.255853, -0.143390, 0.857131, 0.646199, -0.082469], atol=1e-4)
    patches = tokens[1:]
    assert float(patches.mean()) == pytest.approx(-0.016158, abs=1e-4)
    assert float(patches.std()) == pytest.approx(1.025017, abs=1e-4)
    np.testing.assert_allclose(
        patches[0, :5], [-0.489341, -0.804020, -0.574406, 0.022995, -0.477512], atol=1e-4)
    np.testing.assert_allclose(
        patches[-1, :5], [-0.804438, 1.763395, -0.373141, -0.139393, -1.099170], atol=1e-4)
    for wrong in (adapt.resize_pos_embed, adapt.resize_pos_embed_antialias):
        other = teacher.network.apply(drawn.tree(wrong(flat, target)), drawn.image(84))[0]
        assert float(jnp.abs(other - tokens).max()) > 1e-3
