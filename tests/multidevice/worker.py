"""Runs on 8 pretended devices, in a process of its own: what test_devices.py asks, as JSON.

XLA_FLAGS must be set before jax starts, therefore by whoever starts this file.
"""

import contextlib
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from beit_jax import tasks
from beit_jax.checkpoint import Checkpoints, load_variables, unflatten
from beit_jax.data import pipeline
from beit_jax.targets import quantizer
from beit_jax.training import loop, preemption, recipe, sharding, state
from beit_jax.training.metric_writer import read_metrics

MESHES = {"data": dict(data=8), "mixed": dict(data=2, fsdp=-1, tensor=2)}


def pretraining(**mesh):
    """A small BEiT pre-training in float32, 4 steps."""
    from configs.beit import pretrain_in1k

    config = pretrain_in1k.get_config("smoke")
    config.update(total_steps=4, dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.log.update(every_steps=1, tensorboard=False)
    config.optim.ema_decay = 0.9
    return config


def tokenizer(**mesh):
    """A small VQ-KD in float32, 2 steps from the first one on at the full rate."""
    from configs.digits import beitv2

    config = beitv2.get_config("smoke").stages.tokenizer
    config.update(total_steps=2, dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.target.checkpoint = "random"
    config.model.depth = config.target.model.depth = 1
    config.loss.decay = 0.9
    config.optim.warmup_steps = 0
    config.eval.pictures = 0
    config.log.update(every_steps=1, tensorboard=False)
    return config


def masked_autoencoder(workdir, **mesh):
    """Two steps of Img2Vec with its convolutional teacher, and its evaluation."""
    from configs.img2vec import pretrain

    config = pretrain.get_config("smoke")
    config.update(dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.target.dtype = "float32"
    config.eval.pictures = 0
    config.log.update(every_steps=1, tensorboard=False)
    loop.run(config, workdir)
    return losses(workdir)


def diversity(workdir, **mesh):
    """What is measured of a teacher's tokens after two steps of statistics."""
    from configs.img2vec import diversity as recipe_of_teachers

    config = recipe_of_teachers.get_config("dino_vits16_smoke").stages.dino_vits16
    config.update(dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.data.synthetic_examples = 37  # the last batch is filled up
    config.eval.pictures = 0
    config.log.tensorboard = False
    return loop.run(config, workdir)


def beit3(workdir, **mesh):
    """Two steps of BEiT-3's pre-training on its three streams, and its evaluation."""
    from configs.beit3 import pretrain

    config = pretrain.get_config("smoke")
    config.update(dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.eval.pictures = 0
    config.log.update(every_steps=1, tensorboard=False)
    loop.run(config, workdir)
    return losses(workdir)


def retrieval(**mesh):
    """Two steps of a contrastive loss over the global batch, and the recall of a split."""
    from configs.beit3 import itc

    config = itc.get_config("smoke")
    config.update(dtype="float32", matmul_precision="highest")
    config.mesh.update(mesh)
    config.data.synthetic_examples = 37  # the last batch is filled up
    config.log.update(every_steps=1, tensorboard=False)
    return config


def similarities(workdir):
    """Of each image to each caption, by the weights that a run of `retrieval` ended with.

    Made on one device. Returns: scores [i, c]; is_own bool [i, c], True where it is the image's.
    """
    opts = recipe.read(retrieval())
    config = recipe.with_data(retrieval(), pipeline.describe(opts.data))
    task, found = tasks.make(config), []
    params = unflatten({name: jnp.asarray(leaf)
                        for name, leaf in load_variables(workdir).items()})
    with jax.default_matmul_precision("highest"):
        evaluate = jax.jit(task.eval_step)
        for batch in pipeline.eval_batches(opts.data):
            rows = jax.device_get(evaluate({"params": params}, {}, batch))
            found.append([rows[name][batch["is_example"]]
                          for name in ("image", "text", "has_text")])
    image, text, has_text = (np.concatenate(parts) for parts in zip(*found))
    own = np.nonzero(has_text)[0]  # of each caption
    return image @ text[has_text].T, own == np.arange(len(image))[:, None]


def codebooks(workdir, **mesh):
    """What k-means makes, and each of two steps: codebook, usage and metrics."""
    config = tokenizer(**mesh)
    opts, found = recipe.read(config), []
    made, task = sharding.make_mesh(opts.mesh), tasks.make(config)
    with (sharding.use(made), jax.default_matmul_precision("highest"),
          contextlib.closing(Checkpoints(workdir, opts.checkpoint)) as checkpoints):
        job = loop.assemble(config, opts, "tokenizer", workdir, made, task,
                            pipeline.describe(opts.data), checkpoints, preemption.Requests())
        current, metrics = job.state, {}
        for step in range(3):
            if step:
                batch = sharding.global_batch(next(job.batches), made)
                current, metrics = job.train_step(current, job.frozen, batch)
            found.append({
                "codebook": np.asarray(current.model_state["codebook"]["embedding"]).tolist(),
                "usage": np.asarray(current.model_state["usage"]["cluster_size"]).tolist(),
                **{name: float(value) for name, value in metrics.items()}})
    return found


def update():
    """One update of a codebook by vectors that are split over all devices."""
    mesh = sharding.make_mesh(sharding.MeshOptions())
    key, other = jax.random.split(jax.random.key(0))
    codebook = quantizer.random_codebook(key, 64, 8)
    vectors = np.asarray(jax.random.normal(other, (8, 32, 8)))

    @jax.jit
    def moved(codebook, batch):
        quantized = quantizer.quantize(batch["vectors"], codebook)
        counted = quantizer.statistics(quantized.unit, quantized.codes, 64)
        return quantizer.update(codebook, *counted, 0.9)
    with sharding.use(mesh):
        return np.asarray(moved(codebook, sharding.global_batch({"vectors": vectors}, mesh)))


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
    config = pretraining()
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
             "batch": batches(), "update": update().tolist(),
             "codebooks": codebooks(f"{workdir}/tokenizer", **MESHES["mixed"]),
             "beit3": beit3(f"{workdir}/beit3", **MESHES["mixed"]),
             "img2vec": masked_autoencoder(f"{workdir}/img2vec", **MESHES["mixed"]),
             "diversity": diversity(f"{workdir}/diversity", **MESHES["mixed"])}
    for name, mesh in MESHES.items():
        loop.run(pretraining(**mesh), f"{workdir}/{name}")
        found[name] = losses(f"{workdir}/{name}")
    print("FOUND" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
