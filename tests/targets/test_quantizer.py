"""The quantizer of VQ-KD: numbers worked out by hand, and what must hold of any input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.targets import quantizer


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def lengths(rows):
    return np.linalg.norm(np.asarray(rows, np.float64), axis=-1)


def moved(codebook, vectors, decay=0.99):
    """The codebook after one update by the vectors."""
    quantized = quantizer.quantize(vectors, codebook)
    count, total = quantizer.statistics(quantized.unit, quantized.codes, codebook.shape[0])
    return quantizer.update(codebook, count, total, decay)


def test_two_vectors_and_three_codes_by_hand():
    codebook = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    vectors = jnp.array([[[1.2, 1.6], [1.6, 1.2]]])
    quantized = quantizer.quantize(vectors, codebook)
    np.testing.assert_allclose(quantized.unit, [[[0.6, 0.8], [0.8, 0.6]]], atol=1e-6)
    np.testing.assert_array_equal(quantized.codes, [[1, 0]])
    assert quantized.codes.dtype == jnp.int32
    np.testing.assert_allclose(quantized.output, [[[0.0, 1.0], [1.0, 0.0]]], atol=1e-6)
    assert float(quantized.commitment.mean()) == pytest.approx(0.2, abs=1e-6)
    count, total = quantizer.statistics(quantized.unit, quantized.codes, 3)
    np.testing.assert_array_equal(count, [1, 1, 0])
    np.testing.assert_allclose(total, [[0.8, 0.6], [0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    expected = [[0.999982, 0.006012], [0.006012, 0.999982], [-1.0, 0.0]]
    np.testing.assert_allclose(quantizer.update(codebook, count, total, 0.99), expected, atol=1e-6)


def test_codes_have_length_one_after_every_update_and_unchosen_ones_stay():
    codebook = quantizer.random_codebook(jax.random.key(0), 64, 8)
    np.testing.assert_allclose(lengths(codebook), 1.0, atol=1e-6)
    for step in range(8):
        # one half of the sphere, so that some codes are never chosen
        vectors = normal(step, 2, 16, 8) + 3.0 * jnp.eye(8)[0]
        chosen = np.unique(quantizer.quantize(vectors, codebook).codes)
        before, codebook = codebook, moved(codebook, vectors, decay=0.9)
        np.testing.assert_allclose(lengths(codebook), 1.0, atol=1e-6)
        others = np.setdiff1d(np.arange(64), chosen)
        assert others.size > 0
        np.testing.assert_allclose(codebook[others], before[others], atol=1e-6)
        assert (np.abs(codebook - before)[chosen].max(axis=-1) > 1e-3).all()


def test_a_code_follows_the_direction_of_its_vectors():
    """All vectors weigh alike, however long; the mean of their directions is the goal."""
    vectors = jnp.array([[5.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
    codebook = quantizer.to_unit(jnp.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]))
    goal = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)
    for _ in range(20):
        codebook = moved(codebook, vectors, decay=0.5)
    np.testing.assert_allclose(codebook[0], goal, atol=1e-5)


def test_codes_do_not_depend_on_the_length_of_the_vectors():
    codebook = quantizer.random_codebook(jax.random.key(0), 32, 8)
    vectors = normal(1, 4, 16, 8)
    scale = 10.0 ** jax.random.uniform(jax.random.key(2), (4, 16, 1), minval=-4.0, maxval=4.0)
    one, other = (quantizer.quantize(v, codebook) for v in (vectors, scale * vectors))
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_allclose(one.output, other.output, atol=1e-6)
    assert len(np.unique(one.codes)) > 16


def test_the_nearest_code_is_that_of_the_smallest_distance():
    codebook = quantizer.random_codebook(jax.random.key(0), 32, 8)
    unit = quantizer.to_unit(normal(1, 64, 8))
    distance = np.square(np.asarray(unit)[:, None] - np.asarray(codebook)).sum(-1)
    np.testing.assert_array_equal(quantizer.nearest(unit, codebook), distance.argmin(axis=1))


def test_of_a_tie_the_lowest_code_is_taken():
    codebook = jnp.array([[0.0, -1.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    codes = quantizer.nearest(jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]]), codebook)
    np.testing.assert_array_equal(codes, [2, 1, 0])


def test_the_gradient_goes_straight_through_to_the_unit_vectors():
    codebook = quantizer.random_codebook(jax.random.key(0), 32, 8)
    vectors, cotangent = normal(1, 4, 16, 8), normal(2, 4, 16, 8)
    grad = jax.grad(lambda v: jnp.sum(quantizer.quantize(v, codebook).output * cotangent))(vectors)
    # of v / |v|: the part of the cotangent across v, divided by the length
    unit = vectors / lengths(vectors)[..., None]
    across = cotangent - unit * jnp.sum(unit * cotangent, axis=-1, keepdims=True)
    np.testing.assert_allclose(grad, across / lengths(vectors)[..., None], rtol=1e-4, atol=1e-5)
    _, to_unit_vjp = jax.vjp(quantizer.to_unit, vectors)
    np.testing.assert_allclose(grad, to_unit_vjp(cotangent)[0], atol=1e-6)


def test_the_commitment_pulls_vectors_to_codes_and_never_codes_to_vectors():
    codebook = quantizer.random_codebook(jax.random.key(0), 32, 8)
    vectors = normal(1, 16, 8)

    def both(vectors, codebook):
        quantized = quantizer.quantize(vectors, codebook)
        return quantized.commitment.mean() + jnp.sum(jnp.sin(quantized.output))

    of_codebook = jax.grad(both, argnums=1)(vectors, codebook)
    assert not np.any(of_codebook)
    commitment = jax.value_and_grad(lambda v: quantizer.quantize(v, codebook).commitment.mean())
    before, grad = commitment(vectors)
    after, _ = commitment(vectors - 0.5 * vectors.size * grad)
    assert float(after) < 0.9 * float(before)


def test_no_gradient_reaches_the_statistics():
    codes = jnp.array([0, 1, 1])
    grad = jax.grad(lambda unit: jnp.sum(quantizer.statistics(unit, codes, 2)[1]))(normal(0, 3, 2))
    assert not np.any(grad)


def test_statistics_of_two_halves_add_up_to_the_whole():
    codebook = quantizer.random_codebook(jax.random.key(0), 16, 8)
    quantized = quantizer.quantize(normal(1, 8, 16, 8), codebook)

    def of(rows):
        return quantizer.statistics(quantized.unit[rows], quantized.codes[rows], 16)

    halves = jax.tree.map(jnp.add, of(slice(0, 4)), of(slice(4, 8)))
    whole = of(slice(None))
    np.testing.assert_array_equal(halves[0], whole[0])
    assert float(jnp.sum(whole[0])) == 8 * 16
    np.testing.assert_allclose(quantizer.update(codebook, *halves, 0.9),
                               quantizer.update(codebook, *whole, 0.9), atol=1e-6)
    # the mean of two updates is another codebook: the counts of the halves differ
    alone = [quantizer.update(codebook, *of(rows), 0.9) for rows in (slice(0, 4), slice(4, 8))]
    assert np.abs((alone[0] + alone[1]) / 2 - quantizer.update(codebook, *whole, 0.9)).max() > 1e-3


def test_zero_vectors_give_numbers_forwards_and_backwards():
    codebook = quantizer.random_codebook(jax.random.key(0), 4, 8)
    vectors = normal(1, 6, 8).at[2].set(0.0)

    def value(vectors):
        quantized = quantizer.quantize(vectors, codebook)
        return quantized.commitment.mean() + jnp.sum(quantized.output), quantized

    grad, quantized = jax.grad(value, has_aux=True)(vectors)
    assert all(np.isfinite(part).all() for part in (grad, *quantized))
    np.testing.assert_array_equal(quantized.unit[2], 0.0)
    assert 0 <= int(quantized.codes[2]) < 4
    assert np.isfinite(moved(codebook, vectors)).all()


def test_vectors_that_cancel_leave_their_code_where_it_is():
    codebook = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    count, total = jnp.array([2.0, 0.0]), jnp.zeros((2, 2))
    np.testing.assert_allclose(quantizer.update(codebook, count, total, 0.99), codebook, atol=1e-6)


def test_without_a_memory_the_chosen_codes_are_the_means_and_the_others_stay():
    codebook = quantizer.random_codebook(jax.random.key(0), 3, 2)
    vectors = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    count, total = quantizer.statistics(quantizer.to_unit(vectors), jnp.array([1, 1]), 3)
    expected = np.asarray(codebook).copy()
    expected[1] = np.sqrt(0.5)
    np.testing.assert_allclose(quantizer.update(codebook, count, total, 0.0), expected, atol=1e-6)


def clusters(seed=0, each=(5, 10, 20, 40), spread=0.02):
    """Unit vectors [m, 8] in tight clusters about four directions, shuffled; their numbers [m]."""
    centres = quantizer.random_codebook(jax.random.key(seed), 4, 8)
    member = np.random.RandomState(0).permutation(np.repeat(np.arange(4), each))
    samples = quantizer.to_unit(centres[member] + spread * normal(seed + 1, member.size, 8))
    return np.asarray(samples), member, np.asarray(centres)


def test_kmeans_finds_four_tight_clusters():
    samples, member, centres = clusters()
    rough = quantizer.to_unit(centres + 0.25 * normal(5, 4, 8))  # far off, but one for each
    means, count = jax.jit(quantizer.kmeans, static_argnums=2)(samples, rough, 10)
    expected = np.stack([samples[member == k].mean(axis=0) for k in range(4)])
    expected /= lengths(expected)[:, None]
    np.testing.assert_allclose(means, expected, atol=1e-6)
    assert np.abs(rough - expected).max() > 0.2
    np.testing.assert_array_equal(count, [5, 10, 20, 40])


def test_kmeans_takes_as_many_turns_as_it_is_told():
    samples = quantizer.to_unit(normal(0, 200, 8))
    start = quantizer.start_means(jax.random.key(1), samples, 16)
    means, _ = quantizer.kmeans(samples, start, 0)
    np.testing.assert_array_equal(means, start)
    one, _ = quantizer.kmeans(samples, start, 1)
    two, _ = quantizer.kmeans(samples, start, 2)
    again, _ = quantizer.kmeans(samples, one, 1)
    np.testing.assert_allclose(two, again, atol=1e-6)
    assert np.abs(two - one).max() > 1e-3


def test_kmeans_with_more_codes_than_directions_keeps_the_empty_ones():
    directions = quantizer.to_unit(normal(0, 3, 8))
    samples = jnp.tile(directions, (4, 1))
    start = jnp.concatenate([directions, directions, -directions[:2]])
    means, count = quantizer.kmeans(samples, start, 10)
    np.testing.assert_array_equal(count, [4, 4, 4, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(means, start, atol=1e-6)
    drawn = quantizer.start_means(jax.random.key(1), samples, 20)  # more than there are samples
    means, count = quantizer.kmeans(samples, drawn, 10)
    np.testing.assert_allclose(lengths(means), 1.0, atol=1e-6)
    np.testing.assert_array_equal(means[count == 0], drawn[count == 0])
    assert float(count.sum()) == 12 and int((count > 0).sum()) == 3


def test_start_means_are_distinct_samples_while_there_are_enough():
    samples = np.arange(20.0, dtype=np.float32).reshape(10, 2)

    def rows(size, seed=0):
        drawn = quantizer.start_means(jax.random.key(seed), samples, size)
        assert drawn.shape == (size, 2)
        assert {tuple(row) for row in np.asarray(drawn)} <= {tuple(row) for row in samples}
        return [tuple(row) for row in np.asarray(drawn)]

    for seed in range(3):
        assert len(set(rows(10, seed))) == 10
    assert len({tuple(rows(4, seed)) for seed in range(3)}) == 3  # by the key
    assert 1 < len(set(rows(25))) <= 10
