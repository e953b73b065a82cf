"""Names and layouts of teachers: ResNets with their running averages, DINOv2."""

import importlib.util
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_files import Storage, Tensor, dump, write_zip

from beit_jax import checkpoint, convert
from beit_jax.convert import engine, files
from beit_jax.convert.__main__ import main
from beit_jax.targets.resnet import DinoResnet50
from beit_jax.targets.vit_teachers import Dinov2Vitb14, Dinov2Vitl14
from beit_jax.tasks.task import Frozen
from beit_jax.training import state

SPEC = importlib.util.spec_from_file_location(
    "golden_reader", pathlib.Path(__file__).parents[1] / "golden" / "golden.py"
)
golden_files = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(golden_files)

RESNETS = golden_files.load("resnet")
TINY = DinoResnet50(image_px=32, layers=(2, 1, 1, 1), widths=(2, 2, 2, 3), stem_width=4)
DINOV2 = dict(image_px=28, width=8, depth=2, num_heads=2)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def shapes_of(teacher) -> dict:
    """{our flat name: shape}, those of further collections under the collection's name."""
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    others = {name: value for name, value in variables.items() if name != "params"}
    leaves = convert.flatten(variables["params"]) | convert.flatten(others)
    return {name: leaf.shape for name, leaf in leaves.items()}


def filled(teacher, seed: int = 0) -> dict:
    random = np.random.RandomState(seed)
    return {name: random.standard_normal(shape).astype(np.float32)
            for name, shape in shapes_of(teacher).items()}


def entries_of(teacher, fmt: str) -> dict:
    """The reference's names of a whole teacher, its arrays shrunk to a column."""
    empty = {name: np.zeros(shape[:1] + (1,) * (len(shape) - 1), np.int8)
             for name, shape in shapes_of(teacher).items()}
    return convert.to_reference(empty, fmt)


def write_checkpoint(path, content: dict[str, dict]) -> None:
    """A torch file of several state dicts, as a training program leaves it."""
    storages, nested = {}, {"epoch": 100}
    for part, arrays in content.items():
        nested[part] = {}
        for name, array in arrays.items():
            key = str(len(storages))
            storages[key] = Storage(key, array.ravel())
            strides = tuple(step // array.itemsize for step in array.strides)
            nested[part][name] = Tensor(storages[key], array.shape, strides)
    data = {f"k{key}": storage.values.tobytes() for key, storage in storages.items()}
    write_zip(path, dump(nested), **data)


@pytest.mark.parametrize("golden", RESNETS, ids=golden_files.name)
def test_resnet_round_trip_is_exact_and_complete(golden):
    ours = convert.to_ours(golden.params, "resnet50")
    assert_same(convert.to_reference(ours, "resnet50"), golden.params)


def test_published_resnet_has_so_many_entries():
    names = entries_of(DinoResnet50(), "resnet50").keys()
    norms = {name for name in names if name.endswith("running_var")}
    assert len(norms) == 53 and len(names) + len(norms) == 318  # with num_batches_tracked
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight",
            "layer3.5.conv2.weight", "layer4.0.downsample.1.running_var"} <= names


def test_resnet_import_leaves_out_counters_and_classifier_with_a_reason():
    ours = filled(TINY)
    theirs = convert.to_reference(ours, "resnet50")
    extra = {"bn1.num_batches_tracked": np.array(7), "fc.weight": np.zeros((5, 12)),
             "layer1.1.bn2.num_batches_tracked": np.array(7), "fc.bias": np.zeros(5)}
    made, report = engine.import_arrays(theirs | extra, convert.get_format("resnet50"))
    assert_same(made, ours)
    assert dict(report.ignored).keys() == extra.keys() and all(dict(report.ignored).values())
    with pytest.raises(ValueError, match="knows layer1.0.conv1.bias"):
        convert.to_ours(theirs | {"layer1.0.conv1.bias": np.zeros(2)}, "resnet50")


def test_kernels_are_turned_and_statistics_lie_in_their_own_collection():
    theirs = convert.to_reference(filled(TINY), "resnet50")
    ours = convert.to_ours(theirs, "resnet50")
    kernel = ours["layer1/block1/conv2/kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs["layer1.1.conv2.weight"])
    for name, full in (("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(ours[f"batch_stats/layer1/block0/downsample_bn/{name}"],
                                      theirs[f"layer1.0.downsample.1.{full}"])


@pytest.mark.parametrize("prefixes", [
    ("module.backbone.", "module."), ("backbone.", "")], ids=["distributed", "alone"])
def test_of_a_full_dino_checkpoint_the_teacher_is_taken(tmp_path, prefixes):
    def part(seed):
        backbone = convert.to_reference(filled(TINY, seed), "resnet50")
        head = {prefixes[1] + "head.last_layer.weight_g": np.ones((4, 1), np.float32)}
        return {prefixes[0] + name: value for name, value in backbone.items()} | head

    path, made = tmp_path / "full.pth", str(tmp_path / "ours.npz")
    write_checkpoint(path, {"student": part(0), "teacher": part(1)})
    assert main(["--source", "resnet50", "--input", str(path), "--output", made]) == 0
    assert_same(files.read(made), filled(TINY, 1))


def test_a_converted_resnet_loads_as_a_frozen_teacher(tmp_path, mesh):
    ours, path = filled(TINY), str(tmp_path / "ours.npz")
    files.write(path, ours)
    task = SimpleNamespace(frozen={"teacher": Frozen(TINY.init, "target")})
    key = jax.random.key(0)
    loaded = state.load_frozen(task, {"target": {"checkpoint": path}}, key, mesh)["teacher"]
    assert loaded.keys() == {"params", "batch_stats"}
    flat = checkpoint.flatten(loaded["params"])
    flat |= checkpoint.flatten({"batch_stats": loaded["batch_stats"]})
    assert_same({name: np.asarray(leaf) for name, leaf in flat.items()}, ours)
    files.write(path, {name: leaf for name, leaf in ours.items() if name != "batch_stats/bn1/var"})
    with pytest.raises(ValueError, match="lacks batch_stats/bn1/var"):
        state.load_frozen(task, {"target": {"checkpoint": path}}, key, mesh)


@pytest.mark.parametrize(("teacher", "entries"), [
    (Dinov2Vitb14(), 175), (Dinov2Vitl14(), 343), (Dinov2Vitb14(num_registers=4), 176)],
    ids=["b", "l", "b_with_registers"])
def test_published_dinov2_has_so_many_entries(teacher, entries):
    names = entries_of(teacher, "dinov2").keys()
    assert len(names) == entries
    assert {"mask_token", "blocks.0.ls1.gamma", "blocks.11.ls2.gamma"} <= names
    assert ("register_tokens" in names) == bool(teacher.num_registers)


def test_dinov2_round_trip_is_exact_but_for_the_mask_token(tmp_path):
    ours = filled(Dinov2Vitb14(**DINOV2, num_registers=2))
    theirs = convert.to_reference(ours, "dinov2")
    np.testing.assert_array_equal(theirs["mask_token"], np.zeros((1, 8), np.float32))
    assert_same(convert.to_ours(theirs, "dinov2"), ours)
    trained = theirs | {"mask_token": np.ones((1, 8), np.float32)}
    full = {"backbone." + name: value for name, value in trained.items()}
    full |= {"dino_head.mlp.0.weight": np.ones((2, 2), np.float32)}
    write_checkpoint(tmp_path / "full.pth", {"teacher": full})
    arrays = files.read(str(tmp_path / "full.pth"))
    made, report = engine.import_arrays(arrays, convert.get_format("dinov2"))
    assert_same(made, ours)
    assert dict(report.ignored).keys() == {"backbone.mask_token", "dino_head.mlp.0.weight"}
    gradients = {name: ours[name] for name in ("blocks/ls1/gamma", "norm/bias")}
    assert "mask_token" not in convert.to_reference(gradients, "dinov2")
