"""Checkpoint surgery against the numbers of the original (spec page of BEiT, section 17.7)."""

import jax
import numpy as np
import pytest

from beit_jax.models import adapt


@pytest.mark.parametrize(
    ("side", "checks", "total"),
    [
        (47, {(0, 0): 0.0, (23, 23): 364.0, (23, 24): 365.0, (25, 20): 413.083356,
              (33, 33): 572.388449, (3, 20): 39.008128, (-1, -1): 728.0}, 804_076.0),
        (63, {(0, 0): 0.001050, (33, 28): 412.292898, (41, 41): 552.952626,
              (3, 20): 23.166883, (-1, -1): 727.998950}, 1_444_716.0),
    ], ids=["27_to_47", "27_to_63"])
def test_table_interpolation_gives_the_published_values(side, checks, total):
    plane = (27 * np.arange(27)[:, None] + np.arange(27)[None, :]).astype(np.float64)
    class_rows = np.array([[1.0], [2.0], [3.0]])
    table = np.concatenate([plane.reshape(-1, 1), class_rows])
    resized = adapt.interpolate_rel_pos_table(table, side * side + 3)
    np.testing.assert_array_equal(resized[-3:], class_rows)
    grid = resized[:-3, 0].reshape(side, side)
    for (row, column), value in checks.items():
        assert grid[row, column] == pytest.approx(value, abs=1e-4 * max(1.0, abs(value)) / 2)
    assert grid.sum(dtype=np.float64) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(("target", "ratio", "last"), [
    (31, 1.023493, 15.00), (47, 1.090307, 22.9999), (63, 1.134918, 31.0002),
    (79, 1.168504, 39.00)])
def test_geometric_coordinates_reach_the_target(target, ratio, last):
    coordinates = adapt.geometric_coordinates(27, target)
    steps = np.diff(coordinates[13:])
    assert steps[1] / steps[0] == pytest.approx(ratio, abs=2e-6)
    assert coordinates[-1] == pytest.approx(last, abs=6e-3)
    np.testing.assert_allclose(coordinates, -coordinates[::-1])


def test_shrinking_a_table_cuts_out_its_centre():
    offsets = np.arange(-13, 14)
    plane = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 50.0)
    table = np.concatenate([plane.reshape(-1, 1), np.zeros((3, 1))])
    small = adapt.interpolate_rel_pos_table(table, 15 * 15 + 3)[:-3].reshape(15, 15)
    np.testing.assert_allclose(small, plane[6:21, 6:21], atol=0.03)  # q stops at 1.01


def test_every_block_starts_from_the_shared_table():
    table = np.random.default_rng(0).normal(size=(52, 2)).astype(np.float32)
    target = {adapt.BLOCK_TABLES: jax.ShapeDtypeStruct((3, 52, 2), np.float32)}
    out = adapt.expand_rel_pos_bias({adapt.SHARED_TABLE: table, "cls_token": np.ones(2)}, target)
    assert set(out) == {adapt.BLOCK_TABLES, "cls_token"}
    for block in out[adapt.BLOCK_TABLES]:
        np.testing.assert_array_equal(block, table)


def test_tables_per_block_are_resized_head_by_head():
    tables = np.random.default_rng(0).normal(size=(2, 52, 3)).astype(np.float32)
    target = {adapt.BLOCK_TABLES: jax.ShapeDtypeStruct((2, 124, 3), np.float32)}
    out = adapt.resize_rel_pos_bias({adapt.BLOCK_TABLES: tables}, target)[adapt.BLOCK_TABLES]
    assert out.shape == (2, 124, 3)
    np.testing.assert_array_equal(out[1], adapt.interpolate_rel_pos_table(tables[1], 124))
    assert np.abs(out[0] - out[1]).max() > 0.1


def test_drop_head_keeps_a_head_that_fits():
    head = {"head/kernel": np.ones((4, 10)), "head/bias": np.ones(10), "cls_token": np.ones(4)}

    def target(classes):
        return {"head/kernel": jax.ShapeDtypeStruct((4, classes), np.float32),
                "head/bias": jax.ShapeDtypeStruct((classes,), np.float32)}

    assert adapt.drop_head(head, target(10)) == head
    assert set(adapt.drop_head(head, target(7))) == {"cls_token"}


@pytest.mark.parametrize("rows", [50, 67])
def test_a_table_of_no_square_grid_is_refused(rows):
    with pytest.raises(ValueError, match=f"{rows} rows"):
        adapt.interpolate_rel_pos_table(np.zeros((52, 1)), rows)


def test_the_encoder_of_a_tokenizer_becomes_a_backbone():
    loaded = {"encoder/cls_token": np.ones(4), "encoder/blocks/norm1/scale": np.ones((2, 4)),
              "encoder/fc_norm/scale": np.full(4, 2.0), "encode_task_layer/fc1/bias": np.ones(4),
              "decoder/cls_token": np.zeros(4), "codebook/embedding": np.ones((16, 8))}
    out = adapt.take_encoder(loaded, {})
    assert set(out) == {"cls_token", "blocks/norm1/scale", "fc_norm/scale"}
    assert out["cls_token"] is loaded["encoder/cls_token"]
    assert out["fc_norm/scale"] is loaded["encoder/fc_norm/scale"]


@pytest.mark.parametrize(("source", "power", "target", "rows"), [
    (4, 1.5, 6, {
        "resize_pos_embed": [-0.764821, -0.446754, 0.389135, 1.376305, 3.076537, 4.234110],
        "resize_pos_embed_offset": [-0.779249, -0.471266, 0.331318, 1.277283, 2.945250, 4.160066],
        "resize_pos_embed_antialias": [-0.582667, -0.224250, 0.560235, 1.719321, 3.351431,
                                       4.469040]}),
    (8, 1.2, 4, {
        "resize_pos_embed": [5.139075, 8.365025, 11.819764, 15.668706],
        "resize_pos_embed_offset": [4.841954, 7.973550, 11.333327, 15.007383],
        "resize_pos_embed_antialias": [7.290514, 10.356529, 14.033691, 17.614544]}),
], ids=["4_to_6", "8_to_4"])
def test_positions_are_resized_by_the_rule_that_is_named(source, power, target, rows):
    """Numbers of the original packages (spec page of teachers, section 11.6)."""
    assert rows.keys() == {name for name in adapt.ADAPT if name.startswith("resize_pos_embed")}
    grid = np.arange(source * source) ** power
    table = np.concatenate([[-5.0], grid]).reshape(1, -1, 1)
    shape = {"pos_embed": jax.ShapeDtypeStruct((1, target**2 + 1, 1), np.float32)}
    for name, row in rows.items():
        resized = adapt.ADAPT[name]({"pos_embed": table}, shape)["pos_embed"]
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized[0, 1:target + 1, 0], row, atol=1e-4)
        assert resized[0, 0, 0] == -5.0


@pytest.mark.parametrize(("source", "target"), [(37, 14), (37, 16), (37, 48), (14, 14)])
def test_antialiasing_is_jax_s_cubic_and_shares_out_what_lies_beyond_the_edge(source, target):
    grid = np.random.default_rng(0).normal(size=(source, source)).astype(np.float32)
    weights = adapt.antialias_matrix(source, target)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    wanted = jax.image.resize(grid, (target, target), "cubic", precision="highest")
    # jax has its coordinates in float32
    np.testing.assert_allclose(weights @ grid @ weights.T, wanted, atol=3e-5)
