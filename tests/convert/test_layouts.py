"""What does not make a whole network of sizes that agree is refused before a file is written."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_beit2_tables import TEACHERS
from test_files import toy_dvae, toy_vit
from test_tables import DVAES, VITS
from test_teacher_tables import RESNETS

from beit_jax import convert
from beit_jax.convert import files, layouts
from beit_jax.convert.__main__ import main
from beit_jax.models import beit, beit3_heads
from beit_jax.models.vqkd import Vqkd
from beit_jax.targets.resnet import DinoResnet50
from beit_jax.targets.vit_teachers import ClipVitb16, Dinov2Vitb14, DinoVitb16

SIZES = dict(image_px=32, patch_size=16, width=8, num_heads=2)
BEIT3 = dict(image_px=16, patch_size=4, width=8, depth=2, num_heads=2, vocab_size=20,
             text_positions=12)
IMAGE, TEXT = jnp.zeros((1, 16, 16, 3)), (jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool))


def shapes(init, *args, **codebook) -> dict:
    """Flat leaves of a model's variables, as shapes and dtypes."""
    variables = dict(jax.eval_shape(init, jax.random.key(0), *args))
    leaves = convert.flatten(variables.pop("params"))
    return leaves | convert.flatten(
        {name: value for name, value in variables.items() if name == "batch_stats"}) | {
            name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in codebook.items()}


def teacher(cls, **sizes):
    return shapes(cls(**sizes).init)


VIT = dict(image_px=32, width=8, depth=2, num_heads=2)
WHOLE = {
    "microsoft": lambda: shapes(
        beit.BeitV2ForMim(**SIZES, depth=4, early_layer=2, head_layers=2, vocab_size=6,
                          shared_head=False, use_shared_rel_pos=True).init,
        jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), bool)),
    "vqkd": lambda: shapes(
        Vqkd(**SIZES, depth=3, decoder_depth=1, code_dim=4, codebook_size=6, teacher_dim=5).init,
        jnp.zeros((1, 32, 32, 3)), **{"codebook/embedding": (6, 4)}),
    "dino": lambda: teacher(DinoVitb16, **VIT),
    "dinov2": lambda: teacher(Dinov2Vitb14, **VIT | dict(image_px=28), num_registers=2),
    "clip": lambda: teacher(ClipVitb16, **VIT),
    "resnet50": lambda: teacher(DinoResnet50, image_px=32, layers=(2, 1, 1, 1),
                                widths=(2, 2, 2, 3), stem_width=4),
    "beit3": lambda: shapes(beit3_heads.Beit3ForPretraining(**BEIT3).init, IMAGE, *TEXT),
    "torchscale": lambda: shapes(beit3_heads.Beit3ForNlvr2(**BEIT3).init,
                                 jnp.zeros((1, 2, 16, 16, 3)), *TEXT),
    "timm_beit3": lambda: shapes(beit3_heads.Beit3ForClassification(
        **BEIT3, num_classes=3, modalities="vision").init, IMAGE),
    "dalle": lambda: {f"{part}/{name.replace('.', '/')}": jax.ShapeDtypeStruct(
        value.transpose(2, 3, 1, 0).shape if value.ndim == 4 else value.shape, value.dtype)
        for part, arrays in (("encoder", toy_dvae(3, 8, 5)), ("decoder", toy_dvae(5, 4, 6)))
        for name, value in arrays.items()},
}
MAY_LACK = {"mask_token", "vision_embed/mask_token", "register_tokens",
            "rel_pos_bias/relative_position_bias_table"}


@pytest.mark.parametrize("fmt", WHOLE)
def test_no_leaf_of_our_networks_may_be_missing_or_have_another_rank(fmt):
    layout, leaves = convert.FORMATS[fmt].layout, WHOLE[fmt]()
    layouts.check(leaves, layout)
    for name, leaf in leaves.items():
        others = {key: value for key, value in leaves.items() if key != name}
        wider = jax.ShapeDtypeStruct((*leaf.shape, 1), leaf.dtype)
        with pytest.raises(ValueError, match="not the weights of a whole network"):
            layouts.check(others | {name: wider}, layout)
        if name in MAY_LACK:
            layouts.check(others, layout)
            continue
        with pytest.raises(ValueError, match="not the weights of a whole network"):
            layouts.check(others, layout)


def test_the_original_programs_networks_are_whole():
    originals = [(golden, "microsoft") for golden in VITS] + [(golden, "dalle") for golden in DVAES]
    for golden, fmt in originals + TEACHERS + [(golden, "resnet50") for golden in RESNETS]:
        layouts.check(convert.to_ours(golden.params, fmt), convert.FORMATS[fmt].layout)


def changed(**changes) -> dict:
    return toy_vit() | changes


def without(*names) -> dict:
    return {name: value for name, value in toy_vit().items() if name not in names}


QKV = "blocks.0.attn.qkv.weight"
MISFITS = {
    "no class token": (without("cls_token"), "cls_token is missing"),
    "no bias": (without("blocks.0.norm2.bias"), "blocks/norm2/bias is missing"),
    "no final norm": (without("fc_norm.weight", "fc_norm.bias"), "norm or fc_norm is missing"),
    "half a head": (without("head.bias"), "head/bias is missing"),
    "no second half of the biases": (changed(**{"blocks.0.attn.q_bias": np.ones(64, np.float32)}),
                                     "blocks/attn/v_bias is missing"),
    "a norm of another length": (changed(**{"fc_norm.bias": np.ones(63, np.float32)}),
                                 r"fc_norm/bias has shape \(63,\), .* cls_token says d = 64"),
    "a transposed matrix": (changed(**{QKV: toy_vit()[QKV].T}),
                            r"qkv/kernel has shape \(1, 192, 64\), \[l d 3d\] is expected"),
    "whole numbers": (changed(**{"head.bias": np.ones(10, np.int64)}), "head.bias holds numbers "
                      "of type int64; weights are float16"),
    "an empty array": (changed(pos_embed=np.ones((1, 0, 64), np.float32)), "pos_embed has shape"),
    "a bias that is a matrix": (changed(**{"head.bias": np.ones((10, 1), np.float32)}),
                                "head/bias has shape"),
    "a matrix that is a row": (changed(**{QKV: np.ones(192, np.float32)}), "attn.qkv.weight has "
                               "shape"),
    "heads that do not divide": (changed(**{
        "rel_pos_bias.relative_position_bias_table": np.ones((52, 7), np.float32)}), "7 heads"),
    "nothing but an index": ({"blocks.0.attn.relative_position_index": np.ones((2, 2))},
                             "there are no weights"),
    "blocks of two kinds": (changed(**{
        name.replace("blocks.0", "blocks.1"): np.ones((*value.shape[:-1], 32), np.float32)
        for name, value in toy_vit().items() if name.startswith("blocks.0")}), "block 1 has shape"),
    "a number written otherwise": (changed(**{"blocks.00.norm1.weight": np.ones(64, np.float32)}),
                                   "knows blocks.00.norm1.weight"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_misfitting_files_are_refused_and_nothing_is_written(tmp_path, capsys, what):
    arrays, message = MISFITS[what]
    files.write(str(tmp_path / "in.pth"), arrays)
    made = tmp_path / "ours.npz"
    assert main(["--source", "microsoft", "--input", str(tmp_path / "in.pth"), "--output",
                 str(made)]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_what_is_dropped_on_purpose_is_not_missed_but_no_more(tmp_path, capsys):
    files.write(str(tmp_path / "in.pth"), toy_vit())
    run = ["--source", "microsoft", "--input", str(tmp_path / "in.pth"), "--output",
           str(tmp_path / "ours.npz"), "--drop", "cls_token", "--drop", r"fc_norm\..*"]
    assert main(run) == 0
    files.write(str(tmp_path / "in.pth"), without("pos_embed", "head.bias"))
    assert main(run) == 1
    assert "network: head/bias is missing" in capsys.readouterr().err


def test_half_a_network_of_ours_is_not_exported(tmp_path, capsys):
    ours = convert.to_ours(without("blocks.0.mlp.fc2.bias"), "microsoft")
    files.write(str(tmp_path / "ours.npz"), ours)
    assert main(["--reverse", "--source", "timm", "--input", str(tmp_path / "ours.npz"),
                 "--output", str(tmp_path / "timm.safetensors")]) == 1
    assert "blocks/mlp/fc2/bias is missing" in capsys.readouterr().err
    assert not (tmp_path / "timm.safetensors").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_what_stands_before_every_name_is_taken_off(tmp_path, capsys, prefix):
    files.write(str(tmp_path / "in.pth"), {prefix + k: v for k, v in toy_vit().items()}, "model")
    run = ["--source", "microsoft", "--output", str(tmp_path / "ours.npz"), "--input",
           str(tmp_path / "in.pth")]
    assert main(run) == 0
    assert f"all names stand behind '{prefix}'" in capsys.readouterr().out
    expected = convert.to_ours(toy_vit(), "microsoft")
    made = files.read(str(tmp_path / "ours.npz"))
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(made[name], value)
    assert main([*run, "--drop", "head.*"]) == 0
    assert "head/bias" not in files.read(str(tmp_path / "ours.npz"))
    others = {prefix + k: v for k, v in toy_vit().items()} | {"criterion.weight": np.ones(2)}
    files.write(str(tmp_path / "in.pth"), others)
    assert main(run) == 1
    hint = capsys.readouterr().err
    assert f"known without '{prefix}' in front" in hint
    assert main([*run, "--drop", re.search("--drop '(.*)'", hint)[1]]) == 0


def test_data2vec_of_transformers_is_read_under_its_own_prefix():
    ours = convert.to_ours(toy_vit(), "microsoft")
    theirs = convert.to_reference(ours, "huggingface")
    renamed = {name.replace("beit.", "data2vec_vision.", 1): v for name, v in theirs.items()}
    assert any(name.startswith("data2vec_vision.encoder.layer.0") for name in renamed)
    back = convert.to_ours(renamed, "huggingface")
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(back[name], value)
