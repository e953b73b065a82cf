"""Building blocks against plain numpy: attention, patches, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.models import layers


def test_attention_is_softmax_of_scaled_products_and_bias():
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(3))
    bias = rng.standard_normal((1, 3, 5, 5)).astype(np.float32)
    expected = np.zeros_like(query)
    for b in range(2):
        for head in range(3):
            for i in range(5):
                logits = [query[b, i, head] @ key[b, j, head] / 2 + bias[0, head, i, j]
                          for j in range(5)]  # 2: the root of the head's width
                weights = np.exp(logits) / np.sum(np.exp(logits))
                expected[b, i, head] = weights @ value[b, :, head]
    np.testing.assert_allclose(layers.attend(query, key, value, bias), expected, atol=1e-5)


def test_patches_are_row_major_and_so_are_their_pixels():
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    patches = layers.patchify(jnp.asarray(image), 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            expected = image[1, 2 * row:2 * row + 2, 2 * column:2 * column + 2].ravel()
            np.testing.assert_array_equal(patches[1, 3 * row + column], expected)


def test_initial_values_of_convolutions_fill_the_whole_interval_of_torch():
    draws = layers.uniform_fan_in(768)(jax.random.key(0), (200, 200))
    assert 0.0360 < jnp.abs(draws).max() <= 768 ** -0.5
    assert jnp.std(draws) == pytest.approx(768 ** -0.5 / 3 ** 0.5, rel=0.02)
    assert jnp.abs(jnp.mean(draws)) < 1e-3


def test_a_standardised_vector_has_mean_0_and_variance_1():
    x = np.random.default_rng(0).normal(3.0, 0.01, (4, 64)).astype(np.float32)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layers.standardise(jnp.asarray(x)), expected, rtol=1e-3, atol=1e-3)


def test_a_linear_map_is_a_product_and_a_bias_over_any_leading_axes():
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape).astype(np.float32)
                       for shape in ((2, 3, 4), (4, 5), (5,)))
    made = layers.Linear(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(made, np.einsum("bnd,df->bnf", x, kernel) + bias, atol=1e-5)
