"""The student's own average as its teacher, by hand: which blocks, which norms, which image."""

from types import SimpleNamespace

import jax
import masked_tasks as by_hand
import numpy as np
import pytest

from beit_jax import tasks
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from beit_jax.models.vit import VisionTransformer
from configs.mae import ablations

PX, PATCH, NUM_MASKED, IMAGES, DEPTH, BLOCKS = 32, 8, 6, 4, 3, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OF_TEACHER = ("patch_embed", "cls_token", "pos_embed", "blocks")


@pytest.fixture(scope="module")
def step():
    """One step of the recipe with a third block, so that two of them are not all."""
    config = ablations.get_config("ema_smoke").stages.pretrain
    config.model.depth, config.target.decay = DEPTH, 0.75
    assert (config.target.blocks, config.loss.kind, config.loss.beta) == (BLOCKS, "smooth_l1", 2.0)
    task, image = tasks.make(config), by_hand.images(IMAGES, PX, 0)
    batch = {"image": image}
    variables = by_hand.filled(task.init, batch)
    assert variables.keys() == {"params", "average"} and task.frozen == {}
    average = by_hand.filled(task.init, batch, seed=1)["average"]
    assert average.keys() == set(OF_TEACHER)

    @jax.jit
    def run(params, average, image):
        def loss(params, average, image):
            return task.loss(params, {"average": average}, {}, {"image": image}, jax.random.key(3))

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, average, image)

    (loss, (state, metrics)), (grads, of_average, of_image) = run(
        variables["params"], average, image)
    return SimpleNamespace(
        config=config, task=task, params=variables["params"], average=average, image=image,
        loss=loss, state=state, metrics=metrics, grads=grads, of_average=of_average,
        is_masked=by_hand.unseen(of_image, PATCH))


@pytest.fixture(scope="module")
def target(step):
    """data2vec: the last two blocks' outputs, each under a norm, averaged, under one more norm."""
    sizes = step.config.model
    teacher = VisionTransformer(
        image_px=PX, patch_size=PATCH, width=sizes.width, depth=DEPTH, num_heads=sizes.num_heads,
        layer_scale_init=0.0, use_abs_pos=True, use_k_bias=True)
    whole = by_hand.normalised(step.image, MEAN, STD)  # nothing is hidden from the teacher
    _, outputs = jax.jit(lambda average: teacher.apply(
        {"params": average}, whole, all_blocks=True, method="encode"))(step.average)
    last, before = (by_hand.layer_normed(outputs[i], 1e-5) for i in (-1, -2))
    return by_hand.layer_normed((last + before) / 2, 1e-5)[:, 1:]


def test_every_image_has_its_own_mask(step):
    np.testing.assert_array_equal(step.is_masked.sum(axis=1), NUM_MASKED)
    assert len({mask.tobytes() for mask in step.is_masked}) == IMAGES


def test_the_loss_is_the_distance_of_hidden_patches_to_the_averaged_encoder_s_tokens(step, target):
    network = MaskedAutoencoder(**step.config.model.to_dict(),
                                target_dim=step.config.model.width)
    image = by_hand.normalised(step.image, MEAN, STD)
    predict = jax.jit(lambda params: network.apply(
        {"params": params}, image, step.is_masked, NUM_MASKED).patches)

    def loss(params):
        return by_hand.over_hidden(np.asarray(predict(params)), target, step.is_masked,
                                   by_hand.smooth_l1)[0]

    expected = loss(step.params)
    assert {name: float(value) for name, value in step.metrics.items()} == pytest.approx(
        expected, rel=1e-4, abs=1e-5)
    assert float(step.loss) == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    by_hand.check_slope(lambda params: loss(params)["loss"], step.params, step.grads)


def test_the_student_learns_and_the_average_does_not(step):
    by_hand.check_leaves(step.grads, ("pos_embed", "decoder_pos_embed"))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(step.of_average))
    jax.tree.map(np.testing.assert_array_equal, step.state, {"average": step.average})


def test_an_update_moves_the_average_a_quarter_of_the_way_to_the_student(step):
    moved = step.task.end_step(step.params, {"average": step.average})
    assert moved.keys() == {"average"}
    student = {name: step.params[name] for name in OF_TEACHER}
    jax.tree.map(lambda new, old, now: np.testing.assert_allclose(
        new, 0.75 * old + 0.25 * now, atol=1e-6), moved["average"], step.average, student)
    begun = step.task.begin({"params": step.params}, {}, {"image": step.image}, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, begun, {"average": student})
