"""Stochastic depth by hand."""

import jax
import numpy as np

from beit_jax.models import layers
from beit_jax.models.vit import VisionTransformer


def test_rows_are_dropped_at_the_rate_and_kept_ones_divided_by_the_share_kept():
    x = np.random.RandomState(0).standard_normal((4000, 3, 2)).astype(np.float32)
    for rate in (0.2, 0.75):
        out = np.asarray(layers.drop_path(x, rate, jax.random.key(0)))
        dropped = ~np.any(out, axis=(1, 2))
        assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / 4000) ** 0.5
        np.testing.assert_allclose(out[~dropped], x[~dropped] / (1 - rate), rtol=1e-6)
        assert not np.array_equal(out, layers.drop_path(x, rate, jax.random.key(1)))


def test_rates_grow_from_0_at_the_first_block_to_the_whole_at_the_last():
    model = VisionTransformer(image_px=16, patch_size=8, width=8, depth=5, num_heads=2,
                              drop_path_rate=0.4)
    np.testing.assert_allclose(model.drop_path_rates(0, 5), [0.0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_both_branches_of_a_block_draw_for_themselves_and_are_divided_by_the_share_kept():
    """Two kinds of weight each: a branch is left out, or counts 1 / (1 - rate) times."""
    model = VisionTransformer(image_px=8, patch_size=8, width=8, depth=2, num_heads=1,
                              layer_scale_init=0.0, drop_path_rate=0.5)
    image = np.broadcast_to(np.random.RandomState(0).rand(1, 8, 8, 3), (64, 8, 8, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, image, method="encode"),
                            jax.random.key(0))["params"]
    random = np.random.RandomState(1)
    params = jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) / 2, shapes)

    def blocks(params, **kwargs):
        _, every = model.apply({"params": params}, image, all_blocks=True, method="encode",
                               **kwargs)
        return np.asarray(every, np.float64)

    # an MLP whose last layer is a bias alone adds the same to all tokens
    params["blocks"]["mlp"]["fc2"]["kernel"][:] = 0.0
    first, second = blocks(params, train=True, rngs={"drop_path": jax.random.key(2)})
    whole_first, whole_second = blocks(params)
    bias = params["blocks"]["mlp"]["fc2"]["bias"][1]
    attention = whole_second[0] - whole_first[0] - bias
    np.testing.assert_allclose(first, whole_first, atol=1e-5)  # the first block drops nothing
    kinds = set()
    for row in range(64):
        added = second[row] - first[row]
        for of_attention in (0, 2):
            for of_mlp in (0, 2):
                if np.allclose(added, of_attention * attention + of_mlp * bias, atol=1e-4):
                    kinds.add((of_attention, of_mlp))
                    break
            else:
                continue
            break
        else:
            raise AssertionError("neither left out nor doubled")
    assert len(kinds) == 4
