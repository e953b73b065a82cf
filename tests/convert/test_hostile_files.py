"""Files made to hurt: nothing but a file's own bytes comes out of it, nothing hangs or swells."""

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from test_files import Storage, Tensor, write_stream, write_zip

from beit_jax import checkpoint
from beit_jax.convert import files, pickled, program

VALUES = np.arange(12, dtype=np.float32)
MARK, END = b"(", b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(numel: int, key: str = "0", kind: bytes = b"FloatStorage") -> bytes:
    """The program of a reference to a storage."""
    return (MARK + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu")
            + b"J" + struct.pack("<i", numel) + b"tQ")


def tensor(store: bytes, rest: bytes = b"K\x00K\x0c\x85K\x01\x85") -> bytes:
    """The program of a tensor; `rest`: offset, size and strides, by default 0, (12,), (1,)."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + MARK + store + rest + b"\x89}tR"


def state_dict(value: bytes, name: str = "norm.weight") -> bytes:
    return b"\x80\x02}" + text(name) + value + b"s" + END


def modules(depth: int, holds_itself: bool = False) -> bytes:
    """The program of modules of which each holds the next one twice."""
    new = b"ctorch.nn.modules.container\nSequential\n)R"
    made = b"\x80\x02" + new + b"r" + bytes(4)
    if holds_itself:
        made += b"}" + text("_modules") + b"}" + text("again") + b"j" + bytes(4) + b"ssb"
    for i in range(depth):
        inner = b"j" + struct.pack("<I", i)
        made += (new + b"r" + struct.pack("<I", i + 1) + b"}" + text("_modules") + b"}"
                 + text("a") + inner + b"s" + text("b") + inner + b"ssb")
    return made + END


def shared(depth: int, make: bytes) -> bytes:
    """A value of `depth` levels, each of which holds the one below twice."""
    return b"]" + (b"2" + make) * depth


HOSTILE = {
    "size_of_a_storage_set_afterwards": state_dict(
        tensor(storage(12) + b"}" + text("numel") + b"M\x00\x10sb",
               b"K\x00M\x00\x10\x85K\x01\x85")),
    "namespace_for_a_storage": state_dict(tensor(
        b"cargparse\nNamespace\n)R}" + text("numel") + b"M\x00\x10" + b"sb")),
    "list_for_a_storage": state_dict(tensor(b"]")),
    "storage_of_more_than_the_file": state_dict(
        tensor(storage(4096), b"K\x00M\x00\x10\x85K\x01\x85")),
    "storage_announced_twice": state_dict(tensor(storage(12) + b"0" + storage(4096))),
    "storage_of_another_type": state_dict(tensor(storage(12, kind=b"DoubleStorage"))),
    "storage_of_negative_size": state_dict(tensor(storage(-1))),
    "attributes_of_a_tensor": state_dict(tensor(storage(12)) + b"}" + text("size") + b"K\x00sb"),
    "attributes_of_a_name": state_dict(b"ctorch\nFloatStorage\n}" + text("kind") + b"K\x00sb"),
    "size_that_is_true": state_dict(tensor(storage(12), b"K\x00\x88\x85K\x01\x85")),
    "stride_that_is_a_float": state_dict(
        tensor(storage(12), b"K\x00K\x02\x85G\x3f\xf0" + bytes(6) + b"\x85")),
    "stride_beyond_64_bits": state_dict(
        tensor(storage(12), b"K\x00K\x02\x85\x8a\x09" + bytes(8) + b"\x01\x85")),
    "stride_that_wraps_to_0": state_dict(
        tensor(storage(12), b"K\x00K\x05\x85\x8a\x08" + bytes(7) + b"\x40\x85")),
    "negative_offset": state_dict(
        tensor(storage(12), b"J\xff\xff\xff\xffK\x02\x85K\x01\x85")),
    "stride_0": state_dict(tensor(storage(12), b"K\x00J\x00\x00\x00\x40\x85K\x00\x85")),
    "windows": state_dict(tensor(storage(12), b"K\x00K\x06K\x06\x86K\x01K\x01\x86")),
    "empty_but_vast": state_dict(tensor(
        storage(12), b"K\x00" + MARK + b"K\x00" + b"J\xff\xff\xff\x7f" * 4 + b"t"
        + MARK + b"K\x01" * 5 + b"t")),
    "many_dimensions": state_dict(tensor(
        storage(12), b"K\x00" + MARK + b"K\x01" * 70 + b"t" + MARK + b"K\x01" * 70 + b"t")),
    "names_for_one_storage": b"\x80\x02}" + b"".join(
        text(f"a{i}") + tensor(storage(12)) + b"s" for i in range(5)) + END,
    "modules_40_deep": modules(40),
    "modules_300_deep": modules(300),
    "a_module_that_holds_itself": modules(0, holds_itself=True),
    "a_list_that_holds_itself": b"\x80\x02]q\x00h\x00a.",
    "tuples_40_deep_as_a_key": b"\x80\x02}" + shared(40, b"\x86") + b"K\x00s" + END,
    "nothing_at_all": b"\x80\x02}.",
    "many_names_of_one_large_dict": b"\x80\x02}(" + b"".join(
        text(str(i)) + b"N" for i in range(4000)) + b"uq\x000}(" + b"".join(
            text(str(i)) + b"h\x00" for i in range(4000)) + b"u.",
    "a_name_with_a_terminal_escape": state_dict(tensor(storage(12)), "a\x1b[2Jb"),
    "a_name_to_load_with_one": b"cos\x1b[2J\nmkdir\n.",
    "a_name_of_100_000_letters": state_dict(tensor(storage(12)), "a" * 100_000),
    "a_kind_with_a_terminal_escape": state_dict(tensor(storage(12, kind=b"F\x1bStorage"))),
    "lists_10_000_deep": b"\x80\x02" + b"](" * 10_000 + b"e" * 10_000 + END,
    "bytes_that_are_not_there": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + END,
    "text_that_is_not_there": b"\x80\x05\x8d" + struct.pack("<Q", 2**62) + END,
    "a_number_of_10_000_digits": b"I" + b"9" * 10_000 + b"\n.",
    "no_end": b"\x80\x02}",
    "a_step_without_its_values": b"\x80\x02s.",
    "a_buffer_from_outside": b"\x80\x05\x97.",
    "a_reference_that_is_no_storage": state_dict(b"NQ"),
    "a_call_of_what_has_no_name": state_dict(b"})R"),
}  # fmt: skip


def refused(path) -> str:
    """The message of a file that must be refused, within a second and a few MB."""
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ValueError) as caught:
        files.read(str(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert time.monotonic() - began < 5 and most < 40e6
    assert message.isprintable() and len(message) < 700 and path.name in message
    return message


@pytest.mark.parametrize("form", ["zip", "stream"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(tmp_path, name, form):
    path = tmp_path / "x.pth"
    if form == "zip":
        write_zip(path, HOSTILE[name], k0=VALUES.tobytes())
    else:
        head = io.BytesIO()
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, head, protocol=2)
        tail = pickle.dumps(["0"], protocol=2) + struct.pack("<q", 12) + VALUES.tobytes()
        path.write_bytes(head.getvalue() + HOSTILE[name] + tail)
    refused(path)


def test_the_programs_above_are_right_but_for_what_they_are_named_after(tmp_path):
    write_zip(tmp_path / "x.pth", state_dict(tensor(storage(12))), k0=VALUES.tobytes())
    np.testing.assert_array_equal(files.read(str(tmp_path / "x.pth"))["norm.weight"], VALUES)


def test_a_far_place_in_the_memo_takes_no_memory(tmp_path):
    far = state_dict(tensor(storage(12)) + b"r\xff\xff\xff\x0f")
    write_zip(tmp_path / "x.pth", far, k0=VALUES.tobytes())
    tracemalloc.start()
    assert files.read(str(tmp_path / "x.pth")).keys() == {"norm.weight"}
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_programs_end_after_so_many_steps_and_bytes(tmp_path, monkeypatch):
    write_zip(tmp_path / "long.pth", b"\x80\x02" + b"N0" * 1000 + b"N.")
    write_zip(tmp_path / "state.pth",  # one large dict, given to many objects as their attributes
              b"\x80\x02}q\x00" + b"".join(text(str(i)) + b"Ns" for i in range(100)) + b"0"
              + b"cargparse\nNamespace\n)Rh\x00b" * 100 + END)
    write_zip(tmp_path / "large.pth", b"\x80\x02" + text("a" * program.MAX_BYTES) + END)
    assert "more than" in refused(tmp_path / "large.pth")
    monkeypatch.setattr(program, "_MAX_STEPS", 1500)
    for name in ("long.pth", "state.pth"):
        assert "more than 1,500 steps" in refused(tmp_path / name)


def test_archives_are_neither_unpacked_nor_read_twice(tmp_path):
    right = state_dict(tensor(storage(12)))
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", right, zipfile.ZIP_STORED)
        archive.writestr("x/data/0", bytes(20_000_000))
    assert "compressed" in refused(tmp_path / "packed.pth")
    # ten entries of the list at the end name the bytes of one
    size, names = 4096, [str(i) for i in range(10)]
    tensors = (text(f"w{k}") + tensor(storage(size, k), b"K\x00M\x00\x10\x85K\x01\x85") + b"s"
               for k in names)
    with zipfile.ZipFile(tmp_path / "shared.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}" + b"".join(tensors) + END)
        archive.writestr("x/data/0", bytes(4 * size))
        first = archive.infolist()[-1]
        for key in names[1:]:
            entry = zipfile.ZipInfo(f"x/data/{key}")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(entry, field, getattr(first, field))
            archive.filelist.append(entry)
    assert "more numbers than the file" in refused(tmp_path / "shared.pth")


def safetensors(header: bytes, size: int = 8) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def entry(**changes) -> bytes:
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return json.dumps({"a": fields}).encode()


@pytest.mark.parametrize("content", {
    "a_header_longer_than_the_file": struct.pack("<Q", 2**39) + b"{}",
    "no_json": safetensors(b"{nothing", 0), "no_object": safetensors(b"{} ,", 0),
    "an_entry_that_is_a_list": safetensors(b'{"a":[]}', 0), "nothing": safetensors(b"{}", 0),
    "deep": safetensors(b'{"a":' + b"[" * 100_000, 0),
    "more_numbers_than_bytes": safetensors(entry(shape=[3])),
    "fewer_bytes_than_announced": safetensors(entry(), 4),
    "more_bytes_than_announced": safetensors(entry(), 12),
    "a_gap": safetensors(entry(data_offsets=[4, 12]), 12),
    "lies_outside": safetensors(entry(data_offsets=[2**40, 2**40 + 8])),
    "upon_each_other": safetensors(entry()[:-1] + b"," + entry().replace(b'"a"', b'"b"')[1:]),
    "one_name_twice": safetensors(entry()[:-1] + b"," + entry()[1:]),
    "negative": safetensors(entry(shape=[-2])), "a_float": safetensors(entry(shape=[2.0])),
    "true": safetensors(entry(shape=[True, 2])), "vast": safetensors(entry(shape=[2**30] * 4)),
    "overflow": safetensors(entry(shape=[2**32, 2**32, 2])), "no_place": safetensors(entry(
        data_offsets=None)), "of_text": safetensors(entry(dtype="\x1b[2J")),
    "an_escape": safetensors(b'{"\\u001b[2J":{}}', 0),
    "half_a_sign": safetensors(b'{"\xff":{}}', 0),
}.items(), ids=lambda item: item[0])
def test_hostile_safetensors_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content[1])
    refused(tmp_path / "x.safetensors")


def npy(header: bytes, size: int = 8, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(size)


def npy_header(descr="'<f4'", order="False", shape="(2,)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()


@pytest.mark.parametrize("content", {
    "vast": npy(npy_header(shape="(1099511627776,)")), "negative": npy(npy_header(shape="(-2,)")),
    "a_call": npy(npy_header(shape="exit()")), "objects": npy(npy_header(descr="'|O'")),
    "records": npy(npy_header(descr="[('a', '<f4')]")), "text": npy(npy_header(descr="'<U4'")),
    "bfloat16": npy(npy_header(descr="'|V2'")), "no_header": npy(b"{"), "no_array": b"nothing",
    "true": npy(npy_header(shape="(True, 2)")), "order": npy(npy_header(order="0")),
    "deep": npy(b"(" * 9000), "a_header_without_end": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "cut_off": npy(npy_header(), 4), "too_long": npy(npy_header(), 12), "empty": b"",
}.items(), ids=lambda item: item[0])
def test_hostile_npz_are_refused_in_one_line(tmp_path, content):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
            archive.writestr("a.npy", content[1])
        refused(tmp_path / "x.npz")


def test_npz_are_not_unpacked_beyond_measure_nor_read_twice(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10_000_000, np.float32))
    assert "unpacks to 40," in refused(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "small.npz", a=np.zeros(1000, np.float32))
    assert not files.read(str(tmp_path / "small.npz"))["a"].any()
    with zipfile.ZipFile(tmp_path / "shared.npz", "w") as archive:
        archive.writestr("a.npy", npy(npy_header()))
        for name in "bcdefgh":
            copied = zipfile.ZipInfo(f"{name}.npy")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copied, field, getattr(archive.filelist[0], field))
            archive.filelist.append(copied)
    refused(tmp_path / "shared.npz")


def test_an_archive_of_too_many_members_is_refused(tmp_path):
    size = 5_000_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0)
    (tmp_path / "x.pth").write_bytes(b"PK\x01\x02" + bytes(size - 4) + end)
    assert "list of members has 5,000,000 bytes" in refused(tmp_path / "x.pth")


NO_WEIGHTS = {
    "is a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "is a web page": b"\n<!DOCTYPE html>\n<html><head>", "is a text in JSON": b'{"error": "gone"}',
    "is a packed file": b"\x1f\x8b\x08" + bytes(20), "is an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "is an ONNX graph": b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "is empty": b"",
    "is a single array": npy(npy_header()), "is no file of weights": b"\x80",
    "of neither torch nor numpy": None, "is a tar": bytes(257) + b"ustar",
}  # fmt: skip


@pytest.mark.parametrize("what", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", ["pth", "npz", "safetensors"])
def test_what_is_no_file_of_weights_is_called_by_its_name(tmp_path, what, suffix):
    path = tmp_path / f"x.{suffix}"
    if NO_WEIGHTS[what] is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("word/document.xml", "<a/>")
    else:
        path.write_bytes(NO_WEIGHTS[what])
    assert what in refused(path)
    with pytest.raises(ValueError, match=f"x.{suffix}.*{what}"):
        checkpoint.load_variables(str(path))


def test_damage_inside_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    write_zip(path, state_dict(tensor(storage(12))), k0=VALUES.tobytes())
    path.write_bytes(path.read_bytes().replace(VALUES[5:7].tobytes(), VALUES[6:8].tobytes()))
    assert "CRC-32" in refused(path)


def test_weights_under_two_names_are_no_bomb(tmp_path):
    tied = Storage("0", VALUES)
    state = OrderedDict(a=Tensor(tied, (12,), (1,)), b=Tensor(tied, (3, 4), (4, 1)))
    write_stream(tmp_path / "x.pth", state, [tied])
    arrays = files.read(str(tmp_path / "x.pth"))
    np.testing.assert_array_equal(arrays["a"], arrays["b"].ravel())


def test_what_programs_keep_beside_the_weights_is_no_hindrance(tmp_path):
    beside = {
        "args": b"cargparse\nNamespace\n)R}" + text("out") + b"cpathlib\nPosixPath\n"
                + text("runs") + b"\x85R" + b"s" + b"b",
        "device": b"ctorch\ndevice\n" + text("cuda") + b"\x85R",
        "best": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("f8")
                + b"\x89\x88\x87RC\x08" + bytes(8) + b"\x86R",
        "precision": b"ctorch\nbfloat16\n",
    }  # fmt: skip
    inner = b"}" + text("norm.weight") + tensor(storage(12)) + b"s"
    content = b"".join(text(name) + value + b"s" for name, value in beside.items())
    path = tmp_path / "x.pth"
    write_zip(path, b"\x80\x03}" + content + text("state_dict") + inner + b"s.",
              k0=VALUES.tobytes())
    assert files.read(str(path)).keys() == {"norm.weight"}
    assert vars(pickled.read(str(path))["args"]).keys() == {"out"}
