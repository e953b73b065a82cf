"""The ResNet against the originals: stored weights, and weights that follow from a seed."""

import drawn
import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import image_of

from beit_jax import convert, losses, metrics
from beit_jax.models import resnet
from beit_jax.models.resnet import ResNet
from beit_jax.targets import preprocess
from beit_jax.targets.resnet import DinoResnet50

NARROW = golden_files.load("resnet")
FROM_SEED = golden_files.load("resnet_from_seed")
STAGES = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def teacher():
    return DinoResnet50(image_px=64)


@pytest.fixture(scope="module")
def variables(teacher):
    return drawn.variables_of(teacher, "resnet50")


def maps_of(network, variables, image):
    """{name of a submodule: what it gives}, NHWC, and the result under "out"."""
    out, captured = jax.jit(lambda v, x: network.apply(
        v, x, capture_intermediates=lambda module, _: module.name in ("bn1", *STAGES),
        mutable="intermediates"))(variables, image)
    found = captured["intermediates"]
    return {name: found[name]["__call__"][0] for name in ("bn1", *STAGES)} | {"out": out}


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.mark.parametrize("golden", NARROW, ids=golden_files.name)
def test_every_stage_of_a_narrow_resnet(golden):
    config = golden.config
    network = ResNet(tuple(config["layers"]), tuple(config["bottleneck_widths"]),
                     config["stem_width"])
    flat, image = convert.to_ours(golden.params, "resnet50"), image_of(golden)
    wanted = drawn.flat(jax.eval_shape(lambda key: network.init(key, image), jax.random.key(0)))
    assert {k: v.shape for k, v in flat.items()} == {k: v.shape for k, v in wanted.items()}
    maps = maps_of(network, drawn.tree(flat), image)
    stem = nchw(jax.nn.relu(maps["bn1"]))
    golden_files.assert_close(stem[:, :16], golden.outputs["stem"])
    for stage in STAGES:
        golden_files.assert_close(nchw(maps[stage]), golden.outputs[stage])
    golden_files.assert_close(maps["out"].mean(axis=(1, 2)), golden.outputs["pooled"])


def weights_by_note(golden) -> dict[str, np.ndarray]:
    """The rule that the file's `note` states."""
    params = {}
    for index, (name, text) in enumerate(zip(golden.arrays["names"], golden.arrays["shapes"])):
        shape = tuple(map(int, str(text).split("x")))
        z = np.random.RandomState(golden.config["seed"] + index).standard_normal(shape)
        if len(shape) == 4:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("bn3.weight"):
            z = 0.4 + 0.05 * z
        elif name.endswith("running_var"):
            z = np.exp(0.1 * z)
        else:
            z = 0.1 * z + name.endswith(".weight")
        params[str(name)] = z.astype(np.float32)
    return params


@pytest.mark.parametrize("golden", FROM_SEED, ids=golden_files.name)
def test_the_published_size(golden):
    config = golden.config
    teacher = DinoResnet50(image_px=config["input_size"])
    variables = drawn.tree(convert.to_ours(weights_by_note(golden), "resnet50"))
    random = np.random.RandomState(config["seed"] + 100_000)
    image = random.standard_normal((config["batch"], 3, *(config["input_size"],) * 2))
    image = jnp.asarray(image.astype(np.float32).transpose(0, 2, 3, 1))
    maps = maps_of(teacher.network, variables, image)
    for stage in STAGES:
        ours = nchw(maps[stage])
        golden_files.assert_close([ours.mean(), ours.std(ddof=1)],
                                  golden.outputs[f"{stage}_mean_std"])
        if stage != "layer4":
            golden_files.assert_close(ours[:, :8], golden.outputs[f"{stage}_first8"])
    golden_files.assert_close(nchw(maps["out"]), golden.outputs["layer4"])
    golden_files.assert_close(maps["out"].mean(axis=(1, 2)), golden.outputs["pooled"])
    mean, std = (jnp.asarray(values) for values in preprocess.IMAGENET)
    tokens = teacher.features(variables, image * std + mean)
    golden_files.assert_close(tokens.reshape(maps["out"].shape),
                              np.moveaxis(golden.outputs["layer4"], 1, -1))


def test_published_size_has_the_published_numbers_of_parameters():
    shapes = jax.eval_shape(DinoResnet50().init, jax.random.key(0))
    assert drawn.size_of(shapes["params"]) == 23_508_032
    assert drawn.size_of(shapes["batch_stats"]) == 53_120
    assert [drawn.size_of(shapes["params"][stage]) for stage in STAGES] == [
        215_808, 1_219_584, 7_098_368, 14_964_736]
    convolutions = [leaf for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 4]
    assert len(convolutions) == 53 and len(jax.tree.leaves(shapes["batch_stats"])) == 2 * 53


def test_weights_from_a_seed(teacher, variables):
    maps = maps_of(teacher.network, variables, drawn.image(64))
    out = np.asarray(maps["out"])[0]
    assert out.shape == (2, 2, 2048)
    assert out.mean() == pytest.approx(0.718349, abs=1e-4)
    assert out.std() == pytest.approx(0.895391, abs=1e-4)
    assert np.mean(out == 0) == pytest.approx(0.234375, abs=2e-4)
    np.testing.assert_allclose(out[0, 0, :6], [0, 0, 0.458250, 0, 0.815555, 1.315706], atol=1e-4)
    np.testing.assert_allclose(
        out[1, 1, 2040:], [1.735896, 1.409155, 0.147944, 1.852828, 0.598537, 0.745985, 0, 0.728951],
        atol=1e-4)
    first = np.asarray(maps["layer1"])[0]
    assert first.shape == (16, 16, 256)
    assert first.mean() == pytest.approx(0.9462, abs=1e-4)
    np.testing.assert_allclose(first[0, 0, :4], [0.090557, 1.964005, 0.172702, 0.301516], atol=1e-4)


def test_full_image(teacher, variables):
    full = DinoResnet50()
    out = np.asarray(jax.jit(full.network.apply)(variables, drawn.image(224)))[0].reshape(49, 2048)
    assert out.mean() == pytest.approx(0.905836, abs=1e-4)
    assert out.std() == pytest.approx(1.096700, abs=1e-4)
    unit = out / np.linalg.norm(out, axis=1, keepdims=True)
    similarity = (np.square(unit.sum(axis=0)).sum() - 49) / (49 * 48)
    assert similarity == pytest.approx(0.924033, abs=1e-4)


def test_padding_by_xla_s_same_gives_the_numbers_that_are_known_to_be_wrong(
        monkeypatch, teacher, variables):
    """So that the numbers above do tell the two paddings apart."""
    monkeypatch.setattr(resnet, "symmetric", lambda kernel_size: "SAME")
    out = np.asarray(teacher.network.apply(variables, drawn.image(64)))[0]
    assert out.mean() == pytest.approx(0.756811, abs=1e-4)
    np.testing.assert_allclose(out[0, 0, [2, 4, 5]], [0.450987, 0.002243, 2.125072], atol=1e-4)


def test_bfloat16_products_are_good_enough_for_a_teacher(teacher, variables):
    """The recipes of Img2Vec run their teacher so."""
    image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3))
    tokens, rough = (jax.jit(DinoResnet50(image_px=64, dtype=dtype).features)(variables, image)
                     for dtype in ("float32", "bfloat16"))
    assert tokens.dtype == rough.dtype == jnp.float32
    cosine = 1.0 - losses.cosine_distance(tokens, rough)
    assert 0.999 < float(cosine.mean()) < 1.0
    assert float(jnp.abs(metrics.token_similarity(tokens)
                         - metrics.token_similarity(rough)).max()) < 2e-3
