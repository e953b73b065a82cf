"""What the tests of BEiT-3's tasks share: weights, texts, and a step that tells what went through.

A step is compiled once for a task. It gives, beside loss, metrics and gradients, what the network
was called with and what it answered: from there on a test computes by loops of its own.
"""

import contextlib
from types import SimpleNamespace

import by_hand
import flax.linen as nn
import jax
import numpy as np

from beit_jax import tasks, token_ids
from beit_jax.models.beit3 import Beit3
from beit_jax.training import sharding

PIECES = 40
ROWS = token_ids.table_rows(PIECES)
MASK = token_ids.mask_id(PIECES)
MEAN, STD = (0.2, 0.5, 0.7), (0.5, 0.25, 0.125)  # of red, green and blue; no two are alike
LENGTH, COUNTS = 12, (10, 7, 5, 3, 1)  # of the texts of `case_of`: tokens, pieces of each
CALLS = ("__call__", "predict_patches", "predict_words")


def smoke(recipe, **sections):
    """The recipe at toy size for words of PIECES pieces; half of the branches are dropped."""
    config = recipe.get_config("smoke")
    config.dtype = "float32"
    config.data.update(mean=MEAN, std=STD)
    with config.unlocked():
        config.model.update(vocab_size=ROWS, drop_path_rate=0.5, unroll=1)
        for name, values in sections.items():
            config[name].update(values)
    return config


def images(rng, *shape):
    """uint8 [*shape, 32, 32, 3]."""
    return rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8)


def texts(rng, counts, length):
    """Rows of so many pieces each: {"text": int [b, l], "text_is_valid": bool [b, l]}."""
    text = np.full((len(counts), length), token_ids.PAD, np.int32)
    for row, n in zip(text, counts, strict=True):
        row[:n + 2] = [token_ids.BOS, *rng.integers(token_ids.FIRST_PIECE, PIECES + 1, n),
                       token_ids.EOS]
    return {"text": text, "text_is_valid": text != token_ids.PAD}


def other_padding(rows):
    """The same texts with words where padding stands."""
    return rows | {"text": np.where(rows["text_is_valid"], rows["text"], token_ids.FIRST_PIECE)}


def started(task, batch):
    """Random weights, larger than at the start, so that all of the network counts; state: zeros.

    Without a program: those that draw start values take seconds to compile.
    """
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        name = sharding.path_of(path).rpartition("/")[2]
        if name in ("scale", "bias"):
            return np.full(shape.shape, float(name == "scale"), np.float32)
        return (0.06 * rng.normal(size=shape.shape)).astype(np.float32)

    state = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
    params = jax.tree_util.tree_map_with_path(leaf, state.pop("params"))
    if "logit_scale" in params:
        params["logit_scale"] = np.float32(np.log(7.0))
    return params, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


@contextlib.contextmanager
def recorded():
    """{method: [(arguments, result), ...]} of BEiT-3's networks that are called inside."""
    calls = {}

    def note(next_fun, args, kwargs, context):
        said = next_fun(*args, **kwargs)
        if isinstance(context.module, Beit3) and context.method_name in CALLS:
            calls.setdefault(context.method_name, []).append((args, said))
        return said

    with nn.intercept_methods(note):
        yield calls


def compiled_step(task, frozen):
    """(params, state, batch, key number) -> (loss, metrics, gradients, calls as `recorded`)."""
    def loss(params, state, batch, key):
        with recorded() as calls:
            total, (_, metrics) = task.loss(params, state, frozen, batch, key)
        return total, (metrics, calls)

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def step(params, state, batch, number=0):
        (total, more), grads = compute(params, state, batch, jax.random.key(number))
        return jax.device_get((total, more[0], grads, more[1]))

    return step


def compiled_eval(task, frozen):
    """(params, batch) -> (what `eval_step` gives, calls as `recorded`)."""
    def evaluate(params, batch):
        with recorded() as calls:
            found = task.eval_step({"params": params}, frozen, batch)
        return found, calls

    compute = jax.jit(evaluate)
    return lambda params, batch: jax.device_get(compute(params, batch))


def case_of(recipe, *sides, model=(), **rows):
    """What the tests of a use share: its task, weights, a batch, and both compiled programs.

    Args:
      recipe: its config module; model: what differs in its section.
      sides: 2 where an example has two images.
      rows: of the batch, beside images and texts.
    """
    rng, size = np.random.default_rng(0), len(COUNTS)
    batch = {"image": images(rng, size, *sides), **texts(rng, COUNTS, LENGTH), **rows,
             "index": np.arange(size, dtype=np.int32), "is_example": np.ones(size, bool)}
    task = tasks.make(smoke(recipe, model=dict(model)))
    params, _ = started(task, batch)
    return SimpleNamespace(task=task, batch=batch, params=params, step=compiled_step(task, {}),
                           evaluate=compiled_eval(task, {}))


def log_softmax(logits):
    """In float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def normalized(image):
    """(image / 255 - mean) / std of each color."""
    return by_hand.normalized(image, MEAN, STD)


def untrained(grads) -> set[str]:
    """Leaves without any gradient; of stacked blocks "name[number]".

    Biases of keys are left out: softmax does not see them.
    """
    found = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = sharding.path_of(path)
        if "k_proj" in name and name.endswith("bias"):
            continue
        layers = {f"{name}[{i}]": layer for i, layer in enumerate(leaf)} if (
            name.startswith("blocks/")) else {name: leaf}
        found |= {layer for layer, grad in layers.items() if not np.any(grad)}
    return found


def last_block_of(expert: str) -> set[str]:
    """What an expert has in the second of two blocks behind keys and values: all that serves its
    own tokens alone, which a head of the other modality does not read."""
    layers = [f"self_attn/{name}/{expert}" for name in ("q_proj", "inner_attn_ln", "out_proj")]
    layers += [f"final_layer_norm/{expert}"]
    layers += [f"ffn/{expert}/{name}" for name in ("fc1", "ffn_layernorm", "fc2")]
    return {f"blocks/{layer}/{leaf}[1]" for layer in layers
            for leaf in (("scale" if "norm" in layer or "_ln" in layer else "kernel"), "bias")}
