"""Names and layouts of other frameworks: exact round trips, and an error for everything unknown."""

import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest

from beit_jax import checkpoint, convert
from beit_jax.convert import engine, tables
from beit_jax.convert.__main__ import main

SPEC = importlib.util.spec_from_file_location(
    "golden_reader", pathlib.Path(__file__).parents[1] / "golden" / "golden.py"
)
golden_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_files)

VITS = golden_files.load("mim") + golden_files.load("finetune") + golden_files.load("train_trace")
DVAES = golden_files.load("dvae")


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def without_index(params):
    return {k: v for k, v in params.items() if not k.endswith("relative_position_index")}


@pytest.mark.parametrize("golden", VITS, ids=golden_files.name)
def test_microsoft_round_trip_is_exact_and_complete(golden):
    ours = convert.to_ours(golden.params, "microsoft")
    assert_same(convert.to_reference(ours, "microsoft"), without_index(golden.params))


@pytest.mark.parametrize("golden", DVAES, ids=golden_files.name)
def test_dalle_round_trip_is_exact_and_uses_all_74_and_76_entries(golden):
    ours = convert.to_ours(golden.params, "dalle")
    assert_same(convert.to_reference(ours, "dalle"), golden.params)
    assert sum(name.startswith("encoder/") for name in ours) == 74
    assert sum(name.startswith("decoder/") for name in ours) == 76


@pytest.mark.parametrize("golden", VITS, ids=golden_files.name)
def test_hugging_face_round_trip_is_exact(golden):
    ours = convert.to_ours(golden.params, "microsoft")
    theirs = convert.to_reference(ours, "huggingface")
    assert_same(convert.to_ours(theirs, "huggingface"), ours)


def test_hugging_face_splits_queries_keys_and_values_in_this_order():
    golden = golden_files.load("mim")[0]
    width = golden.config["embed_dim"]
    theirs = convert.to_reference(convert.to_ours(golden.params, "microsoft"), "huggingface")
    qkv = golden.params["blocks.1.attn.qkv.weight"]
    for part, name in enumerate(("query", "key", "value")):
        full = f"beit.encoder.layer.1.attention.attention.{name}"
        np.testing.assert_array_equal(theirs[full + ".weight"], qkv[part * width :][:width])
        assert (full + ".bias" in theirs) == (name != "key")


def test_hugging_face_final_norm_has_one_name_under_a_prediction_head_and_another_without():
    width = np.arange(4.0, dtype=np.float32)
    mim = {"norm/scale": width, "lm_head/kernel": np.ones((4, 8), np.float32)}
    assert "layernorm.weight" in convert.to_reference(mim, "huggingface")
    classifier = {"norm/scale": width, "head/kernel": np.ones((4, 8), np.float32)}
    assert "beit.layernorm.weight" in convert.to_reference(classifier, "huggingface")
    for leaves in (mim, classifier):
        theirs = convert.to_reference(leaves, "huggingface")
        assert_same(convert.to_ours(theirs, "huggingface"), leaves)


def test_timm_gets_the_shared_table_once_per_block():
    golden = next(g for g in golden_files.load("mim") if g.config["use_shared_rel_pos_bias"])
    ours = convert.to_ours(golden.params, "microsoft")
    with pytest.raises(ValueError, match="mask_token cannot be exported"):
        convert.to_reference(ours, "timm")
    backbone = {k: v for k, v in ours.items() if k != "mask_token" and "lm_head" not in k}
    theirs = convert.to_reference(backbone, "timm")
    assert not any(name.startswith("rel_pos_bias") for name in theirs)
    shared = golden.params["rel_pos_bias.relative_position_bias_table"]
    for block in range(golden.config["depth"]):
        name = f"blocks.{block}.attn.relative_position_bias_table"
        np.testing.assert_array_equal(theirs[name], shared)


def test_shared_and_own_tables_add_up_on_export_to_timm():
    leaves = {
        "rel_pos_bias/relative_position_bias_table": np.full((12, 2), 1.0, np.float32),
        "blocks/attn/relative_position_bias_table": np.full((3, 12, 2), 2.0, np.float32),
        "blocks/norm1/scale": np.ones((3, 4), np.float32),
    }
    theirs = convert.to_reference(leaves, "timm")
    np.testing.assert_array_equal(theirs["blocks.2.attn.relative_position_bias_table"], 3.0)


def test_constant_key_biases_of_timm_are_ignored():
    params = {"blocks.0.attn.k_bias": np.zeros(4, np.float32), "norm.bias": np.ones(4, np.float32)}
    assert convert.to_ours(params, "timm").keys() == {"norm/bias"}


def test_unknown_names_are_errors_in_both_directions():
    with pytest.raises(ValueError, match=re.escape("knows decode_head.weight")):
        convert.to_ours({"decode_head.weight": np.zeros(1)}, "microsoft")
    with pytest.raises(ValueError, match="knows our blocks/attn/gate"):
        convert.to_reference({"blocks/attn/gate": np.zeros((2, 1))}, "microsoft")
    with pytest.raises(ValueError, match="format 'keras' is unknown; known: microsoft"):
        convert.to_ours({}, "keras")


def test_missing_blocks_and_parts_are_errors():
    block = {f"blocks.{i}.gamma_1": np.zeros(4, np.float32) for i in (0, 2)}
    with pytest.raises(ValueError, match=r"blocks/gamma_1: blocks \[0, 2\] are there"):
        convert.to_ours(block, "microsoft")
    uneven = {f"blocks.{i}.gamma_1": np.zeros(4, np.float32) for i in range(2)}
    uneven["blocks.0.gamma_2"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"of 2 blocks, some lack blocks/gamma_2 \(1\)"):
        convert.to_ours(uneven, "microsoft")
    name = "beit.encoder.layer.0.attention.attention.query.weight"
    with pytest.raises(ValueError, match="only 1 of its 3 parts"):
        convert.to_ours({name: np.zeros((4, 4))}, "huggingface")


def test_exported_arrays_own_contiguous_memory():
    theirs = convert.to_reference({"head/kernel": np.ones((4, 8)).T}, "microsoft")
    assert theirs["head.weight"].flags.c_contiguous


def test_flatten_undoes_unflatten():
    flat = {"a/b/c": 1, "a/d": 2, "e": 3}
    assert convert.unflatten(flat) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert convert.flatten(convert.unflatten(flat)) == flat


@pytest.mark.parametrize("golden", VITS, ids=golden_files.name)
def test_hugging_face_config_tells_what_the_weights_are(golden):
    from beit_jax.convert import huggingface

    ours = convert.to_ours(golden.params, "microsoft")
    made = huggingface.config_of(ours, num_heads=golden.config["num_heads"])
    json.dumps(made)
    assert made["layer_norm_eps"] == golden.config["norm_eps"] == 1e-6
    assert made["image_size"] == golden.config["img_size"]
    assert made["patch_size"] == golden.config["patch_size"]
    assert made["hidden_size"] == golden.config["embed_dim"]
    assert made["num_hidden_layers"] == golden.config["depth"]
    mlp = golden.config["mlp_ratio"] * golden.config["embed_dim"]
    assert made["intermediate_size"] == mlp
    assert made["use_absolute_position_embeddings"] == golden.config.get("use_abs_pos_emb", False)
    shared = golden.config.get("use_shared_rel_pos_bias", False)
    assert made["use_shared_relative_position_bias"] == shared
    assert ("vocab_size" in made) == ("vocab_size" in golden.config)


@pytest.mark.parametrize("source, names, mean", [
    ("microsoft", ["cls_pt_layers.0.gamma_1", "norm.weight"], 0.485),  # BEiT v2
    ("microsoft", ["fc_norm.weight"], None),  # of BEiT on either data, and of BEiT v2
    ("timm", ["fc_norm.weight"], None),
    ("huggingface", ["beit.pooler.layernorm.weight"], None),
    ("dalle", ["encoder/blocks.input.w"], None),
    ("vqkd", ["encoder.cls_token"], 0.5),
    ("mae", ["cls_token"], 0.485),
    ("dino", ["cls_token"], 0.485),
    ("dino", ["cls_token", "head.mlp.0.weight"], 0.485),
    ("dino", ["cls_token", "head.weight"], None),  # timm's classifiers
    ("dinov2", ["cls_token"], 0.485),
    ("resnet50", ["conv1.weight"], 0.485),
    ("clip", ["visual.proj"], 0.48145466),
    ("beit3", ["fc_norm.weight", "head.weight"], 0.485),  # ImageNet
    ("beit3", ["pooler.norm.weight", "head.0.weight"], 0.5),  # VQA
    ("beit3", ["head.norm1.weight"], 0.5),  # NLVR2
    ("beit3", ["language_head.weight"], 0.5),
    ("beit3", ["beit3.text_embed.weight", "mlm_head.weight"], None),  # pre-trained, or captioning
    ("torchscale", ["text_embed.weight"], None),
    ("timm_beit3", ["fc_norm.weight"], 0.485),
])
def test_names_tell_the_statistics_of_the_pixels_or_nothing(source, names, mean):
    reference = dict.fromkeys(names, np.zeros(1))
    record = engine.record_of(reference, source, convert.get_format(source))
    assert record["source"] == source
    assert record.get("data", {"mean": [None]})["mean"][0] == mean
    told = engine.record_of(reference, source, convert.get_format(source),
                            tables.STATISTICS["clip"])
    assert told["data"]["std"] == [0.26862954, 0.26130258, 0.27577711]


def test_statistics_stand_in_the_file_even_where_what_told_them_is_dropped(tmp_path, capsys):
    path, out = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    weights = golden_files.load("mim")[0].params
    np.savez(path, **weights, **{"cls_pt_norm.weight": weights["norm.weight"]})
    command = ["--source", "microsoft", "--input", path, "--output", out]
    assert main([*command, "--drop", "cls_pt_.*"]) == 0
    assert "mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225" in capsys.readouterr().out
    assert checkpoint.recorded(out) == {"source": "microsoft", "data": {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    np.savez(path, **weights)
    assert main(command) == 0
    assert "do not tell" in capsys.readouterr().out and "data" not in checkpoint.recorded(out)
    assert main([*command, "--statistics", "half"]) == 0
    assert checkpoint.recorded(out)["data"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert main(["--reverse", *command, "--statistics", "half"]) == 1
