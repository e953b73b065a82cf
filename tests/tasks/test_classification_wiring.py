"""The classifier's task against its formulas: what augmentation does is read off its input."""

import types

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beitv2_tasks import filled

from beit_jax import tasks
from beit_jax.models.beit import BeitForClassification
from beit_jax.tasks import classification
from configs.beit import finetune_in1k

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, SMOOTHING = 10, 0.1
LABEL = np.array([3, 1, 4, 1, 5, 9, -1, 6])  # row 6 has none
# The second axis of groups is the batch's first: of 8 rows in groups of 4, every other one.
PARTNER = {0: 6, 2: 4, 4: 2, 6: 0, 1: 7, 3: 5, 5: 3, 7: 1}
KEYS = [jax.random.key(seed) for seed in range(6)]


def built(**augment):
    """The recipe base_pt1k at toy size; step: key -> ((loss, metrics), gradient, inputs).

    Row k of the images is one gray, another one in each row.
    """
    config = finetune_in1k.get_config("base_pt1k_smoke")
    config.update(dtype="float32")
    config.model.update(num_classes=CLASSES, drop_path_rate=0.5)
    config.augment.update(augment)
    assert config.loss.label_smoothing == SMOOTHING
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "BeitForClassification",
                      by_hand.watched(BeitForClassification, calls))
        task = tasks.make(config)
    image = np.broadcast_to(np.arange(8)[:, None, None, None] * 30 + 10, (8, 32, 32, 3))
    batch = {"image": image.astype(np.uint8), "label": LABEL, "index": np.arange(8),
             "is_example": np.arange(8) != 5}
    params = filled(task.init, batch)["params"]
    # favorites in this order: no accuracy hangs on a near tie
    params["head"]["bias"][[1, 3, 8, 0, 4]] += [7.5, 6.0, 4.5, 3.0, 1.5]

    step = by_hand.step_of(task, calls)
    network = BeitForClassification(**config.model)
    forward = jax.jit(lambda params, image, key: network.apply(
        {"params": params}, image, train=True, rngs={"drop_path": key}))
    return types.SimpleNamespace(task=task, calls=calls, network=network, batch=batch,
                                 params=params, forward=forward,
                                 step=lambda key: step(params, {}, batch, key))


@pytest.fixture(scope="module")
def mixed():
    """Mixup and cutmix, no erasing."""
    return built(random_erasing=0.0)


@pytest.fixture(scope="module")
def erased():
    """Erasing of every image, no mixing."""
    return built(random_erasing=1.0, mixup=0.0, cutmix=0.0)


def smooth(label):
    """1 - s + s / C for the label's class, s / C for the others; without label these alone."""
    target = np.full(CLASSES, SMOOTHING / CLASSES)
    if label >= 0:
        target[label] += 1 - SMOOTHING
    return target


def shares_of(image):
    """(kind, share of itself that each row has kept), by its pixels."""
    gray = by_hand.normalized(np.arange(8)[:, None] * 30 + np.full(3, 10), MEAN, STD)
    shares, kinds = [], []
    for row in range(8):
        own, other = gray[row], gray[PARTNER[row]]
        # of each pixel: 1 where it is the row's own, 0 where the partner's
        share = np.mean((np.asarray(image[row], np.float64) - other) / (own - other), axis=-1)
        is_cut = np.all((np.abs(share) < 1e-4) | (np.abs(share - 1) < 1e-4))
        assert is_cut or np.ptp(share) < 1e-4
        kinds.append("cutmix" if is_cut else "mixup")
        shares.append(share.mean())
    return kinds, np.array(shares)


def test_the_loss_mixes_targets_by_the_shares_that_the_images_have(mixed):
    """Cross-entropy with share * smooth(own) + (1 - share) * smooth(partner); row 6 counts not."""
    kinds, shares = set(), set()
    for key in KEYS:
        (loss, metrics), grads, seen = mixed.step(key)
        assert seen["train"]
        of_rows, share = shares_of(seen["image"])
        kinds |= set(of_rows)
        shares |= set(share.round(3))
        assert of_rows[0::2] == of_rows[:1] * 4 and of_rows[1::2] == of_rows[1:2] * 4
        np.testing.assert_allclose(share, share[[0, 1] * 4], atol=1e-4)  # one draw for a group
        logits, pull = jax.vjp(lambda params, seen=seen: mixed.forward(
            params, seen["image"], seen["drop_key"]), mixed.params)
        errors, hits, of_logits = [], [], np.zeros(logits.shape, np.float32)
        for row in range(8):
            target = (share[row] * smooth(LABEL[row])
                      + (1 - share[row]) * smooth(LABEL[PARTNER[row]]))
            guess = by_hand.softmax(logits[row])
            if LABEL[row] >= 0:
                errors.append(-np.sum(target * np.log(guess)))
                hits.append(by_hand.winner(np.asarray(logits[row])) == LABEL[row])
                of_logits[row] = (guess * target.sum() - target) / 7
        assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)
        assert float(metrics["loss"]) == pytest.approx(float(loss))
        assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits), rel=1e-5)
    assert 0 < sum(hits) < 7
    by_hand.assert_close(grads, pull(jnp.asarray(of_logits))[0])
    by_hand.assert_all_trained(grads)
    assert kinds == {"mixup", "cutmix"} and len(shares) > 6


def test_images_are_normalized_and_one_rectangle_of_each_becomes_noise(erased):
    plain = by_hand.normalized(erased.batch["image"], MEAN, STD)
    found = []
    for key in KEYS[:2]:
        _, _, seen = erased.step(key)
        changed = np.any(np.abs(np.asarray(seen["image"]) - plain) > 1e-4, axis=-1)
        for row in range(8):
            rows, columns = (np.flatnonzero(changed[row].any(axis=axis)) for axis in (1, 0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert changed[row].sum() == height * width > 0.01 * 32 * 32
        found += [box.tobytes() for box in changed]
    assert len(set(found)) == 16


def test_the_loss_of_erased_images_is_the_smoothed_one_and_keys_drop_other_paths(erased):
    drop_keys = []
    for key in KEYS[:2]:
        (loss, _), _, seen = erased.step(key)
        logits = np.asarray(erased.forward(erased.params, seen["image"], seen["drop_key"]))
        errors = [-np.sum(smooth(LABEL[row]) * np.log(by_hand.softmax(logits[row])))
                  for row in range(8) if LABEL[row] >= 0]
        assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)
        drop_keys.append(jax.random.key_data(seen["drop_key"]).tolist())
        others = erased.forward(erased.params, seen["image"], jax.random.key(99))
        assert np.abs(others - logits).max() > 1e-3
    assert drop_keys[0] != drop_keys[1]


def test_images_are_erased_before_they_are_mixed():
    """The noise of one shows in the image that it is mixed into, not only in its own."""
    made = built(random_erasing=1.0, cutmix=0.0)
    _, _, seen = made.step(KEYS[0])
    image = np.asarray(seen["image"])
    gray = by_hand.normalized(np.arange(8)[:, None] * 30 + np.full(3, 10), MEAN, STD)
    for row in range(8):
        # the sum of both is that of two grays where neither was erased, whatever the shares
        other = PARTNER[row]
        noisy = np.any(np.abs(image[row] + image[other] - gray[row] - gray[other]) > 1e-3, axis=-1)
        base = image[row][~noisy][0]
        assert np.any(np.abs(image[row][noisy] - base) > 1e-4, axis=-1).all()
        assert noisy.sum() > 0.01 * 32 * 32


def test_evaluation_looks_at_the_plain_image_and_counts_labelled_examples(mixed):
    batch = mixed.batch | {"image": by_hand.noise(8, 32)}
    evaluate = by_hand.evaluation_of(mixed.task, mixed.calls)
    sums, seen = evaluate(mixed.params, {}, batch)
    np.testing.assert_allclose(seen["image"], by_hand.normalized(batch["image"], MEAN, STD),
                               atol=1e-5)
    assert not seen["train"] and seen["drop_key"] is None
    logits = np.asarray(jax.jit(mixed.network.apply)({"params": mixed.params}, seen["image"]))
    expected = dict(loss=0.0, top1=0, top5=0, count=0)
    for row in (0, 1, 2, 3, 4, 7):  # 5 is a filler, 6 has no label
        expected["loss"] -= np.log(by_hand.softmax(logits[row])[LABEL[row]])
        expected["top1"] += by_hand.winner(logits[row]) == LABEL[row]
        assert sorted(np.argsort(-logits[row])[:5]) == [0, 1, 3, 4, 8]
        expected["top5"] += LABEL[row] in (0, 1, 3, 4, 8)
        expected["count"] += 1
    assert (expected["top1"], expected["top5"]) == (2, 4)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-4)
    assert mixed.task.summarize(sums)["top1"] == pytest.approx(expected["top1"] / 6)
