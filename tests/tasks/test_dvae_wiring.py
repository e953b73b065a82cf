"""The dVAE's task by hand: the loss in the middle of its schedules, and what evaluation measures.

The noise is the test's own, in place of Gumbel numbers; those have tests of their own.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_dvae_train import batch_of, split, start_of, tiny_config

from beit_jax import dvae_losses
from beit_jax.models.dvae import Dvae
from beit_jax.tasks import dvae_train

STEP = 3  # of four in which the KL's weight rises, and of twelve in which the temperature falls
TAU = 1 / 16 + (1 - 1 / 16) * (1 + np.cos(np.pi * 3 / 12)) / 2
KL_WEIGHT = 6.6 * (1 - np.cos(np.pi * 3 / 4)) / 2


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def entropy(logits):
    """In nats, of each position: [..., v] -> [...]."""
    q = softmax(logits)
    return -np.sum(q * np.log(q), axis=-1)


def negative_log_density(x, mu, ln_b):
    """Of sigmoid(Laplace(mu, b)) at x: DALL-E, eq. 2."""
    b = np.exp(ln_b)
    logit = np.log(x / (1 - x))
    return -np.log(np.exp(-np.abs(logit - mu) / b) / (2 * b * x * (1 - x)))


def clear_of_ties(values):
    """Asserts that the largest of each [..., v] is no matter of rounding. Returns: its index."""
    ordered = np.sort(values, axis=-1)
    assert (ordered[..., -1] - ordered[..., -2]).min() > 1e-5
    return values.argmax(axis=-1)


def pixels(stats):
    """The image that statistics stand for: 0.1 + 0.8 x is what was predicted."""
    return np.clip((1 / (1 + np.exp(-stats[..., :3])) - 0.1) / 0.8, 0, 1)


def lively(params):
    """Kernels by their fan-in and biases above zero: in so narrow a network no ReLU is to die."""
    random = np.random.RandomState(0)

    def draw(leaf):
        values = random.standard_normal(leaf.shape)
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.2
        return np.float32(scale * values if leaf.ndim > 1 else scale * abs(values) + 0.1)

    return jax.tree.map(draw, params)


@pytest.fixture
def wired(monkeypatch):
    """The task with noise of the test, its networks, and what they give for the batch."""
    noise = 2 * np.random.RandomState(4).standard_normal((8, 4, 4, 16)).astype(np.float32)
    uniform = []

    def own(drawn):
        uniform.append(drawn)
        return noise

    monkeypatch.setattr(dvae_losses, "gumbel", own)
    config = tiny_config(kl_steps=4, tau_steps=12)
    task, batch = dvae_train.make(config), batch_of()
    params = lively(split(start_of(task, batch))[0])
    state = {"schedule": {"step": np.int32(STEP)}}
    network = Dvae(**config.model.to_dict())
    encode, decode = (jax.jit(lambda params, x, method=method: network.apply(
        {"params": params}, x, method=method)) for method in ("encode", "decode"))
    image = np.float64(batch["image"]) / 255
    mapped = np.float32(0.8 * image + 0.1)

    def forward(params):
        """(logits, relaxed codes, statistics), float64."""
        logits = np.float64(encode(params, mapped))
        relaxed = softmax((logits + noise) / TAU)
        return logits, relaxed, np.float64(decode(params, np.float32(relaxed)))

    def error(stats):
        return negative_log_density(np.float64(mapped[:len(stats)]), stats[..., :3], stats[..., 3:])

    return SimpleNamespace(task=task, batch=batch, params=params, state=state, image=image,
                           forward=forward, error=error, decode=decode, uniform=uniform)


def test_the_loss_is_the_density_of_relaxed_codes_and_the_kl_of_plain_ones(wired):
    def by_hand(params):
        logits, _, stats = wired.forward(params)
        reconstruction, kl = wired.error(stats).mean(), (np.log(16) - entropy(logits)).mean()
        # sums over pixel values and positions, both divided by the number of pixel values
        return reconstruction, kl, reconstruction + KL_WEIGHT * kl * (4 * 4) / (8 * 8 * 3)

    step = jax.jit(jax.value_and_grad(wired.task.loss, has_aux=True))
    (loss, (state, metrics)), grads = step(wired.params, wired.state, {}, wired.batch,
                                           jax.random.key(0))
    assert [drawn.shape for drawn in wired.uniform] == [(8, 4, 4, 16)]
    jax.tree.map(np.testing.assert_array_equal, state, wired.state)
    reconstruction, kl, total = by_hand(wired.params)
    logits, relaxed, stats = wired.forward(wired.params)
    codes = clear_of_ties(logits)
    share = np.bincount(codes.ravel(), minlength=16) / codes.size
    used = share[share > 0]
    expected = {
        "loss": total, "reconstruction": reconstruction, "kl": kl, "tau": TAU,
        "kl_weight": KL_WEIGHT, "ln_b": stats[..., 3:].mean(),
        "mae": np.abs(pixels(stats) - wired.image).mean(),
        "agreement": np.mean(clear_of_ties(relaxed) == codes),
        "batch_usage": len(used) / 16, "batch_perplexity": np.exp(-np.sum(used * np.log(used)))}
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(loss) == found["loss"] and 0 < found["agreement"] < 1 < len(used)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))

    along = jax.tree.map(lambda g: np.asarray(g) / np.linalg.norm(g), grads)
    up, down = (by_hand(jax.tree.map(lambda p, d, to=to: p + to * d, wired.params, along))[-1]
                for to in (2e-3, -2e-3))
    rise = sum(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads))
    assert (up - down) / 4e-3 == pytest.approx(rise, rel=2e-2)


def test_evaluation_measures_relaxed_and_hard_codes_of_real_examples(wired):
    batch = wired.batch | {"is_example": np.arange(8) < 5}
    sums = jax.jit(wired.task.eval_step)({"params": wired.params} | wired.state, {}, batch)
    summary = wired.task.summarize(jax.device_get(sums))
    logits, relaxed, stats = (part[:5] for part in wired.forward(wired.params))
    codes, error = clear_of_ties(logits), wired.error(stats).mean()
    hard = np.float64(wired.decode(wired.params, np.int32(np.argmax(
        wired.forward(wired.params)[0], axis=-1))))[:5]
    share = np.bincount(codes.ravel(), minlength=16) / codes.size
    used = share[share > 0]
    expected = {
        "reconstruction": error, "kl": np.log(16) - entropy(logits).mean(),
        "posterior_entropy": entropy(logits).mean(), "ln_b": stats[..., 3:].mean(),
        "agreement": np.mean(clear_of_ties(relaxed) == codes), "tau": TAU, "kl_weight": KL_WEIGHT,
        "usage": len(used) / 16, "perplexity": np.exp(-np.sum(used * np.log(used)))}
    expected["loss"] = error + KL_WEIGHT / 12 * expected["kl"]
    for name, made in (("relaxed", pixels(stats)), ("hard", pixels(hard))):
        difference = made - wired.image[:5]
        expected[f"mae_{name}"] = np.abs(difference).mean()
        expected[f"psnr_{name}"] = np.mean(
            -10 * np.log10((difference ** 2).mean(axis=(1, 2, 3))))  # of each image
    assert summary == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert summary["mae_relaxed"] != pytest.approx(summary["mae_hard"], rel=1e-2)


def test_noise_differs_between_positions_and_examples_and_between_keys(monkeypatch):
    """In evaluation it follows the example's number."""
    drawn, gumbel = [], dvae_losses.gumbel

    def seen(uniform):
        jax.debug.callback(lambda values: drawn.append(np.asarray(values)), uniform)
        return gumbel(uniform)

    monkeypatch.setattr(dvae_losses, "gumbel", seen)
    task, batch = dvae_train.make(tiny_config()), batch_of()
    params, state = split(start_of(task, batch))
    loss = jax.jit(task.loss)
    for seed in (0, 1):
        jax.block_until_ready(loss(params, state, {}, batch, jax.random.key(seed)))
        jax.effects_barrier()
    evaluate = jax.jit(task.eval_step)
    order = np.array([5, 3, 0, 1, 2, 4, 6, 7])
    for rows in (np.arange(8), order):
        jax.block_until_ready(evaluate({"params": params} | state, {},
                                       {name: values[rows] for name, values in batch.items()}))
        jax.effects_barrier()
    assert len(drawn) == 4 and all(values.shape == (8, 4, 4, 16) for values in drawn)
    for values in drawn:
        assert len(np.unique(values)) > 0.99 * values.size and 0 <= values.min() < 0.01
        assert 0.99 < values.max() <= 1
    assert np.abs(drawn[0] - drawn[1]).max() > 0.5
    np.testing.assert_array_equal(drawn[3], drawn[2][order])
