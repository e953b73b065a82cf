"""Retrieval: recalls by hand, ties, folds, and what cannot be scored. Golden: tests/golden."""

import numpy as np
import pytest

from beit_jax import retrieval_metrics


def by_sorting(images, texts, own, k):
    """(tr, ir) in percent by full sorts, in float64, for features without ties."""
    scores = images.astype(np.float64) @ texts.T.astype(np.float64)
    best_texts = np.argsort(-scores, axis=1)[:, :k]
    best_images = np.argsort(-scores, axis=0)[:k]
    tr = [bool(set(np.flatnonzero(own == i)) & set(row)) for i, row in enumerate(best_texts)]
    ir = [own[c] in best_images[:, c] for c in range(len(texts))]
    return 100 * np.mean(tr), 100 * np.mean(ir)


def features(num_images, num_texts, seed=0, noise=1.3):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((num_images, 6))
    own = rng.permutation(np.concatenate([
        np.arange(num_images), rng.integers(0, num_images, num_texts - num_images)]))
    texts = images[own] + noise * rng.standard_normal((num_texts, 6))
    return images.astype(np.float32), texts.astype(np.float32), own


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recalls_are_those_of_full_sorts_with_uneven_numbers_of_captions(k, monkeypatch):
    monkeypatch.setattr(retrieval_metrics, "_ROWS", 7)  # several blocks, the last one short
    images, texts, own = features(24, 61)
    found = retrieval_metrics.recalls(images, texts, own)
    tr, ir = by_sorting(images, texts, own, k)
    assert 0 < tr < 100 and 0 < ir < 100  # else this would say little
    assert found[f"tr_r{k}"] == pytest.approx(tr) and found[f"ir_r{k}"] == pytest.approx(ir)


def test_collapsed_features_score_as_chance_does_and_broken_ones_nothing():
    own = np.arange(20)
    found = retrieval_metrics.recalls(np.ones((20, 3)), np.ones((20, 3)), own)
    assert found["ir_r1"] == found["tr_r1"] == pytest.approx(5.0)
    assert found["ir_r10"] == pytest.approx(50.0)
    broken = retrieval_metrics.recalls(np.full((20, 3), np.nan), np.ones((20, 3)), own)
    assert set(broken.values()) == {0.0}


def test_images_without_captions_distract_but_do_not_count():
    images = np.eye(3)
    found = retrieval_metrics.recalls(images, np.array([[1.0, 0, 2.0]]), [0])
    assert found["tr_r1"] == 100.0 and found["ir_r1"] == 0.0 and found["ir_r5"] == 100.0


def test_what_can_only_be_100_is_no_part_of_the_mean():
    images, texts, own = features(6, 12, noise=3.0)  # of 6 images each is among the best 10
    assert retrieval_metrics.certain(6, own) == ("ir_r10",)
    found = retrieval_metrics.recalls(images, texts, own)
    assert found["ir_r10"] == 100.0 and found["mean"] == pytest.approx(np.mean(
        [found[name] for name in ("tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5")]))
    assert found["mean"] < 90
    # two captions of one image and one of another: at most two of others stand before an own one
    assert retrieval_metrics.certain(20, [3, 3, 4]) == ("tr_r5", "tr_r10")
    assert retrieval_metrics.certain(20, np.arange(20)) == ()
    alone = retrieval_metrics.recalls(np.ones((1, 3)), np.ones((2, 3)), [0, 0])
    assert set(alone.values()) == {100.0} and len(alone) == 6  # and no mean
    folds = retrieval_metrics.fold_recalls(np.eye(3), np.eye(3), np.arange(3), num_folds=3)
    assert set(folds.values()) == {100.0} and "mean" not in folds


def test_folds_are_measured_apart_and_averaged():
    images, texts, own = features(20, 40)
    found = retrieval_metrics.fold_recalls(images, texts, own, num_folds=2)
    halves = [retrieval_metrics.recalls(images[a:a + 10], texts[(own >= a) & (own < a + 10)],
                                        own[(own >= a) & (own < a + 10)] - a) for a in (0, 10)]
    assert halves[0]["ir_r1"] != halves[1]["ir_r1"]
    for name, value in found.items():
        assert value == pytest.approx((halves[0][name] + halves[1][name]) / 2)
    assert found["ir_r5"] > retrieval_metrics.recalls(images, texts, own)["ir_r5"]


@pytest.mark.parametrize("own, message", [([0, 1], "3 features of captions and 2"),
                                          ([0, 1, 4], "image 4, but there are images 0 to 1"),
                                          ([0, 1, -1], "image -1,")])
def test_captions_of_no_image_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics.recalls(np.eye(2), np.ones((3, 2)), own)


def test_unequal_folds_are_refused():
    with pytest.raises(ValueError, match="3 images do not make 2 equal folds"):
        retrieval_metrics.fold_recalls(np.eye(3), np.eye(3), np.arange(3), num_folds=2)
