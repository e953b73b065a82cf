"""VQ-KD's task against its formulas, with the pixels of a patch as the teacher's features."""

import types

import by_hand
import jax
import numpy as np
import pytest
from test_beitv2_tasks import filled

from beit_jax import tasks
from beit_jax.models.vqkd import Vqkd
from configs.beitv2 import vqkd

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)  # of the teacher
WEIGHT, DECAY = 0.5, 0.9


def configured(**loss):
    """The recipe at toy size: 16 codes of 8 numbers, 8 images of 16 patches."""
    config = vqkd.get_config("smoke")
    config.update(dtype="float32")
    config.loss.update(dict(commitment_weight=WEIGHT, decay=DECAY) | loss)
    config.target = dict(kind="pixels", image_px=32, patch_size=8, normalise=False, mean=MEAN,
                         std=STD)
    return config


@pytest.fixture(scope="module")
def made():
    """The task at its start, and what the networks make of the batch."""
    config = configured()
    task = tasks.make(config)
    batch = {"image": by_hand.noise(8, 32), "index": np.arange(8), "is_example": np.arange(8) != 5}
    variables = filled(task.init, batch)
    codebook = variables["codebook"]["embedding"]
    codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    variables["usage"]["cluster_size"] = np.arange(16, dtype=np.float32)
    variables["pending"] = jax.tree.map(np.zeros_like, variables["pending"])
    params = variables.pop("params")
    network = Vqkd(**config.model, teacher_dim=192)
    image = by_hand.normalized(batch["image"], (0.5,) * 3, (0.5,) * 3).astype(np.float32)

    @jax.jit
    def encode(image):
        return network.apply({"params": params}, image, method="encode")

    vectors = np.asarray(encode(image), np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    codes = np.zeros((8, 16), int)
    for row in range(8):
        for patch in range(16):  # at the smallest distance
            codes[row, patch] = by_hand.winner(-np.sum((unit[row, patch] - codebook) ** 2, axis=1))
    predicted = np.asarray(jax.jit(lambda chosen: network.apply(
        {"params": params}, chosen, method="decode"))(codebook[codes]), np.float64)
    pixels = by_hand.normalized(batch["image"], MEAN, STD)
    distance, commitment = np.zeros((8, 16)), np.zeros((8, 16))
    for row in range(8):
        for patch in range(16):
            y, x = patch // 4 * 8, patch % 4 * 8
            target, guess = pixels[row, y:y + 8, x:x + 8].ravel(), predicted[row, patch]
            distance[row, patch] = 1 - guess @ target / (
                np.linalg.norm(guess) * np.linalg.norm(target))
            commitment[row, patch] = np.mean((unit[row, patch] - codebook[codes[row, patch]]) ** 2)
    return types.SimpleNamespace(task=task, batch=batch, params=params, collections=variables,
                                 unit=unit, codes=codes, codebook=codebook, distance=distance,
                                 commitment=commitment)


def test_loss_and_metrics_are_those_of_the_formula(made):
    """Cosine distance to the teacher, and the weighted distance to codes of length 1."""
    before = dict(made.collections, pending=jax.tree.map(lambda leaf: leaf + 3.0,
                                                         made.collections["pending"]))
    loss, (after, metrics) = jax.jit(made.task.loss)(
        made.params, before, {}, made.batch, jax.random.key(0))
    count, total = np.zeros(16), np.zeros((16, 8))
    for code, vector in zip(made.codes.ravel(), made.unit.reshape(-1, 8)):
        count[code] += 1
        total[code] += vector
    share = count[count > 0] / 128
    assert 2 < len(share) < 16
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(dict(
        loss=made.distance.mean() + WEIGHT * made.commitment.mean(),
        reconstruction=made.distance.mean(), commitment=made.commitment.mean(),
        batch_usage=len(share) / 16, batch_perplexity=np.exp(-np.sum(share * np.log(share)))),
        rel=1e-4)
    assert float(loss) == pytest.approx(float(metrics["loss"]))
    np.testing.assert_allclose(after["pending"]["count"], 3 + count)  # of earlier parts of a batch
    np.testing.assert_allclose(after["pending"]["total"], 3 + total, atol=1e-4)
    for name in ("codebook", "usage"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])


def test_an_update_moves_chosen_codes_to_the_mean_direction(made):
    count, total = np.zeros(16), np.zeros((16, 8))
    for code, vector in zip(made.codes.ravel(), made.unit.reshape(-1, 8)):
        count[code] += 1
        total[code] += vector
    pending = {"count": count.astype(np.float32), "total": total.astype(np.float32)}
    after = made.task.end_step(made.params, made.collections | {"pending": pending})
    for code in range(16):
        expected = made.codebook[code]
        if count[code]:
            mean = total[code] / count[code]
            expected = DECAY * expected + (1 - DECAY) * mean / np.linalg.norm(mean)
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(after["codebook"]["embedding"][code], expected, atol=1e-5)
    np.testing.assert_allclose(after["usage"]["cluster_size"],
                               DECAY * np.arange(16) + (1 - DECAY) * count, rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after["pending"]))


def test_evaluation_sums_over_examples_and_counts_their_codes(made):
    variables = {"params": made.params, **made.collections}
    sums = jax.device_get(jax.jit(made.task.eval_step)(variables, {}, made.batch))
    rows = [row for row in range(8) if row != 5]
    counts = np.bincount(made.codes[rows].ravel(), minlength=16)
    np.testing.assert_array_equal(sums["code_counts"], counts)
    assert sums["count"] == 7
    share = counts[counts > 0] / counts.sum()
    distance, commitment = made.distance[rows].mean(), made.commitment[rows].mean()
    assert made.task.summarize(sums) == pytest.approx(dict(
        loss=distance + WEIGHT * commitment, reconstruction=distance, commitment=commitment,
        usage=len(share) / 16, perplexity=np.exp(-np.sum(share * np.log(share))),
        dead_codes=16 - len(share)), rel=1e-4)


def test_the_second_turn_of_kmeans_follows_from_the_first(made):
    """Vectors to the nearest mean, the mean of each to length 1; an empty one stays."""
    variables = {"params": made.params, **made.collections}
    samples = made.unit[:4].reshape(-1, 8)

    def beginning(turns):
        task = tasks.make(configured(kmeans_iterations=turns, kmeans_images=4))
        return jax.jit(lambda key: task.begin(variables, {}, made.batch, key))

    once, twice = beginning(1), beginning(2)
    means = np.asarray(once(jax.random.key(0))["codebook"]["embedding"])
    nearest = [by_hand.winner(means @ sample) for sample in samples]
    expected = np.array(means)
    for code in set(nearest):
        mean = np.mean([s for s, own in zip(samples, nearest) if own == code], axis=0)
        expected[code] = mean / np.linalg.norm(mean)
    assert np.abs(expected - means).max() > 0.01
    after = twice(jax.random.key(0))
    np.testing.assert_allclose(after["codebook"]["embedding"], expected, atol=1e-4)
    for name in ("usage", "pending"):
        jax.tree.map(np.testing.assert_array_equal, after[name], made.collections[name])
    other = np.asarray(once(jax.random.key(1))["codebook"]["embedding"])
    assert np.abs(other - means).max() > 0.01  # another start
