"""A tiny task on made-up data: tests of the training floor run on it in a second or two.

As a script, `python tests/toy.py <flags of beit_jax.main>` is the command line with the toy in it.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from beit_jax.tasks.task import Task, mean_of_sums

NUM_TRAIN, NUM_EVAL, NUM_CLASSES = 64, 21, 4


def get_config(variant: str = "", **overrides) -> ConfigDict:
    """A whole config; overrides are section__key=value or top-level keys; ":stages" has three."""
    if variant == "stages":
        config = ConfigDict(dict(report=dict(
            metric="eval/validation/top1", scale=100.0, unit="%", title="Toy",
            rows={"scratch": {"one": ("zeta",)}, "tuned": {"both": ("alpha", "beta"),
                                                           "last": ("beta",)}})))
        config.stages = dict(zeta=get_config(eval__pictures=4),
                             alpha=get_config(init__checkpoint="stage:zeta", seed=1),
                             beta=get_config(init__checkpoint="stage:zeta", seed=2))
        return config
    config = ConfigDict(dict(
        seed=0, task="toy", total_steps=6, total_epochs=0.0, dtype="auto",
        matmul_precision="default", mesh=dict(data=-1, fsdp=1, tensor=1),
        data=dict(name="toy", global_batch_size=8, image_px=4),
        model=dict(width=16, num_classes=NUM_CLASSES), mask=dict(), target=dict(), loss=dict(),
        augment=dict(), probe=dict(), optim=dict(learning_rate=0.05, ema_decay=0.0),
        init=dict(checkpoint="", adapt=(), allow_missing=(), allow_unused=()),
        eval=dict(every_steps=0, pictures=0),
        checkpoint=dict(every_steps=2, keep_last=2, keep_best="", keep_every_steps=0),
        log=dict(every_steps=1, tensorboard=False), stages=dict(), report=dict()))
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


def make(config) -> Task:
    """A two-layer perceptron with noise on its input and a counter in its state."""
    width, num_classes = config.model.width, config.model.num_classes
    blow_up_at = config.loss.get("blow_up_at", -1)

    def init(key, batch):
        size = int(np.prod(batch["image"].shape[1:]))
        start = 9.0 * jax.random.uniform(key, ())

        def wave(*shape):
            count = int(np.prod(shape))
            return 0.1 * jnp.sin(start * jnp.arange(1.0, count + 1)).reshape(shape)
        return {"params": {
            "blocks": {"mlp": {"fc1": {"kernel": wave(1, size, width),
                                       "bias": jnp.zeros((1, width))}}},
            "head": {"kernel": wave(width, num_classes)}},
            "counter": {"calls": jnp.zeros((), jnp.int32)}}

    def logits_of(params, image):
        x = image.reshape(image.shape[0], -1).astype(jnp.float32) / 255.0
        layer = params["blocks"]["mlp"]["fc1"]
        return jnp.tanh(x @ layer["kernel"][0] + layer["bias"][0]) @ params["head"]["kernel"]

    def losses(logits, label):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]

    def loss(params, state, frozen, batch, key):
        del frozen
        # one number a batch: random fields take seconds to compile
        image = batch["image"] + 20.0 * jax.random.uniform(key, ())
        value = jnp.mean(losses(logits_of(params, image), batch["label"]))
        calls = state["counter"]["calls"] + 1
        value = jnp.where(calls == blow_up_at, jnp.nan, value)
        return value, ({"counter": {"calls": calls}}, {"noise": jnp.mean(image)})

    def eval_step(variables, frozen, batch):
        del frozen
        logits = logits_of(variables["params"], batch["image"])
        weight = batch["is_example"].astype(jnp.float32)
        hits = jnp.argmax(logits, -1) == batch["label"]
        return {"loss": jnp.sum(losses(logits, batch["label"]) * weight),
                "top1": jnp.sum(hits * weight), "count": jnp.sum(weight)}

    def pictures(variables, frozen, batch, key):
        return {"inputs": batch["image"]}

    return Task(init, loss, eval_step, mean_of_sums, pictures=pictures)


def _rows(index: np.ndarray) -> dict[str, np.ndarray]:
    """Examples by number: the label is readable from the brightness."""
    label = index % NUM_CLASSES
    noise = np.random.default_rng(1).integers(0, 100, (NUM_TRAIN + NUM_EVAL, 4, 4, 3))
    image = (noise[index] + 35 * label[:, None, None, None]).astype(np.uint8)
    return {"image": image, "label": label.astype(np.int32), "index": index.astype(np.int32),
            "is_example": np.ones(len(index), bool)}


def _local(index, process_index, process_count):
    size = len(index) // process_count
    return index[process_index * size:(process_index + 1) * size]


def describe(options):
    from beit_jax.data.pipeline import DataInfo

    return DataInfo(NUM_TRAIN, NUM_EVAL, NUM_CLASSES, tuple("abcd"))


def train_batches(options, *, seed, start_step, process_index=0, process_count=1):
    step = start_step
    while True:
        seconds = float(os.environ.get("TOY_STEP_SECONDS", "0"))  # time to be killed in
        if seconds > 60:
            print("a long step begins", file=sys.stderr, flush=True)
        time.sleep(seconds)
        index = np.random.default_rng([seed, step]).integers(0, NUM_TRAIN,
                                                             options.global_batch_size)
        yield _rows(_local(index, process_index, process_count))
        step += 1


def eval_batches(options, split, *, limit=0, process_index=0, process_count=1):
    size = options.eval_batch_size or options.global_batch_size
    for begin in range(0, NUM_EVAL, size):
        position = np.arange(begin, begin + size)
        rows = _rows(NUM_TRAIN + np.minimum(position, NUM_EVAL - 1))
        rows["is_example"] = position < NUM_EVAL
        yield {key: _local(values, process_index, process_count) for key, values in rows.items()}


def num_labelled(options, split, limit=0):
    return NUM_EVAL


def install(setattr_=setattr) -> None:
    """Puts the toy where the loop looks for tasks and data."""
    from beit_jax import tasks
    from beit_jax.data import pipeline

    tasks.TASKS["toy"] = make
    for function in (describe, train_batches, eval_batches, num_labelled):
        setattr_(pipeline, function.__name__, function)


if __name__ == "__main__":
    install()
    from beit_jax import main

    main.entry()
