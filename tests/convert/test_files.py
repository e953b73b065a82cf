"""Files of other frameworks: read without torch, without running their code, and written so that
torch reads them."""

import io
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from beit_jax import checkpoint, convert
from beit_jax.convert import engine, files, pickled
from beit_jax.convert.__main__ import main
from beit_jax.lazy_array import LazyArray

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array(1.5, np.float64),
    "half": np.arange(3, dtype=np.float16),
    "index": np.arange(6).reshape(2, 3),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


class Names(pickle._Pickler):
    """Writes classes by a name of our choice, as a program that has torch would."""

    def save_global(self, obj, name=None):
        module, name = getattr(obj, "written_as", (obj.__module__, obj.__qualname__))
        self.write(f"c{module}\n{name}\n".encode())
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type: save_global}

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


def named(module, name):
    return type(name, (), {"written_as": (module, name)})


class Storage:
    def __init__(self, key, values, kind="FloatStorage"):
        self.values = values
        self.pid = ("storage", named("torch", kind), key, "cpu", values.size, None)


rebuild = named("torch._utils", "_rebuild_tensor_v2")


class Tensor:
    def __init__(self, storage, size, stride, offset=0):
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return rebuild, self.arguments


# a callable class of that name, as pickle insists on something callable
rebuild.__call__ = lambda self: None


def dump(obj) -> bytes:
    buffer = io.BytesIO()
    Names(buffer, protocol=2).dump(obj)
    return buffer.getvalue()


def write_stream(path, obj, storages):
    """The older format of torch.save: pickles one after the other, then the bytes."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    content = b"".join(pickle.dumps(part, protocol=2) for part in parts) + dump(obj)
    content += pickle.dumps([storage.pid[2] for storage in storages], protocol=2)
    for storage in storages:
        content += struct.pack("<q", storage.values.size) + storage.values.tobytes()
    path.write_bytes(content)


def write_zip(path, program: bytes, **data: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for key, content in data.items():
            archive.writestr(f"x/data/{key.removeprefix('k')}", content)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt", ".bin"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, suffix):
    path = str(tmp_path / f"x{suffix}")
    files.write(path, ARRAYS)
    back = files.read(path)
    assert back.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    assert os.listdir(tmp_path) == [f"x{suffix}"]


def test_transposed_arrays_survive_safetensors(tmp_path):
    path = str(tmp_path / "x.safetensors")
    files.write(path, {"a": ARRAYS["a.weight"].T})
    np.testing.assert_array_equal(files.read(path)["a"], ARRAYS["a.weight"].T)


def test_other_readers_find_what_is_written(tmp_path):
    files.write(str(tmp_path / "x.npz"), ARRAYS)
    files.write(str(tmp_path / "x.safetensors"), ARRAYS)
    with np.load(tmp_path / "x.npz") as back:
        found = {name: back[name] for name in back.files}
    for made in (found, load_file(str(tmp_path / "x.safetensors"))):
        assert made.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert made[name].dtype == array.dtype
            np.testing.assert_array_equal(made[name], array)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    def fail():
        raise ValueError("damaged")

    lazy = LazyArray((2,), np.dtype(np.float32), fail)
    for suffix in (".npz", ".safetensors", ".pth"):
        with pytest.raises(ValueError, match="damaged"):
            files.write(str(tmp_path / f"x{suffix}"), {"a": ARRAYS["half"], "b": lazy})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("nest", ["model", "module", "state_dict"])
def test_state_dicts_are_found_where_training_programs_put_them(tmp_path, nest):
    path = str(tmp_path / "x.pth")
    files.write(path, ARRAYS, nest)
    assert files.read(path).keys() == ARRAYS.keys()
    assert pickled.read(path).keys() == {nest}


def test_strided_views_shared_storages_and_bfloat16(tmp_path):
    values = np.arange(12, dtype=np.float32)
    storage = Storage("7", values)
    # the upper halves of 1.5 and -2.0
    short = Storage("8", np.array([0x3FC0, 0xC000], np.uint16), "BFloat16Storage")
    state = OrderedDict(
        transposed=Tensor(storage, (4, 3), (1, 4)),
        tail=Tensor(storage, (2,), (1,), offset=10),
        bfloat=Tensor(short, (2,), (1,)),
    )
    write_stream(tmp_path / "x.pth", state, [storage, short])
    write_zip(tmp_path / "y.pth", dump(state), k7=values.tobytes(), k8=short.values.tobytes())
    for name in ("x.pth", "y.pth"):
        back = files.read(str(tmp_path / name))
        np.testing.assert_array_equal(back["transposed"], values.reshape(3, 4).T)
        np.testing.assert_array_equal(back["tail"], [10, 11])
        np.testing.assert_array_equal(back["bfloat"], np.array([1.5, -2.0], np.float32))


@pytest.mark.parametrize("form", ["stream", "zip"])
def test_pickled_modules_give_their_state_dict_without_their_classes(tmp_path, form):
    storage = Storage("0", np.arange(6, dtype=np.float32))
    conv = named("dall_e.utils", "Conv2d")()
    conv.__dict__ |= {
        "_parameters": OrderedDict(
            w=Tensor(storage, (2, 2), (2, 1)), b=Tensor(storage, (2,), (1,), 4)),
        "_buffers": OrderedDict(), "_modules": OrderedDict(), "kw": 1,
    }  # fmt: skip
    blocks = named("torch.nn.modules.container", "Sequential")()
    blocks.__dict__ |= {"_parameters": OrderedDict(), "_modules": OrderedDict(input=conv)}
    encoder = named("dall_e.encoder", "Encoder")()
    encoder.__dict__ |= {
        "_parameters": OrderedDict(), "_modules": OrderedDict(blocks=blocks), "vocab_size": 8192,
    }  # fmt: skip
    path = tmp_path / "encoder.pkl"
    if form == "stream":
        write_stream(path, encoder, [storage])
    else:
        write_zip(path, dump(encoder), k0=storage.values.tobytes())
    assert pickled.read(str(path)).vocab_size == 8192
    state = files.read(str(path))
    assert list(state) == ["blocks.input.w", "blocks.input.b"]
    np.testing.assert_array_equal(state["blocks.input.w"], [[0, 1], [2, 3]])


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path):
    target = str(tmp_path / "was_here")
    write_zip(tmp_path / "x.pth", pickle.dumps({"a": Evil(target)}, protocol=2))
    with pytest.raises(ValueError, match=r"wants to load (posix|nt).mkdir.*run code: refused"):
        files.read(str(tmp_path / "x.pth"))
    (tmp_path / "y.pkl").write_bytes(pickle.dumps(Evil(target), protocol=2))
    with pytest.raises(ValueError, match="refused"):
        files.read(str(tmp_path / "y.pkl"))
    assert not os.path.exists(target)


@pytest.mark.parametrize("name", ["torch.load", "builtins.eval", "torch._utils.exec", "dall_ex.f"])
def test_names_near_the_allowed_ones_are_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    program = f"c{module}\n{attribute}\n.".encode()
    write_zip(tmp_path / "x.pth", program)
    with pytest.raises(ValueError, match="refused"):
        files.read(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "size, stride, offset", [((13,), (1,), 0), ((2,), (1,), 11), ((2,), (-1,), 5)]
)
def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path, size, stride, offset):
    values = np.arange(12, dtype=np.float32)
    tensor = Tensor(Storage("0", values), size, stride, offset)
    write_zip(tmp_path / "x.pth", dump({"a": tensor}), k0=values.tobytes())
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        files.read(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_damaged_files_give_one_clear_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    files.write(str(path), ARRAYS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="x[.]") as raised:
        files.read(str(path))
    assert "\n" not in str(raised.value)


def test_other_suffixes_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown kind of file '.h5'; known: .npz"):
        files.write("weights.h5", ARRAYS)
    with pytest.raises(FileNotFoundError, match="x.npz does not exist"):
        files.read(str(tmp_path / "x.npz"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file"):
        files.read(str(tmp_path / "pipe"))
    files.write(str(tmp_path / "w.safetensors"), ARRAYS)
    with pytest.raises(ValueError, match="is a folder: name a file in it, such as w.safetensors"):
        files.read(str(tmp_path))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_file_is_known_by_its_content_not_its_suffix(tmp_path, suffix):
    files.write(str(tmp_path / f"x{suffix}"), ARRAYS)
    for other in (".npz", ".safetensors", ".pth", ".ckpt", ""):
        renamed = tmp_path / f"renamed{other}"
        renamed.write_bytes((tmp_path / f"x{suffix}").read_bytes())
        assert files.read(str(renamed)).keys() == ARRAYS.keys()


FLOATS = np.array([1.0, -2.5, 3e-6, 65504.0, 0.0, -0.0, np.inf, 2.0**-24], np.float32)


@pytest.mark.parametrize("dtype, suffix", [
    (dtype, suffix) for dtype in ("float16", "bfloat16", "float32", "float64")
    for suffix in (".npz", ".safetensors", ".pth", "stream")
    if (dtype, suffix) != ("bfloat16", ".npz")])  # numpy has none: refused, see below
def test_every_float_type_is_read_exactly_from_every_format(tmp_path, dtype, suffix):
    values = FLOATS.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    kinds = {"float16": "Half", "bfloat16": "BFloat16", "float32": "Float", "float64": "Double"}
    kept = Storage("0", values, f"{kinds[dtype]}Storage")
    path = str(tmp_path / f"x{suffix}")
    if suffix == ".safetensors":
        save_file({"norm.weight": values}, path)
    elif suffix == ".npz":
        np.savez(path, **{"norm.weight": values})
    elif suffix == ".pth":
        write_zip(path, dump({"norm.weight": Tensor(kept, (8,), (1,))}), k0=values.tobytes())
    else:
        write_stream(pathlib.Path(path), {"norm.weight": Tensor(kept, (8,), (1,))}, [kept])
    back = files.read(path)["norm.weight"]
    assert back.dtype == ("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(back, values.astype(np.float64))
    for name in ("ours.npz", "ours.safetensors"):
        ours, _ = engine.plan_import({"norm.weight": back}, convert.get_format("microsoft"))
        files.write(str(tmp_path / name), ours)
        loaded = checkpoint.load_variables(str(tmp_path / name))["norm/scale"]
        assert loaded.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_array_equal(loaded, values.astype(np.float64))


@pytest.mark.parametrize("other", ["int64", "bool", "complex64", "bfloat16"])
def test_arrays_of_other_types_are_refused_by_name(tmp_path, other):
    values = np.ones(4, ml_dtypes.bfloat16 if other == "bfloat16" else other)
    np.savez(tmp_path / "x.npz", **{"norm.weight": values})
    with pytest.raises(ValueError, match="norm.weight (holds numbers of|is of) type"):
        convert.to_ours(files.read(str(tmp_path / "x.npz")), "microsoft")
    if other in ("complex64", "bfloat16"):
        with pytest.raises(ValueError, match=f"norm: an array of type {other} cannot be written"):
            files.write(str(tmp_path / "y.npz"), {"norm": values})
        assert not list(tmp_path.glob("y.npz*"))


def test_an_eight_bit_float_is_refused_by_name(tmp_path):
    save_file({"norm.weight": np.ones(4, ml_dtypes.float8_e4m3fn)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match="norm.weight is of type F8_E4M3, which is not supported"):
        files.read(str(tmp_path / "x.safetensors"))


def toy_vit() -> dict:
    """A one-block classifier under the original names."""
    random = np.random.RandomState(0)
    shapes = {
        "cls_token": (1, 1, 64), "patch_embed.proj.weight": (64, 3, 8, 8),
        "patch_embed.proj.bias": (64,), "pos_embed": (1, 17, 64),
        "blocks.0.norm1.weight": (64,), "blocks.0.norm1.bias": (64,),
        "blocks.0.norm2.weight": (64,), "blocks.0.norm2.bias": (64,),
        "blocks.0.attn.qkv.weight": (192, 64), "blocks.0.attn.relative_position_index": (17, 17),
        "blocks.0.attn.proj.weight": (64, 64), "blocks.0.attn.proj.bias": (64,),
        "blocks.0.mlp.fc1.weight": (256, 64), "blocks.0.mlp.fc1.bias": (256,),
        "blocks.0.mlp.fc2.weight": (64, 256), "blocks.0.mlp.fc2.bias": (64,),
        "fc_norm.weight": (64,), "fc_norm.bias": (64,),
        "head.weight": (10, 64), "head.bias": (10,),
    }  # fmt: skip
    return {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def toy_dvae(channels_in: int, width: int, channels_out: int) -> dict:
    """One network of a dVAE of one group of one block, under the original names."""
    sizes = {"input": (width, channels_in, 3 if channels_in == 3 else 1),
             "group_1.block_1.res_path.conv_1": (2, width, 3),
             "group_1.block_1.res_path.conv_2": (2 * width, 2, 1),
             "group_1.block_1.id_path": (2 * width, width, 1),
             "output.conv": (channels_out, 2 * width, 1)}
    random, arrays = np.random.RandomState(0), {}
    for name, (n, c, k) in sizes.items():
        arrays[f"blocks.{name}.w"] = random.standard_normal((n, c, k, k)).astype(np.float32)
        arrays[f"blocks.{name}.b"] = random.standard_normal(n).astype(np.float32)
    return arrays


@pytest.mark.parametrize("source, back", [("microsoft", "back.pth"), ("timm", "model.safetensors")])
def test_command_line_there_and_back_is_exact(tmp_path, capsys, source, back):
    original, ours, again = (str(tmp_path / name) for name in ("in.pth", "ours.npz", back))
    files.write(original, toy_vit(), "model")
    assert main(["--source", source, "--input", original, "--output", ours]) == 0
    out = capsys.readouterr().out
    assert "ignored blocks.0.attn.relative_position_index: follows from the patch grid" in out
    assert "used 19 arrays, ignored 1; wrote 19 arrays" in out
    assert main(["--source", source, "--input", ours, "--output", again, "--reverse"]) == 0
    expected = {k: v for k, v in toy_vit().items() if "index" not in k}
    made = files.read(again)
    assert made.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(made[name], expected[name])


def test_command_line_writes_a_hugging_face_config(tmp_path):
    original, ours = str(tmp_path / "in.pth"), str(tmp_path / "ours.npz")
    files.write(original, toy_vit())
    assert main(["--source", "microsoft", "--input", original, "--output", ours]) == 0
    target = str(tmp_path / "model.safetensors")
    assert main(["--source", "huggingface", "--input", ours, "--output", target, "--reverse"]) == 0
    assert '"layer_norm_eps": 1e-06' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("there, message", [
    ({"checkpoints/1/x": ""}, "is a run's workdir"), ({"metrics.jsonl": ""}, "is a run's workdir"),
    ({"config.json": '{"task": "classify"}'}, "config.json of something else"),
    ({"config.json": "[["}, "config.json of something else"),
    ({"config.json": '{"model_type": "beit"}'}, None),
])  # fmt: skip
def test_an_export_never_takes_the_place_of_a_runs_config(tmp_path, capsys, there, message):
    ours = str(tmp_path / "ours.npz")
    files.write(ours, convert.to_ours(toy_vit(), "microsoft"))
    for name, content in there.items():
        path = tmp_path / "to" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    arguments = ["--reverse", "--source", "huggingface", "--input", ours, "--output",
                 str(tmp_path / "to" / "model.safetensors")]
    assert main(arguments) == (1 if message else 0)
    if message:
        assert message in capsys.readouterr().err
        for name, content in there.items():
            assert (tmp_path / "to" / name).read_text() == content
        assert not (tmp_path / "to" / "model.safetensors").exists()


@pytest.mark.parametrize("heads, message", [
    ("3", "--num_heads=3 does not divide the width 64"), ("-1", "--num_heads=-1 does not divide"),
    ("4", ""), ("0", "")])
def test_heads_of_an_export_fit_the_weights(tmp_path, capsys, heads, message):
    ours, made = str(tmp_path / "ours.npz"), tmp_path / "model.safetensors"
    files.write(ours, convert.to_ours(toy_vit(), "microsoft"))
    run = ["--reverse", "--source", "huggingface", "--input", ours, "--output", str(made)]
    assert main([*run, "--num_heads", heads]) == (1 if message else 0)
    assert message in capsys.readouterr().err and made.exists() != bool(message)


def test_an_expression_that_is_none_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--source", "timm", "--input", "x.pth", "--output", "x.npz", "--drop", "["])
    assert ended.value.code == 2
    assert "'[' is no regular expression: unterminated" in capsys.readouterr().err


def test_command_line_tells_encoder_and_decoder_apart_and_writes_both(tmp_path, capsys):
    parts = {"encoder": toy_dvae(3, 8, 5), "decoder": toy_dvae(5, 4, 6)}
    paths = [str(tmp_path / f"{part}.pth") for part in ("decoder", "encoder")]
    for path, part in zip(paths, ("decoder", "encoder")):
        files.write(path, parts[part])
    ours = str(tmp_path / "ours.npz")
    assert main(["--source", "dalle", "--input", *paths, "--output", ours]) == 0
    assert "encoder/blocks/group_1/block_1/id_path/w" in files.read(ours)
    assert main(["--source", "dalle", "--input", paths[0], paths[0], "--output", ours]) == 1
    assert "is the same part of DALL-E" in capsys.readouterr().err
    again = str(tmp_path / "again.pth")
    assert main(["--source", "dalle", "--input", ours, "--output", again, "--reverse"]) == 0
    for part, expected in parts.items():
        made = files.read(str(tmp_path / f"again_{part}.pth"))
        assert made.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(made[name], value)


@pytest.mark.parametrize("arguments, message", [
    (["--input", "nothing.pth", "--output", "x.npz"], "nothing.pth does not exist"),
    (["--input", "a.pth", "--output", "x.h5"], "we read .npz and .safetensors"),
    (["--input", "a.pth", "b.pth", "--output", "x.npz"], "microsoft has one"),
    (["--input", "nothing.npz", "--output", "x.pth", "--reverse"], "nothing.npz does not exist"),
])  # fmt: skip
def test_command_line_errors_are_one_line(capsys, arguments, message):
    assert main(["--source", "microsoft", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_drop_leaves_arrays_out(tmp_path, capsys):
    original, ours = str(tmp_path / "in.pth"), str(tmp_path / "ours.npz")
    files.write(original, toy_vit())
    drop = ["--drop", r"head\..*", "--drop", "fc_norm.weight"]
    assert main(["--source", "timm", "--input", original, "--output", ours, *drop]) == 0
    assert "dropped 3 arrays" in capsys.readouterr().out
    assert "head/bias" not in files.read(ours)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_weights_are_converted_without_copies_of_all_of_them(tmp_path, suffix):
    one = toy_vit()
    depth, arrays = 40, {}
    for name, value in one.items():
        for i in range(depth if name.startswith("blocks.") else 1):
            arrays[name.replace("blocks.0", f"blocks.{i}")] = value + np.float32(i)
    theirs, ours, back = (str(tmp_path / name)
                          for name in (f"in{suffix}", f"ours{suffix}", f"back{suffix}"))
    ours = ours.replace(".pth", ".npz")
    files.write(theirs, arrays)
    size = os.path.getsize(theirs)
    for most, arguments in ((0.9, ["--input", theirs, "--output", ours]),
                            (1.6, ["--reverse", "--input", ours, "--output", back])):
        tracemalloc.start()
        assert main(["--source", "microsoft", *arguments]) == 0
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size > 7e6 and peak < most * size, (peak / size, arguments)
