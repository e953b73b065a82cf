"""Weights and images that follow from a seed alone (spec page of teachers, section 9)."""

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax import convert


def draw(shapes: dict[str, tuple], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for the original's names, drawn in the order of the sorted names."""
    random, drawn = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        shape, last = shapes[name], name.split(".")[-1]
        values = random.standard_normal(shape)
        if last == "running_var":
            values = 0.5 + np.abs(values)
        elif len(shape) >= 2:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.1 * values + (last == "weight")
        drawn[name] = values.astype(np.float32)
    return drawn


def flat(variables) -> dict:
    """Flat leaves as files have them: those of the parameters without "params/" in front."""
    variables = dict(variables)
    return convert.flatten(variables.pop("params")) | convert.flatten(variables)


def tree(leaves: dict) -> dict:
    """The inverse of `flat`."""
    nested = convert.unflatten(leaves)
    others = {name: nested.pop(name) for name in ("batch_stats",) if name in nested}
    return {"params": nested, **others}


def reference_of(teacher, fmt: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A file for `teacher` under the original's names, drawn from the seed."""
    made = flat(jax.eval_shape(teacher.init, jax.random.key(0)))
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in made.items()}
    shapes = {name: array.shape for name, array in convert.to_reference(zeros, fmt).items()}
    return draw(shapes, seed)


def variables_of(teacher, fmt: str, seed: int = 0) -> dict:
    """The same through the converter."""
    return tree(convert.to_ours(reference_of(teacher, fmt, seed), fmt))


def image(side: int):
    """float32 [1, side, side, 3], as if normalised."""
    nchw = np.random.RandomState(1).standard_normal((1, 3, side, side)).astype(np.float32)
    return jnp.asarray(nchw.transpose(0, 2, 3, 1))


def size_of(leaves) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(leaves))
