"""The blocks of a mask against the paper's formula, integrated in the test."""

import math

import jax
import numpy as np

from beit_jax import masking

DRAWS = 4000


def drawn(seed):
    """Masks of 12 in 14 x 14, made of blocks of 12: bool [draws, 14, 14]."""
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return np.asarray(_draw(keys)).reshape(-1, 14, 14)


@jax.jit
def _draw(keys):
    return masking.MaskOptions(kind="block", num_masked=12, min_block=12).draw(keys, (14, 14))


def test_sides_of_blocks_are_those_of_log_uniform_aspects_between_0_3_and_its_inverse():
    """Blocks of 12 patches in masks of 12: many masks are one block of exactly 12, and end there.

    BEiT, Alg. 1, in the code's form: area a, aspect r, height round(sqrt(a r)), width
    round(sqrt(a / r)), tried again if it covers more than 12.
    """
    found = {}
    for mask in drawn(0):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        sides = tuple(sorted((np.ptp(rows) + 1, np.ptp(columns) + 1)))
        if math.prod(sides) == mask.sum() == 12:
            found[sides] = found.get(sides, 0) + 1
    weights = {}
    for r in np.exp(np.linspace(math.log(0.3), math.log(1 / 0.3), 20_001)):
        sides = tuple(sorted((round(math.sqrt(12 * r)), round(math.sqrt(12 / r)))))
        if math.prod(sides) <= 12:
            weights[sides] = weights.get(sides, 0) + 1
    total = sum(weights.values())
    wanted = {sides: weight / total for sides, weight in weights.items() if math.prod(sides) == 12}
    assert set(wanted) == {(2, 6), (3, 4)} <= set(found)
    for sides, share in wanted.items():
        # 0.005: smaller first blocks that a second one makes whole
        noise = 5 * (share * (1 - share) / DRAWS) ** 0.5
        assert abs(found[sides] / DRAWS - share) < noise + 0.005, sides


def test_blocks_stand_everywhere_alike_often():
    """The corner of a block of 3 x 4 is uniform over all 12 x 11 places."""
    tops, lefts = [], []
    for mask in drawn(1):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if (np.ptp(rows), np.ptp(columns), mask.sum()) == (2, 3, 12):
            tops.append(rows[0])
            lefts.append(columns[0])
    for places, count in ((tops, 12), (lefts, 11)):
        shares = np.bincount(places, minlength=count) / len(places)
        assert len(shares) == count
        assert np.abs(shares - 1 / count).max() < 5 * (1 / count / len(places)) ** 0.5
