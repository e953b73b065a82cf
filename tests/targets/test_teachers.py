"""The one interface of all frozen teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models import layers, plain_vit
from beit_jax.models.beit import BeitForMim
from beit_jax.models.vit import VisionTransformer
from beit_jax.targets import teachers
from beit_jax.targets.teachers import TEACHERS, Backbone, ClipVitb16, DinoVitb16
from beit_jax.tasks import teacher_features
from configs import common

SIZES = dict(image_px=32, patch_size=8, width=24, depth=3, num_heads=2)
BEIT = SIZES | dict(use_shared_rel_pos=True, initializer="finetune")
FIELDS = {
    "backbone": dict(model=BEIT, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    "clip_vitb16": SIZES | dict(output_dim=10),
    "dino_vitb16": SIZES,
    "dino_vits16": SIZES,
}


def filled(init):
    """Variables from numpy: no table is left at zero, and no initialiser is compiled."""
    random = np.random.RandomState(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, shapes)


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_teacher_gives_float32_patch_tokens(kind, image):
    teacher = TEACHERS[kind](**FIELDS[kind])
    variables = filled(teacher.init)
    tokens = teacher.features(variables, image)
    assert tokens.shape == (2, 16, teacher.dim) and tokens.dtype == jnp.float32
    assert teacher.grid == (4, 4)
    assert float(tokens.std()) > 0.1
    np.testing.assert_allclose(jax.jit(teacher.features)(variables, image), tokens, atol=2e-5)
    half = TEACHERS[kind](**FIELDS[kind], dtype="bfloat16")
    rough = half.features(variables, image)
    assert rough.dtype == jnp.float32
    assert 0 < float(jnp.abs(rough - tokens).max()) < 0.1 * float(jnp.abs(tokens).max())


@pytest.mark.parametrize("kind", TEACHERS)
def test_no_gradient_reaches_a_teacher(kind, image):
    teacher = TEACHERS[kind](**FIELDS[kind])
    grads = jax.grad(lambda v, x: teacher.features(v, x).sum(), argnums=(0, 1))(
        filled(teacher.init), image)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", TEACHERS)
def test_an_image_of_another_size_is_an_error(kind):
    teacher = TEACHERS[kind](**FIELDS[kind])
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    with pytest.raises(ValueError, match="the image is 40x40, the .* 32x32"):
        jax.eval_shape(teacher.features, shapes, jnp.zeros((1, 40, 40, 3)))


def test_random_weights_come_from_the_key():
    teacher = DinoVitb16(**SIZES | dict(depth=1))
    one, same, other = (teacher.init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, same))
    kernels = [v["params"]["blocks"]["mlp"]["fc1"]["kernel"] for v in (one, other)]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0


# written out once more: a slip in the module must not hide behind its own constants
MEANS_STDS = {
    "clip_vitb16": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino_vitb16": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "backbone": ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
}


@pytest.mark.parametrize("kind", MEANS_STDS)
def test_every_teacher_normalises_by_its_own_constants(kind, image):
    teacher = TEACHERS[kind](**FIELDS[kind])
    variables = filled(teacher.init)
    method = "encode" if kind == "backbone" else "__call__"

    def expected(mean, std):
        normalised = (image - np.float32(mean)) / np.float32(std)
        tokens = teacher.network.apply(variables, normalised, method=method)[:, 1:]
        if kind == "backbone":
            tokens = layers.layer_norm(tokens, 1.0, 0.0, 1e-6)
        return tokens

    ours = teacher.features(variables, image)
    np.testing.assert_allclose(ours, expected(*MEANS_STDS[kind]), atol=2e-5)
    for other in MEANS_STDS.keys() - {kind}:
        assert float(jnp.abs(ours - expected(*MEANS_STDS[other])).max()) > 1e-3


@pytest.mark.parametrize("mean, std", [teachers.CLIP, teachers.IMAGENET], ids=["clip", "imagenet"])
def test_the_mean_colour_becomes_zero(mean, std):
    flat = jnp.broadcast_to(jnp.asarray(mean), (1, 4, 4, 3))
    np.testing.assert_array_equal(teachers.normalise(flat, mean, std), 0)
    above = teachers.normalise(flat + jnp.asarray(std), mean, std)
    np.testing.assert_allclose(above, 1, atol=1e-6)


def test_a_backbone_gives_any_of_its_blocks_under_a_norm_without_parameters(image):
    variables = filled(Backbone(**FIELDS["backbone"]).init)
    normalised = (image - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.4])
    _, blocks = VisionTransformer(**BEIT).apply(variables, normalised, method="encode",
                                                all_blocks=True)
    for block in (0, 1, 2, -1, -2):
        tokens = np.asarray(
            Backbone(**FIELDS["backbone"], block=block).features(variables, image))
        patches = np.asarray(blocks[block][:, 1:])
        centred = patches - patches.mean(-1, keepdims=True)
        wanted = centred / np.sqrt(patches.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(tokens, wanted, atol=2e-5)


def test_a_backbone_is_the_trunk_of_a_pretraining_model():
    mim = BeitForMim(**BEIT, vocab_size=16)
    image, is_masked = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16), bool)
    trained = jax.eval_shape(lambda key: mim.init(key, image, is_masked), jax.random.key(0))
    wanted = jax.eval_shape(Backbone(**FIELDS["backbone"]).init, jax.random.key(0))["params"]
    assert trained["params"].keys() - wanted.keys() == {"mask_token", "norm", "lm_head"}
    shapes = {key: trained["params"][key] for key in wanted}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, wanted)


@pytest.mark.parametrize("section, message", [
    (dict(kind="clip_vitl14"), "kind='clip_vitl14' is none of backbone, clip_vitb16"),
    (dict(), "kind='' is none of"),
    (dict(kind="dino_vitb16", output_dim=3), "config.target.output_dim is unknown"),
    (dict(kind="backbone", model=BEIT | dict(vocab_size=8), mean=(0,), std=(1,)),
     "model.vocab_size of a backbone as teacher is unknown; known: attention"),
    (dict(kind="backbone", model=dict(width=8, depth=2), mean=(0,), std=(1,)),
     "lacks image_px, num_heads, patch_size"),
    (dict(kind="backbone", model=BEIT, mean=(0,), std=(1,), block=3), "block=3, but .* has 3"),
], ids=["kind", "no_kind", "key", "model_key", "model_lacks", "block"])
def test_mistakes_in_a_section_are_one_clear_line(section, message):
    config = common.base()
    config.target = section
    with pytest.raises(ValueError, match=message):
        teacher_features.make(config)


@pytest.mark.parametrize("fields, message", [
    (dict(patch_size=7), "image_px=32 is no multiple of model.patch_size=7"),
    (dict(num_heads=5), "width=24 is no multiple of num_heads=5")])
def test_sizes_that_do_not_divide_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ClipVitb16(**SIZES | fields).init, jax.random.key(0))


def test_an_unknown_activation_is_an_error():
    network = plain_vit.PlainVit(**SIZES, activation="relu")
    with pytest.raises(ValueError, match="activation='relu' is none of gelu, quick_gelu"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_quick_gelu():
    x = np.linspace(-6, 6, 41, dtype=np.float32)
    np.testing.assert_allclose(layers.quick_gelu(x), x / (1 + np.exp(-1.702 * x)), atol=1e-6)
    assert layers.quick_gelu(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_unbiased_patch_embedding_is_the_biased_one_at_bias_zero():
    image = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    embed = plain_vit.PatchEmbed(8, 12, "pretrain", jnp.float32)
    params = embed.init(jax.random.key(1), image)["params"]["proj"]
    np.testing.assert_array_equal(params["bias"], 0)
    ours = plain_vit.UnbiasedPatchEmbed(8, 12, jnp.float32).apply(
        {"params": {"proj": {"kernel": params["kernel"]}}}, image)
    np.testing.assert_allclose(ours, embed.apply({"params": {"proj": params}}, image), atol=1e-5)
