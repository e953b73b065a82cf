"""The linear probe against its formulas: sum over blocks, gradient, labels that are missing."""

import types

import by_hand
import jax
import numpy as np
import pytest
from test_beitv2_tasks import filled

from beit_jax import tasks
from beit_jax.models.vit import VisionTransformer
from configs.beit import linear_probe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABEL = np.array([0, 1, 2, 3, -1, 2, 1, 1])
SCOPE = "block_classifiers"


@pytest.fixture(scope="module")
def made():
    """The recipe base_code_pt1k at toy size: class token and mean patch, [2, 8, 64] features."""
    config = linear_probe.get_config("base_code_pt1k_smoke")
    config.update(dtype="float32")
    config.probe.num_classes = 4
    task = tasks.make(config)
    batch = {"image": by_hand.noise(8, 32), "label": LABEL, "is_example": np.arange(8) != 5}
    variables = filled(task.init, batch)
    variables["params"][SCOPE]["bias"][0, 1] += 3.0  # favorites: no accuracy hangs on a near tie
    variables["params"][SCOPE]["bias"][1, 2] += 3.0
    variables["params"][SCOPE]["kernel"] /= 8
    frozen = {"backbone": filled(task.frozen["backbone"].init, seed=1)}
    image = by_hand.normalized(batch["image"], MEAN, STD).astype(np.float32)
    _, tokens = jax.jit(lambda backbone: VisionTransformer(**config.model).apply(
        backbone, image, all_blocks=True, method="encode"))(frozen["backbone"])
    tokens = np.asarray(tokens, np.float64)  # [2, 8, 17, 32]
    features = np.zeros((2, 8, 64))
    for block in range(2):
        for row in range(8):
            features[block, row] = [*tokens[block, row, 0], *tokens[block, row, 1:].mean(axis=0)]
    kernel, bias = (variables["params"][SCOPE][name] for name in ("kernel", "bias"))
    logits = np.einsum("lbf,lfc->lbc", features, kernel) + bias[:, None]
    return types.SimpleNamespace(task=task, batch=batch, variables=variables, frozen=frozen,
                                 features=features, logits=logits)


def test_loss_accuracy_and_gradient_by_hand(made):
    """Sum over blocks of the mean over labelled rows; the accuracy is that of the best block."""
    (loss, (state, metrics)), grads = jax.jit(jax.value_and_grad(made.task.loss, has_aux=True))(
        made.variables["params"], {}, made.frozen, made.batch, jax.random.key(0))
    rows = np.flatnonzero(LABEL >= 0)
    total, hits = 0.0, np.zeros(2)
    kernel, bias = np.zeros((2, 64, 4)), np.zeros((2, 4))
    for block in range(2):
        for row in rows:
            guess = by_hand.softmax(made.logits[block, row])
            total -= np.log(guess[LABEL[row]]) / len(rows)
            hits[block] += by_hand.winner(made.logits[block, row]) == LABEL[row]
            away = (guess - np.eye(4)[LABEL[row]]) / len(rows)
            kernel[block] += np.outer(made.features[block, row], away)
            bias[block] += away
    assert float(loss) == pytest.approx(total, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-4)
    assert list(hits) == [3, 2]
    assert float(metrics["accuracy"]) == pytest.approx(3 / 7)
    assert state == {}
    by_hand.assert_close(grads, {SCOPE: {"kernel": kernel, "bias": bias}})


def test_evaluation_reports_every_block_and_the_best_of_labelled_examples(made):
    sums = jax.jit(made.task.eval_step)(made.variables, made.frozen, made.batch)
    summary = made.task.summarize(jax.device_get(sums))
    rows = [row for row in range(8) if row != 5 and LABEL[row] >= 0]
    loss, top1 = 0.0, np.zeros(2)
    for block in range(2):
        for row in rows:
            loss -= np.log(by_hand.softmax(made.logits[block, row])[LABEL[row]])
            top1[block] += by_hand.winner(made.logits[block, row]) == LABEL[row]
    assert list(top1) == [3, 1] and len(rows) == 6
    assert summary == pytest.approx(dict(
        loss=loss / 6, top1=3 / 6, best_block=0.0, top1_block_0=3 / 6, top1_block_1=1 / 6),
        rel=1e-4)
