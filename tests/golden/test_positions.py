"""Index matrices, gathered biases and resized tables against the original."""

import re

import golden as golden_files
import numpy as np
import pytest

from beit_jax.models import adapt, position

INDEX = [(g, key) for g in golden_files.load("relpos_index") for key in g.outputs
         if key.startswith("index_")]
RESIZED = [(g, key) for g in golden_files.load("posembed_interp") for key in g.inputs]


def grid_of(key):
    return tuple(map(int, re.fullmatch(r"\w+_(\d+)x(\d+)", key).groups()))


def case_id(value):
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("golden", "key"), INDEX, ids=case_id)
def test_relative_position_index_and_bias(golden, key):
    grid = grid_of(key)
    np.testing.assert_array_equal(position.relative_position_index(grid), golden.outputs[key])
    size = key.removeprefix("index_")
    if f"table_{size}" in golden.inputs:
        bias = position.gather_bias(golden.inputs[f"table_{size}"], grid)[0]
        golden_files.assert_close(bias, golden.outputs[f"bias_{size}"])


@pytest.mark.parametrize(("golden", "key"), RESIZED, ids=case_id)
def test_tables_at_another_resolution(golden, key):
    table, wanted = golden.inputs[key], golden.outputs[key]
    if key.startswith("relpos_"):
        ours = adapt.interpolate_rel_pos_table(table, len(wanted))
    else:
        ours = adapt.interpolate_pos_embed(table, wanted.shape[1])
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("golden", golden_files.load("posembed_interp"), ids=golden_files.name)
def test_geometric_coordinates(golden):
    for key, theirs in golden.outputs.items():
        if key.startswith("source_coords_"):
            target = len(golden.outputs[key.replace("source", "target")])
            ours = adapt.geometric_coordinates(len(theirs), target)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
