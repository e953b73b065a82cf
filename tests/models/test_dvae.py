"""The dVAE's networks: sizes, start values, and numbers of the original code.

The numbers of two small networks were made with the `dall_e` package from weights that follow from
a seed (`draw`); test_golden_dvae.py holds whole arrays.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import convert
from beit_jax.models import dvae


def draw(shapes: dict, seed: int) -> dict:
    """Weights from a seed, under torch names: in sorted order, matrices with variance 1 / fan-in,
    vectors 0.1 times a normal number."""
    random = np.random.RandomState(seed)
    drawn = {}
    for name in sorted(shapes):
        a = random.standard_normal(shapes[name])
        scale = 1 / np.sqrt(np.prod(a.shape[1:])) if a.ndim > 1 else 0.1
        drawn[name] = (a * scale).astype(np.float32)
    return drawn


def drawn_variables(module, inputs, part: str):
    """Variables of `module` drawn by the names that the original state dict has."""
    params = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    ours = {f"{part}/{k}": np.zeros(v.shape) for k, v in convert.flatten(params).items()}
    theirs = convert.to_reference(ours, "dalle")
    drawn = draw({name.removeprefix(part + "/"): v.shape for name, v in theirs.items()}, seed=0)
    ours = convert.to_ours({f"{part}/{name}": v for name, v in drawn.items()}, "dalle")
    return {"params": convert.unflatten(ours)[part]}


def random_like(shapes):
    """Arrays for a tree of shapes, from numpy: compiling an initialiser takes far longer."""
    random = np.random.RandomState(0)

    def fill(leaf):
        fan_in = int(np.prod(leaf.shape[:-1])) or 1
        return (random.standard_normal(leaf.shape) / fan_in**0.5).astype(np.float32)

    return jax.tree.map(fill, shapes)


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def shapes_of(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def test_published_sizes_have_the_published_parameter_counts():
    params = shapes_of(dvae.Dvae(), jnp.zeros((1, 8, 8, 3)))
    encoder, decoder = params["encoder"]["blocks"], params["decoder"]["blocks"]
    assert count(encoder) == 53_786_240
    assert count(decoder) == 43_829_766
    groups = [f"group_{g}" for g in range(1, 5)]
    assert [count(encoder[g]) for g in groups] == [476_032, 1_739_008, 6_951_424, 27_796_480]
    assert [count(decoder[g]) for g in groups] == [29_697_024, 9_966_080, 2_492_672, 623_744]
    assert (count(encoder["input"]), count(encoder["output"])) == (37_888, 16_785_408)
    assert (count(decoder["input"]), count(decoder["output"])) == (1_048_704, 1_542)
    assert len(jax.tree.leaves(encoder)) == 74 and len(jax.tree.leaves(decoder)) == 76


def test_names_and_shapes_are_those_of_the_released_files():
    leaves = convert.flatten(shapes_of(dvae.Dvae(), jnp.zeros((1, 8, 8, 3))))
    theirs = {
        name: v.shape
        for name, v in convert.to_reference(
            {k: np.broadcast_to(np.float32(0), v.shape) for k, v in leaves.items()
             if "blocks/input" in k or "group_1/block_1" in k or "id_path" in k}, "dalle"
        ).items()
    }  # fmt: skip
    assert theirs["encoder/blocks.input.w"] == (256, 3, 7, 7)
    assert theirs["encoder/blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert theirs["encoder/blocks.group_1.block_1.res_path.conv_4.w"] == (256, 64, 1, 1)
    assert theirs["encoder/blocks.group_4.block_1.id_path.w"] == (2048, 1024, 1, 1)
    assert theirs["decoder/blocks.input.w"] == (128, 8192, 1, 1)
    assert theirs["decoder/blocks.group_1.block_1.res_path.conv_1.w"] == (512, 128, 1, 1)
    assert theirs["decoder/blocks.group_1.block_1.res_path.conv_4.w"] == (2048, 512, 3, 3)
    with_skip = sorted(name for name in theirs if name.endswith("id_path.w"))
    assert [name.split(".")[1] for name in with_skip] == [
        "group_1", "group_2", "group_3", "group_4", "group_2", "group_3", "group_4",
    ]  # fmt: skip


def test_small_encoder_gives_the_numbers_of_the_original():
    encoder = dvae.DvaeEncoder(vocab_size=512, n_hid=64, blocks_per_group=1)
    x = np.random.RandomState(1).rand(1, 3, 32, 32).astype(np.float32).transpose(0, 2, 3, 1)
    variables = drawn_variables(encoder, x, "encoder")
    assert count(variables) == 1_321_744
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(encoder.apply)(variables, dvae.map_pixels(x)))
    assert logits.shape == (1, 4, 4, 512)
    np.testing.assert_allclose([logits.mean(), logits.std()], [-0.009155, 0.413658], atol=2e-6)
    expected = [-0.090713, -0.454387, 0.131889, 0.048977]
    np.testing.assert_allclose(logits[0, 0, 0, :4], expected, atol=5e-6)
    np.testing.assert_allclose(logits[0, 3, 3, 511], 0.424315, atol=5e-6)
    codes = np.full((4, 4), 459)
    codes[3, 0] = 297
    np.testing.assert_array_equal(logits[0].argmax(-1), codes)


def test_small_decoder_gives_the_numbers_of_the_original():
    decoder = dvae.DvaeDecoder(vocab_size=512, n_hid=64, n_init=16, blocks_per_group=1)
    codes = np.random.RandomState(2).randint(0, 512, (1, 4, 4))
    assert codes[0, 0].tolist() == [168, 15, 493, 72]
    codes = codes.astype(np.int32)
    variables = drawn_variables(decoder, codes, "decoder")
    assert count(variables) == 1_411_558
    with jax.default_matmul_precision("highest"):
        stats = np.asarray(jax.jit(decoder.apply)(variables, codes))
    assert stats.shape == (1, 32, 32, 6)
    np.testing.assert_allclose([stats.mean(), stats.std()], [-0.022992, 0.223763], atol=2e-6)
    first = [-0.034613, 0.031210, -0.337953, -0.277420, 0.126119, 0.289580]
    last = [-0.050126, 0.061574, -0.322693, -0.270753, 0.163700, 0.331941]
    np.testing.assert_allclose(stats[0, 0, 0], first, atol=5e-6)
    np.testing.assert_allclose(stats[0, 31, 31], last, atol=5e-6)


@pytest.mark.slow
def test_published_encoder_starts_with_logits_of_spread_0_4():
    encoder, noise = dvae.DvaeEncoder(), jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    mapped = dvae.map_pixels(noise)
    variables = jax.jit(encoder.init)(jax.random.key(0), mapped)
    logits = jax.jit(encoder.apply)(variables, mapped)
    assert 0.3 < float(logits.std()) < 0.5


def test_pixel_maps():
    x = np.linspace(0, 1, 11, dtype=np.float32)
    np.testing.assert_allclose(dvae.map_pixels(jnp.array([0.0, 1.0])), [0.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(dvae.unmap_pixels(dvae.map_pixels(x)), x, atol=1e-7)
    np.testing.assert_array_equal(dvae.unmap_pixels(jnp.array([0.05, 0.95])), [0, 1])


@pytest.mark.parametrize("num_groups, factor", [(1, 1), (2, 2), (3, 4), (4, 8)])
def test_fewer_groups_make_a_finer_grid(num_groups, factor):
    model = dvae.Dvae(
        vocab_size=16, n_hid=8, n_init=8, num_groups=num_groups, blocks_per_group=1
    )
    image = jnp.full((2, 16, 8, 3), 0.5)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    logits = jax.eval_shape(lambda v: model.apply(v, image, method="encode"), variables)
    assert logits.shape == (2, 16 // factor, 8 // factor, 16)
    codes = jnp.zeros(logits.shape[:3], jnp.int32)
    stats = jax.eval_shape(lambda v: model.apply(v, codes, method="decode"), variables)
    assert stats.shape == (2, 16, 8, 6)
    assert dvae.downsampling(num_groups) == factor


def test_integer_codes_and_one_hot_codes_decode_alike():
    decoder = dvae.DvaeDecoder(vocab_size=16, n_hid=8, n_init=8, blocks_per_group=1)
    codes = jax.random.randint(jax.random.key(1), (2, 2, 2), 0, 16)
    variables = random_like(jax.eval_shape(decoder.init, jax.random.key(0), codes))
    integers = jax.jit(decoder.apply)(variables, codes)
    one_hot = jax.jit(decoder.apply)(variables, jax.nn.one_hot(codes, 16))
    np.testing.assert_allclose(integers, one_hot, atol=1e-6)


def test_branch_gain_is_one_over_the_square_of_all_blocks():
    encoder = dvae.DvaeEncoder(vocab_size=4, n_hid=4, num_groups=1, blocks_per_group=3)
    x = jnp.full((1, 1, 1, 3), 0.5)
    params = convert.flatten(shapes_of(encoder, x))
    # only biases: block output = input + gain * last bias, and the head adds the channels up
    params = {name: np.zeros(value.shape, np.float32) for name, value in params.items()}
    params["blocks/input/b"] += 1.0
    for block in range(1, 4):
        params[f"blocks/group_1/block_{block}/res_path/conv_4/b"] += 9.0
    params["blocks/output/conv/w"] += 1.0
    logits = jax.jit(encoder.apply)({"params": convert.unflatten(params)}, x)
    np.testing.assert_allclose(logits, 4 * (1 + 3 * 9 / 3**2), rtol=1e-6)


@pytest.mark.parametrize("kernel_size, channels", [(1, 3), (3, 8), (3, 3), (7, 3), (7, 9)])
def test_convolution_equals_the_plain_one(kernel_size, channels):
    conv = dvae.Conv(5, kernel_size)
    x = jax.random.normal(jax.random.key(1), (2, 6, 10, channels))
    variables = conv.init(jax.random.key(0), x)
    plain = jax.lax.conv_general_dilated(
        x, variables["params"]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(conv.apply(variables, x), plain, atol=1e-5)


def test_max_pool_and_upsample():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    pooled = dvae.max_pool(x)
    assert pooled.shape == (2, 2, 3, 3)
    assert pooled[1, 0, 2, 1] == x[1, 0:2, 4:6, 1].max()
    np.testing.assert_array_equal(dvae.max_pool(dvae.upsample(x)), x)
    np.testing.assert_array_equal(dvae.upsample(x)[0, 2:4, 6:8, 0], x[0, 1, 3, 0])


def test_in_bfloat16_parameters_and_outputs_stay_float32():
    model = dvae.Dvae(
        vocab_size=16, n_hid=8, n_init=8, num_groups=2, blocks_per_group=1, dtype=jnp.bfloat16
    )
    image = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert jax.eval_shape(model.apply, shapes, image).dtype == jnp.float32
    variables = random_like(shapes)
    encode = functools.partial(model.apply, method="encode")
    exact = functools.partial(model.clone(dtype=jnp.float32).apply, method="encode")
    logits, exact = jax.jit(encode)(variables, image), jax.jit(exact)(variables, image)
    assert logits.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(logits - exact))) < 2e-2 * float(jnp.max(jnp.abs(exact)))


def test_sizes_that_are_no_multiple_are_named():
    with pytest.raises(ValueError, match="multiples of 8; got 100x112; nearest: 96x112"):
        dvae.check_image_px(100, 112, 4)
