"""BEiT's task against its formulas, with codes that are the numbers of the patches."""

import types

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beitv2_tasks import filled

from beit_jax import tasks
from beit_jax.models.beit import BeitForMim
from beit_jax.targets.dvae import DvaeTokenizer
from beit_jax.tasks import beit_pretrain, image_codes
from configs.beit import pretrain_in1k

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAVORED = 5  # the code that the network always prefers: no accuracy hangs on a near tie
KEYS = [jax.random.key(seed) for seed in (3, 4)]


def built(view_px=8, **sections):
    """The task of the recipe at toy size, with what the tests need of it.

    Returns: task; calls (see by_hand.watched); network: the same, unwatched; batch; codes [b, n];
      params; frozen.
    """
    config = pretrain_in1k.get_config("smoke")
    config.update(dtype="float32")
    config.model.drop_path_rate = 0.5
    config.mask.update(num_masked=10, min_block=9)  # 3 x 3, and often no room for the tenth
    for name, section in sections.items():
        config[name] = section
    config.data.target_px = view_px
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beit_pretrain, "BeitForMim", by_hand.watched(BeitForMim, calls))
        patch.setitem(image_codes.TOKENIZERS, "dvae", by_hand.numbering(DvaeTokenizer))
        task = tasks.make(config)
    batch = {"image": by_hand.noise(8, 32), "index": np.arange(8) + 40,
             "is_example": np.arange(8) != 5}
    view, codes = by_hand.numbered(by_hand.noise(8, view_px or 32, seed=1), 4)
    if view_px:
        batch["image_for_target"] = view
    params = filled(task.init, batch)["params"]
    if not config.target.kind.endswith("pixels"):
        params["lm_head"]["bias"][FAVORED] += 8.0
    frozen = {name: filled(network.init, seed=1) for name, network in task.frozen.items()}
    network = BeitForMim(**config.model.to_dict() | {
        "vocab_size": params["lm_head"]["bias"].size})
    return types.SimpleNamespace(task=task, calls=calls, network=network, batch=batch, codes=codes,
                                 params=params, frozen=frozen)


@pytest.fixture(scope="module")
def made():
    """`built`, with step: (batch, key) -> ((loss, metrics), gradient, inputs of the network)."""
    made = built()
    step = by_hand.step_of(made.task, made.calls)
    made.step = lambda batch, key: step(made.params, made.frozen, batch, key)
    made.forward = jax.jit(lambda params, seen, key: made.network.apply(
        {"params": params}, seen["image"], seen["is_masked"], train=True,
        rngs={"drop_path": key}))
    return made


def test_loss_metrics_and_gradient_are_those_of_the_formula(made):
    """Minus the log-probability of the code of each masked patch, the mean over all of a batch."""
    (loss, metrics), grads, seen = made.step(made.batch, KEYS[0])
    is_masked = np.asarray(seen["is_masked"])
    logits, pull = jax.vjp(lambda params: made.forward(params, seen, seen["drop_key"]),
                           made.params)
    errors, hits, of_logits = [], [], np.zeros(logits.shape, np.float32)
    for row, patch in zip(*np.nonzero(is_masked)):
        code, share = made.codes[row, patch], by_hand.softmax(logits[row, patch])
        errors.append(-np.log(share[code]))
        hits.append(by_hand.winner(np.asarray(logits[row, patch])) == code)
        of_logits[row, patch] = share / is_masked.sum()
        of_logits[row, patch, code] -= 1 / is_masked.sum()
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)
    assert 0 < sum(hits) < len(hits)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": pytest.approx(np.mean(errors), rel=1e-4),
        "accuracy": pytest.approx(np.mean(hits), rel=1e-5),
        "masked_share": pytest.approx(is_masked.mean(), rel=1e-5)}
    by_hand.assert_close(grads, pull(jnp.asarray(of_logits))[0])
    by_hand.assert_all_trained(grads)


def test_the_student_sees_the_normalized_image_masked_and_drops_paths(made):
    _, _, seen = made.step(made.batch, KEYS[0])
    np.testing.assert_allclose(seen["image"], by_hand.normalized(made.batch["image"], MEAN, STD),
                               atol=1e-5)
    assert seen["train"] and made.network.drop_path_rate == 0.5
    counts = np.asarray(seen["is_masked"]).sum(axis=1)
    assert counts.min() < counts.max() == 10  # a slot is empty: what it predicts must not count


def test_masks_differ_from_row_to_row_and_masks_and_dropped_paths_from_key_to_key(made):
    seen = [made.step(made.batch, key)[2] for key in KEYS]
    for one in seen:
        assert len({row.tobytes() for row in np.asarray(one["is_masked"])}) > 4
    masks = [np.asarray(one["is_masked"]) for one in seen]
    assert np.any(masks[0] != masks[1], axis=1).sum() > 4
    drop_keys = [jax.random.key_data(one["drop_key"]).tolist() for one in seen]
    assert drop_keys[0] != drop_keys[1]


def test_the_content_of_masked_patches_is_not_seen(made):
    (before, _), _, seen = made.step(made.batch, KEYS[0])
    masked = np.asarray(seen["is_masked"]).reshape(8, 4, 4).repeat(8, 1).repeat(8, 2)[..., None]
    image = made.batch["image"]
    for where, same in ((masked, True), (~masked, False)):
        changed = made.batch | {"image": np.where(where, 255 - image, image)}
        (after, _), _, _ = made.step(changed, KEYS[0])
        assert (abs(float(after - before)) < 1e-6) == same


def test_evaluation_counts_masked_patches_of_examples_under_masks_of_their_numbers(made):
    evaluate = by_hand.evaluation_of(made.task, made.calls)
    for start in range(40, 120, 8):  # until some image has an empty slot
        batch = made.batch | {"index": np.arange(8) + start}
        sums, seen = evaluate(made.params, made.frozen, batch)
        is_masked = np.asarray(seen["is_masked"])
        if is_masked.sum(axis=1).min() < 10:
            break
    logits = np.asarray(jax.jit(lambda params: made.network.apply(
        {"params": params}, seen["image"], seen["is_masked"]))(made.params))
    assert not seen["train"]
    assert is_masked.sum(axis=1).min() < is_masked.sum(axis=1).max() == 10
    expected = dict(loss=0.0, accuracy=0, count=0)
    for row, patch in zip(*np.nonzero(is_masked)):
        if row != 5:  # the filler
            code = made.codes[row, patch]
            expected["loss"] -= np.log(by_hand.softmax(logits[row, patch])[code])
            expected["accuracy"] += by_hand.winner(logits[row, patch]) == code
            expected["count"] += 1
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-4)
    turned = {name: rows[::-1] for name, rows in batch.items()}
    again = evaluate(made.params, made.frozen, turned)[1]["is_masked"]
    np.testing.assert_array_equal(again, is_masked[::-1])
    assert len({row.tobytes() for row in is_masked}) > 4


SMALL = dict(image_px=32, patch_size=8, width=8, depth=2, num_heads=1, use_shared_rel_pos=True,
             drop_path_rate=0.9)


def variant(**sections):
    made = built(**dict(model=SMALL) | sections)

    @jax.jit
    def run(key):
        made.calls.clear()
        loss, _ = made.task.loss(made.params, {}, made.frozen, made.batch, key)
        seen, = made.calls
        out = made.network.apply({"params": made.params}, seen["image"], seen["is_masked"],
                                 train=True, rngs={"drop_path": seen["drop_key"]})
        return loss, seen, out

    return made, run


@pytest.mark.parametrize("kind", ["pixels", "normalised_pixels"])
def test_pixels_are_regressed_at_masked_patches_alone(kind):
    """Mean over their values of the squared difference; of normalized pixels if asked for."""
    made, run = variant(target=dict(kind=kind), view_px=0)
    loss, seen, predicted = run(KEYS[0])
    image = by_hand.normalized(made.batch["image"], MEAN, STD)
    errors = []
    for row, patch in zip(*np.nonzero(np.asarray(seen["is_masked"]))):
        y, x = patch // 4 * 8, patch % 4 * 8
        target = image[row, y:y + 8, x:x + 8].ravel()
        if kind == "normalised_pixels":
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
        errors.append(np.mean((predicted[row, patch] - target) ** 2))
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("kind", ["none", "random"])
def test_all_patches_are_predicted_if_asked_for_whether_masked_or_not(kind):
    mask = dict(kind="none") if kind == "none" else dict(kind="random", num_masked=6)
    made, run = variant(mask=mask, loss=dict(positions="all"))
    losses = []
    for key in KEYS:
        loss, seen, logits = run(key)
        assert np.asarray(seen["is_masked"]).sum() == (0 if kind == "none" else 8 * 6)
        errors = [-np.log(by_hand.softmax(logits[row, patch])[made.codes[row, patch]])
                  for row in range(8) for patch in range(16)]
        assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)
        losses.append(float(loss))
    assert abs(losses[0] - losses[1]) > 1e-4  # with kind none by the dropped paths alone
