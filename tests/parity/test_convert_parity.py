"""What we export is what the other programs load and compute with: torch, dall_e, Hugging Face's
transformers and timm, on the golden weights. Skipped where the `parity` extra is not installed."""

import argparse
import functools
import importlib.util
import json
import pathlib

import numpy as np
import pytest

from beit_jax import convert
from beit_jax.convert import files, huggingface, pickled

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

SPEC = importlib.util.spec_from_file_location(
    "golden_reader", pathlib.Path(__file__).parents[1] / "golden" / "golden.py"
)
golden_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_files)


@pytest.fixture(scope="module", autouse=True)
def torchvision_operators():
    """torchvision beside a CPU build of torch lacks two operators; it only wants them declared,
    before it is imported, which transformers does by itself."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.mark.parametrize("nest", ["", "model"])
def test_torch_loads_what_we_write_with_weights_only(tmp_path, nest):
    random = np.random.RandomState(0)
    arrays = {
        "weight": random.standard_normal((3, 4)).astype(np.float32), "scalar": np.array(2.5),
        "half": np.arange(3, dtype=np.float16), "index": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 2), np.float32), "flag": np.array([True, False]),
    }  # fmt: skip
    path = str(tmp_path / "x.pth")
    files.write(path, arrays, nest)
    loaded = torch.load(path, weights_only=True)
    loaded = loaded[nest] if nest else loaded
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(loaded[name].numpy(), array)


@pytest.mark.parametrize("as_zip", [True, False])
def test_we_read_what_torch_writes(tmp_path, as_zip):
    state = {
        "transposed": torch.randn(3, 4).T, "bfloat16": torch.randn(5).bfloat16(),
        "slice": torch.randn(4)[1:3], "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }  # fmt: skip
    path = str(tmp_path / "x.pth")
    whole = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    torch.save(whole, path, _use_new_zipfile_serialization=as_zip)
    arrays = files.read(path)
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.detach().float().numpy())


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_pickled_dall_e_modules_are_read_and_given_back_strictly(tmp_path, part, as_zip):
    pytest.importorskip("dall_e")
    module = importlib.import_module(f"dall_e.{part}")
    network = getattr(module, part.capitalize())(n_hid=16, vocab_size=32, n_blk_per_group=1)
    path = str(tmp_path / f"{part}.pkl")
    torch.save(network, path, _use_new_zipfile_serialization=as_zip)
    arrays = files.read(path)
    assert pickled.read(path).vocab_size == 32
    assert list(arrays) == list(network.state_dict())
    ours = convert.to_ours({f"{part}/{name}": value for name, value in arrays.items()}, "dalle")
    theirs = convert.to_reference(ours, "dalle")
    network.load_state_dict(
        {k.removeprefix(part + "/"): torch.from_numpy(v) for k, v in theirs.items()}, strict=True
    )
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), arrays[name])


def vit_files():
    return golden_files.load("mim") + golden_files.load("finetune")


@pytest.mark.parametrize("golden", vit_files(), ids=golden_files.name)
def test_hugging_face_computes_the_golden_results_from_our_export(tmp_path, golden):
    transformers = pytest.importorskip("transformers")
    ours = convert.to_ours(golden.params, "microsoft")
    config = huggingface.config_of(ours, num_heads=golden.config["num_heads"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    files.write(str(tmp_path / "model.safetensors"), convert.to_reference(ours, "huggingface"))
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(str(tmp_path), output_loading_info=True)
    missing = [k for k in info["missing_keys"] if "relative_position_index" not in k]
    assert not missing and not info["unexpected_keys"]
    model.eval()
    image = torch.from_numpy(golden.inputs["image"])
    with torch.no_grad():
        if "mask" in golden.inputs:
            mask = torch.from_numpy(golden.inputs["mask"]).bool()
            logits = model(image, bool_masked_pos=mask).logits
            expected = golden.outputs["logits_all"]
        else:
            logits, expected = model(image).logits, golden.outputs["logits"]
    golden_files.assert_close(logits.numpy(), expected, relative=5e-5)  # another attention kernel


@pytest.mark.parametrize("golden", vit_files(), ids=golden_files.name)
def test_timm_computes_the_golden_results_from_our_export(golden):
    beit = pytest.importorskip("timm.models.beit")
    config = golden.config
    ours = convert.to_ours(golden.params, "microsoft")
    is_mim = "lm_head/kernel" in ours
    ours = {k: v for k, v in ours.items() if k != "mask_token" and "lm_head" not in k}
    theirs = convert.to_reference(ours, "timm")
    mean_pool = config.get("use_mean_pooling", False)
    model = beit.Beit(
        img_size=config["img_size"], patch_size=config["patch_size"],
        num_classes=config.get("num_classes", 0), embed_dim=config["embed_dim"],
        depth=config["depth"], num_heads=config["num_heads"], mlp_ratio=config["mlp_ratio"],
        init_values=config["init_values"], use_abs_pos_emb=config["use_abs_pos_emb"],
        use_rel_pos_bias=any("relative_position_bias_table" in name for name in theirs),
        global_pool="avg" if mean_pool else "token",
    ).eval()  # fmt: skip
    state = {name: torch.from_numpy(value) for name, value in theirs.items()}
    problems = model.load_state_dict(state, strict=False)
    assert not problems.unexpected_keys
    assert all("relative_position_index" in name for name in problems.missing_keys)
    with torch.no_grad():
        image = torch.from_numpy(golden.inputs["image"])
        if is_mim:  # timm has no mask: only that the weights found their places can be said
            assert torch.isfinite(model.forward_features(image)).all()
        else:
            expected = golden.outputs["logits"]
            golden_files.assert_close(model(image).numpy(), expected, relative=5e-5)


@pytest.mark.parametrize("golden", golden_files.load("multiway_classes"), ids=golden_files.name)
def test_timm_computes_the_golden_classes_from_our_beit3(golden):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    config = golden.config
    model = vision_transformer.VisionTransformer(
        img_size=config["img_size"], patch_size=config["patch_size"],
        num_classes=config["num_classes"], embed_dim=config["encoder_embed_dim"],
        depth=config["encoder_layers"], num_heads=config["encoder_attention_heads"],
        mlp_ratio=config["encoder_ffn_embed_dim"] / config["encoder_embed_dim"],
        scale_attn_norm=True, scale_mlp_norm=True, global_pool="avg",
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=config["layernorm_eps"]),
    ).eval()  # fmt: skip
    theirs = convert.to_reference(convert.to_ours(golden.params, "beit3"), "timm_beit3")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in theirs.items()}, strict=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(golden.inputs["image"])).numpy()
    golden_files.assert_close(logits, golden.outputs["logits"], relative=5e-5)
