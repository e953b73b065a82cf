"""The dVAE's objective against numbers worked out elsewhere, and the task as the loop sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from beit_jax import dvae_losses as losses
from beit_jax import metrics
from beit_jax.tasks import dvae_train
from configs.dvae import debug


@pytest.mark.parametrize("x, mu, ln_b, expected", [
    (0.5, 0.0, 0.0, -0.693147), (0.1, 0.0, 0.0, 0.482426),
    (0.9, 2.0, -1.0, -2.178686), (0.3, 0.5, 0.2, 0.435574),
])  # fmt: skip
def test_logit_laplace(x, mu, ln_b, expected):
    value = losses.logit_laplace_nll(jnp.float32(x), jnp.float32(mu), jnp.float32(ln_b))
    assert value == pytest.approx(expected, abs=2e-6)


def test_logit_laplace_is_a_density():
    x = jnp.linspace(0, 1, 200_001)[1:-1]
    density = jnp.exp(-losses.logit_laplace_nll(x, jnp.float32(0.3), jnp.log(0.8)))
    assert float(jnp.sum(density) / 200_000) == pytest.approx(1, abs=1e-3)


def test_ln_b_is_clipped_from_below():
    stats = jnp.array([0.0, 0, 0, -20, -7, -6]).reshape(1, 1, 1, 6)
    mapped = jnp.full((1, 1, 1, 3), 0.5)
    error = losses.reconstruction_error(mapped, stats, "logit_laplace", -7.0)[0, 0, 0]
    assert error[0] == error[1] < error[2]


@pytest.mark.parametrize("likelihood, expected", [("mse", 0.04), ("l1", 0.2)])
def test_other_likelihoods_compare_pixels(likelihood, expected):
    stats = jnp.zeros((1, 1, 1, 6))  # sigmoid(0) = 0.5
    error = losses.reconstruction_error(jnp.full((1, 1, 1, 3), 0.3), stats, likelihood, -7.0)
    np.testing.assert_allclose(error, expected, rtol=1e-5)


def test_kl_to_uniform_at_its_ends():
    # a sum of 8192 float32 terms of ln 8192: good to 1e-6 of it
    assert losses.kl_to_uniform(jnp.ones(8192)) == pytest.approx(0, abs=1e-5)
    one_hot = 100.0 * jax.nn.one_hot(3, 8192)
    assert losses.kl_to_uniform(one_hot) == pytest.approx(9.010913, abs=5e-6)


def test_kl_and_relaxation_of_drawn_numbers():
    random = np.random.RandomState(0)
    logits = random.standard_normal((2, 3, 16))
    kl = losses.kl_to_uniform(jnp.asarray(logits))
    expected = [[0.329884, 0.484495, 0.602527], [0.161960, 0.230173, 0.296956]]
    np.testing.assert_allclose(kl, expected, atol=2e-6)
    assert float(kl.mean()) == pytest.approx(0.350999, abs=2e-6)
    noise = losses.gumbel(jnp.asarray(random.rand(2, 3, 16)))
    relaxed = losses.relax(jnp.asarray(logits), noise, 0.5)
    expected = [0.074762, 0.001058, 0.795284, 0.103384]
    np.testing.assert_allclose(relaxed[0, 0, :4], expected, atol=2e-6)


def test_gumbel_noise_is_finite_at_both_ends():
    assert np.isfinite(losses.gumbel(jnp.array([0.0, 1.0]))).all()


def test_gumbel_argmax_follows_the_softmax():
    logits = jnp.array([0.0, 1.0, 2.0])
    uniform = jax.random.uniform(jax.random.key(0), (100_000, 3))
    codes = jnp.argmax(losses.relax(logits, losses.gumbel(uniform), 1.0), -1)
    share = np.bincount(codes, minlength=3) / 100_000
    np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=0.01)


def test_schedules_of_the_paper():
    tau = [float(losses.half_cosine(t, 1.0, 1 / 16, 150_000))
           for t in (0, 37_500, 75_000, 112_500, 150_000, 10**6)]  # fmt: skip
    expected = [1, 0.862706, 0.53125, 0.199794, 0.0625, 0.0625]
    np.testing.assert_allclose(tau, expected, atol=1e-6)
    beta = [float(losses.half_cosine(t, 0.0, 6.6, 5_000)) for t in (1_250, 2_500, 5_000, 9_999)]
    np.testing.assert_allclose(beta, [0.9665, 3.3, 6.6, 6.6], atol=1e-4)
    assert float(losses.half_cosine(0, 0.0, 6.6, 0)) == pytest.approx(6.6)


def test_learning_rate_of_the_paper():
    from beit_jax import options
    from beit_jax.training import optim
    from configs.dvae import paper

    config = paper.get_config()
    section = options.build(optim.OptimOptions, config.optim, "config.optim")
    schedule = optim.learning_rate_schedule(section, config.total_steps, 2502)
    for step, rate in {300_000: 8.553840e-5, 600_000: 5.0625e-5, 1_200_000: 1.25e-6,
                       2_900_000: 1.25e-6}.items():  # fmt: skip
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-4)


def test_kl_coefficient_is_beta_over_192_at_factor_8():
    assert losses.kl_coefficient(6.6, 8) == pytest.approx(0.034375)
    # the definition: sums over pixels and positions, divided by the number of pixel values
    pixels, positions = 64 * 64 * 3, 16 * 16
    assert losses.kl_coefficient(6.6, 4) == pytest.approx(6.6 * positions / pixels)


def test_code_use():
    usage, perplexity = metrics.code_use(jnp.full(16, 5.0))
    assert (float(usage), float(perplexity)) == pytest.approx((1, 16), rel=1e-5)
    usage, perplexity = metrics.code_use(jnp.array([7.0, 0, 0, 0]))
    assert (float(usage), float(perplexity)) == pytest.approx((0.25, 1))
    usage, perplexity = metrics.code_use(jnp.array([3.0, 1, 0, 0]))
    assert float(perplexity) == pytest.approx(4 / 3**0.75, rel=1e-5)


def tiny_config(**loss):
    config = debug.get_config("smoke")
    config.data.image_px = 8
    config.model = dict(vocab_size=16, n_hid=8, n_init=8, num_groups=2, blocks_per_group=1)
    config.loss.update(loss)
    return config


def batch_of(size=8, px=8):
    """Two-coloured squares: easy, but not constant."""
    random = np.random.RandomState(0)
    image = np.repeat(random.randint(0, 256, (size, 1, 1, 3)), px, 1).repeat(px, 2)
    image[:, : px // 2] = random.randint(0, 256, (size, 1, 1, 3))
    return {
        "image": image.astype(np.uint8),
        "index": np.arange(size, dtype=np.int32),
        "is_example": np.ones(size, bool),
    }


def start_of(task, batch):
    """Variables at step 0, from numpy: compiling an initialiser takes far longer."""
    random = np.random.RandomState(0)
    variables = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
    params = jax.tree.map(
        lambda s: random.standard_normal(s.shape).astype(np.float32) / 5, variables["params"]
    )
    return variables | {"params": params, "schedule": {"step": jnp.int32(0)}}


@pytest.fixture(scope="module")
def started():
    """(task, variables, batch) at step 0, and eval_step compiled."""
    task = dvae_train.make(tiny_config())
    batch = batch_of()
    return task, start_of(task, batch), batch, jax.jit(task.eval_step)


def split(variables):
    state = dict(variables)
    return state.pop("params"), state


def test_training_lowers_the_loss_and_keeps_several_codes_in_use():
    config = tiny_config(kl_weight=0.5, kl_steps=40, tau_steps=200)
    task, batch = dvae_train.make(config), batch_of()
    params, state = split(jax.jit(task.init)(jax.random.key(0), batch))
    optimizer = optax.adam(3e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params, state, opt_state, key):
        gradient = jax.value_and_grad(task.loss, has_aux=True)
        (_, (state, metrics)), grads = gradient(params, state, {}, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, task.end_step(params, state), opt_state, metrics

    history = []
    for step in range(300):
        key = jax.random.fold_in(jax.random.key(1), step)
        params, state, opt_state, metrics = update(params, state, opt_state, key)
        history.append({name: float(value) for name, value in metrics.items()})
    assert int(state["schedule"]["step"]) == 300
    first, last = history[0], history[-1]
    assert (first["tau"], first["kl_weight"]) == (1, 0)
    assert (last["tau"], last["kl_weight"]) == pytest.approx((1 / 16, 0.5))
    assert last["reconstruction"] < first["reconstruction"] - 0.5
    assert last["mae"] < 0.6 * first["mae"]
    assert all(0 <= entry["kl"] <= np.log(16) + 1e-5 for entry in history)

    sums = jax.jit(task.eval_step)({"params": params} | state, {}, batch)
    summary = task.summarize(jax.device_get(sums))
    assert summary["usage"] >= 4 / 16 and summary["perplexity"] > 3
    assert summary["posterior_entropy"] == pytest.approx(np.log(16) - summary["kl"], abs=1e-4)
    # hard codes reconstruct about as well as relaxed ones once the temperature is low
    assert summary["mae_hard"] < 0.7 * first["mae"]
    assert summary["psnr_hard"] > 10


def test_evaluation_counts_only_real_examples_and_is_the_same_in_any_batch(started):
    task, variables, batch, eval_step = started
    whole = eval_step(variables, {}, batch)
    parts = []
    for start in (0, 4):
        part = {name: np.concatenate([rows[start : start + 4]] * 2) for name, rows in batch.items()}
        part["is_example"][4:] = False  # filler
        parts.append(eval_step(variables, {}, part))
    total = jax.tree.map(jnp.add, *parts)
    assert whole.keys() == total.keys()
    for name in whole:
        np.testing.assert_allclose(total[name], whole[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert float(jnp.sum(whole["code_counts"])) == 8 * 4 * 4  # a 4x4 grid for each of 8 images


def test_summary_adds_up(started):
    task, variables, batch, eval_step = started
    at_the_end = variables | {"schedule": {"step": jnp.int32(10**6)}}
    summary = task.summarize(jax.device_get(eval_step(at_the_end, {}, batch)))
    assert all(isinstance(value, float) for value in summary.values())
    assert summary["kl_weight"] == pytest.approx(6.6) and summary["tau"] == pytest.approx(1 / 16)
    # factor 2: 3 * 2 * 2 pixel values for each position
    expected = summary["reconstruction"] + 6.6 / 12 * summary["kl"]
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_follows_its_key(started):
    task, variables, batch, eval_step = started
    params, state = split(variables)
    loss = jax.jit(task.loss)
    values = [float(loss(params, state, {}, batch, jax.random.key(seed))[0]) for seed in (0, 1, 1)]
    assert values[0] != values[1] == values[2]


def test_schedules_move_with_updates_not_with_the_parts_of_a_batch():
    task, batch = dvae_train.make(tiny_config(kl_steps=4)), batch_of()
    params, state = split(start_of(task, batch))
    loss, weights = jax.jit(task.loss), []
    for _ in range(3):
        for _ in range(2):  # two parts of one batch
            _, (state, metrics) = loss(params, state, {}, batch, jax.random.key(0))
            weights.append(float(metrics["kl_weight"]))
        state = task.end_step(params, state)
    assert weights[0::2] == weights[1::2]
    assert weights[0] == 0 and weights[4] == pytest.approx(3.3)
    assert int(state["schedule"]["step"]) == 3


def test_pictures_are_rows_of_input_and_two_reconstructions(started):
    task, variables, batch, _ = started
    rows = jax.jit(task.pictures)(variables, {}, batch, jax.random.key(0))["reconstructions"]
    assert rows.shape == (8, 8, 24, 3) and rows.dtype == jnp.uint8
    np.testing.assert_array_equal(rows[:, :, :8], batch["image"])


@pytest.mark.parametrize("change, message", [
    (dict(likelihood="laplace"), "likelihood='laplace' is none of"),
    (dict(tau_end=0.0), "config.loss.tau_end=0.0 must be above 0"),
    (dict(kl_wieght=1.0), "kl_wieght is unknown .did you mean kl_weight"),
])  # fmt: skip
def test_wrong_loss_settings_are_named(change, message):
    config = tiny_config()
    with config.unlocked(), pytest.raises(ValueError, match=message):
        config.loss.update(change)
        dvae_train.make(config)


def test_image_size_that_does_not_fit_is_named():
    config = tiny_config()
    config.data.image_px = 9
    with pytest.raises(ValueError, match="config.data.image_px=9 is no multiple of 2"):
        dvae_train.make(config)
