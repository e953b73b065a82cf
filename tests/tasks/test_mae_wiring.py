"""MAE's task by hand: what its encoder sees, what it predicts, and that it learns from the visible.

The second view that a batch may have is the target here: so the gradient for the image tells what
the encoder looks at, whatever is to be predicted.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import masked_tasks as by_hand
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from beit_jax import masking, tasks
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from configs.mae import pretrain

PX, PATCH, NUM_MASKED, IMAGES = 32, 8, 6, 5  # of the recipe at toy size: 16 patches
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the recipe says
FIXED = ("pos_embed", "decoder_pos_embed")


def config_of(**model):
    config = pretrain.get_config("smoke")
    config.model.update(model)
    return config


def pixels_of(image):
    """MAE, Sec. 3: each patch by its own mean and (unbiased) variance."""
    patches = np.float64(by_hand.patches_of(by_hand.normalised(image, MEAN, STD), PATCH))
    mean = patches.mean(axis=-1, keepdims=True)
    variance = ((patches - mean) ** 2).sum(axis=-1, keepdims=True) / (patches.shape[-1] - 1)
    return (patches - mean) / np.sqrt(variance + 1e-6)


@pytest.fixture(scope="module")
def wired():
    """The task of the recipe, one program of its loss and gradients, and one of its network."""
    config = config_of()
    task, image = tasks.make(config), by_hand.images(IMAGES, PX, 0)
    variables = by_hand.filled(task.init, {"image": image})
    assert variables.keys() == {"params"}
    network = MaskedAutoencoder(**config.model.to_dict(), target_dim=PATCH * PATCH * 3)

    @jax.jit
    def run(params, image, view, key):
        def loss(params, image):
            batch = {"image": image, "image_for_target": view}
            value, (state, metrics) = task.loss(params, {}, {}, batch, key)
            return value, (state, metrics)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image)

    predict = jax.jit(lambda params, image, is_masked: network.apply(
        {"params": params}, image, is_masked, NUM_MASKED).patches)
    return SimpleNamespace(
        task=task, network=network, params=variables["params"], image=image,
        view=by_hand.images(IMAGES, PX, 1), run=run,
        predict=lambda params, image, is_masked: np.asarray(predict(
            params, by_hand.normalised(image, MEAN, STD), is_masked)))


@pytest.fixture(scope="module")
def step(wired):
    """One step by a key: loss, metrics, gradients, and the masks that these tell."""
    (loss, (state, metrics)), (grads, of_image) = wired.run(
        wired.params, wired.image, wired.view, jax.random.key(3))
    return SimpleNamespace(loss=loss, state=state, metrics=metrics, grads=grads,
                           is_masked=by_hand.unseen(of_image, PATCH))


def test_six_of_sixteen_patches_of_each_image_are_hidden_and_not_the_same(wired, step):
    np.testing.assert_array_equal(step.is_masked.sum(axis=1), NUM_MASKED)
    assert len({mask.tobytes() for mask in step.is_masked}) == IMAGES
    _, (_, of_image) = wired.run(wired.params, wired.image, wired.view, jax.random.key(4))
    assert np.any(by_hand.unseen(of_image, PATCH) != step.is_masked, axis=1).all()


def test_the_loss_and_its_metrics_are_those_of_the_hidden_patches(wired, step):
    predicted = wired.predict(wired.params, wired.image, step.is_masked)
    expected, _ = by_hand.over_hidden(predicted, pixels_of(wired.view), step.is_masked,
                                      by_hand.squared)
    assert float(step.loss) == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert step.state == {}
    found = {name: float(value) for name, value in step.metrics.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_gradient_is_the_slope_of_that_loss_and_reaches_every_trained_leaf(wired, step):
    target = pixels_of(wired.view)

    def loss(params):
        predicted = wired.predict(params, wired.image, step.is_masked)
        return by_hand.over_hidden(predicted, target, step.is_masked, by_hand.squared)[0]["loss"]

    by_hand.check_slope(loss, wired.params, step.grads)
    by_hand.check_leaves(step.grads, FIXED)


def test_hidden_pixels_and_targets_of_visible_patches_change_nothing(wired, step):
    def loss(image, view):
        (value, _), _ = wired.run(wired.params, image, view, jax.random.key(3))
        return float(value)

    image, view = wired.image, wired.view
    assert loss(by_hand.repainted(image, step.is_masked, PATCH), view) == float(step.loss)
    assert loss(image, by_hand.repainted(view, ~step.is_masked, PATCH)) == float(step.loss)
    for row, mask in enumerate(step.is_masked):  # and one hidden or visible patch changes it
        one = np.zeros_like(step.is_masked)
        one[row, np.flatnonzero(mask)[-1]] = True
        assert loss(image, by_hand.repainted(view, one, PATCH)) != float(step.loss)
        one[row] = np.arange(16) == np.flatnonzero(~mask)[-1]
        assert loss(by_hand.repainted(image, one, PATCH), view) != float(step.loss)


def test_without_a_second_view_the_target_is_the_image_itself(wired, step):
    @jax.jit
    def loss(image):
        return wired.task.loss(wired.params, {}, {}, {"image": image}, jax.random.key(3))[0]

    predicted = wired.predict(wired.params, wired.image, step.is_masked)
    expected, _ = by_hand.over_hidden(predicted, pixels_of(wired.image), step.is_masked,
                                      by_hand.squared)
    assert float(loss(np.uint8(wired.image))) == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)


# --- evaluation -----------------------------------------------------------------------------------

def test_evaluation_sums_over_real_examples_whose_masks_follow_their_numbers(wired):
    evaluate = jax.jit(lambda **batch: wired.task.eval_step({"params": wired.params}, {}, batch))
    batch = dict(image=wired.image, image_for_target=wired.view,
                 index=np.array([7, 300, 12, 0, 1], np.int32), is_example=np.ones(IMAGES, bool))
    is_masked = np.zeros((IMAGES, 16), bool)
    for row in range(IMAGES):  # what the encoder does not look at
        alone = batch | {"is_example": np.arange(IMAGES) == row}
        before = float(evaluate(**alone)["loss"])
        for patch in range(16):
            one = np.zeros_like(is_masked)
            one[row, patch] = True
            changed = alone | {"image": by_hand.repainted(wired.image, one, PATCH)}
            is_masked[row, patch] = float(evaluate(**changed)["loss"]) == before
    np.testing.assert_array_equal(is_masked.sum(axis=1), NUM_MASKED)
    assert len({mask.tobytes() for mask in is_masked}) == IMAGES

    target = pixels_of(wired.view)
    predicted = wired.predict(wired.params, wired.image, is_masked)
    kept = slice(0, 3)
    expected, _ = by_hand.over_hidden(predicted[kept], target[kept], is_masked[kept],
                                      by_hand.squared)
    found = evaluate(**batch | {"is_example": np.arange(IMAGES) < 3})
    expected = {name: expected[name] for name in ("loss", "cosine")}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"count": 3.0} | {name: 3 * mean for name, mean in expected.items()}, rel=1e-4, abs=1e-5)
    summary = wired.task.summarize(jax.device_get(found))
    assert summary == pytest.approx(expected, rel=1e-4, abs=1e-5)

    # the same in another order, whatever stands in rows that are no examples
    order = np.array([4, 2, 0, 1, 3])
    turned = {name: rows[order] for name, rows in batch.items()}
    turned["is_example"] = order < 3
    turned["image"] = np.where(turned["is_example"][:, None, None, None], turned["image"], 0)
    again = evaluate(**turned)
    assert float(again["loss"]) == pytest.approx(float(found["loss"]), rel=1e-5)
    other = evaluate(**batch | {"index": batch["index"] + 1, "is_example": np.arange(IMAGES) < 3})
    assert float(other["loss"]) != float(found["loss"])


def test_features_are_the_mean_patch_of_the_normalised_image(wired):
    image = by_hand.normalised(wired.image, MEAN, STD)
    ours, tokens = jax.jit(lambda params: (
        wired.task.features({"params": params}, {}, {"image": np.uint8(wired.image)}),
        wired.network.apply({"params": params}, image, method="features")))(wired.params)
    np.testing.assert_allclose(ours, np.asarray(tokens)[:, 1:].mean(axis=1), atol=1e-5)


# --- drop path ------------------------------------------------------------------------------------

def test_drop_path_follows_the_key_where_the_masks_do_not(wired, monkeypatch):
    fixed = np.arange(16)[None] < np.full((IMAGES, 1), NUM_MASKED)
    monkeypatch.setattr(masking.MaskOptions, "draw", lambda self, keys, grid: jnp.asarray(fixed))
    task = tasks.make(config_of(drop_path_rate=0.9))
    batch = {"image": wired.image, "image_for_target": wired.view}
    loss = jax.jit(lambda key: task.loss(wired.params, {}, {}, batch, key)[0])
    values = [float(loss(jax.random.key(seed))) for seed in (0, 1, 2, 2)]
    assert len(set(values)) == 3 and values[2] == values[3]
    plain, _ = by_hand.over_hidden(wired.predict(wired.params, wired.image, fixed),
                                   pixels_of(wired.view), fixed, by_hand.squared)
    assert all(abs(value - plain["loss"]) > 1e-3 for value in values)


# --- learning -------------------------------------------------------------------------------------

def test_it_learns_to_read_hidden_patches_off_the_visible_ones_and_off_nothing_else(wired):
    """Each image has one texture all over: shown that of another one, it predicts the wrong one."""
    texture = np.random.RandomState(0).randint(0, 256, (IMAGES, PATCH, PATCH, 3))
    image = np.tile(texture, (1, PX // PATCH, PX // PATCH, 1)).astype(np.float32)
    start, unravel = ravel_pytree(wired.params)
    place, mean, square = np.asarray(start), np.zeros(start.size), np.zeros(start.size)
    for count in range(1, 121):  # Adam
        _, (grads, _) = wired.run(unravel(place), image, image, jax.random.key(count))
        gradient = np.asarray(ravel_pytree(grads)[0])
        mean += 0.1 * (gradient - mean)
        square += 0.01 * (gradient ** 2 - square)
        step = mean / (1 - 0.9 ** count) / (np.sqrt(square / (1 - 0.99 ** count)) + 1e-8)
        place = np.float32(place - 3e-3 * step)
    params = unravel(place)

    def loss(image, view, seed):
        return float(wired.run(params, image, view, jax.random.key(seed))[0][0])

    fresh = range(200, 204)  # masks that it has not seen
    own = np.mean([loss(image, image, seed) for seed in fresh])
    shuffled = np.mean([loss(np.roll(image, 1, axis=0), image, seed) for seed in fresh])
    assert own < 0.3 and shuffled > 1.0
