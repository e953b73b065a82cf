"""Random erasing, mixup and cutmix on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import augment, losses


def test_normalise_takes_mean_and_std_of_the_unit_range():
    image = jnp.array([[[[0, 128, 255]]]], jnp.uint8)
    out = augment.normalise(image, (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    np.testing.assert_allclose(out[0, 0, 0], [-1.0, (128 / 255 - 0.5) / 0.25, 1.0], atol=1e-6)


def test_erasing_fills_one_rectangle_of_a_quarter_of_the_images():
    image = jnp.full((2000, 16, 24, 3), 7.0)
    out = np.asarray(jax.jit(augment.random_erasing, static_argnums=2)(
        jax.random.key(0), image, 0.25))
    changed = (out != 7.0).all(axis=-1)
    erased = changed.any(axis=(1, 2))
    assert erased.mean() == pytest.approx(0.25, abs=0.04)
    for mask in changed[erased][:200]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area == mask.sum()  # a full rectangle
        assert 0.01 <= area / mask.size <= 0.36  # U(0.02, 1/3), sides rounded
        assert np.ptp(rows) + 1 < 16 and np.ptp(columns) + 1 < 24
    noise = out[changed]
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1.0, abs=0.02)


def batch(size):
    image = jnp.broadcast_to(jnp.arange(size, dtype=jnp.float32)[:, None, None, None],
                             (size, 8, 8, 3))
    return image, losses.smooth_targets(jnp.arange(size), size, 0.0)


@pytest.mark.parametrize("options", [augment.MixOptions(mixup=0.8, group_size=4),
                                     augment.MixOptions(cutmix=1.0, group_size=4)],
                         ids=["mixup", "cutmix"])
def test_shares_of_the_image_are_the_shares_of_the_target(options):
    """Image k is constant k: what is left of it can be read off, and the target must agree."""
    image, target = batch(12)
    mixed, mixed_target = augment.mix(jax.random.key(1), image, target, options)
    groups = np.arange(12).reshape(4, 3).T  # the group axis comes second
    shares = set()
    for group in groups:
        for own, partner in zip(group, group[::-1]):
            share = mixed_target[own, own]
            expected = share * own + (1 - share) * partner
            np.testing.assert_allclose(mixed[own].mean(), expected, atol=1e-4)
            assert mixed_target[own].sum() == pytest.approx(1.0, abs=1e-6)
        shares.add(float(mixed_target[group[0], group[0]]))
    assert len(shares) > 1  # a draw for each group; on 8 px two may meet


def test_cutmix_pastes_a_rectangle():
    image, target = batch(2)
    mixed, _ = augment.mix(jax.random.key(5), image, target, augment.MixOptions(cutmix=1.0))
    assert set(np.unique(mixed)) <= {0.0, 1.0}
    pasted = np.asarray(mixed[0, ..., 0] == 1.0)
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    assert pasted.sum() == len(rows) * len(columns) > 0


def test_both_kinds_occur_about_equally():
    options = augment.MixOptions(mixup=0.8, cutmix=1.0, group_size=2)
    image, target = batch(2)
    keys = jax.random.split(jax.random.key(0), 400)
    mixed = jax.vmap(lambda key: augment.mix(key, image, target, options)[0])(keys)
    is_cut = np.asarray([set(np.unique(m)) <= {0.0, 1.0} for m in np.asarray(mixed)])
    assert is_cut.mean() == pytest.approx(0.5, abs=0.1)


def test_a_batch_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="augment.group_size=4"):
        augment.mix(jax.random.key(0), *batch(6), augment.MixOptions(mixup=1.0, group_size=4))


def test_label_smoothing_equals_its_usual_form():
    logits = jax.random.normal(jax.random.key(0), (5, 7))
    label = jnp.arange(5)
    log_p = jax.nn.log_softmax(logits)
    usual = 0.9 * -log_p[jnp.arange(5), label] + 0.1 * -log_p.mean(axis=-1)
    ours = losses.soft_target_cross_entropy(logits, losses.smooth_targets(label, 7, 0.1))
    np.testing.assert_allclose(ours, usual, atol=1e-6)


def kept_shares(count=2000, size=32, **options):
    """What each of many pairs keeps of itself, by the target: [count]."""
    image, target = jnp.zeros((2, size, size, 3)), jnp.eye(2)
    options = augment.MixOptions(**options, group_size=2)
    keys = jax.random.split(jax.random.key(7), count)
    mixed = jax.jit(jax.vmap(lambda key: augment.mix(key, image, target, options)[1]))(keys)
    return np.asarray(mixed[:, 0, 0], np.float64)


@pytest.mark.parametrize("alpha", [0.8, 0.2])
def test_shares_of_mixup_are_drawn_from_a_symmetric_beta_distribution(alpha):
    """Its mean is 1/2, its variance 1 / (4 (2 alpha + 1)): mixup (Zhang et al. 2018), Sec. 2."""
    shares = kept_shares(mixup=alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * (variance / 2000) ** 0.5
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_a_pasted_box_has_the_root_of_the_share_as_its_sides():
    """CutMix (Yun et al. 2019), Eq. 2, integrated over shares and centers; borders cut boxes off.
    """
    size, lost = 32, []
    for share in (np.arange(400) + 0.5) / 400:  # uniform, as alpha is 1
        half = int(size * (1 - share) ** 0.5) // 2
        sides = [min(center + half, size) - max(center - half, 0) for center in range(size)]
        lost.append(np.mean(sides) ** 2 / size ** 2)  # the two centers are independent
    shares = kept_shares(cutmix=1.0)
    error = shares.std() / 2000 ** 0.5
    assert abs(shares.mean() - (1 - np.mean(lost))) < 5 * error
    assert error < 0.01


@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_cutmix_takes_the_place_of_mixup_as_often_as_it_is_told(probability):
    """Of an 8 x 8 image a box leaves a multiple of 1/64."""
    shares = kept_shares(500, 8, mixup=0.8, cutmix=1.0, switch_probability=probability)
    is_cut = np.abs(shares * 64 - np.round(shares * 64)) < 1e-4
    assert is_cut.mean() == pytest.approx(probability, abs=5 * (0.09 / 500) ** 0.5)


def test_erased_areas_and_aspects_are_those_of_the_paper():
    """Random Erasing (Zhong et al. 2020), Alg. 1: area U(0.02, 1/3), aspect from 0.3 to 1 / 0.3,
    log-uniform as in timm; here by counting on a fine grid of both."""
    size, count = 32, 3000
    image = jnp.full((count, size, size, 1), 7.0)
    out = np.asarray(jax.jit(augment.random_erasing, static_argnums=2)(
        jax.random.key(3), image, 1.0))[..., 0]
    sides = np.array([[np.any(box, axis=axis).sum() for axis in (1, 0)] for box in out != 7.0])
    areas = size ** 2 * np.linspace(0.02, 1 / 3, 400)[:, None]
    aspects = np.exp(np.linspace(np.log(0.3), np.log(1 / 0.3), 400))[None]
    grid = np.stack([np.round(np.sqrt(areas * aspects)), np.round(np.sqrt(areas / aspects))], -1)
    grid = grid[(grid < size).all(-1)]
    for measure in (lambda pair: pair.prod(-1), lambda pair: np.log(pair[:, 0] / pair[:, 1]),
                    lambda pair: np.log(pair[:, 0] / pair[:, 1]) ** 2):
        found, wanted = measure(sides.astype(float)), measure(grid)
        assert abs(found.mean() - wanted.mean()) < 5 * wanted.std() / count ** 0.5
