"""Config sections become dataclasses and modules, and no key is lost on the way."""

import dataclasses

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from beit_jax import options


@dataclasses.dataclass(frozen=True)
class Crop:
    size: int
    scale: tuple[float, float] = (0.08, 1.0)


class Net(nn.Module):
    width: int
    depth: int = 2


def test_sections_become_dataclasses_and_modules():
    crop = options.build(Crop, ConfigDict(dict(size=3, scale=[0.5, 1.0])), "config.crop")
    assert crop == Crop(3, (0.5, 1.0))
    assert options.build(Net, dict(width=4), "config.model", depth=5) == Net(4, 5)


@pytest.mark.parametrize(("cls", "section", "message"), [
    (Crop, dict(size=1, scael=2), r"config.x.scael is unknown \(did you mean scale\?\); known"),
    (Crop, {}, "config.x lacks size"),
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
