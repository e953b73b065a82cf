"""That each option of the training floor does what it says: steps by hand, in plain numpy.

Every rate, decay and average has a value here that no default has, so that a number written into
the code, or an option that is not read, gives other weights.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import checkpoint
from beit_jax.tasks.task import Frozen, Task, mean_of_sums
from beit_jax.training import evaluate, loop, optim, sharding, state, step

STEPS, WARMUP = 6, 3
PEAK, FLOOR, DECAY, DECAY_END, CLIP = 0.3, 0.05, 0.2, 0.07, 0.7
B1, B2, EPS, LAYER_DECAY, HEAD_RATE = 0.8, 0.6, 0.05, 0.5, 4.0
SHAPES = {"cls_token": (1, 1, 3), "blocks": {"mlp": {"kernel": (2, 3, 4), "bias": (2, 4)}},
          "norm": {"scale": (3,)}, "head": {"kernel": (3, 2)}}
# of two blocks; embeddings are below them, all else above
LAYER = {"cls_token": LAYER_DECAY ** 3, "norm/scale": 1.0, "head/kernel": HEAD_RATE,
         "blocks/mlp/kernel": np.array([LAYER_DECAY ** 2, LAYER_DECAY])[:, None, None],
         "blocks/mlp/bias": np.array([LAYER_DECAY ** 2, LAYER_DECAY])[:, None]}
DECAYED = ("blocks/mlp/kernel", "head/kernel")


def tree_of(seed: int, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32),
                        SHAPES, is_leaf=lambda value: isinstance(value, tuple))


def half_cosine(start: float, end: float, at: int, length: int) -> float:
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * at / length))


def rate_at(t: int) -> float:
    """BEiT's: from 0 to the peak at step W - 1, at step W the cosine starts there again."""
    if t < WARMUP:
        return PEAK * t / (WARMUP - 1)
    return half_cosine(PEAK, FLOOR, t - WARMUP, STEPS - WARMUP)


def adamw_by_hand(params: dict, gradients: list[dict], decay_end: float) -> dict:
    params = {path: leaf.astype(np.float64) for path, leaf in params.items()}
    first, second = ({path: np.zeros_like(leaf) for path, leaf in params.items()}
                     for _ in range(2))
    for t, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
        decay = DECAY if decay_end < 0 else half_cosine(DECAY, decay_end, t, STEPS)
        for path, g in gradient.items():
            g = g * min(1.0, CLIP / norm)
            first[path] = B1 * first[path] + (1 - B1) * g
            second[path] = B2 * second[path] + (1 - B2) * g ** 2
            update = first[path] / (1 - B1 ** (t + 1))
            update = update / (np.sqrt(second[path] / (1 - B2 ** (t + 1))) + EPS)
            if path in DECAYED:
                update = update + decay * params[path]
            params[path] = params[path] - rate_at(t) * LAYER[path] * update
    return params


@pytest.mark.parametrize("decay_end", [-1.0, DECAY_END], ids=["constant_decay", "falling_decay"])
def test_adamw_makes_the_steps_of_its_formulas(decay_end):
    options = optim.OptimOptions(
        learning_rate=PEAK, min_learning_rate=FLOOR, warmup_steps=WARMUP, b1=B1, b2=B2, eps=EPS,
        weight_decay=DECAY, weight_decay_end=decay_end, clip_norm=CLIP, layer_decay=LAYER_DECAY,
        head_rate=HEAD_RATE)
    params = tree_of(0)
    gradients = [tree_of(1 + t, 0.05 if t % 2 else 1.0) for t in range(STEPS)]
    norms = [float(optax.tree.norm(gradient)) for gradient in gradients]
    assert min(norms) < CLIP < max(norms)  # some are clipped
    tx, schedules = optim.make_optimizer(options, params, STEPS, 1)
    expected = adamw_by_hand(checkpoint.flatten(params), [
        checkpoint.flatten(gradient) for gradient in gradients], decay_end)

    @jax.jit
    def one(params, opt_state, gradient):
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for gradient in gradients:
        params, opt_state = one(params, opt_state, gradient)
    for path, leaf in checkpoint.flatten(params).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)
    for t in range(STEPS):  # what the log shows
        assert float(schedules["learning_rate"](t)) == pytest.approx(rate_at(t), abs=1e-7)
        assert float(schedules["weight_decay"](t)) == pytest.approx(
            DECAY if decay_end < 0 else half_cosine(DECAY, decay_end, t, STEPS), abs=1e-7)


def test_a_cosine_of_its_own_length_starts_behind_the_warm_up_and_stays_at_its_end():
    """Steps of warm-up win over epochs; the rest of the run is constant."""
    options = optim.OptimOptions(learning_rate=PEAK, min_learning_rate=FLOOR, warmup_steps=WARMUP,
                                 warmup_epochs=2.0, decay_steps=STEPS)
    schedule = optim.learning_rate_schedule(options, 4 * STEPS, 5)
    for t in range(4 * STEPS):
        expected = rate_at(t) if t < STEPS else FLOOR
        assert float(schedule(t)) == pytest.approx(expected, abs=1e-7), t


# --- keys and parts of a step ---------------------------------------------------------------------

def drawing():
    """A task whose metrics are what it drew and saw."""
    def init(key, batch):
        return {"params": {"w": jnp.ones(2)}}

    def loss(params, state_, frozen, batch, key):
        draw = jax.random.normal(key)
        return draw * jnp.sum(params["w"]), (state_, {
            "draw": draw, "square": draw ** 2, "row": jnp.mean(batch["x"]),
            "spread": jnp.mean(batch["x"] ** 2) - jnp.mean(batch["x"]) ** 2})
    return Task(init, loss, None, mean_of_sums)


def drawn(mesh, parts: int) -> dict[str, float]:
    """Metrics of a step on the rows 0..7."""
    batch, tx = {"x": np.arange(8.0, dtype=np.float32)}, optax.sgd(0.1)
    shapes = {"x": jax.ShapeDtypeStruct((8,), jnp.float32)}
    task = drawing()
    _, make = state.create(task, tx, jax.random.key(0), shapes, mesh, with_ema=False)
    train_step = step.make_train_step(task, tx, jax.random.key(0), accumulation_steps=parts)
    _, metrics = train_step(make(), {}, sharding.global_batch(batch, mesh))
    return {name: float(value) for name, value in metrics.items()}


def test_every_part_of_a_batch_draws_from_a_key_of_its_own(mesh):
    whole, split = drawn(mesh, 1), drawn(mesh, 4)
    assert whole["square"] == pytest.approx(whole["draw"] ** 2)
    assert split["square"] - split["draw"] ** 2 > 0.01  # the mean of four different draws
    assert split["draw"] != pytest.approx(whole["draw"])


def test_parts_are_rows_from_all_over_the_batch_and_their_metrics_are_averaged(mesh):
    """So that every part stays spread over all devices: part i has the rows i, i + 2, ..."""
    split = drawn(mesh, 2)
    assert split["row"] == pytest.approx(3.5)
    assert split["spread"] == pytest.approx(np.var([0.0, 2.0, 4.0, 6.0]))


def test_a_run_averages_and_accumulates_as_its_config_says(toy, tmp_path):
    def weights(name, use_ema, **optim_options):
        options = {f"optim__{key}": value for key, value in optim_options.items()}
        config = toy.get_config(total_steps=1, **options)
        loop.run(config, str(tmp_path / name))
        return checkpoint.load_variables(str(tmp_path / name), use_ema=use_ema, collections=True)

    begin = weights("begin", False, learning_rate=0.0)
    options = dict(learning_rate=0.05, ema_decay=0.75, accumulation_steps=4)
    average, raw = weights("end", True, **options), weights("end", False, **options)
    moved = [path for path in raw if not np.array_equal(raw[path], begin[path])]
    assert "head/kernel" in moved
    for path in moved:
        if not path.startswith("counter"):
            np.testing.assert_allclose(average[path], 0.75 * begin[path] + 0.25 * raw[path],
                                       rtol=1e-5, atol=1e-7, err_msg=path)
    assert int(raw["counter/calls"]) == 4


# --- which weights --------------------------------------------------------------------------------

def averaged_run(mesh, tmp_path) -> str:
    """Workdir of a run whose parameters are 2 and whose averaged ones are 3."""
    def init(key, batch):
        return {"params": {"w": jnp.full((2, 2), 2.0)}}

    task = Task(init, None, None, mean_of_sums)
    _, make = state.create(task, optax.adam(1.0), jax.random.key(0), {}, mesh, with_ema=True)
    made = make()
    made = made.replace(ema_params={"w": jnp.full((2, 2), 3.0)})
    with contextlib.closing(checkpoint.Checkpoints(
            tmp_path, checkpoint.CheckpointOptions())) as checkpoints:
        checkpoints.save(1, made)
    return str(tmp_path)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, 3.0), ({"use_ema": True}, 3.0), ({"use_ema": False}, 2.0)], ids=str)
def test_a_tokenizer_and_a_start_are_the_averaged_weights_of_a_run(mesh, tmp_path, options,
                                                                   expected):
    path = averaged_run(mesh, tmp_path)
    network = Frozen(lambda key: {"params": {"w": jnp.zeros((2, 2))}}, "target")
    task = Task(lambda key, batch: {"params": {"w": jnp.zeros((2, 2))}}, None, None, mean_of_sums,
                frozen={"tokenizer": network})
    frozen = state.load_frozen(task, {"target": {"checkpoint": path} | options},
                               jax.random.key(0), mesh)
    np.testing.assert_array_equal(frozen["tokenizer"]["params"]["w"], np.full((2, 2), expected))
    _, make = state.create(task, optax.adam(1.0), jax.random.key(0), {}, mesh, with_ema=True)
    loaded = state.load_into(make(), state.InitOptions(checkpoint=path, **options), mesh)
    for params in (loaded.params, loaded.ema_params):
        np.testing.assert_array_equal(params["w"], np.full((2, 2), expected))


# --- nearest neighbours ---------------------------------------------------------------------------

@pytest.mark.parametrize(("temperature", "expected"), [(0.07, 1.0), (0.06, 0.0)])
def test_neighbours_vote_at_the_temperature_of_the_config(mesh, temperature, expected):
    """At 0 degrees: one neighbour at 10 (class 0), two at 20 and 340 (class 1).

    exp(0.985 / T) against 2 exp(0.940 / T): two win above T = 0.065.
    """
    def rows(split="validation", limit=0):
        angle = np.radians([10, 20, 340, 180] if split == "train" else [0] * 4)
        yield {"x": np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
               "label": np.array([0, 1, 1, 2] if split == "train" else [1] * 4),
               "is_example": np.ones(4, bool)}

    task = Task(None, None, lambda v, f, b: {"count": jnp.sum(b["is_example"])}, mean_of_sums,
                features=lambda v, f, b: b["x"])
    current = state.TrainState(jnp.zeros(()), jnp.zeros(()), {}, (), None)
    options = evaluate.EvalOptions(knn=(3,), knn_temperature=temperature)
    values, _ = evaluate.make_measure(task, options, mesh)(current, {}, rows, None)
    assert values == {"knn_3": expected}
