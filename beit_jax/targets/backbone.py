"""A backbone that was trained here, as a teacher."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from beit_jax import flops, options
from beit_jax.models.layers import standardise
from beit_jax.models.vit import VisionTransformer, patch_grid
from beit_jax.options import Dtype, Mean, Std, Whole
from beit_jax.targets import preprocess


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: the dict `model` has no hash
class Backbone:
    """A VisionTransformer trained here, by whatever task, as a teacher.

    Its tokens are the patch tokens behind a block, under a LayerNorm without parameters (epsilon
    1e-6): a backbone's own final norm belongs to the head it was trained with and is not taken.
    `variables` is {"params": ...} of the backbone; heads in a checkpoint stay behind.

    Attributes:
      model: fields of models.vit.VisionTransformer as the backbone was trained with (the run's
        config.model without the head's; no dtype).
      mean, std: with which the backbone's images in [0, 1] were normalised (the run's config.data).
      block: index of the block whose output is taken; -1 is the last. Later blocks do not run.
      dtype: of matrix products, as a name; tokens are float32.
    Raises: ValueError: model has a field too many or too few, or no such block.
    """

    model: Mapping[str, Any]
    mean: Mean
    std: Std
    block: Whole = -1
    dtype: Dtype = "float32"
    has_weights = True

    def __post_init__(self):
        known = {field.name: field for field in dataclasses.fields(VisionTransformer)
                 if field.init and field.name not in ("parent", "name", "dtype")}
        needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        if unknown := sorted(self.model.keys() - known.keys()):
            raise ValueError(f"model.{unknown[0]} of a backbone as teacher is unknown; known: "
                             f"{', '.join(sorted(known))}")
        if missing := sorted(needed - self.model.keys()):
            raise ValueError(f"model of a backbone as teacher lacks {', '.join(missing)}")
        options.check(VisionTransformer, self.model, "config.target.model")
        self._network(self.model["depth"]).check()
        depth = self.model["depth"]
        if not -depth <= self.block < depth:
            raise ValueError(f"block={self.block}, but the backbone has {depth}: -1 is the last")

    @property
    def dim(self) -> int:
        return self.model["width"]

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid (rows, columns). Raises ValueError: the patch does not divide the image."""
        return patch_grid(self.model["image_px"], self.model["patch_size"])

    @property
    def flops(self) -> float:
        return flops.vit(self.network)

    @property
    def network(self) -> VisionTransformer:
        """The part that runs: the blocks up to `block`."""
        return self._network(self.block % self.model["depth"] + 1)

    def _network(self, depth: int) -> VisionTransformer:
        return VisionTransformer(**dict(self.model) | {"depth": depth,
                                                       "dtype": jnp.dtype(self.dtype)})

    def init(self, key: jax.Array) -> dict:
        side = self.model["image_px"]
        return self._network(self.model["depth"]).init(key, jnp.zeros((1, side, side, 3)),
                                                       method="encode")

    def features(self, variables: dict, image01: jax.Array) -> jax.Array:
        """float32 [b, n, width]. Raises ValueError: another size than `model.image_px`."""
        network, params = self.network, dict(variables["params"])
        params["blocks"] = jax.tree.map(lambda leaf: leaf[:network.depth], params["blocks"])
        image = preprocess.normalise(image01, self.mean, self.std)
        tokens = network.apply({"params": params}, image, method="encode")
        return jax.lax.stop_gradient(standardise(tokens[:, 1:]))
