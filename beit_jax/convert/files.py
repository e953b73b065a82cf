"""Reads and writes files of named arrays: .npz, .safetensors and torch's .pth, without torch."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from beit_jax.checkpoint import RECORD
from beit_jax.convert import pickled

TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin")
_STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip


def read(path: str) -> dict[str, np.ndarray]:
    """The named arrays of a file; what is not an array (epoch, optimizer, ...) is left out.

    A torch file may be a state dict, one that holds it under "model", "module", "state_dict" or
    "teacher", a pickled module, or a TorchScript archive.
    Raises: FileNotFoundError. ValueError: unknown suffix, damaged file, no arrays in it.
    """
    suffix = _suffix(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if suffix in TORCH_SUFFIXES:
        arrays = {name: np.asarray(lazy) for name, lazy in pickled.named_arrays(path).items()}
    else:
        try:
            arrays = _read_plain(path, suffix)
        except Exception as error:  # zip, zlib, numpy, safetensors: each fails in its own way
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} cannot be read: {reason}") from error
    if not arrays:
        raise ValueError(f"{path} holds no named tensors")
    return arrays


def write(path: str, arrays: Mapping[str, np.ndarray], nest: str = "",
          record: Mapping[str, Any] | None = None) -> None:
    """Writes named arrays in the format of the path's suffix, and only then gives it its name.

    nest: of a torch file, the key under which the state dict is put ("model"); "" for none.
    record: of a file of ours, what belongs to the weights and is no array, see
      `checkpoint.recorded`; it stands where other readers do not stumble over it: in the comment
      of the .npz archive, in the metadata of .safetensors.
    Raises: ValueError: unknown suffix or dtype. OSError: not writable.
    """
    suffix = _suffix(path)
    # contiguous: safetensors writes others in memory order, under the wrong shape, without a word
    arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value))
              for name, value in arrays.items()}  # fmt: skip
    partial = f"{path}.partial"
    metadata = {RECORD: json.dumps(record)} if record else {}
    with open(partial, "wb") as file:
        if suffix == ".npz":
            np.savez(file, **arrays)
        elif suffix == ".safetensors":
            from safetensors.numpy import save  # only those who use such files need the package

            file.write(save(arrays, metadata={"format": "pt"} | metadata))
        else:
            file.write(_torch_archive(arrays, nest))
    if metadata and suffix == ".npz":
        with zipfile.ZipFile(partial, "a") as archive:
            archive.comment = json.dumps(metadata).encode()
    os.replace(partial, path)


def _suffix(path: str) -> str:
    suffix = os.path.splitext(path)[1]
    known = (".npz", ".safetensors", *TORCH_SUFFIXES)
    if suffix not in known:
        raise ValueError(f"{path}: unknown kind of file {suffix!r}; known: {', '.join(known)}")
    return suffix


def _read_plain(path: str, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    from safetensors.numpy import load_file

    return load_file(path)


def _torch_archive(arrays: Mapping[str, np.ndarray], nest: str) -> bytes:
    """What torch.save would write for these tensors. Source: torch/serialization.py."""
    program = io.BytesIO()
    program.write(b"\x80\x02}")  # protocol 2, an empty dict
    if nest:
        program.write(_text(nest) + b"}")
    program.write(b"(")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, (name, array) in enumerate(arrays.items()):
            if array.dtype.name not in _STORAGES:
                raise ValueError(f"{name}: dtype {array.dtype} cannot be written for torch")
            program.write(_text(name) + _tensor(array, str(key)))
            little = array.astype(array.dtype.newbyteorder("<"))
            archive.writestr(f"archive/data/{key}", little.tobytes())
        program.write(b"us." if nest else b"u.")
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def _tensor(array: np.ndarray, key: str) -> bytes:
    """The pickle program of one contiguous tensor over storage number `key`."""
    storage = b"(" + _text("storage") + _global("torch", _STORAGES[array.dtype.name])
    storage += _text(key) + _text("cpu") + _number(array.size) + b"tQ"
    strides = [stride // array.itemsize for stride in array.strides]
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
