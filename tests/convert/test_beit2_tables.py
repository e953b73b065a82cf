"""Names and layouts of BEiT v2: pre-training models, tokenizer, the tokenizer's teachers."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_files import Storage, Tensor, dump, named, write_zip

from beit_jax import convert
from beit_jax.convert import engine, files, pickled
from beit_jax.convert.__main__ import main
from beit_jax.models.beit import BeitV2ForMim
from beit_jax.models.vqkd import Vqkd
from beit_jax.targets.vit_teachers import ClipVitb16, DinoVitb16

SPEC = importlib.util.spec_from_file_location(
    "golden_reader", pathlib.Path(__file__).parents[1] / "golden" / "golden.py"
)
golden_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_files)

TEACHERS = [(g, "clip") for g in golden_files.load("clip_visual")]
TEACHERS += [(g, "dino") for g in golden_files.load("dino_vit")]
SIZES = dict(image_px=32, patch_size=16, width=8, num_heads=2)
BLOCK = ["norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def filled(init, *args) -> dict:
    """Flat parameters of a model, every number another."""
    random = np.random.RandomState(0)
    shapes = convert.flatten(jax.eval_shape(init, jax.random.key(0), *args)["params"])
    return {k: random.standard_normal(v.shape).astype(np.float32) for k, v in shapes.items()}


def both(*names):
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def block_names(stack: str, depth: int, *, gammas: bool) -> set:
    """What a stack of BEiT's blocks is made of, by the original's names."""
    names = set()
    for i in range(depth):
        names |= both(*(f"{stack}.{i}.{part}" for part in BLOCK))
        names |= {f"{stack}.{i}.attn.{part}" for part in ("qkv.weight", "q_bias", "v_bias")}
        names |= {f"{stack}.{i}.gamma_{k}" for k in (1, 2) if gammas}
    return names


# the tokenizer

VQKD = Vqkd(**SIZES, depth=3, decoder_depth=1, code_dim=4, codebook_size=6, teacher_dim=5)
VQKD_NAMES = (
    block_names("encoder.blocks", 3, gammas=False) | block_names("decoder.blocks", 1, gammas=False)
    | both("encoder.patch_embed.proj", "encoder.fc_norm", "decoder.patch_embed.proj",
           "decoder.fc_norm", "encode_task_layer.0", "encode_task_layer.2", "decode_task_layer.0",
           "decode_task_layer.2")
    | {"encoder.cls_token", "encoder.pos_embed", "decoder.cls_token", "decoder.pos_embed",
       "quantize.embedding.weight", "quantize.cluster_size"}
)  # fmt: skip
DEAD = {f"quantize.embedding.{name}" for name in ("cluster_size", "embed_avg", "initted")}


@pytest.fixture(scope="module")
def tokenizer():
    leaves = filled(VQKD.init, jnp.zeros((1, 32, 32, 3)))
    codebook = np.random.RandomState(1).standard_normal((6, 4)).astype(np.float32)
    return leaves | {"codebook/embedding": codebook,
                     "usage/cluster_size": np.arange(6, dtype=np.float32)}


def test_vqkd_export_has_every_key_that_the_original_loads(tokenizer):
    theirs = convert.to_reference(tokenizer, "vqkd")
    assert theirs.keys() == VQKD_NAMES | DEAD
    np.testing.assert_array_equal(theirs["quantize.embedding.initted"], [1.0])
    np.testing.assert_array_equal(theirs["quantize.embedding.cluster_size"], np.zeros(6))
    np.testing.assert_array_equal(theirs["quantize.embedding.embed_avg"],
                                  tokenizer["codebook/embedding"])
    np.testing.assert_array_equal(theirs["quantize.cluster_size"], np.arange(6))
    assert theirs["decoder.patch_embed.proj.weight"].shape == (8, 4, 1, 1)
    assert theirs["encode_task_layer.2.weight"].shape == (4, 8)
    assert_same(convert.to_ours(theirs, "vqkd"), tokenizer)


def test_vqkd_without_usage_or_codebook(tokenizer):
    codes_only = {k: v for k, v in tokenizer.items() if k != "usage/cluster_size"}
    theirs = convert.to_reference(codes_only, "vqkd")
    np.testing.assert_array_equal(theirs["quantize.cluster_size"], np.zeros(6))
    assert theirs.keys() == VQKD_NAMES | DEAD
    gradients = {k: v for k, v in codes_only.items() if k != "codebook/embedding"}
    assert convert.to_reference(gradients, "vqkd").keys() < VQKD_NAMES


def test_vqkd_import_tells_what_it_leaves_out(tokenizer):
    theirs = convert.to_reference(tokenizer, "vqkd") | {
        "teacher_model.conv1.weight": np.zeros(1), "scaling_layer.shift": np.zeros(3),
    }  # fmt: skip
    ours, report = engine.import_arrays(theirs, convert.get_format("vqkd"))
    assert_same(ours, tokenizer)
    reasons = dict(report.ignored)
    assert reasons.keys() == DEAD | {"teacher_model.conv1.weight", "scaling_layer.shift"}
    assert all(reasons.values())
    with pytest.raises(ValueError, match="knows quantize.other"):
        convert.to_ours(theirs | {"quantize.other": np.zeros(1)}, "vqkd")


def test_vqkd_on_the_command_line_lies_under_model(tmp_path, tokenizer, capsys):
    ours, theirs, back = (str(tmp_path / name) for name in ("a.npz", "b.pth", "c.npz"))
    files.write(ours, tokenizer)
    assert main(["--reverse", "--source", "vqkd", "--input", ours, "--output", theirs]) == 0
    assert main(["--source", "vqkd", "--input", theirs, "--output", back]) == 0
    assert_same(files.read(back), tokenizer)
    assert "ignored quantize.embedding.initted: never read" in capsys.readouterr().out
    assert pickled.read(theirs).keys() == {"model"}


def test_a_run_of_vqkd_is_exported_without_what_only_its_training_needs(tokenizer):
    run = tokenizer | {"pending/count": np.zeros(4), "pending/total": np.zeros((4, 2))}
    assert_same(convert.to_reference(run, "vqkd"), convert.to_reference(tokenizer, "vqkd"))


# pre-training with patch aggregation

@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_patch_aggregation_heads_stand_in_a_stack_of_their_own(shared):
    model = BeitV2ForMim(**SIZES, depth=4, early_layer=2, head_layers=2, vocab_size=6,
                         shared_head=shared, use_shared_rel_pos=True)
    ours = filled(model.init, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4), bool))
    theirs = convert.to_reference(ours, "microsoft")
    wanted = block_names("blocks", 4, gammas=True) | block_names("cls_pt_layers", 2, gammas=True)
    wanted |= both("patch_embed.proj", "norm", "lm_head")
    wanted |= {"cls_token", "mask_token", "rel_pos_bias.relative_position_bias_table"}
    wanted |= set() if shared else both("cls_pt_norm", "cls_pt_lm_head")
    assert theirs.keys() == wanted
    np.testing.assert_array_equal(theirs["cls_pt_layers.1.mlp.fc1.weight"],
                                  ours["cls_pt_layers/mlp/fc1/kernel"][1].T)
    assert_same(convert.to_ours(theirs, "microsoft"), ours)
    for fmt in ("timm", "huggingface"):
        with pytest.raises(ValueError, match="cannot be exported: .* drop it first"):
            convert.to_reference({k: ours[k] for k in ours if "cls_pt" in k}, fmt)


@pytest.mark.parametrize("stack", ["blocks", "cls_pt_layers"])
def test_a_gap_in_any_stack_is_an_error(stack):
    theirs = {f"{s}.{i}.{name}": np.zeros(4, np.float32)
              for s, depth in (("blocks", 3), ("cls_pt_layers", 2)) for i in range(depth)
              for name in ("gamma_1", "gamma_2")}
    convert.to_ours(theirs, "microsoft")
    last = max(name for name in theirs if name.startswith(stack) and name.endswith("gamma_2"))
    del theirs[last]
    with pytest.raises(ValueError, match=rf"some lack {stack}/gamma_2"):
        convert.to_ours(theirs, "microsoft")


# teachers

@pytest.mark.parametrize(("golden", "fmt"), TEACHERS,
                         ids=lambda value: value if isinstance(value, str) else "")
def test_teacher_round_trip_is_exact_and_complete(golden, fmt):
    ours = convert.to_ours(golden.params, fmt)
    assert_same(convert.to_reference(ours, fmt), golden.params)


@pytest.mark.parametrize(("fmt", "teacher", "entries"), [
    ("clip", ClipVitb16(), 152), ("dino", DinoVitb16(), 150)], ids=["clip", "dino"])
def test_published_teachers_have_so_many_entries(fmt, teacher, entries):
    shapes = convert.flatten(jax.eval_shape(teacher.init, jax.random.key(0))["params"])
    empty = {k: np.zeros(v.shape[:1] + (1,) * (len(v.shape) - 1), np.int8)
             for k, v in shapes.items()}
    assert len(convert.to_reference(empty, fmt)) == entries


def golden_of(fmt):
    return next(golden.params for golden, own in TEACHERS if own == fmt)


def test_clip_leaves_the_text_tower_out_and_widens_float16():
    visual = golden_of("clip")
    text = {"transformer.resblocks.0.ln_1.weight": np.zeros(3), "logit_scale": np.zeros(()),
            "positional_embedding": np.zeros((77, 3)), "vocab_size": np.array(5)}  # fmt: skip
    whole = {f"visual.{k}": v.astype(np.float16) for k, v in visual.items()} | text
    ours, report = engine.import_arrays(whole, convert.get_format("clip"))
    assert dict(report.ignored).keys() == text.keys()
    rounded = {k: v.astype(np.float16).astype(np.float32) for k, v in visual.items()}
    assert_same(ours, convert.to_ours(rounded, "clip"))
    alone = visual | {"input_resolution": np.array(64)}
    assert_same(convert.to_ours(alone, "clip"), convert.to_ours(visual, "clip"))
    with pytest.raises(ValueError, match="knows visual.attnpool"):
        convert.to_ours(whole | {"visual.attnpool": np.zeros(1)}, "clip")


def test_clip_projection_is_not_transposed_and_class_entries_get_our_axes():
    theirs = golden_of("clip")
    ours = convert.to_ours(theirs, "clip")
    np.testing.assert_array_equal(ours["proj/kernel"], theirs["proj"])
    assert ours["cls_token"].shape == (1, 1, 32) and ours["pos_embed"].shape == (1, 17, 32)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_full_dino_checkpoints_give_the_teacher_s_backbone(tmp_path, prefix):
    theirs = golden_of("dino")
    teacher = {prefix + k: v for k, v in theirs.items()}
    teacher[prefix.replace("backbone.", "") + "head.mlp.0.weight"] = np.zeros((2, 2), np.float32)
    path = str(tmp_path / "x.pth")
    files.write(path, teacher, "teacher")
    assert_same(convert.to_ours(files.read(path), "dino"), convert.to_ours(theirs, "dino"))


def test_one_array_under_two_prefixes_is_an_error():
    norm = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="module.norm.weight is one of two .* norm/scale"):
        convert.to_ours({"norm.weight": norm, "module.norm.weight": norm}, "dino")


# TorchScript: modules whose tensors and submodules are plain attributes

def test_torchscript_archives_give_their_state_dict_without_their_program(tmp_path):
    storage = Storage("0", np.arange(6, dtype=np.float16), "HalfStorage")
    conv = named("__torch__.torch.nn.modules.conv.___torch_mangle_3", "Conv2d")()
    conv.__dict__ |= {"training": False, "weight": Tensor(storage, (2, 2), (2, 1)), "bias": None}
    visual = named("__torch__.multimodal", "Tower")()
    visual.__dict__ |= {"proj": Tensor(storage, (2,), (1,), 4), "conv1": conv, "output_dim": 2}
    path = tmp_path / "x.pt"
    write_zip(path, dump(visual), k0=storage.values.tobytes())
    state = files.read(str(path))
    assert state.keys() == {"proj", "conv1.weight"}
    np.testing.assert_array_equal(state["conv1.weight"], [[0, 1], [2, 3]])


def test_other_names_of_torchscript_are_refused(tmp_path):
    write_zip(tmp_path / "x.pt", dump({"a": named("torch.jit", "CompilationUnit")}))
    with pytest.raises(ValueError, match=re.escape("torch.jit.CompilationUnit")):
        files.read(str(tmp_path / "x.pt"))
