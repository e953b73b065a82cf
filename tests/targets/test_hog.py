"""Histograms of gradients against numbers of an independent program (spec page of teachers, 11.7),
and what they must be by their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax.targets import preprocess
from beit_jax.targets.hog import Hog, hog

IMAGE = jnp.asarray(
    np.random.RandomState(1).rand(1, 3, 32, 32).astype(np.float32).transpose(0, 2, 3, 1))


def by_part(patches, side: int, cells: int):
    """[n, c] of a square grid -> [gh, gw, colour, bin, cell row, cell column]."""
    return np.asarray(patches).reshape(side, side, 3, 9, cells, cells)


def test_histograms_without_a_window():
    patches = hog(IMAGE, 16)
    assert patches.shape == (1, 4, 108) and patches.dtype == jnp.float32
    np.testing.assert_allclose(
        by_part(patches, 2, 2)[0, 0, 0, :, 0, 0],
        [0.457263, 0.152026, 0.428148, 0.360333, 0.378006, 0.172719, 0.180929, 0.336281, 0.368929],
        atol=1e-5)
    assert float(patches.sum()) == pytest.approx(129.5382, abs=1e-3)
    np.testing.assert_allclose(
        patches[0, 0, :6], [0.457263, 0.250897, 0.631643, 0.176055, 0.152026, 0.317255], atol=1e-5)
    np.testing.assert_allclose(
        patches[0, 3, -8:],
        [0.470193, 0.308716, 0.151161, 0.458192, 0.217774, 0.211351, 0.311875, 0.110827], atol=1e-5)


def test_histograms_with_a_window():
    patches = hog(IMAGE, 16, window_px=16)
    np.testing.assert_allclose(by_part(patches, 2, 2)[0, 0, 0, :3, 0, 0],
                               [0.409660, 0.132581, 0.450727], atol=1e-5)
    assert float(patches.sum()) == pytest.approx(129.9939, abs=1e-3)


def test_the_same_cells_in_patches_of_one_cell():
    small = by_part(hog(IMAGE, 8), 4, 1)[..., 0, 0]  # [4, 4, 3, 9]
    large = by_part(hog(IMAGE, 16), 2, 2)
    for row in range(4):
        for column in range(4):
            cell = large[row // 2, column // 2, :, :, row % 2, column % 2]
            np.testing.assert_array_equal(small[row, column], cell)


@pytest.mark.parametrize(("axis", "wanted"), [(2, 4), (1, 0)], ids=["along_x", "along_y"])
def test_a_ramp_falls_into_one_bin(axis, wanted):
    ramp = jnp.broadcast_to(
        jnp.arange(32.0).reshape([-1 if a == axis else 1 for a in range(4)]), (1, 32, 32, 3))
    cells = by_part(hog(ramp, 16), 2, 2)
    np.testing.assert_allclose(cells[:, :, :, wanted], 1.0, atol=1e-6)
    assert np.all(np.delete(cells, wanted, axis=3) == 0)


def test_every_histogram_has_length_1_and_that_of_a_flat_cell_0():
    image = IMAGE.at[:, 8:, :16].set(0.5)  # cells at the edges of the flat part see beyond it
    lengths = np.linalg.norm(by_part(hog(image, 16), 2, 2), axis=3)
    assert np.all(lengths[1, 0, :, :, 0] == 0)
    lengths[1, 0, :, :, 0] = 1
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_the_map_moves_with_the_image():
    image = jax.random.uniform(jax.random.key(0), (1, 96, 96, 3))
    cells, down, right = (np.asarray(hog(x, 16)).reshape(6, 6, 108) for x in (
        image, jnp.roll(image, 16, axis=1), jnp.roll(image, 16, axis=2)))
    np.testing.assert_allclose(down[2:-1, 1:-1], cells[1:-2, 1:-1], atol=1e-6)
    np.testing.assert_allclose(right[1:-1, 2:-1], cells[1:-1, 1:-2], atol=1e-6)
    assert np.abs(down - right).max() > 0.1


def test_the_target_normalises_and_is_the_same_under_jit():
    target = Hog(image_px=32, patch_size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    assert target.dim == 108 and target.grid == (2, 2)
    ours = target.features({}, IMAGE)
    wanted = hog(preprocess.normalise(IMAGE, target.mean, target.std), 16)
    np.testing.assert_array_equal(ours, wanted)
    np.testing.assert_allclose(jax.jit(target.features)({}, IMAGE), ours, atol=1e-5)
    windowed = Hog(image_px=32, patch_size=16, window_px=16).features({}, IMAGE)
    assert float(jnp.abs(windowed - ours).max()) > 1e-2


@pytest.mark.parametrize(("patch_size", "window_px", "message"), [
    (12, 0, "patch_size=12 must be a multiple of 8 and divide images of 32x32"),
    (24, 0, "patch_size=24 must be"), (16, 12, "window_px=12 does not divide images of 32x32")])
def test_sizes_that_do_not_divide_are_errors(patch_size, window_px, message):
    with pytest.raises(ValueError, match=message):
        hog(IMAGE, patch_size, window_px=window_px)
