"""Reads and writes files of named arrays: .npz, .safetensors and torch's .pth, without torch.

Files are judged by their content when they are read, by their suffix when they are written. Both
happen array by array, so that of a large network only the largest one is in memory.
"""

import contextlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from beit_jax import array_files
from beit_jax.checkpoint import RECORD
from beit_jax.convert import pickled
from beit_jax.lazy_array import LazyArray, printable

TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin")
_STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip
_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@contextlib.contextmanager
def opened(path: str) -> Iterator[dict[str, LazyArray]]:
    """The named arrays of a file, of any suffix, to be made one by one within the `with` block.

    What is no array (epoch, optimizer, ...) is left out. A torch file may be a state dict, one that
    holds it under "model", "module", "state_dict" or "teacher", a pickled module, or a TorchScript
    archive.
    Raises: FileNotFoundError. ValueError, also within the block: the file is something else, or
      damaged; it holds no arrays.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder: name a file in it{_weights_in(path)}")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no file")
    with open(path, "rb") as file:
        with array_files.errors_of(path):
            kind = array_files.kind_of(file)
            if kind == array_files.TORCH:
                arrays = pickled.named_arrays(path)
            else:
                arrays = array_files.arrays_of(file, kind)
            if not arrays:
                raise ValueError("holds no named tensors")
        yield {name: _guarded(value, path) for name, value in arrays.items()}


def read(path: str) -> dict[str, np.ndarray]:
    """All named arrays of a file at once. See `opened`."""
    with opened(path) as arrays:
        return {name: np.asarray(value) for name, value in arrays.items()}


def _guarded(array: LazyArray, path: str) -> LazyArray:
    """The array, whose errors name the file."""
    def make() -> np.ndarray:
        with array_files.errors_of(path):
            return array.make()

    return LazyArray(array.shape, array.dtype, make)


def _weights_in(folder: str) -> str:
    """", such as x.safetensors", or nothing."""
    known = (".npz", ".safetensors", *TORCH_SUFFIXES)
    found = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1] in known)
    return f", such as {printable(found[0])}" if found else ""


def write(path: str, arrays: Mapping[str, np.ndarray | LazyArray], nest: str = "",
          record: Mapping[str, Any] | None = None) -> None:
    """Writes named arrays in the format of the path's suffix, and only then gives it its name.

    nest: of a torch file, the key under which the state dict is put ("model"); "" for none.
    record: of a file of ours, what belongs to the weights and is no array, see
      `checkpoint.recorded`; it stands where other readers do not stumble over it: in the comment
      of the .npz archive, in the metadata of .safetensors.
    Raises: ValueError: unknown suffix or dtype. OSError: not writable.
    """
    suffix = _suffix(path)
    for name, value in arrays.items():
        if value.dtype.name not in _STORAGES:
            raise ValueError(f"{name}: an array of type {value.dtype} cannot be written")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial"
    metadata = {RECORD: json.dumps(record)} if record else {}
    try:
        with open(partial, "wb") as file:
            if suffix == ".npz":
                _write_npz(file, arrays, json.dumps(metadata).encode() if metadata else b"")
            elif suffix == ".safetensors":
                _write_safetensors(file, arrays, {"format": "pt"} | metadata)
            else:
                _write_torch(file, arrays, nest)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
        raise


def _suffix(path: str) -> str:
    suffix = os.path.splitext(path)[1]
    known = (".npz", ".safetensors", *TORCH_SUFFIXES)
    if suffix not in known:
        raise ValueError(f"{path}: unknown kind of file {suffix!r}; known: {', '.join(known)}")
    return suffix


def _content(value: np.ndarray | LazyArray) -> np.ndarray:
    """The bytes of an array, row after row, little-endian: uint8 [n]."""
    array = np.asarray(value)
    # contiguous: others would be written in memory order, under the wrong shape
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8)


def _write_npz(file: BinaryIO, arrays: Mapping, comment: bytes) -> None:
    """What numpy.savez would write."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
        archive.comment = comment


def _write_safetensors(file: BinaryIO, arrays: Mapping, metadata: dict[str, str]) -> None:
    """Header, then the numbers: those of wide types first, so that all are aligned."""
    header, end = {"__metadata__": metadata}, 0
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in names:
        value = arrays[name]
        first, end = end, end + value.size * value.dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS[value.dtype.name], "shape": list(value.shape),
                        "data_offsets": [first, end]}  # fmt: skip
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    file.write(struct.pack("<Q", len(content)) + content)
    for name in names:
        file.write(_content(arrays[name]))


def _write_torch(file: BinaryIO, arrays: Mapping, nest: str) -> None:
    """What torch.save would write for these tensors. Source: torch/serialization.py."""
    program = io.BytesIO()
    program.write(b"\x80\x02}")  # protocol 2, an empty dict
    if nest:
        program.write(_text(nest) + b"}")
    program.write(b"(")
    for key, (name, array) in enumerate(arrays.items()):
        program.write(_text(name) + _tensor(array, str(key)))
    program.write(b"us." if nest else b"u.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            is_large = array.size * array.dtype.itemsize >= 2**31
            with archive.open(f"archive/data/{key}", "w", force_zip64=is_large) as member:
                member.write(_content(array))
        archive.writestr("archive/version", b"3\n")


def _tensor(array: np.ndarray | LazyArray, key: str) -> bytes:
    """The pickle program of one contiguous tensor over storage number `key`."""
    storage = b"(" + _text("storage") + _global("torch", _STORAGES[array.dtype.name])
    storage += _text(key) + _text("cpu") + _number(array.size) + b"tQ"
    strides = [max(1, int(np.prod(array.shape[i + 1 :]))) for i in range(array.ndim)]
    arguments = storage + _number(0) + _tuple(array.shape) + _tuple(strides) + b"\x89"
    hooks = _global("collections", "OrderedDict") + b")R"
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + hooks + b"tR"


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values) -> bytes:
    return b"(" + b"".join(_number(int(value)) for value in values) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
