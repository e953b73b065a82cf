"""The plain side of the wiring tests: what a network was given, and formulas in numpy.

A task's own network is replaced by one that does the same and writes down its inputs, and its
tokenizer by one whose codes can be read off the image. What must come out then follows from the
formulas of the papers and the network's forward pass alone.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np


def watched(network, calls: list):
    """A linen network that also appends to `calls` what it is called with.

    Each entry: its arguments by name, "drop_key": the key that drop path draws from, or None.
    """
    class Watched(network):
        def __call__(self, *args, **kwargs):
            given = inspect.signature(network.__call__).bind(self, *args, **kwargs)
            given.apply_defaults()
            seen = {name: np.asarray(value) if isinstance(value, bool) else value
                    for name, value in given.arguments.items() if name != "self"}
            rng = self.scope.rngs.get("drop_path")
            calls.append(seen | {"drop_key": None if rng is None else rng.rng})
            return super().__call__(*args, **kwargs)

    return Watched


def step_of(task, calls: list):
    """Compiled: (params, frozen, batch, key) -> ((loss, metrics), gradient, inputs as `watched`).
    """
    def loss(params, frozen, batch, key):
        calls.clear()
        value, (state, metrics) = task.loss(params, {}, frozen, batch, key)
        assert state == {}
        seen, = calls
        return value, (metrics, seen)

    @jax.jit
    def step(params, frozen, batch, key):
        (value, (metrics, seen)), grads = jax.value_and_grad(loss, has_aux=True)(
            params, frozen, batch, key)
        return (value, metrics), grads, seen

    return step


def evaluation_of(task, calls: list):
    """Compiled: (params, frozen, batch) -> (sums, inputs as `watched`)."""
    @jax.jit
    def evaluate(params, frozen, batch):
        calls.clear()
        sums = task.eval_step({"params": params}, frozen, batch)
        seen, = calls
        return sums, seen

    return evaluate


def numbering(tokenizer):
    """A tokenizer whose code of a patch is the red of its first pixel, 0 to 255."""
    class Numbering(tokenizer):
        def codes(self, variables, image01, positions=None):
            side = round(self.num_codes(image01.shape[1]) ** 0.5)
            step = image01.shape[1] // side
            red = jnp.round(255 * image01[:, ::step, ::step, 0]).astype(jnp.int32)
            red = red.reshape(len(red), -1)
            return red if positions is None else jnp.take_along_axis(red, positions, axis=1)

    return Numbering


def numbered(image, side: int):
    """(uint8 images whose patches `numbering` reads, their codes int [b, n]); n = side squared.

    The code is the number of the patch, counted on from another patch in each image. Green and blue
    of the same pixel are other codes.
    """
    image, n = np.array(image), side * side
    step = image.shape[1] // side
    codes = np.zeros((len(image), n), int)
    for row in range(len(image)):
        for patch in range(n):
            code = codes[row, patch] = (patch + row) % n
            y, x = patch // side * step, patch % side * step
            image[row, y, x] = (code, (code + 3) % n, (code + 7) % n)
    return image, codes


def noise(size: int, px: int, seed: int = 0):
    """uint8 [size, px, px, 3], the pixels of each 2 x 2 alike."""
    coarse = np.random.RandomState(seed).randint(0, 256, (size, px // 2, px // 2, 3))
    return coarse.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)


def normalized(image, mean, std):
    """(image / 255 - mean) / std for each color."""
    return (np.asarray(image, np.float64) / 255 - np.array(mean)) / np.array(std)


def softmax(logits):
    """Of a vector, float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return powers / powers.sum()


def winner(logits):
    """The place of the largest value, which must be so on every machine."""
    order = np.argsort(np.asarray(logits))
    assert logits[order[-1]] - logits[order[-2]] > 1e-5
    return int(order[-1])


def assert_close(found, expected):
    """Leaf by leaf, to 1e-4 of the largest value of all leaves."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(
        one, other, rtol=0, atol=1e-4 * largest), found, expected)


def assert_all_trained(grads, but: tuple[str, ...] = ()):
    """Every leaf has a gradient, each block's own if it stands in a stack."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name, leaf = jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)
        if name in but:
            continue
        parts = leaf if name.startswith(("blocks/", "cls_pt_layers/")) else leaf[None]
        assert all(np.any(part) for part in parts), name
