"""Config sections become dataclasses and modules, and no key is lost on the way."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from beit_jax import options
from beit_jax.options import BelowOne, Count, Finite, Pattern, Positive, Share, within


@dataclasses.dataclass(frozen=True)
class Crop:
    size: Count
    scale: tuple[Share, Share] = (0.08, 1.0)


class Net(nn.Module):
    width: Count
    depth: Count = 2


def test_sections_become_dataclasses_and_modules():
    crop = options.build(Crop, ConfigDict(dict(size=3, scale=[0.5, 1.0])), "config.crop")
    assert crop == Crop(3, (0.5, 1.0))
    assert options.build(Net, dict(width=4), "config.model", depth=5) == Net(4, 5)


@pytest.mark.parametrize(("kind", "right", "wrong", "message"), [
    (Count, (1, 2**31 - 1), (0, -1), "must be 1 or more"),
    (Count, (), (1.0, "1", True, None, math.nan), "must be a whole number, 1 or more"),
    (Count, (), (2**31,), "must be at most 2147483647"),
    (Count | None, (1, None), (0,), "must be 1 or more or None"),
    (Finite, (-1.5, 0, 3e38), (math.nan, math.inf, -math.inf, 10**400, False, "0.1", None),
     "must be a finite number"),
    (Positive, (1e-9, 1), (0, 0.0, -0.5), "must be above 0"),
    (Share, (0, 0.5, 1), (-0.1, 1.01), "must be from 0 to 1"),
    (BelowOne, (0, 0.999), (1, 1.0, -1e-9), "must be 0 or more and below 1"),
    (Annotated[float, within(above=0, high=1)], (1.0,), (0.0, 1.1), "above 0 and at most 1"),
    (bool, (True, False), (1, 0, "True", None), "must be True or False"),
    (str, ("", "x"), (1, None, ("x",)), "must be a text"),
    (Pattern, ("^head/", ""), ("(", "a**"), "must be a regular expression"),
    (Literal["a", "b"], ("a",), ("c", None, ("a",), {}), "is none of a, b"),
    (Mapping[str, Any], ({}, {"a": 1}), ("a", (1,), None), "must be a section of keys"),
    (tuple[Count, ...], ((), (1, 2)), (3,), r"is no list: write \(3,\)"),
    (tuple[Count, ...], (), ("3", 0, None), "is no list$"),
    (tuple[Count, ...], (), ((3, 0), (0,)), "^: 0 must be 1 or more"),
    (tuple[Share, Share], ((0, 1),), (0.5, (0.5,), (0.1, 0.2, 0.3)), "must be a list of 2 values"),
    (Any, (None, 3, "x"), (), ""),
], ids=lambda value: value if isinstance(value, str) else None)
def test_a_kind_tells_right_values_from_wrong_ones(kind, right, wrong, message):
    assert [options.fault(kind, value) for value in right] == [""] * len(right)
    for value in wrong:
        assert re.search(message, options.fault(kind, value)), value


@pytest.mark.parametrize("kind", [int, float, int | None, tuple, tuple[float, ...], list, dict],
                         ids=str)
def test_a_field_that_says_too_little_is_a_fault_of_the_program(kind):
    cls = dataclasses.make_dataclass("Options", [("size", kind)])
    with pytest.raises(TypeError, match="Options.size.* does not say what a value may be"):
        options.build(cls, dict(size=1), "config.x")


@pytest.mark.parametrize(("cls", "section", "message"), [
    (Crop, dict(size=1, scael=2), r"config.x.scael is unknown \(did you mean scale\?\); known"),
    (Crop, {}, "config.x lacks size"),
    (Crop, dict(size=0), "config.x.size=0 must be 1 or more"),
    (Crop, dict(size=1, scale=[0.5, 2.0]), r"config.x.scale=\(0.5, 2.0\): 2.0 must be from 0 to 1"),
    (Crop, 5, "config.x=5 must be a section of keys"),
    (Net, dict(width=1, name="a"), "config.x.name is unknown"),
])
def test_wrong_keys_are_named_in_one_line(cls, section, message):
    with pytest.raises(ValueError, match=message) as error:
        options.build(cls, section, "config.x")
    assert "\n" not in str(error.value)


def test_a_value_that_would_be_overruled_is_refused():
    with pytest.raises(ValueError, match="config.model.depth=3 has no effect"):
        options.build(Net, dict(width=1, depth=3), "config.model", depth=5)
    assert options.build(Net, dict(width=1, depth=5), "config.model", depth=5).depth == 5
