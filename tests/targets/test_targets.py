"""What is to be predicted: codes of the frozen dVAE, and pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.targets.pixels import Pixels, patch_pixels

TINY = DvaeTokenizer(vocab_size=16, n_hid=8, n_init=8, num_groups=3, blocks_per_group=1)


@pytest.fixture(scope="module")
def variables():
    """From numpy: compiling an initialiser takes far longer."""
    random = np.random.RandomState(0)
    shapes = jax.eval_shape(TINY.init_with_decoder, jax.random.key(0))
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, shapes)


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (2, 16, 8, 3))


def test_codes_are_the_row_major_argmax_of_the_logits(variables, image):
    logits = TINY.encode_logits(variables, image)
    codes = TINY.codes(variables, image)
    assert codes.dtype == jnp.int32 and codes.shape == (2, 8)
    assert len(np.unique(codes)) > 1
    for row in range(4):
        for column in range(2):
            expected = np.argmax(logits[1, row, column])
            assert codes[1, row * 2 + column] == expected


def test_the_pixel_map_is_inside(variables, image):
    # [0, 1] goes to [0.1, 0.9]
    from beit_jax.models.dvae import DvaeEncoder

    encoder = DvaeEncoder(vocab_size=16, n_hid=8, num_groups=3, blocks_per_group=1)
    expected = encoder.apply({"params": variables["params"]["encoder"]}, 0.8 * image + 0.1)
    np.testing.assert_allclose(TINY.encode_logits(variables, image), expected, atol=1e-6)


def test_init_makes_the_encoder_alone_and_codes_need_no_more(variables, image):
    shapes = jax.eval_shape(TINY.init, jax.random.key(0))
    assert shapes["params"].keys() == {"encoder"}
    whole = jax.tree.map(lambda leaf: leaf.shape, variables["params"]["encoder"])
    assert jax.tree.map(lambda leaf: leaf.shape, shapes["params"]["encoder"]) == whole
    encoder_only = {"params": {"encoder": variables["params"]["encoder"]}}
    np.testing.assert_array_equal(TINY.codes(encoder_only, image), TINY.codes(variables, image))


def test_reconstruction_is_the_decoding_of_the_codes(variables, image):
    codes = TINY.codes(variables, image).reshape(2, 4, 2)
    decoded = TINY.decode(variables, codes)
    assert decoded.shape == image.shape
    assert 0 <= float(decoded.min()) and float(decoded.max()) <= 1
    np.testing.assert_array_equal(TINY.reconstruct(variables, image), decoded)
    one_hot = jax.nn.one_hot(codes, 16)
    np.testing.assert_allclose(TINY.decode(variables, one_hot), decoded, atol=1e-6)


def test_codes_are_the_same_under_jit(variables, image):
    expected = TINY.codes(variables, image)
    np.testing.assert_array_equal(jax.jit(TINY.codes)(variables, image), expected)


def test_image_that_is_no_multiple_of_the_factor_is_an_error(variables):
    with pytest.raises(ValueError, match="multiples of 4; got 18x16"):
        TINY.codes(variables, jnp.zeros((1, 18, 16, 3)))


def test_published_sizes_make_14_x_14_codes_of_112_pixels():
    published = DvaeTokenizer()
    shapes = jax.eval_shape(published.init, jax.random.key(0))
    codes = jax.eval_shape(published.codes, shapes, jnp.zeros((1, 112, 112, 3)))
    assert codes.shape == (1, 196) and published.vocab_size == 8192 and published.downsampling == 8


def test_pixels_of_a_patch_come_row_column_channel():
    image = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    patches = patch_pixels(image, 2)
    assert patches.shape == (1, 6, 12) and patches.dtype == jnp.float32
    np.testing.assert_array_equal(patches[0, 4], image[0, 2:4, 2:4].ravel())


def test_normalised_pixels_have_mean_0_and_unbiased_variance_1():
    image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    patches = np.asarray(patch_pixels(image, 4, normalise=True))
    np.testing.assert_allclose(patches.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(patches.var(-1, ddof=1), 1, atol=1e-4)
    flat = patch_pixels(jnp.ones((1, 4, 4, 3)), 4, normalise=True)
    np.testing.assert_array_equal(flat, 0)  # a patch of one colour has no variance to divide by


def test_images_come_back_from_patches():
    image = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))
    patches = np.asarray(patch_pixels(image, 4)).reshape(2, 2, 3, 4, 4, 3)  # b, gh, gw, p, p, c
    rows = [np.concatenate(list(row), axis=1) for row in patches[1]]
    np.testing.assert_array_equal(np.concatenate(rows, axis=0), image[1])


def test_patch_size_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="patch_size=5 does not divide images of 8x12"):
        patch_pixels(jnp.zeros((1, 8, 12, 3)), 5)


@pytest.mark.parametrize("normalise", [True, False])
def test_pixels_as_a_target_are_those_of_the_normalised_image(normalise):
    image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 1.0, 2.0])
    target = Pixels(16, 8, tuple(mean), tuple(std), normalise)
    assert target.dim == 192 and target.grid == (2, 2)
    wanted = patch_pixels((image - mean) / std, 8, normalise=normalise)
    np.testing.assert_allclose(target.features({}, image), wanted, atol=1e-6)
