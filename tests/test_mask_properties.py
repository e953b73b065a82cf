"""What every mask must satisfy; its distribution is held in tests/golden/test_masking.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import masking


@pytest.mark.parametrize("kind", ["block_exact", "random"])
@pytest.mark.parametrize("num_masked", [16, 75, 195], ids=lambda n: f"{n}_of_196")
def test_exact_kinds_hide_exactly_num_masked_and_differ_per_image(kind, num_masked):
    keys = jax.random.split(jax.random.key(0), 8)
    is_masked = masking.batched_mask(keys, (14, 14), kind=kind, num_masked=num_masked)
    chex.assert_shape(is_masked, (8, 196))
    np.testing.assert_array_equal(is_masked.sum(axis=1), num_masked)
    if num_masked < 195:
        assert len({row.tobytes() for row in np.asarray(is_masked)}) == 8


def test_top_up_keeps_the_blocks():
    is_masked = jnp.zeros(64, bool).at[jnp.arange(10, 20)].set(True)
    topped = masking.top_up(jax.random.key(0), is_masked, 24)
    assert topped.sum() == 24
    assert topped[10:20].all()


def test_a_mask_follows_from_its_key_alone():
    keys = jax.random.split(jax.random.key(3), 6)
    options = dict(kind="block", num_masked=75)
    together = masking.batched_mask(keys, (14, 14), **options)
    apart = masking.batched_mask(keys[4:], (14, 14), **options)
    np.testing.assert_array_equal(together[4:], apart)


def test_masked_positions_lists_hidden_patches_first_and_marks_the_rest():
    is_masked = jnp.array([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]], bool)
    positions, is_hidden = masking.masked_positions(is_masked, 3)
    np.testing.assert_array_equal(positions[0], [1, 3, 4])
    assert positions[1, 0] == 0
    np.testing.assert_array_equal(is_hidden, [[True, True, True], [True, False, False]])


@pytest.mark.parametrize(("grid", "num_masked", "min_block", "message"), [
    ((4, 4), 16, 2, "1 and 15"), ((4, 4), 0, 1, "1 and 15"), ((4, 4), 6, 7, "mask.min_block=7")])
def test_impossible_counts_are_refused(grid, num_masked, min_block, message):
    with pytest.raises(ValueError, match=message):
        masking.check_counts(grid, num_masked, min_block)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="mask.kind='blocks'"):
        masking.batched_mask(jax.random.split(jax.random.key(0), 2), (4, 4), kind="blocks",
                             num_masked=6)


@pytest.mark.parametrize("grid, cell, num_masked", [((14, 14), 2, 120), ((16, 16), 2, 156),
                                                    ((4, 6), 2, 8)])
def test_cells_are_hidden_as_wholes_as_many_as_asked_for_all_alike_often(grid, cell, num_masked):
    mask = masking.MaskOptions(kind="random", num_masked=num_masked, cell=cell)
    mask.check(grid)
    drawn = np.asarray(mask.draw(jax.random.split(jax.random.key(0), 2000), grid))
    np.testing.assert_array_equal(drawn.sum(axis=1), num_masked)
    rows, columns = grid
    cells = drawn.reshape(-1, rows // cell, cell, columns // cell, cell).transpose(0, 1, 3, 2, 4)
    assert np.all(cells.all(axis=(3, 4)) == cells.any(axis=(3, 4)))
    share = num_masked / (rows * columns)
    error = (share * (1 - share) / len(drawn)) ** 0.5
    np.testing.assert_allclose(drawn.mean(axis=0), share, atol=5 * error)
    coarse = masking.coarsen(drawn, grid, cell)
    np.testing.assert_array_equal(coarse.reshape(cells.shape[:3]), cells[..., 0, 0])
    np.testing.assert_array_equal(
        masking.refine(coarse, (rows // cell, columns // cell), cell), drawn)


@pytest.mark.parametrize("fields, message", [
    (dict(kind="random", num_masked=120, cell=3), "mask.cell=3 does not divide the grid"),
    (dict(kind="random", num_masked=122, cell=2), "nearest: 120"),
    (dict(kind="block", cell=2), "mask.cell=2 has no effect here"),
])
def test_cells_that_do_not_fit_are_one_clear_line(fields, message):
    with pytest.raises(ValueError, match=message):
        masking.MaskOptions(**fields).check((14, 14))
