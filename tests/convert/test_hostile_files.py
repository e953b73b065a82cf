"""Files made to hurt: nothing but a file's own bytes comes out of it, nothing hangs or swells."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from test_files import Storage, Tensor, write_stream, write_zip

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
