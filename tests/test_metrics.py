"""Token similarity: known values, its definition, and its cost; what no label can hit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import losses, metrics


def by_definition(tokens):
    """The mean cosine of all ordered pairs i != j, from the n x n matrix, in float64."""
    tokens = np.asarray(tokens, np.float64)
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    n = tokens.shape[1]
    cosines = np.einsum("bic,bjc->bij", unit, unit)
    return (cosines.sum((1, 2)) - np.trace(cosines, axis1=1, axis2=2)) / (n * (n - 1))


A, B = [3.0, 0.0, 0.0], [0.0, 0.5, 0.0]


@pytest.mark.parametrize(("tokens", "expected"), [
    ([A, A, A], 1.0), ([A, B, [0.0, 0.0, 7.0]], 0.0), ([A, A, B, B], 1 / 3),
    ([A, [-1.0, 0.0, 0.0]], -1.0),
], ids=["identical", "orthogonal", "two_pairs", "opposite"])
def test_similarity_of_simple_tokens(tokens, expected):
    assert float(metrics.token_similarity(jnp.array([tokens]))[0]) == pytest.approx(expected,
                                                                                    abs=1e-6)


@pytest.fixture(scope="module")
def half_normal():
    """[2, 49, 2048]: noise behind a ReLU, of a fixed seed."""
    noise = np.random.RandomState(0).standard_normal((2, 7, 7, 2048))
    return np.maximum(noise, 0).reshape(2, 49, 2048).astype(np.float32)


def test_similarity_of_noise_behind_a_relu_is_not_zero_until_it_is_centred(half_normal):
    """Numbers computed independently; 1 / pi is what is expected of half-normal channels."""
    found = metrics.token_similarity(half_normal)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0.318839, 0.319887], atol=1e-6)
    assert float(jnp.mean(found)) == pytest.approx(1 / np.pi, abs=2e-3)
    centred = metrics.token_similarity(half_normal - half_normal.mean((0, 1)))
    np.testing.assert_allclose(centred, [-0.010259, -0.010352], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_similarity_is_that_of_its_definition(half_normal, dtype):
    tokens = jnp.asarray(half_normal, dtype).at[1, 3].set(0.0)  # a token that is zero too
    found = jax.jit(metrics.token_similarity)(tokens)
    np.testing.assert_allclose(found, by_definition(tokens.astype(np.float32)), atol=1e-6)
    lengths = 1.0 + jnp.arange(49.0)[:, None]
    np.testing.assert_allclose(
        metrics.token_similarity(tokens.astype(np.float32) * lengths), found, atol=1e-6)


def test_nothing_as_large_as_the_matrix_of_pairs_is_made():
    n = 64
    made = jax.make_jaxpr(metrics.token_similarity)(jnp.zeros((2, n, 8)))
    sizes = [var.aval.size for eqn in made.jaxpr.eqns for var in eqn.outvars]
    assert max(sizes) == 2 * n * 8  # pairs would be 2 n n


def test_one_token_has_no_pairs():
    with pytest.raises(ValueError, match="there is n=1: give features of two patches or more"):
        metrics.token_similarity(jnp.ones((4, 1, 8)))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_label_that_is_no_class_is_never_a_hit(k):
    logits, label = jnp.eye(3)[jnp.array([0, 1, 2, 0, 2])], jnp.array([0, 3, 7, -1, 2])
    np.testing.assert_array_equal(metrics.is_correct(logits, label, k), [1, 0, 0, 0, 1])


def test_a_label_beyond_the_head_makes_the_loss_no_number():
    label, logits = jnp.array([2, 3, -1]), jnp.zeros((3, 3))
    target = losses.smooth_targets(label, 3, 0.1)
    loss = losses.soft_target_cross_entropy(logits, target)
    np.testing.assert_array_equal(jnp.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(jnp.isnan(losses.cross_entropy(logits, label)[:2]),
                                  [False, True])
