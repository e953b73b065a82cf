"""Our block masks against statistics of many draws of the original generator."""

import functools

import golden as golden_files
import jax
import numpy as np
import pytest

from beit_jax import masking

FILES = golden_files.load("block_masking")
CASES = [(golden, name) for golden in FILES for name in golden.config["cases"]]
DRAWS = 8000


@functools.lru_cache
def draw(grid, num_masked, min_block, max_block, aspects, draws=DRAWS, kind="block"):
    options = masking.MaskOptions(
        kind=kind, num_masked=num_masked, min_block=min_block, max_block=max_block,
        min_aspect=aspects[0], max_aspect=aspects[1])
    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.jit(lambda keys: options.draw(keys, grid))(keys))


def ours(golden, name):
    """v1 hides up to the number asked for; v2, whose counts are all equal, exactly it."""
    case = golden.config["cases"][name]
    exact = np.count_nonzero(golden.arrays[f"{name}/count_hist"]) == 1
    return draw(tuple(case["grid"]), case["num_masking_patches"], case["min_num_patches"],
                case["max_num_patches"], tuple(np.exp(case["log_aspect"]).tolist()),
                kind="block_exact" if exact else "block")


def joint_error(p, n, m):
    return np.sqrt(p * (1 - p) * (1 / n + 1 / m)) + 1e-9


@pytest.mark.parametrize(("golden", "name"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_number_of_hidden_patches_is_distributed_as_in_the_original(golden, name):
    case = golden.config["cases"][name]
    counts = ours(golden, name).sum(axis=1)
    hist = np.bincount(counts, minlength=len(golden.arrays[f"{name}/count_hist"]))
    theirs = golden.arrays[f"{name}/count_hist"]
    assert counts.max() <= case["num_masking_patches"]
    p, q = hist / hist.sum(), theirs / theirs.sum()
    pooled = (hist + theirs) / (hist.sum() + theirs.sum())
    assert np.all(np.abs(p - q) <= 5 * joint_error(pooled, DRAWS, case["draws"]))


@pytest.mark.parametrize(("golden", "name"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_every_position_is_hidden_as_often_as_in_the_original(golden, name):
    case = golden.config["cases"][name]
    frequency = ours(golden, name).mean(axis=0).reshape(case["grid"])
    theirs = golden.arrays[f"{name}/position_freq"]
    assert np.all(np.abs(frequency - theirs) <= 5 * joint_error(theirs, DRAWS, case["draws"]))


@pytest.mark.parametrize(("golden", "name"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_neighbours_agree_as_often_as_in_the_original(golden, name):
    """Blocks, not scattered cells: the share of equal neighbours, horizontally and vertically."""
    case = golden.config["cases"][name]
    masks = ours(golden, name).reshape(-1, *case["grid"])
    per_mask = [(masks[:, :, 1:] == masks[:, :, :-1]).mean(axis=(1, 2)),
                (masks[:, 1:] == masks[:, :-1]).mean(axis=(1, 2))]
    theirs = golden.arrays[f"{name}/neighbour_agreement_h_v"]
    for shares, golden_share in zip(per_mask, theirs, strict=True):
        error = shares.std() * np.sqrt(1 / DRAWS + 1 / case["draws"])
        assert abs(shares.mean() - golden_share) <= 5 * error


def test_published_statistics_of_75_in_14x14():
    masks = draw((14, 14), 75, 16, 75, (0.3, None), draws=20_000)
    counts, frequency = masks.sum(axis=1), masks.mean(axis=0).reshape(14, 14)
    assert counts.mean() == pytest.approx(74.47, abs=0.035)
    assert (counts == 75).mean() == pytest.approx(0.666, abs=0.012)
    assert counts.min() >= 55
    assert counts.max() == 75
    assert frequency[6:8, 6:8].mean() == pytest.approx(0.715, abs=0.01)
    assert frequency[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.040, abs=0.01)
