"""The frozen teachers against the originals, at their own image size and at another."""

import dataclasses

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of, model_of

from beit_jax import convert
from beit_jax.models import adapt
from beit_jax.models.plain_vit import PlainVit
from beit_jax.targets import teachers
from beit_jax.targets.teachers import ClipVitb16, DinoVitb16, DinoVits16

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
    mean, std = teachers.CLIP if format_of(teacher) == "clip" else teachers.IMAGENET
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


def drawn_by_seed(teacher, seed: int = 0) -> dict:
    """Weights drawn in the order of the original's sorted names (spec page of teachers, 9)."""
    made = convert.flatten(jax.eval_shape(teacher.init, jax.random.key(0))["params"])
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in made.items()}
    reference = convert.to_reference(zeros, format_of(teacher))
    random = np.random.RandomState(seed)
    drawn = {}
    for name in sorted(reference):
        shape = reference[name].shape
        values = random.standard_normal(shape)
        if len(shape) >= 2:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.1 * values + (name.split(".")[-1] == "weight")
        drawn[name] = values.astype(np.float32)
    flat = convert.to_ours(drawn, format_of(teacher))
    assert sum(leaf.size for leaf in flat.values()) == sum(leaf.size for leaf in drawn.values())
    return {"params": convert.unflatten(flat)}


def drawn_image():
    nchw = np.random.RandomState(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    return jnp.asarray(nchw.transpose(0, 2, 3, 1))


def num_parameters(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_dino_with_weights_from_a_seed():
    teacher = DinoVitb16(image_px=32, width=48, depth=2, num_heads=3)
    variables = drawn_by_seed(teacher)
    assert num_parameters(variables) == 93_840
    tokens = teacher.network.apply(variables, drawn_image())[0]
    assert float(tokens.mean()) == pytest.approx(0.001806, abs=1e-4)
    assert float(tokens.std()) == pytest.approx(1.021323, abs=1e-4)
    np.testing.assert_allclose(
        tokens[0, :5], [2.294558, 0.339779, -1.825314, 0.858436, 0.488745], atol=1e-4)
    np.testing.assert_allclose(
        tokens[-1, :5], [0.039089, -0.299933, -1.530347, -1.336837, 0.099092], atol=1e-4)


def test_clip_with_weights_from_a_seed():
    teacher = ClipVitb16(image_px=32, width=48, depth=2, num_heads=3, output_dim=24)
    variables = drawn_by_seed(teacher)
    assert num_parameters(variables) == 95_040
    tokens = teacher.network.apply(variables, drawn_image())[0]
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
    variables = drawn_by_seed(teacher)
    exact = PlainVit(**dataclasses.asdict(teacher) | {"dtype": jnp.float32}, patch_bias=False,
                     use_pre_norm=True, epsilon=1e-5)
    difference = exact.apply(variables, drawn_image()) - teacher.network.apply(
        variables, drawn_image())
    assert float(jnp.abs(difference).max()) > 1e-3


@pytest.mark.parametrize(("source", "power", "target", "plain", "offset"), [
    (4, 1.5, 6, [-0.764821, -0.446754, 0.389135, 1.376305, 3.076537, 4.234110],
     [-0.779249, -0.471266, 0.331318, 1.277283, 2.945250, 4.160066]),
    (8, 1.2, 4, [5.139075, 8.365025, 11.819764, 15.668706],
     [4.841954, 7.973550, 11.333327, 15.007383]),
], ids=["4_to_6", "8_to_4"])
def test_bicubic_rows(source, power, target, plain, offset):
    grid = np.arange(source * source) ** power
    table = np.concatenate([[-5.0], grid]).reshape(1, -1, 1)
    for resized, row in ((adapt.interpolate_pos_embed(table, target**2 + 1), plain),
                         (adapt.interpolate_pos_embed(table, target**2 + 1, 0.1), offset)):
        np.testing.assert_allclose(resized[0, 1:target + 1, 0], row, atol=1e-4)
        assert resized[0, 0, 0] == -5.0
