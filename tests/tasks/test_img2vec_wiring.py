"""Img2Vec's task by hand: both losses, with a transformer and with a coarser convolutional teacher.

The gradient for the image tells what the encoder sees: no gradient passes the teacher.
"""

from types import SimpleNamespace

import jax
import masked_tasks as by_hand
import numpy as np
import pytest

from beit_jax import tasks
from beit_jax.models.masked_autoencoder import MaskedAutoencoder
from beit_jax.models.plain_vit import PlainVit
from beit_jax.models.resnet import ResNet
from configs.img2vec import ablations, pretrain

PX, PATCH, IMAGES = 32, 8, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEY = 3
HEAD = dict(global_layers=2, global_hidden=32)


def with_transformer(**loss):
    """A teacher with a token for each of 16 patches; 6 of them are hidden."""
    config = ablations.get_config("teacher_dino_smoke").stages.pretrain
    config.target.dtype = "float32"
    config.loss.update(loss)
    return config


def network_of(config, dim, grid, **fields):
    """images, is_masked -> predictions of the student, patches and pooled."""
    network = MaskedAutoencoder(**config.model.to_dict(), target_dim=dim, target_grid=grid,
                                **HEAD, **fields)
    num_masked = config.mask.num_masked

    @jax.jit
    def apply(params, image, is_masked):
        return network.apply({"params": params}, image, is_masked, num_masked)

    return lambda params, image, is_masked: [np.asarray(part) for part in apply(
        params, by_hand.normalised(image, MEAN, STD), is_masked)]


def stepped(config, batch):
    """Variables of a task, and what one step of it gives."""
    task = tasks.make(config)
    variables = by_hand.filled(task.init, batch)
    assert variables.keys() == {"params"} and task.frozen.keys() == {"teacher"}
    teacher = by_hand.filled(task.frozen["teacher"].init, seed=1)

    @jax.jit
    def run(params, teacher, batch):
        def loss(params, teacher, image):
            return task.loss(params, {}, {"teacher": teacher}, batch | {"image": image},
                             jax.random.key(KEY))

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            params, teacher, batch["image"])

    (loss, (state, metrics)), (grads, of_teacher, of_image) = run(
        variables["params"], teacher, batch)
    assert state == {}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))
    return SimpleNamespace(
        task=task, params=variables["params"], teacher=teacher, batch=batch, loss=loss,
        metrics={name: float(value) for name, value in metrics.items()}, grads=grads,
        is_masked=by_hand.unseen(of_image, PATCH))


def both_losses(patches, pooled, tokens, is_masked):
    """The metrics by the paper's formulas; tokens [b, k, c] are the teacher's, raw."""
    target = by_hand.layer_normed(tokens, 1e-6)
    found, _ = by_hand.over_hidden(patches, target, is_masked, by_hand.smooth_l1)
    wanted = by_hand.layer_normed(np.float64(tokens).mean(axis=1), 1e-6)
    of_image = np.mean([by_hand.smooth_l1(p, t) for p, t in zip(pooled, wanted)])
    return found | {"loss": found["loss"] + 0.5 * of_image, "loss_patch": found["loss"],
                    "loss_global": of_image}


# --- a token for each patch -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def step():
    return stepped(with_transformer(), {"image": by_hand.images(IMAGES, PX, 0)})


@pytest.fixture(scope="module")
def tokens(step):
    """The teacher's patch tokens of the whole image, raw: [b, 16, 32]."""
    network = PlainVit(image_px=PX, patch_size=PATCH, width=32, depth=2, num_heads=2)
    image = by_hand.normalised(step.batch["image"], MEAN, STD)
    return np.asarray(jax.jit(lambda v: network.apply(v, image))(step.teacher))[:, 1:]


def test_every_image_has_its_own_mask_of_single_patches(step):
    np.testing.assert_array_equal(step.is_masked.sum(axis=1), 6)
    assert len({mask.tobytes() for mask in step.is_masked}) == IMAGES


def test_the_loss_is_that_of_hidden_patches_and_half_that_of_the_whole_image(step, tokens):
    student = network_of(with_transformer(), 32, (4, 4))

    def losses(params):
        return both_losses(*student(params, step.batch["image"], step.is_masked), tokens,
                           step.is_masked)

    expected = losses(step.params)
    assert step.metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(step.loss) == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert expected["loss_global"] > 0.05  # half of it is seen
    by_hand.check_slope(lambda params: losses(params)["loss"], step.params, step.grads)


def test_every_trained_leaf_has_a_gradient(step):
    by_hand.check_leaves(step.grads, ("pos_embed", "decoder_pos_embed"))


def test_the_global_loss_may_read_the_last_block_and_aim_at_the_mean_of_normed_tokens(step, tokens):
    config = with_transformer(global_source="last", global_target="mean_of_normalised")
    task = tasks.make(config)

    @jax.jit
    def loss(params, teacher):
        return task.loss(params, {}, {"teacher": teacher}, step.batch, jax.random.key(KEY))

    _, (_, metrics) = loss(step.params, step.teacher)
    student = network_of(config, 32, (4, 4), global_source="last")
    _, pooled = student(step.params, step.batch["image"], step.is_masked)
    wanted = by_hand.layer_normed(tokens, 1e-6).mean(axis=1)
    expected = np.mean([by_hand.smooth_l1(p, t) for p, t in zip(pooled, wanted)])
    assert float(metrics["loss_global"]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert float(metrics["loss_patch"]) == pytest.approx(step.metrics["loss_patch"], rel=1e-4)
    assert abs(expected - step.metrics["loss_global"]) > 1e-3


# --- a token for four patches ---------------------------------------------------------------------

def test_the_recipe_predicts_each_hidden_cell_of_the_convolutional_teacher_once():
    config = pretrain.get_config("smoke")
    config.target.dtype = "float32"
    batch = {"image": by_hand.images(IMAGES, PX, 0),
             "image_for_target": by_hand.images(IMAGES, 64, 1)}
    step = stepped(config, batch)
    cells = step.is_masked.reshape(IMAGES, 2, 2, 2, 2)  # row, row in it, column, column in it
    assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()
    cells = cells.all(axis=(2, 4)).reshape(IMAGES, 4)
    np.testing.assert_array_equal(cells.sum(axis=1), 2)
    assert len({mask.tobytes() for mask in cells}) > 1

    network = ResNet((1, 1, 1, 1), (8, 8, 8, 8), 8)
    view = by_hand.normalised(batch["image_for_target"], MEAN, STD)  # the second one
    tokens = np.asarray(jax.jit(lambda v: network.apply(v, view))(step.teacher)).reshape(
        IMAGES, 4, 32)
    student = network_of(config, 32, (2, 2))
    expected = both_losses(*student(step.params, batch["image"], step.is_masked), tokens, cells)
    assert step.metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    by_hand.check_leaves(step.grads, ("pos_embed", "decoder_pos_embed"))
