"""Reads the tensors of torch files without torch and without running any code of theirs.

A pickle is a program: it may name any function of any module and call it. This reader knows the
dozen names that tensors need, stands empty shells in for modules and their settings, and refuses
everything else. Formats: torch.save's zip archives (since 1.6), the older stream of pickles, and
the attributes of TorchScript archives (their program is not looked at).
Source: torch/serialization.py, torch/_utils.py, torch/jit/_pickle.py.
"""

import collections
import io
import pickle
import re
import zipfile

import numpy as np

_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "|b1",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Classes of which an empty shell is made: their attributes are kept, their code never runs.
_SHELLS = re.compile(r"(dall_e|torch\.nn\.modules|__torch__)(\.\w+)+|argparse\.Namespace")


class Shell:
    """Stands in for an object of a class that is not to be loaded."""

    is_script = False  # whether the class is TorchScript's

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            vars(self).update(state)


def read(path: str) -> object:
    """The pickled object: dicts, lists and numbers as they are, tensors as numpy arrays.

    bfloat16 comes as float32 (the same numbers). Pickled modules come as Shell objects.
    Raises: ValueError: not such a file, damaged, or it names something that is not allowed.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            return _read_zip(content)
        return _read_stream(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way whatsoever
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is no torch file, or is damaged: {type(error).__name__}: {reason}"
        ) from error


def state_dict(obj: object, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameters and buffers of a pickled module, under the names its state dict would have.

    In a TorchScript archive tensors and submodules are attributes of their module, as any other.
    """
    found, children = {}, dict(getattr(obj, "_modules", {}))
    tensors = dict(getattr(obj, "_parameters", {})) | getattr(obj, "_buffers", {})
    if type(obj).is_script:
        tensors = children = vars(obj)
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            found[prefix + name] = value
    for name, child in children.items():
        if isinstance(child, Shell):
            found |= state_dict(child, f"{prefix}{name}.")
    return found


class _Storage:
    """Where tensors lie; of a stream its bytes are read after the tensors that view it."""

    def __init__(self, kind: str, numel: int):
        self.kind, self.numel, self.values = kind, numel, None
        if kind not in _DTYPES:
            raise ValueError(f"tensors of type {kind} are not supported")

    def fill(self, content: bytes) -> None:
        dtype = np.dtype(_DTYPES[self.kind])
        if len(content) != self.numel * dtype.itemsize:
            raise ValueError(f"a tensor has {len(content)} bytes, {self.numel} x {dtype} announced")
        self.values = np.frombuffer(content, dtype)


class _View:
    """A tensor whose storage may not be filled yet."""

    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride))
        empty = 0 in self.size
        inside = min((self.offset, *self.size, *self.stride), default=0) >= 0
        if len(self.size) != len(self.stride) or not (empty or (inside and last < self.numel)):
            raise ValueError(f"a tensor of shape {self.size} reaches beyond its storage")
        if empty:
            return np.zeros(self.size, np.dtype(_DTYPES[self.storage.kind]))
        values = self.storage.values[self.offset :]
        strides = [step * values.itemsize for step in self.stride]
        array = np.array(np.lib.stride_tricks.as_strided(values, self.size, strides), order="C")
        if self.storage.kind == "BFloat16Storage":  # the upper half of a float32's bits
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array

    @property
    def numel(self) -> int:
        return self.storage.numel


class _Unpickler(pickle.Unpickler):
    """Knows the names that tensors need and no others."""

    def __init__(self, file, storage_of):
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of
        self._shells: dict[str, type] = {}

    def find_class(self, module, name):
        full = f"{module}.{name}"
        if module == "torch" and name.endswith("Storage"):
            return _named(name)
        allowed = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_tensor": _rebuild_tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.nn.parameter.Parameter": lambda data, *_: data,
            "torch.Size": lambda size: tuple(size),
            "torch.device": lambda *text: ":".join(map(str, text)),
            # TorchScript's typed lists and dicts
            **{f"torch.jit._pickle.build_{kind}list": lambda data: list(data)
               for kind in ("int", "double", "bool", "tensor")},
            "torch.jit._pickle.restore_type_tag": lambda data, _: data,
            "builtins.set": set,
            "__builtin__.set": set,
        }
        if full in allowed:
            value = allowed[full]
            # a fresh function each time: a pickle can set attributes on what it was given
            return value if isinstance(value, type) else (lambda *args: value(*args))
        if _SHELLS.fullmatch(full):
            is_script = module.startswith("__torch__")
            return self._shells.setdefault(full, type(name, (Shell,), {"is_script": is_script}))
        raise ValueError(
            f"the file wants to load {full}, which is not needed for tensors and could run code: "
            "refused; save its state dict with torch first"
        )

    def persistent_load(self, pid):
        if pid[0] == "module":  # old streams: (class, source file, source text)
            return pid[1]
        if pid[0] != "storage" or any(view is not None for view in pid[5:]):
            raise ValueError(f"a reference of kind {pid[0]!r} is not supported")
        return self._storage_of(pid[1].kind, str(pid[2]), int(pid[4]))


def _named(kind: str):
    """A class that stands for a kind of storage."""
    return type(kind, (), {"kind": kind})


def _rebuild_tensor(storage, offset, size, stride, *_):
    return _View(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _read_zip(content: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but without the data.pkl of a torch file")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order).strip() != b"little":
            raise ValueError("written on a big-endian machine: not supported")
        storages: dict[str, _Storage] = {}

        def storage_of(kind, key, numel):
            if key not in storages:
                storages[key] = _Storage(kind, numel)
                storages[key].fill(archive.read(f"{root}data/{key}"))
            return storages[key]

        return _arrays(_Unpickler(io.BytesIO(archive.read(pickles[0])), storage_of).load(), {})


def _read_stream(file) -> object:
    storages: dict[str, _Storage] = {}

    def storage_of(kind, key, numel):
        return storages.setdefault(key, _Storage(kind, numel))

    if _Unpickler(file, storage_of).load() != _LEGACY_MAGIC:
        raise ValueError("a pickle, but not one of torch.save")
    _Unpickler(file, storage_of).load()  # version of the format
    system = _Unpickler(file, storage_of).load()
    if not system.get("little_endian", True):
        raise ValueError("written on a big-endian machine: not supported")
    obj = _Unpickler(file, storage_of).load()
    for key in _Unpickler(file, storage_of).load():
        storage = storages[str(key)]
        file.read(8)  # number of values, which the storage knows
        storage.fill(file.read(storage.numel * np.dtype(_DTYPES[storage.kind]).itemsize))
    return _arrays(obj, {})


def _arrays(obj, seen: dict):
    """Puts arrays in the place of views, everywhere in an object."""
    if isinstance(obj, _View):
        return obj.array()
    if id(obj) in seen:
        return seen[id(obj)][1]
    if isinstance(obj, dict):
        made = seen[id(obj)] = (obj, {})
        made[1].update({key: _arrays(value, seen) for key, value in obj.items()})
        return made[1]
    if isinstance(obj, Shell):
        seen[id(obj)] = (obj, obj)
        vars(obj).update({key: _arrays(value, seen) for key, value in vars(obj).items()})
        return obj
    if isinstance(obj, (list, tuple)):
        return type(obj)(_arrays(value, seen) for value in obj)
    return obj
