"""Devices as a mesh of data x fsdp x tensor, and the one table of how leaves are split over it."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from beit_jax.options import Rule

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# First match wins, on the path of a parameter or of an optimizer moment of the same name. A spec
# stands for the LAST axes of a leaf: the leading layer axis of stacked blocks stays whole.
PARAM_RULES = (
    (r"(qkv|fc1)/kernel$", ("fsdp", "tensor")),        # [..., d, 3d], [..., d, 4d]
    (r"(attn/proj|fc2)/kernel$", ("tensor", "fsdp")),  # [..., d, d], [..., 4d, d]
    # of BEiT-3, with the letter of a modality or without
    (r"self_attn/[qkv]_proj/(\w+/)?kernel$", ("fsdp", "tensor")),
    (r"self_attn/out_proj/(\w+/)?kernel$", ("tensor", "fsdp")),
    (r"text_embed/embedding$", ("fsdp",)),             # [v, d]; v divides by nothing useful
    (r"(lm_head|head|decoder_embed|decoder_pred|global_head_\d)/kernel$", ("fsdp", "tensor")),
    (r"(patch|vision)_embed/proj/kernel$", ("fsdp",)),  # [p, p, 3, d]
    (r"(pos_embed|rel_pos_bias/.*)$", ()),
    (r"blocks/.*/w$", ("fsdp",)),                      # convolutions [k, k, c_in, c_out]
    (r".*", ()),
)

# logical axes that the models name at block borders -> mesh axes
ACTIVATION_RULES = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("embed", None),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
)


Devices = Annotated[int, Rule(lambda size: size == -1 or size > 0, "1 or more, or -1")]


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """config.mesh: devices on each axis; -1, on one axis at most, takes all that remain."""

    data: Devices = -1
    fsdp: Devices = 1
    tensor: Devices = 1


def make_mesh(options: MeshOptions) -> Mesh:
    """Arranges all devices of all processes.

    Raises: ValueError: the sizes do not multiply to the number of devices, or the rows of a
      process would not stand on its own devices.
    """
    count = jax.device_count()
    sizes = [getattr(options, name) for name in AXES]
    asked = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"config.mesh {asked}: sizes are positive, and one of them may be -1")
    if count % fixed or (-1 not in sizes and fixed != count):
        raise ValueError(f"config.mesh {asked} does not fit {count} devices: the product must be "
                         f"{count}, or divide it with one axis at -1")
    sizes = [count // fixed if size == -1 else size for size in sizes]
    if sizes[0] * sizes[1] % jax.process_count():
        raise ValueError(f"config.mesh {asked}: data * fsdp = {sizes[0] * sizes[1]} is no multiple "
                         f"of {jax.process_count()} processes, so that some would share rows")
    try:
        # Auto: under jax's default, explicit axes, indexing a table by sharded codes is an error
        return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    except NotImplementedError as error:  # a slice of TPUs is a grid that not every shape fits
        raise ValueError(f"config.mesh {asked}: {count} devices cannot be laid out so: "
                         f"{' '.join(str(error).split())}") from error


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
    """Inside, logical constraints of the models act on `mesh`; without it they do nothing."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def rows_multiple(mesh: Mesh) -> int:
    """Devices that a batch is split over: its rows are a multiple of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_divisible(rows: int, mesh: Mesh, name: str) -> None:
    """Refuses a batch that the mesh cannot split. Raises: ValueError."""
    parts = rows_multiple(mesh)
    if rows < 1 or rows % parts:
        raise ValueError(f"{name}={rows} is no multiple of {parts} devices; nearest: "
                         f"{max(round(rows / parts), 1) * parts}")


def path_of(path) -> str:
    """A key path of jax.tree_util as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The spec of one leaf; an axis that does not divide its dimension is left out."""
    rule = next(axes for pattern, axes in PARAM_RULES if re.search(pattern, path))
    rule = rule[max(len(rule) - len(shape), 0):]
    axes = (None,) * (len(shape) - len(rule)) + rule
    fitting = [axis if axis and size % mesh.shape[axis] == 0 else None
               for axis, size in zip(axes, shape, strict=True)]
    while fitting and fitting[-1] is None:
        fitting.pop()
    return P(*fitting)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedShardings of a whole state, parameters and optimizer moments alike."""
    def of_leaf(path, leaf):
        return NamedSharding(mesh, partition_spec(path_of(path), leaf.shape, mesh))
    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes with shardings: what a checkpoint is restored into."""
    def of_leaf(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(of_leaf, tree, shardings(tree, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
    """Host arrays that every process holds whole -> global arrays, split as the table says."""
    def of_leaf(leaf, sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
    return jax.tree.map(of_leaf, tree, shardings(tree, mesh))


def global_shapes(local: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of what `global_batch` makes of the rows of this process."""
    return jax.tree.map(lambda rows: jax.ShapeDtypeStruct(
        (len(rows) * jax.process_count(), *rows.shape[1:]), rows.dtype), dict(local))


def global_batch(local: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The rows of this process -> arrays over all processes, split over data and fsdp.

    Args: local: name -> array [b, ...], or a stream's own batch of such.
    """
    sharding = NamedSharding(mesh, BATCH)

    def of_leaf(rows):
        # the shape is given: without it processes with unequal rows would hang, not complain
        shape = (rows.shape[0] * jax.process_count(), *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, global_shape=shape)
    return jax.tree.map(of_leaf, dict(local))


def local_rows(tree: Any) -> Any:
    """Global arrays split over the batch -> whole numpy arrays on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
