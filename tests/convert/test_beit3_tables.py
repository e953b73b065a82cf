"""BEiT-3's image path under the names of timm's beit3_*."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import convert
from beit_jax.convert.__main__ import main
from beit_jax.models import beit3_heads
from beit_jax.models.beit3 import POSITION_OFFSET

SIZES = dict(image_px=16, patch_size=4, width=8, depth=2, num_heads=2, vocab_size=20,
             text_positions=12)
POSITIONS = "embed_positions/A/embedding"
TEXT = jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool)


def filled(model, *args) -> dict:
    """Flat parameters of a model, every number another."""
    random = np.random.RandomState(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), *args)
    return {name: random.standard_normal(leaf.shape).astype(np.float32)
            for name, leaf in convert.flatten(shapes["params"]).items()}


@pytest.fixture(scope="module")
def classifier():
    return filled(beit3_heads.Beit3ForClassification(**SIZES, num_classes=3, modalities="vision"))


def test_the_names_and_shapes_are_those_of_timm(classifier):
    theirs = convert.to_reference(classifier, "timm_beit3")
    norms = ("norm1", "norm2", "attn.norm", "mlp.norm")
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    in_blocks = {f"blocks.{i}.{part}.{leaf}" for i in range(2) for part in norms + linears
                 for leaf in ("weight", "bias")}
    assert set(theirs) == in_blocks | {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert theirs["pos_embed"].shape == (1, 17, 8)
    assert theirs["blocks.1.attn.qkv.weight"].shape == (24, 8)
    for i, name in enumerate("qkv"):
        ours = {leaf: classifier[f"blocks/self_attn/{name}_proj/A/{leaf}"][1]
                for leaf in ("kernel", "bias")}
        rows = slice(8 * i, 8 * (i + 1))
        np.testing.assert_array_equal(theirs["blocks.1.attn.qkv.weight"][rows], ours["kernel"].T)
        np.testing.assert_array_equal(theirs["blocks.1.attn.qkv.bias"][rows], ours["bias"])


def test_a_round_trip_changes_only_the_positions_that_nobody_reads(classifier):
    back = convert.to_ours(convert.to_reference(classifier, "timm_beit3"), "timm_beit3")
    assert set(classifier) - set(back) == {"vision_embed/mask_token"}
    for name in back:
        value = classifier[name]
        rows = slice(POSITION_OFFSET if name == POSITIONS else 0, None)
        np.testing.assert_array_equal(back[name][rows], value[rows], err_msg=name)
    assert not back[POSITIONS][:POSITION_OFFSET].any()


@pytest.mark.parametrize("model", [beit3_heads.Beit3ForPretraining, beit3_heads.Beit3ForRetrieval])
def test_texts_and_what_is_for_them_stay_behind_and_are_named(tmp_path, capsys, model):
    ours = filled(model(**SIZES), *TEXT)
    np.savez(tmp_path / "ours.npz", **ours)
    path = tmp_path / "timm.safetensors"
    assert not main(["--source", "timm_beit3", "--reverse", "--input", str(tmp_path / "ours.npz"),
                     "--output", str(path)])
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()
            if line.startswith("ignored ")]
    theirs = convert.to_reference(ours, "timm_beit3")
    assert {"norm.weight", "norm.bias"} < set(theirs)  # of tokens: there is no fc_norm
    back = {name.rstrip(":") for name in told} | set(convert.to_ours(theirs, "timm_beit3"))
    assert back == set(ours) and "blocks/ffn/B/fc1/kernel:" in told


def test_what_timm_has_no_place_for_is_refused():
    vqa = filled(beit3_heads.Beit3ForVqa(**SIZES, num_classes=3), *TEXT)
    with pytest.raises(ValueError, match="no row of the name table knows our head/"):
        convert.to_reference({k: v for k, v in vqa.items() if not k.startswith("pooler")},
                             "timm_beit3")
    shared = filled(beit3_heads.Beit3ForClassification(
        **SIZES, num_classes=3, modalities="vision", attention_experts="shared"))
    with pytest.raises(ValueError, match="modalities share it"):
        convert.to_reference(shared, "timm_beit3")
