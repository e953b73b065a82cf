"""Runs on 8 pretended devices, in a process of its own: what test_devices.py asks, as JSON.

XLA_FLAGS must be set before jax starts, therefore by whoever starts this file.
"""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax import tasks
from beit_jax.training import loop, sharding, state
from beit_jax.training.metric_writer import read_metrics

MESHES = {"data": dict(data=8), "mixed": dict(data=2, fsdp=-1, tensor=2)}


def recipe(**mesh):
    """A small BEiT pre-training in float32, 4 steps."""
    from configs.beit import pretrain_in1k

    config = pretrain_in1k.get_config("smoke")
    config.update(total_steps=4, dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.log.update(every_steps=1, tensorboard=False)
    config.optim.ema_decay = 0.9
    return config


def losses(workdir):
    """{step/name: value} of training and evaluation."""
    return {f"{line['step']} {name}": value for line in read_metrics(workdir)
            for name, value in line.items() if name.split("/")[0] in ("train", "eval")}


def spec_of(array):
    """The spec of an array as lists: [None, "fsdp", ["data", "tensor"]]; [] where it has none."""
    axes = [list(axis) if isinstance(axis, tuple) else axis
            for axis in getattr(array.sharding, "spec", ())]
    while axes and axes[-1] is None:
        axes.pop()
    return axes


def specs():
    """Where the leaves of parameters, moments and averages lie on the mesh 2 x 2 x 2."""
    config = recipe()
    mesh = sharding.make_mesh(sharding.MeshOptions(2, 2, 2))
    with sharding.use(mesh):
        task = tasks.make(config)
        size = config.model.image_px
        shapes = {"image": jax.ShapeDtypeStruct((8, size, size, 3), jnp.uint8)}
        _, make = state.create(task, optax.adam(1.0), jax.random.key(0), shapes, mesh,
                               with_ema=True)
        made = make()
    leaves = jax.tree_util.tree_leaves_with_path(made)
    return {sharding.path_of(path): spec_of(leaf)
            for path, leaf in leaves}


def constraints():
    """The spec of an activation that a model names, inside and outside `sharding.use`."""
    mesh = sharding.make_mesh(sharding.MeshOptions(2, 2, 2))
    x = jax.device_put(np.ones((8, 4, 6), np.float32))

    def block(x):
        return nn.with_logical_constraint(x * 2, ("batch", "length", "mlp"))
    with sharding.use(mesh):
        inside = jax.jit(block)(x)
    outside = jax.jit(block)(x)
    return [spec_of(inside), spec_of(outside)]


def batches():
    """Rows of a batch over data and fsdp, whole over tensor."""
    mesh = sharding.make_mesh(sharding.MeshOptions(2, 2, 2))
    batch = sharding.global_batch({"image": np.zeros((8, 2, 2, 3), np.uint8)}, mesh)["image"]
    return [spec_of(batch), sorted({s.data.shape[0] for s in batch.addressable_shards})]


def main(workdir):
    found = {"devices": jax.device_count(), "specs": specs(), "constraints": constraints(),
             "batch": batches()}
    for name, mesh in MESHES.items():
        loop.run(recipe(**mesh), f"{workdir}/{name}")
        found[name] = losses(f"{workdir}/{name}")
    print("FOUND" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
