"""Files with a few bytes changed: read as they are, or refused in one line. No hang, no crash.

Every number that comes out stands in the file, so that memory beyond it would be noticed.
Where a format keeps checksums, what comes out is what was put in.
"""

import io
import json
import pickle
import random
import signal
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from test_files import Storage, Tensor, dump, named

from beit_jax import convert
from beit_jax.convert import files

MUTANTS = 320  # of each format
MOST_SECONDS, MOST_BYTES = 5, 2e6  # for a file of 2 kB
VALUES = np.random.RandomState(0).standard_normal(24).astype(np.float32)
HALVES = np.array([1.5, -2.25, 3.0, 0.5], np.float16)
BFLOATS = np.array([0x3FC0, 0xC000, 0x4049], np.uint16)
# what hurts most: steps of a pickle, sizes at and beyond the limits of 1, 2, 4 and 8 bytes
STEPS = [bytes([code]) for code in
         b".(0125ab]}{)tRQPsueqrhjgcioN\x80\x81\x85\x86\x87\x88\x8a\x93\x95"]
SIZES = [struct.pack("<i", n) for n in (0, -1, 2**31 - 1, 65536, 1)]
SIZES += [struct.pack("<q", n) for n in (-1, 2**63 - 1, 2**40)] + [b"\xff", b"\x00" * 4, b"1" * 9]


def state():
    store = Storage("0", VALUES)
    return {"model": {
        "norm.weight": Tensor(store, (8,), (1,)), "norm.bias": Tensor(store, (8,), (1,), 8),
        "pos_embed": Tensor(store, (2, 2, 2), (1, 2, 4), 16),
        "blocks.0.norm1.weight": Tensor(Storage("1", HALVES, "HalfStorage"), (4,), (1,)),
        "blocks.0.norm1.bias": Tensor(Storage("2", BFLOATS, "BFloat16Storage"), (3,), (1,)),
    }, "epoch": 3, "names": ["a", ("b", 1.5), {"c": None}]}  # fmt: skip


def module():
    """A TorchScript archive's objects."""
    store = Storage("0", VALUES)
    norm = named("__torch__.torch.nn.modules.normalization", "LayerNorm")()
    norm.__dict__ |= {"training": False, "weight": Tensor(store, (8,), (1,)),
                      "bias": Tensor(store, (8,), (1,), 8)}
    tower = named("__torch__.multimodal", "Tower")()
    tower.__dict__ |= {"proj": Tensor(Storage("1", HALVES, "HalfStorage"), (2, 2), (2, 1)),
                       "ln_post": norm, "input_resolution": 4}
    return tower


STORED = {"0": VALUES.tobytes(), "1": HALVES.tobytes(), "2": BFLOATS.tobytes()}


def archive(program: bytes, keys: str = "012") -> bytes:
    return zipped({"x/data.pkl": program, "x/byteorder": b"little"}
                  | {f"x/data/{key}": STORED[key] for key in keys} | {"x/version": b"3\n"})


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return buffer.getvalue()


def stream(program: bytes) -> bytes:
    head = b"".join(pickle.dumps(part, protocol=2)
                    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    tail = pickle.dumps(list("012"), protocol=2)
    for key, size in (("0", 24), ("1", 4), ("2", 3)):
        tail += struct.pack("<q", size) + STORED[key]
    return head + program + tail


def arrays() -> dict[str, np.ndarray]:
    return {"norm.weight": VALUES[:8], "norm.bias": VALUES[8:16].astype(np.float64),
            "blocks.0.norm1.weight": HALVES, "pos_embed": VALUES[16:].reshape(2, 2, 2).T}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def safetensors(header: bytes | None = None) -> bytes:
    parts = {"norm.bias": ("F64", np.float64(VALUES[:4])), "norm.weight": ("F32", VALUES[:8]),
             "blocks.0.norm1.weight": ("F16", HALVES), "blocks.0.norm1.bias": ("BF16", BFLOATS)}
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in parts.items():
        entries[name] = {"dtype": dtype, "shape": list(array.shape),
                         "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    header = json.dumps(entries).encode() if header is None else header
    content = b"".join(array.tobytes() for _, array in parts.values())
    return struct.pack("<Q", len(header)) + header + content


def safetensors_header() -> bytes:
    whole = safetensors()
    return whole[8 : 8 + int.from_bytes(whole[:8], "little")]


# format: (name table, the whole file, a part of it, a file around a changed part, checksums or not)
FORMATS = {
    "zip": ("dino", archive(dump(state())), dump(state()), archive, True),
    "stream": ("dino", stream(dump(state())), dump(state()), stream, False),
    "torchscript": ("clip", archive(dump(module()), "01"), dump(module()),
                    lambda program: archive(program, "01"), True),
    "npz": ("dino", zipped({f"{k}.npy": npy(v) for k, v in arrays().items()}),
            npy(arrays()["pos_embed"]), lambda part: zipped({"pos_embed.npy": part}), True),
    "safetensors": ("dino", safetensors(), safetensors_header(), safetensors, False),
}


def mutant(content: bytes, draw: random.Random) -> bytes:
    """One to three changes: bytes altered, left out, doubled, exchanged, or the end lost."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 30))
        kind = draw.randrange(7)
        if kind == 0:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length] * draw.choice((1, 2, 50))
        elif kind == 3:
            changed[place : place + 1] = draw.choice(STEPS)
        elif kind == 4:
            size = draw.choice(SIZES)
            changed[place : place + len(size)] = size
        elif kind == 5:
            other = draw.randrange(len(changed) + 1)
            changed[place : place + length] = changed[other : other + length]
        elif draw.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def stands_in(value: np.generic, content: bytes) -> bool:
    """Whether a number's bytes are a file's: a bfloat16 is the upper half of its float32."""
    raw = value.tobytes()
    return raw in content or raw[::-1] in content or (
        value.dtype == np.float32 and raw[:2] == b"\0\0" and raw[2:] in content)


@pytest.fixture
def no_hang():
    def stop(*_):
        raise AssertionError(f"more than {MOST_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    tracemalloc.start()
    yield
    tracemalloc.stop()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("form", FORMATS)
def test_changed_files_are_right_or_refused_in_one_line(tmp_path, no_hang, form):
    fmt, whole, part, around, has_checksums = FORMATS[form]
    draw, path = random.Random(form), tmp_path / "x.pth"
    file = path.open("w+b", buffering=0)
    file.write(whole)
    original = files.read(str(path))
    convert.to_ours(original, fmt)
    read = refused = 0
    for i in range(MUTANTS):
        content = mutant(whole, draw) if i % 2 else around(mutant(part, draw))
        file.seek(0)
        file.write(content)
        file.truncate()
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        tracemalloc.reset_peak()
        began = tracemalloc.get_traced_memory()[0]
        try:
            made = files.read(str(path))
            read += 1
        except ValueError as error:
            made = {}
            refused += 1
            message = str(error)
            assert message.isprintable() and "x.pth" in message and len(message) < 1000, i
        try:
            convert.to_ours(made, fmt)
        except ValueError as error:
            assert str(error).isprintable(), i
        assert tracemalloc.get_traced_memory()[1] - began < MOST_BYTES, i
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert sum(array.nbytes for array in made.values()) <= 4 * len(content), i
        for name, array in made.items():
            assert name.isprintable(), i
            if i % 2 and has_checksums:
                np.testing.assert_array_equal(array, original[name])
            assert all(stands_in(value, content) for value in array.ravel()), (i, name)
    file.close()
    assert read > 10 and refused > 100
