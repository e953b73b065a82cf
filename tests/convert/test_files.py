"""Files of other frameworks: read without torch, without running their code, and written so that
torch reads them."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from beit_jax.convert import files, pickled
from beit_jax.convert.__main__ import main

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
        files.read("weights.h5")
    with pytest.raises(FileNotFoundError, match="x.npz does not exist"):
        files.read(str(tmp_path / "x.npz"))


def toy_vit() -> dict:
    """A one-block classifier under the original names."""
    random = np.random.RandomState(0)
    shapes = {
        "cls_token": (1, 1, 64), "patch_embed.proj.weight": (64, 3, 8, 8),
        "patch_embed.proj.bias": (64,), "pos_embed": (1, 17, 64),
        "blocks.0.norm1.weight": (64,), "blocks.0.attn.qkv.weight": (192, 64),
        "blocks.0.attn.relative_position_index": (17, 17),
        "blocks.0.mlp.fc1.weight": (256, 64), "fc_norm.weight": (64,),
        "head.weight": (10, 64), "head.bias": (10,),
    }  # fmt: skip
    return {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


@pytest.mark.parametrize("source, back", [("microsoft", "back.pth"), ("timm", "model.safetensors")])
def test_command_line_there_and_back_is_exact(tmp_path, capsys, source, back):
    original, ours, again = (str(tmp_path / name) for name in ("in.pth", "ours.npz", back))
    files.write(original, toy_vit(), "model")
    assert main(["--source", source, "--input", original, "--output", ours]) == 0
    out = capsys.readouterr().out
    assert "ignored blocks.0.attn.relative_position_index: follows from the patch grid" in out
    assert "used 10 arrays, ignored 1; wrote 10 arrays" in out
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


def test_command_line_tells_encoder_and_decoder_apart_and_writes_both(tmp_path):
    parts = {
        "encoder": {"blocks.input.w": np.ones((8, 3, 7, 7), np.float32)},
        "decoder": {"blocks.input.w": np.zeros((4, 16, 1, 1), np.float32)},
    }
    paths = [str(tmp_path / f"{part}.pth") for part in ("decoder", "encoder")]
    for path, part in zip(paths, ("decoder", "encoder")):
        files.write(path, parts[part])
    ours = str(tmp_path / "ours.npz")
    assert main(["--source", "dalle", "--input", *paths, "--output", ours]) == 0
    assert files.read(ours).keys() == {"encoder/blocks/input/w", "decoder/blocks/input/w"}
    again = str(tmp_path / "again.pth")
    assert main(["--source", "dalle", "--input", ours, "--output", again, "--reverse"]) == 0
    for part, expected in parts.items():
        made = files.read(str(tmp_path / f"again_{part}.pth"))
        np.testing.assert_array_equal(made["blocks.input.w"], expected["blocks.input.w"])


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
