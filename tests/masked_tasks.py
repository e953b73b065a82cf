"""What tests of masked autoencoding share: weights from numpy, masks read off gradients, and the
loss by loops over hidden patches."""

import by_hand
import jax
import numpy as np
import pytest


def filled(init, *args, seed=0):
    """Variables from numpy: no table is left at zero, signals neither fade nor grow, and no
    initialiser is compiled."""
    random = np.random.RandomState(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *args)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else leaf.shape[-2]
            return values * np.float32(np.sqrt(1 / fan_in))
        if path[-1].key in ("scale", "gamma", "var"):
            return 0.5 + abs(values)
        return values / 5

    return jax.tree_util.tree_map_with_path(draw, shapes)


def patches_of(image, patch_size):
    """The numbers of each patch, patches row by row: [b, h, w, 3] -> [b, n, p * p * 3]."""
    image = np.asarray(image)
    b, h, w, _ = image.shape
    return np.stack([image[:, y:y + patch_size, x:x + patch_size].reshape(b, -1)
                     for y in range(0, h, patch_size) for x in range(0, w, patch_size)], axis=1)


def repainted(image, is_chosen, patch_size, seed=9):
    """The image with noise in the chosen patches, bool [b, n]."""
    image = np.array(image)
    columns = image.shape[2] // patch_size
    random = np.random.RandomState(seed)
    for row, patch in np.argwhere(is_chosen):
        y, x = patch // columns * patch_size, patch % columns * patch_size
        shape = (patch_size, patch_size, 3)
        image[row, y:y + patch_size, x:x + patch_size] = random.randint(0, 256, shape)
    return image


def unseen(gradient, patch_size):
    """Patches in which the gradient for the image is zero, bool [b, n]: they are not looked at."""
    return ~patches_of(gradient, patch_size).any(axis=-1)


def images(count, px, seed):
    """float32 [count, px, px, 3], whole numbers from 0 to 255: gradients want no integers."""
    return np.random.RandomState(seed).randint(0, 256, (count, px, px, 3)).astype(np.float32)


def normalised(image, mean, std):
    """(image / 255 - mean) / std, float32."""
    return by_hand.normalized(image, mean, std).astype(np.float32)


def layer_normed(tokens, epsilon):
    """Mean 0 and variance 1 of every token, float64."""
    tokens = np.asarray(tokens, np.float64)
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(axis=-1, keepdims=True) + epsilon)


def smooth_l1(predicted, target, beta=2.0):
    """Of two vectors, number by number."""
    total = 0.0
    for d in np.abs(np.asarray(predicted, np.float64) - target):
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total / len(target)


def squared(predicted, target):
    """Of two vectors."""
    return np.mean((np.asarray(predicted, np.float64) - target) ** 2)


def over_hidden(predicted, target, is_masked, error):
    """Metrics of predictions and targets [b, n, c] over hidden tokens, is_masked bool [b, n].

    Returns: {name: number}, and the mean error of each image, [b].
    """
    errors, cosines, chosen = [], [], []
    for row, mask in enumerate(is_masked):
        errors.append([])
        for token in np.flatnonzero(mask):
            p, t = np.float64(predicted[row][token]), np.float64(target[row][token])
            errors[-1].append(error(p, t))
            cosines.append(p @ t / np.sqrt((p @ p) * (t @ t)))
            chosen.append((p, t))
    p, t = (np.array(values) for values in zip(*chosen))
    by_image = np.array([np.mean(row) for row in errors])
    return {"loss": by_image.mean(), "cosine": np.mean(cosines),
            "target_std": np.sqrt(t.var(axis=0).mean()),
            "predicted_std": np.sqrt(p.var(axis=0).mean())}, by_image


def check_slope(loss, params, grads, step=2e-3):
    """Asserts that `loss` rises along the gradient as the gradient says, by finite differences.

    Every leaf goes the same distance, so that none is lost among larger ones.
    """
    along = jax.tree.map(lambda g: np.asarray(g) / max(np.linalg.norm(g), 1e-12), grads)

    def loss_at(distance):
        return loss(jax.tree.map(lambda p, d: p + distance * d, params, along))

    expected = sum(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads))
    slope = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-2)


def check_leaves(grads, fixed=()):
    """Asserts that all leaves have a gradient but those of the names in `fixed`, which have none.

    A bias on keys changes nothing but by rounding.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if path[-1].key != "k_bias":
            assert bool(np.any(leaf)) != (path[0].key in fixed), jax.tree_util.keystr(path)
