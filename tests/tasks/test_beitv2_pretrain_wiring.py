"""BEiT v2's task against its formulas, with codes that are the numbers of the patches."""

import types

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beitv2_tasks import filled

from beit_jax import tasks
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.targets.vqkd import VqkdTokenizer
from beit_jax.tasks import beitv2_pretrain, image_codes
from configs.beitv2 import pretrain

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAVORED = {"lm_head": 5, "cls_pt_lm_head": 9}  # by each prediction: no accuracy hangs on a near tie
KEYS = [jax.random.key(seed) for seed in (3, 4)]


@pytest.fixture(scope="module", params=["block_exact", "block"])
def made(request):
    """The recipe at toy size; step: (batch, key) -> ((loss, metrics), gradient, inputs).

    The heads are separate, so that the two predictions are seen apart; the second kind of mask
    leaves slots empty.
    """
    config = pretrain.get_config("smoke")
    config.update(dtype="float32")
    config.model.update(drop_path_rate=0.5, shared_head=False)
    # blocks of 3 x 3, and often no room for the tenth
    config.mask.update(kind=request.param, num_masked=10, min_block=9)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beitv2_pretrain, "BeitV2ForMim", by_hand.watched(BeitV2ForMim, calls))
        patch.setitem(image_codes.TOKENIZERS, "vqkd", by_hand.numbering(VqkdTokenizer))
        task = tasks.make(config)
    image, codes = by_hand.numbered(by_hand.noise(8, 32), 4)
    batch = {"image": image, "index": np.arange(8) + 40, "is_example": np.arange(8) != 5}
    params = filled(task.init, batch)["params"]
    for head, code in FAVORED.items():
        params[head]["bias"][code] += 8.0
    frozen = {"vqkd": filled(task.frozen["vqkd"].init, seed=1)}
    network = BeitV2ForMim(**config.model, vocab_size=16)

    step = by_hand.step_of(task, calls)
    return types.SimpleNamespace(kind=request.param, task=task, calls=calls, batch=batch,
                                 codes=codes, params=params, frozen=frozen, network=network,
                                 step=lambda batch, key: step(params, frozen, batch, key))


def names(prediction):
    return [("loss_final", "accuracy"), ("loss_aggregated", "accuracy_aggregated")][prediction]


def test_both_losses_metrics_and_the_gradient_are_those_of_the_formula(made):
    """Each prediction's cross-entropy at the masked patches; the loss is their sum (Sec. 2.3)."""
    (loss, metrics), grads, seen = made.step(made.batch, KEYS[0])
    is_masked = np.asarray(seen["is_masked"])
    forward = jax.jit(lambda params, key: made.network.apply(
        {"params": params}, seen["image"], seen["is_masked"], train=True,
        rngs={"drop_path": key}))
    both, pull = jax.vjp(lambda params: forward(params, seen["drop_key"]), made.params)
    for logits, others in zip(both, forward(made.params, KEYS[1])):  # paths are dropped
        assert np.abs(logits - others).max() > 1e-3
    expected, cotangents = {"masked_share": is_masked.mean()}, []
    for prediction, logits in enumerate(np.asarray(part) for part in both):
        errors, hits, of_logits = [], [], np.zeros(logits.shape, np.float32)
        for row, patch in zip(*np.nonzero(is_masked)):
            code, share = made.codes[row, patch], by_hand.softmax(logits[row, patch])
            errors.append(-np.log(share[code]))
            hits.append(by_hand.winner(logits[row, patch]) == code)
            of_logits[row, patch] = share / is_masked.sum()
            of_logits[row, patch, code] -= 1 / is_masked.sum()
        expected |= dict(zip(names(prediction), (np.mean(errors), np.mean(hits))))
        cotangents.append(jnp.asarray(of_logits))
    expected["loss"] = expected["loss_final"] + expected["loss_aggregated"]
    assert expected["accuracy"] != expected["accuracy_aggregated"]
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-4)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        expected, rel=1e-4)
    by_hand.assert_close(grads, pull(tuple(cotangents))[0])
    by_hand.assert_all_trained(grads)


def test_the_student_sees_the_normalized_image_under_masks_of_row_and_key(made):
    seen = [made.step(made.batch, key)[2] for key in KEYS]
    masks = [np.asarray(one["is_masked"]) for one in seen]
    for one, is_masked in zip(seen, masks):
        np.testing.assert_allclose(
            one["image"], by_hand.normalized(made.batch["image"], MEAN, STD), atol=1e-5)
        assert one["train"]
        counts = is_masked.sum(axis=1)
        assert counts.max() == 10 and (counts.min() == 10) == (made.kind == "block_exact")
        assert len({row.tobytes() for row in is_masked}) > 4
    assert np.any(masks[0] != masks[1], axis=1).sum() > 4
    drop_keys = [jax.random.key_data(one["drop_key"]).tolist() for one in seen]
    assert drop_keys[0] != drop_keys[1]


def test_evaluation_sums_over_masked_patches_of_examples(made):
    evaluate = by_hand.evaluation_of(made.task, made.calls)
    sums, seen = evaluate(made.params, made.frozen, made.batch)
    is_masked = np.asarray(seen["is_masked"])
    both = jax.jit(lambda params: made.network.apply(
        {"params": params}, seen["image"], seen["is_masked"]))(made.params)
    assert not seen["train"]
    expected = {"count": 0}
    for prediction, logits in enumerate(np.asarray(part) for part in both):
        error, hits, count = 0.0, 0, 0
        for row, patch in zip(*np.nonzero(is_masked)):
            if row != 5:  # the filler
                code = made.codes[row, patch]
                error -= np.log(by_hand.softmax(logits[row, patch])[code])
                hits += by_hand.winner(logits[row, patch]) == code
                count += 1
        expected |= dict(zip(names(prediction), (error, hits)), count=count)
    expected["loss"] = expected["loss_final"] + expected["loss_aggregated"]
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-4)
    turned = {name: rows[::-1] for name, rows in made.batch.items()}
    again = evaluate(made.params, made.frozen, turned)[1]["is_masked"]
    np.testing.assert_array_equal(again, is_masked[::-1])


def test_the_vector_of_an_image_is_its_class_token_with_nothing_masked(made):
    found = jax.jit(made.task.features)({"params": made.params}, {}, made.batch)
    image = by_hand.normalized(made.batch["image"], MEAN, STD).astype(np.float32)
    tokens = jax.jit(lambda params: made.network.apply(
        {"params": params}, image, np.zeros((8, 16), bool), method="features"))(made.params)
    np.testing.assert_allclose(found, tokens[:, 0], atol=1e-5)
