"""The one interface of all frozen teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from masked_tasks import filled

from beit_jax.models import layers, plain_vit
from beit_jax.models.beit import BeitForMim
from beit_jax.models.vit import VisionTransformer
from beit_jax.targets import preprocess
from beit_jax.targets.backbone import Backbone
from beit_jax.targets.resnet import DinoResnet50
from beit_jax.targets.teachers import TEACHERS
from beit_jax.targets.vit_teachers import ClipVitb16, Dinov2Vitb14, DinoVitb16
from beit_jax.tasks import teacher_features
from configs import common

SIZES = dict(image_px=32, patch_size=8, width=24, depth=3, num_heads=2)
BEIT = SIZES | dict(use_shared_rel_pos=True, initializer="finetune")
FIELDS = {
    "backbone": dict(model=BEIT, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    "clip_vitb16": SIZES | dict(output_dim=10),
    "dino_resnet50": dict(image_px=128, layers=(2, 1, 1, 1), widths=(4, 4, 6, 6), stem_width=4),
    "dino_vitb16": SIZES,
    "dino_vits16": SIZES,
    "dinov2_vitb14": SIZES | dict(num_registers=3),
    "dinov2_vitl14": SIZES,
    "dinov2_vits14": SIZES,
    "hog": dict(image_px=32, patch_size=8),
    "mae_vitb16": SIZES,
    "mae_vitl16": SIZES,
    "pixels": dict(image_px=32, patch_size=8),
}
WITHOUT_WEIGHTS = ("hog", "pixels")


def image_for(kind):
    side = FIELDS[kind].get("image_px", 32)
    return jax.random.uniform(jax.random.key(1), (2, side, side, 3))


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_teacher_gives_float32_patch_tokens(kind):
    teacher, image = TEACHERS[kind](**FIELDS[kind]), image_for(kind)
    variables = filled(teacher.init)
    tokens = teacher.features(variables, image)
    assert tokens.shape == (2, 16, teacher.dim) and tokens.dtype == jnp.float32
    assert teacher.grid == (4, 4)
    assert float(tokens.std()) > 0.1
    np.testing.assert_allclose(jax.jit(teacher.features)(variables, image), tokens,
                               atol=1e-5 * float(jnp.abs(tokens).max()))
    assert teacher.has_weights == (kind not in WITHOUT_WEIGHTS)
    if not teacher.has_weights:
        assert teacher.init(jax.random.key(0)) == {"params": {}} and teacher.flops == 0
        np.testing.assert_array_equal(teacher.features({}, image), tokens)
        return
    assert teacher.flops > 0
    half = TEACHERS[kind](**FIELDS[kind], dtype="bfloat16")
    rough = jax.jit(half.features)(variables, image)
    assert rough.dtype == jnp.float32
    assert 0 < float(jnp.abs(rough - tokens).max()) < 0.1 * float(jnp.abs(tokens).max())


@pytest.mark.parametrize("kind", TEACHERS)
def test_no_gradient_reaches_a_teacher(kind):
    teacher = TEACHERS[kind](**FIELDS[kind])
    grads = jax.jit(jax.grad(lambda v, x: teacher.features(v, x).sum(), argnums=(0, 1)))(
        filled(teacher.init), image_for(kind))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", TEACHERS)
def test_an_image_of_another_size_is_an_error(kind):
    teacher = TEACHERS[kind](**FIELDS[kind])
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    side = FIELDS[kind].get("image_px", 32)
    with pytest.raises(ValueError, match=f"the image is 40x40, the .* {side}x{side}"):
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
    "dino_resnet50": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "dinov2_vitb14": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mae_vitb16": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "backbone": ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
}


@pytest.mark.parametrize("kind", MEANS_STDS)
def test_every_teacher_normalises_by_its_own_constants(kind):
    teacher, image = TEACHERS[kind](**FIELDS[kind]), image_for(kind)
    variables = filled(teacher.init)
    method = {"backbone": "encode", "mae_vitb16": "features"}.get(kind, "__call__")

    def expected(mean, std):
        normalised = (image - np.float32(mean)) / np.float32(std)
        tokens = teacher.network.apply(variables, normalised, method=method)
        if kind == "dino_resnet50":
            return tokens.reshape(2, 16, -1)
        tokens = tokens[:, 1:]
        if kind == "backbone":
            tokens = layers.layer_norm(tokens, 1.0, 0.0, 1e-6)
        return tokens

    ours = teacher.features(variables, image)
    np.testing.assert_allclose(ours, expected(*MEANS_STDS[kind]), atol=2e-5)
    for other in ("clip_vitb16", "dino_vitb16", "backbone"):
        if MEANS_STDS[other] == MEANS_STDS[kind]:
            continue
        assert float(jnp.abs(ours - expected(*MEANS_STDS[other])).max()) > 1e-3


@pytest.mark.parametrize("mean, std", [preprocess.CLIP, preprocess.IMAGENET],
                         ids=["clip", "imagenet"])
def test_the_mean_colour_becomes_zero(mean, std):
    flat = jnp.broadcast_to(jnp.asarray(mean), (1, 4, 4, 3))
    np.testing.assert_array_equal(preprocess.normalise(flat, mean, std), 0)
    above = preprocess.normalise(flat + jnp.asarray(std), mean, std)
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


PLAIN = dict(mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize("section, message", [
    (dict(kind="clip_vitl14"), "kind='clip_vitl14' is none of backbone, clip_vitb16"),
    (dict(), "kind='' is none of"),
    (dict(kind="dino_vitb16", output_dim=3), "config.target.output_dim is unknown"),
    (dict(kind="backbone", model=BEIT | dict(vocab_size=8), **PLAIN),
     "model.vocab_size of a backbone as teacher is unknown; known: attention"),
    (dict(kind="backbone", model=dict(width=8, depth=2), **PLAIN),
     "lacks image_px, num_heads, patch_size"),
    (dict(kind="backbone", model=BEIT, **PLAIN, block=3), "block=3, but .* has 3"),
], ids=["kind", "no_kind", "key", "model_key", "model_lacks", "block"])
def test_mistakes_in_a_section_are_one_clear_line(section, message):
    config = common.base()
    config.target = section
    with pytest.raises(ValueError, match=message):
        teacher_features.make(config)


@pytest.mark.parametrize("kind", sorted(TEACHERS.keys() - {"backbone"}))
def test_the_toy_size_of_a_recipe_makes_any_teacher_small(kind):
    config = common.base()
    sizes = dict(image_px=224, patch_size=16) if kind in WITHOUT_WEIGHTS else dict(checkpoint="")
    config.update(task="some", target=dict(kind=kind, **sizes))
    config.data.update(image_px=224, target_px=196 if kind.startswith("dinov2") else 0)
    config = common.shrink(config)
    made = teacher_features.make(config)
    side = 2 if kind == "dino_resnet50" else 4
    assert made.grid == (side, side) and made.flops < 1e8
    px = config.data.target_px or config.data.image_px
    image = jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)
    frozen = {name: jax.eval_shape(network.init, jax.random.key(0))
              for name, network in made.frozen.items()}
    tokens = jax.eval_shape(made.tokens, frozen, {"image": image})
    assert tokens.shape == (1, side**2, made.dim)
    assert config.target.get("checkpoint", "") == ("" if kind in WITHOUT_WEIGHTS else "random")


@pytest.mark.parametrize("kind", WITHOUT_WEIGHTS)
def test_a_target_without_weights_needs_no_checkpoint_and_takes_none(kind):
    config, fields = common.base(), FIELDS[kind]
    config.target = dict(kind=kind, checkpoint="", adapt=(), use_ema=False, norm="x", **fields)
    made = teacher_features.make(config, beside=("norm",))
    assert made.frozen == {} and made.flops == 0 and made.grid == (4, 4)
    image = jax.random.randint(jax.random.key(0), (2, 32, 32, 3), 0, 256).astype(jnp.uint8)
    # the student's normalisation, unless the section has its own
    own = {"mean": config.data.mean, "std": config.data.std} | fields
    wanted = TEACHERS[kind](**own).features({}, image / 255.0)
    np.testing.assert_allclose(made.tokens({}, {"image": image}), wanted, atol=1e-5)
    for key, value in (("checkpoint", "random"), ("adapt", ("take_encoder",)), ("use_ema", True)):
        config.target = dict(kind=kind, **fields) | {key: value}
        with pytest.raises(ValueError, match=f"config.target.{key}=.* {kind} has no weights"):
            teacher_features.make(config)


@pytest.mark.parametrize("kind", WITHOUT_WEIGHTS)
def test_a_target_without_weights_may_be_normalised_in_its_own_way(kind):
    config, own = common.base(), dict(mean=(0.1, 0.2, 0.3), std=(0.4, 1.0, 0.7))
    config.target = dict(kind=kind, **FIELDS[kind], **own)
    image = np.random.RandomState(0).randint(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    wanted = TEACHERS[kind](**FIELDS[kind], **own).features({}, image / np.float32(255))
    tokens = teacher_features.make(config).tokens({}, {"image": image})
    np.testing.assert_allclose(tokens, wanted, atol=1e-5)


def test_a_target_with_weights_is_frozen_under_its_section():
    config = common.base()
    config.target = dict(kind="dino_resnet50", checkpoint="x", **FIELDS["dino_resnet50"])
    made = teacher_features.make(config)
    assert made.frozen["teacher"].section == "target" and made.dim == 24 and made.grid == (4, 4)
    shapes = jax.eval_shape(made.frozen["teacher"].init, jax.random.key(0))
    assert shapes.keys() == {"params", "batch_stats"}
    variables = {"teacher": filled(made.frozen["teacher"].init)}
    batch = {"image": jnp.zeros((1, 32, 32, 3), jnp.uint8),
             "image_for_target": jnp.zeros((1, 128, 128, 3), jnp.uint8)}
    assert made.tokens(variables, batch).shape == (1, 16, 24)


def test_registers_have_no_place_and_speak_through_attention_alone(image):
    teacher = Dinov2Vitb14(**FIELDS["dinov2_vitb14"])
    variables = filled(teacher.init)
    tokens = teacher.features(variables, image)
    params = variables["params"]
    turned = params | {"register_tokens": params["register_tokens"][:, ::-1]}
    np.testing.assert_allclose(teacher.features({"params": turned}, image), tokens, atol=2e-5)
    bare = Dinov2Vitb14(**SIZES)
    without = {key: value for key, value in params.items() if key != "register_tokens"}
    others = bare.features({"params": without}, image)
    assert float(jnp.abs(others - tokens).max()) > 1e-2
    deaf = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "attn/proj" in jax.tree_util.keystr(
            path, simple=True, separator="/") else leaf, params)
    silent = {key: value for key, value in deaf.items() if key != "register_tokens"}
    np.testing.assert_allclose(teacher.features({"params": deaf}, image),
                               bare.features({"params": silent}, image), atol=2e-5)


def test_registers_are_left_out_of_every_block_s_output(image):
    network = Dinov2Vitb14(**FIELDS["dinov2_vitb14"]).network
    variables = filled(lambda key: network.init(key, image))
    tokens, blocks = network.apply(variables, image, all_blocks=True)
    assert blocks.shape == (3, 2, 17, 24)
    np.testing.assert_allclose(blocks[-1], tokens, atol=1e-5)


def test_a_resnet_s_map_moves_with_the_image():
    """One block a stage: its cells look 37 px beyond their own middle, not over the whole image."""
    teacher = DinoResnet50(image_px=320, layers=(1, 1, 1, 1), widths=(4, 4, 6, 6), stem_width=4)
    variables = filled(teacher.init)
    image = jax.random.uniform(jax.random.key(1), (1, 320, 320, 3))
    cells, down, right = (
        np.asarray(teacher.features(variables, x)).reshape(10, 10, -1)
        for x in (image, jnp.roll(image, 32, axis=1), jnp.roll(image, 32, axis=2)))
    np.testing.assert_allclose(down[3:-2, 2:-2], cells[2:-3, 2:-2], atol=1e-4)
    np.testing.assert_allclose(right[2:-2, 3:-2], cells[2:-2, 2:-3], atol=1e-4)
    assert np.abs(down - right).max() > 0.1


@pytest.mark.parametrize("fields, message", [
    (dict(image_px=200), "target.image_px=200 is no multiple of 32, .* nearest: 192"),
    (dict(widths=(4, 4)), r"widths=\(4, 4\): a ResNet has 4 stages")])
def test_sizes_that_make_no_resnet_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(DinoResnet50(**fields).init, jax.random.key(0))


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
