"""Reads the tensors of torch files without torch and without running any code of theirs.

A pickle is a program: it may name any function of any module and call it. Here it is followed as
data (program.py); this file says which names tensors need and what stands for them, and refuses
everything else. Formats: torch.save's zip archives (since 1.6), the older stream of pickles, and
the attributes of TorchScript archives (their program is not looked at).
Source: torch/serialization.py, torch/_utils.py, torch/jit/_pickle.py.
"""

import dataclasses
import io
import itertools
import math
import mmap
import re
import struct
import zipfile
import zlib

import numpy as np

from beit_jax.convert import program
from beit_jax.convert.program import Name, Shell, kind
from beit_jax.lazy_array import LazyArray, check_name, printable, widened

_DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1",
    "ByteStorage": "<u1", "BoolStorage": "|b1",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# where training programs keep the state dict in a larger one; the first that is there counts
_NESTS = ("model", "module", "state_dict", "teacher", "model_state_dict", "net", "network")
_MAX_NESTS = 4
_MAX_PARTS = 20_000  # modules and their attributes; of a published network under 10,000
_MAX_DEPTH = 50  # of modules in modules
_MAX_DIMENSIONS = 32
_GLANCE = 200  # entries of a dict
# Classes of which an empty shell is made: their attributes are kept, their code never runs.
_SHELLS = re.compile(
    r"(dall_e|torch\.nn\.modules|__torch__)(\.\w+)+"
    # what training programs keep beside the weights: options, paths, a best accuracy, counts
    r"|argparse\.Namespace|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(core|_core)\.multiarray\.scalar|numpy\.dtype|_codecs\.encode"
    r"|collections\.(defaultdict|Counter)"
    r"|torch\.(device|strided|bool|half|double|long|short|b?float\w*|u?int\w*)")


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where tensors lie, as the pickle announces it; `_Source` compares it with the file."""

    kind: str
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor as the pickle announces it, unchecked: some of the numbers of a storage."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple


def read(path: str) -> object:
    """The pickled object: dicts, lists and numbers as they are, tensors as View, others as Shell.

    Raises: ValueError: not such a file, damaged, or it names something that is not allowed.
    """
    return _load(path)[0]


def named_arrays(path: str) -> dict[str, LazyArray]:
    """The tensors of a state dict, of one within a larger dict, or of a pickled module.

    bfloat16 comes as float32 (the same numbers). All are known to lie within the file.
    Raises: ValueError: as `read`, or there are none.
    """
    obj, source = _load(path)
    try:
        views = _module_views(obj) if isinstance(obj, Shell) else _dict_views(obj)
        return source.arrays(views)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: str) -> tuple[object, "_Source"]:
    with open(path, "rb") as file:
        try:
            source = _Archive(file) if file.read(2) == b"PK" else _Stream(file)
            return source.obj, source
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise ValueError(f"{path} is no torch file, or is damaged: {error}") from error


class _Source:
    """The bytes of a file, and `obj`, which its pickle builds. See `_Archive` and `_Stream`."""

    obj: object

    def __init__(self, file):
        self._path = file.name
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map)
        self._storages: dict[str, Storage] = {}  # as announced, by key
        self._whole: set[str] = set()  # keys of storages whose CRC-32 was found right

    def _follow(self, file) -> object:
        return program.follow(file, program.Reader(_admit, _call, self._persistent))

    def _persistent(self, pid) -> object:
        """What a reference to something outside the pickle stands for: a storage, or a class."""
        if type(pid) is tuple and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # old streams: (class, source file, source text)
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or any(
                view is not None for view in pid[5:]):
            raise ValueError("a reference to something else than a whole storage: not supported")
        _, storage_kind, key, _, numel = pid[:5]
        if (type(storage_kind) is not Name or storage_kind.module != "torch" or type(key) is not str
                or not _is_count(numel)):
            raise ValueError("a damaged pickle: a storage without type, key or size")
        storage = Storage(storage_kind.name, key, numel)
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {printable(key)} is announced in two ways: refused")
        return storage

    def _locate(self, key: str) -> tuple[int, int, int | None]:
        """(first byte, bytes, CRC-32 or None) of a storage. Raises ValueError: no such storage."""
        raise NotImplementedError

    def arrays(self, views: dict[str, View]) -> dict[str, LazyArray]:
        """What the views show.

        Raises: ValueError: a view reaches beyond its storage, or a storage beyond the file, or
          more comes out than the file has.
        """
        arrays, stored = {}, {}
        for name, view in views.items():
            check_name(name)
            try:
                stored[view.storage.key] = self._check_storage(view.storage)
                arrays[name] = self._array(view)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        numbers = sum(self._storages[key].numel for key in stored)
        # twice: weights that two parts of a network share have two names
        if sum(stored.values()) > len(self._bytes) or sum(
                array.size for array in arrays.values()) > 2 * numbers:
            raise ValueError("the tensors hold more numbers than the file: refused")
        return arrays

    def _check_storage(self, storage: Storage) -> int:
        """How many bytes it has, all of which are there."""
        if storage.kind not in _DTYPES:
            raise ValueError(f"tensors of type {printable(storage.kind)} are not supported")
        start, length, _ = self._locate(storage.key)
        if length != storage.numel * np.dtype(_DTYPES[storage.kind]).itemsize:
            raise ValueError(f"a storage has {length} bytes, {storage.numel} numbers of type "
                             f"{storage.kind.removesuffix('Storage')} are announced")
        if start + length > len(self._bytes):
            raise ValueError("the file is cut off")
        return length

    def _array(self, view: View) -> LazyArray:
        shape, strides = _checked(view)
        key, dtype = view.storage.key, np.dtype(_DTYPES[view.storage.kind])
        start, length, crc = self._locate(key)
        storage = self._bytes[start : start + length]
        is_bfloat16 = view.storage.kind == "BFloat16Storage"

        def make() -> np.ndarray:
            if crc is not None and key not in self._whole:
                if zlib.crc32(storage) != crc:
                    raise ValueError(f"{self._path}: a tensor is damaged: its CRC-32 is wrong")
                self._whole.add(key)
            # numpy, too, compares shape, offset and strides with the buffer
            first = view.offset * dtype.itemsize if math.prod(shape) else 0
            shown = np.ndarray(shape, dtype, storage, first, [s * dtype.itemsize for s in strides])
            array = widened(shown) if is_bfloat16 else np.array(shown, order="C")
            if hasattr(mmap, "MADV_DONTNEED"):  # or the file stays in memory beside what is made
                self._map.madvise(mmap.MADV_DONTNEED)
            return array

        return LazyArray(shape, np.dtype(np.float32) if is_bfloat16 else dtype, make)


class _Archive(_Source):
    """torch.save's zip archives, and TorchScript's. Storages lie in it as they are."""

    def __init__(self, file):
        super().__init__(file)
        with zipfile.ZipFile(file) as archive:
            self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("a zip archive, but without the data.pkl of a torch file")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in self._members and self._content(order).strip() != b"little":
            raise ValueError("written on a big-endian machine: not supported")
        self.obj = self._follow(io.BytesIO(self._content(pickles[0])))

    def _content(self, name: str) -> bytes:
        start, length, crc = self._member(name)
        if length > program.MAX_BYTES:
            raise ValueError(f"{printable(name)} has {length:,} bytes, more than any torch file's")
        content = bytes(self._bytes[start : start + length])
        if zlib.crc32(content) != crc:
            raise ValueError(f"{printable(name)} is damaged: its CRC-32 is not the file's")
        return content

    def _locate(self, key: str) -> tuple[int, int, int | None]:
        return self._member(f"{self._root}data/{key}")

    def _member(self, name: str) -> tuple[int, int, int]:
        """(first byte, bytes, CRC-32) of a member of the archive."""
        info = self._members.get(name)
        if info is None:
            raise ValueError(f"the archive lacks {printable(name)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{printable(name)} is compressed or encrypted, which torch never "
                             "does: save the weights with torch again")
        header = bytes(self._bytes[max(0, info.header_offset) :][:30])
        if info.header_offset < 0 or len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise ValueError(f"the archive is damaged: {printable(name)} is not where it should be")
        name_length, extra_length = struct.unpack("<HH", header[26:])
        start = info.header_offset + 30 + name_length + extra_length
        return start, info.file_size, info.CRC


class _Stream(_Source):
    """The older format: pickles one after the other, then each storage's count and bytes."""

    def __init__(self, file):
        super().__init__(file)
        file.seek(0)
        if self._bytes[0] != 0x80 or self._follow(file) != _LEGACY_MAGIC:
            raise ValueError("not written by torch.save")
        self._follow(file)  # version of the format
        system = self._follow(file)
        if type(system) is not dict or system.get("little_endian", True) is not True:
            raise ValueError("written on a big-endian machine: not supported")
        self.obj = self._follow(file)
        keys, self._places = self._follow(file), {}
        for key in keys if type(keys) is list else ():
            storage = self._storages.get(key) if type(key) is str else None
            if storage is None or key in self._places:
                raise ValueError("the list of storages is damaged")
            if storage.kind not in _DTYPES:
                raise ValueError(f"tensors of type {printable(storage.kind)} are not supported")
            count, start = int.from_bytes(file.read(8), "little"), file.tell()
            if count != storage.numel:
                raise ValueError(f"storage {printable(key)} has {count} numbers, {storage.numel} "
                                 "are announced")
            length = count * np.dtype(_DTYPES[storage.kind]).itemsize
            self._places[key] = (start, length)
            file.seek(min(start + length, len(self._bytes)))

    def _locate(self, key: str) -> tuple[int, int, int | None]:
        if key not in self._places:
            raise ValueError(f"the file lacks storage {printable(key)}")
        return *self._places[key], None


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _checked(view: View) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, strides) of a view that stays within its storage and repeats no numbers.

    Raises: ValueError: it does not, or these are no whole numbers.
    """
    if not all(type(part) in (tuple, list) for part in (view.size, view.stride)):
        raise ValueError("a tensor without shape and strides")
    if max(len(view.size), len(view.stride)) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of more than {_MAX_DIMENSIONS} dimensions")
    size, stride = tuple(view.size), tuple(view.stride)
    if len(size) != len(stride) or not all(map(_is_count, (view.offset, *size, *stride))):
        raise ValueError("a tensor reaches beyond its storage: its offset, sizes and strides are "
                         "no whole numbers from 0 on")
    if 0 in size:
        if math.prod(n for n in size if n) >= 2**40:
            raise ValueError("an empty tensor of an impossible shape")
        return size, (0,) * len(size)
    last = view.offset + sum((n - 1) * step for n, step in zip(size, stride))
    if last >= view.storage.numel:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    if math.prod(size) > view.storage.numel:
        raise ValueError(f"a tensor of shape {size} repeats the {view.storage.numel} numbers of "
                         "its storage: refused")
    return size, stride


def _view(arguments: tuple) -> View:
    if len(arguments) < 4 or type(arguments[0]) is not Storage:
        raise ValueError("a damaged pickle: a tensor that is not made from a storage")
    return View(*arguments[:4])


def _first(arguments: tuple) -> object:
    """What is wrapped: a parameter's tensor, a typed list's items."""
    return arguments[0] if arguments else []


def _ordered(arguments: tuple) -> dict:
    """An OrderedDict: empty, or of a list of pairs, as Python 2 wrote it."""
    pairs = _first(arguments)
    if type(pairs) is not list or not all(
            type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("a damaged pickle: a dict that is not made of pairs")
    return {key: value for key, value in pairs if type(key) is str}


_CALLS = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_parameter": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": _first,
    "builtins.set": _first,
    "__builtin__.set": _first,
    # TorchScript's typed lists and dicts
    "torch.jit._pickle.restore_type_tag": _first,
    **{f"torch.jit._pickle.build_{item}list": _first
       for item in ("int", "double", "bool", "tensor")},
}


def _admit(name: Name) -> None:
    """Refuses every name that tensors do not need."""
    full = str(name)
    is_storage = name.module == "torch" and re.fullmatch(r"\w+Storage", name.name)
    if full not in _CALLS and not is_storage and not _SHELLS.fullmatch(full):
        raise ValueError(
            f"the file wants to load {printable(full)}, which is not needed for tensors and could "
            "run code: refused; save its state dict with torch first"
        )


def _call(name: Name, arguments: tuple) -> object:
    """What stands for the result of a call; the arguments of a shell's class are not needed."""
    return _CALLS[str(name)](arguments) if str(name) in _CALLS else Shell(name)


def _dict_views(obj: object) -> dict[str, View]:
    """The tensors of the innermost state dict."""
    if type(obj) is not dict:
        raise ValueError(f"holds a {kind(obj)}, not named tensors")
    for _ in range(_MAX_NESTS):
        nest = next((obj[key] for key in _NESTS if isinstance(obj.get(key), (dict, Shell))), None)
        if isinstance(nest, Shell):
            return _module_views(nest)
        obj = obj if nest is None else nest
    views = {name: value for name, value in obj.items() if type(value) is View}
    if not views:
        # a glance: many names may stand for one large dict
        inner = [printable(name, 40) for name, value in itertools.islice(obj.items(), _GLANCE)
                 if type(value) is dict and any(
                     type(item) is View for item in itertools.islice(value.values(), _GLANCE))]
        there = f", but under {', '.join(inner[:6])}: save one of them alone" if inner else ""
        raise ValueError(f"holds no named tensors{there}")
    return views


def _module_views(root: Shell) -> dict[str, View]:
    """Parameters and buffers of a pickled module, under the names its state dict would have.

    In a TorchScript archive tensors and submodules are attributes of their module, as any other.
    """
    views, parts = {}, 0
    pending = [(root, "", (id(root),))]
    while pending:
        module, prefix, above = pending.pop()
        tensors, children = _members(module)
        parts += 1 + len(tensors) + len(children)
        if parts > _MAX_PARTS:
            raise ValueError(f"a module of more than {_MAX_PARTS:,} parts")
        views |= {prefix + name: value for name, value in tensors.items() if type(value) is View}
        for name, child in reversed(children.items()):
            if not isinstance(child, Shell):
                continue
            inner = f"{prefix}{check_name(name)}."
            check_name(inner)
            if id(child) in above or len(above) > _MAX_DEPTH:
                raise ValueError(f"module {inner.rstrip('.')} holds itself, or too many others "
                                 "lie within each other")
            pending.append((child, inner, (*above, id(child))))
    if not views:
        raise ValueError(f"{kind(root)} holds no tensors")
    return views


def _members(module: Shell) -> tuple[dict, dict]:
    """(tensors and buffers, submodules) by name."""
    attributes = vars(module)
    if module.name.module.startswith("__torch__"):
        return attributes, attributes
    parameters, buffers, modules = (
        part if type(part := attributes.get(name)) is dict else {}
        for name in ("_parameters", "_buffers", "_modules"))
    return parameters | buffers, modules
