"""Initial values against one draw of the original, for pre-training and fine-tuning models."""

import golden as golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vit_models import model_of

from beit_jax import convert
from beit_jax.models.beit import BeitForClassification, BeitForMim

FILES = golden_files.load("init_stats")


@pytest.mark.parametrize("prefix", ["mim", "finetune"])
@pytest.mark.parametrize("golden", FILES, ids=golden_files.name)
def test_moments_of_every_parameter(golden, prefix):
    names = [str(n) for n in golden.arrays["names"]]
    stats = {n.removeprefix(f"{prefix}:"): row for n, row in zip(names, golden.arrays["stats"],
                                                                 strict=True)
             if n.startswith(f"{prefix}:")}
    has_blocks = "blocks.0.attn.relative_position_bias_table" in stats
    cls = BeitForMim if prefix == "mim" else BeitForClassification
    config = golden.config | {
        "use_abs_pos_emb": "pos_embed" in stats, "use_rel_pos_bias": has_blocks,
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in stats}
    if cls is BeitForClassification:
        config["num_classes"] = int(stats["head.bias"][4])
        config["use_mean_pooling"] = "fc_norm.weight" in stats
    model = model_of(config, cls)
    image = jnp.zeros((1, config["img_size"], config["img_size"], 3))
    args = (jnp.zeros((1, model.num_patches), bool),) if cls is BeitForMim else ()
    params = jax.jit(model.init)(jax.random.key(0), image, *args)["params"]
    ours = convert.to_reference(
        {k: np.asarray(v) for k, v in convert.flatten(params).items()}, "microsoft")
    assert set(ours) == set(stats)
    for name, (mean, std, low, high, numel) in stats.items():
        values = ours[name].astype(np.float64)
        assert values.size == numel, name
        noise = 5 * np.sqrt(2.0 / numel)  # five standard errors of the difference of two draws
        assert abs(values.mean() - mean) <= noise * std + 1e-7, name
        assert abs(values.std() - std) <= noise * std / np.sqrt(2) + 1e-7, name
        if numel > 10_000 and std > 0:  # extremes tell where a distribution is cut
            assert values.max() == pytest.approx(high, rel=0.25), name
            assert values.min() == pytest.approx(low, rel=0.25), name
