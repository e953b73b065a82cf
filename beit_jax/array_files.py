"""Files of named arrays, .npz and .safetensors: told by their content, read one array at a time.

Nothing that a file says of itself is believed before it is compared with the file's size: what
comes out is never more than what lies in it, but for archives that are packed, which may hold eight
times their size, or 32 MiB.
Source: numpy/lib/format.py; the format's page in huggingface/safetensors.
"""

import ast
import contextlib
import errno
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from beit_jax.lazy_array import LazyArray, check_name, printable, widened

NPZ, SAFETENSORS, TORCH = ".npz", ".safetensors", "torch"
_HEAD = 512  # bytes that tell what a file is
_MAX_HEADER = 2 * 2**20  # bytes of a .safetensors header; one of 1,000 arrays has 0.1 MB
_MAX_ARRAY_HEADER = 10_000  # bytes in front of an array in .npz; numpy writes under 200
_MAX_LIST = 4 * 2**20  # bytes of the list of an archive's members; of 1,000 arrays 0.1 MB
_MAX_END = 2**16 + 200  # bytes at an archive's end that tell where the list is, with a comment
_MAX_PACKED = 8  # how much larger a compressed archive may become,
_SMALL = 32 * 2**20  # unless it stays below so many bytes
_CHUNK = 2**20
_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
_NPY_DTYPES = re.compile(r"[<>|=](f[248]|[iu][1248]|b1)")
# (regular expression at a file's beginning, what the file is)
_OTHERS = (
    (rb"version https://git-lfs", "a pointer of git-lfs, not the file itself: fetch it by git lfs "
     "pull, or from the page where it is offered"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", "a web page, not weights: the download "
     "went wrong"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]", "a text in JSON, not weights"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "a packed file: unpack it first"),
    (rb"\x89HDF", "an HDF5 file (Keras), which is not supported"),
    (rb"\x93NUMPY", "a single array of numpy, not named ones: save them by numpy.savez"),
    (rb"GGUF", "a GGUF file, which is not supported"),
    (rb"(?s)\x08.[\x12\x1a\x22\x2a\x32\x3a].{0,400}(onnx|pytorch)", "an ONNX graph, which is not "
     "supported: save the state dict"),
    (rb"(?s).{257}ustar", "a tar archive: unpack it first"),
)


@contextlib.contextmanager
def errors_of(path) -> Iterator[None]:
    """What a damaged file makes its readers raise, as a ValueError of one line that names it."""
    try:
        yield
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError,
            ArithmeticError, LookupError, TypeError, MemoryError) as error:
        # zipfile, json and numpy each fail in their own ways
        reason = printable(" ".join(str(error).split()), 600)
        raise ValueError(f"{path}: {reason.removeprefix(f'{path}: ')}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise ValueError(f"{path}: the file is damaged") from error


def kind_of(file: BinaryIO) -> str:
    """NPZ, SAFETENSORS or TORCH, by content; the file then stands at its beginning.

    Raises: ValueError: it is something else, and what that is.
    """
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty")
    if head.startswith(b"PK"):
        return _kind_of_archive(file)
    if len(head) > 8 and int.from_bytes(head[:8], "little") < 2**40 and head[8:9] == b"{":
        return SAFETENSORS
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return TORCH
    for pattern, what in _OTHERS:
        if re.match(pattern, head):
            raise ValueError(f"this is {what}")
    raise ValueError("this is no file of weights that is known: .npz, .safetensors, or what "
                     "torch.save writes")


def _check_list(file: BinaryIO) -> None:
    """Refuses an archive whose list of members is too long: zipfile takes ten times its bytes."""
    size = _size(file)
    file.seek(max(0, size - _MAX_END))
    end = file.read(_MAX_END)
    file.seek(0)
    for mark, place, width in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8)):
        for found in re.finditer(re.escape(mark), end):
            field = end[found.start() + place :][:width]
            length = int.from_bytes(field, "little")
            if length > _MAX_LIST and field != b"\xff" * 4:
                raise ValueError(f"the archive's list of members has {length:,} bytes")


def _kind_of_archive(file: BinaryIO) -> str:
    _check_list(file)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"a damaged archive, or one cut off: {printable(str(error))}") from error
    file.seek(0)
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    raise ValueError("this is a zip archive, but of neither torch nor numpy")


def arrays_of(file: BinaryIO, kind: str) -> dict[str, LazyArray]:
    """The arrays of an open NPZ or SAFETENSORS file, which must stay open until they are made.

    bfloat16 comes as float32 (the same numbers).
    Raises: ValueError: damaged, packed too densely, or an array of a type that is not supported.
    """
    return (_npz if kind == NPZ else _safetensors)(file, _size(file))


def _size(file: BinaryIO) -> int:
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    return size


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _safetensors(file: BinaryIO, size: int) -> dict[str, LazyArray]:
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_HEADER):
        raise ValueError(f"the header has {length:,} bytes, the file {size:,}")
    header = json.loads(file.read(length), object_pairs_hook=_without_repetition)
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    header.pop("__metadata__", None)
    arrays, places = {}, []
    for name, entry in header.items():
        check_name(name)
        if not isinstance(entry, dict):
            raise ValueError(f"the header says nothing of {name}")
        dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} is of type {printable(str(dtype), 20)}, which is not "
                             "supported")
        if not all(isinstance(part, list) and len(part) <= 32 and all(map(_is_count, part))
                   for part in (shape, place)) or len(place) != 2:
            raise ValueError(f"{name}: shape and place are no whole numbers")
        stored = np.dtype(_SAFETENSORS_DTYPES[dtype])
        if place[1] - place[0] != math.prod(shape) * stored.itemsize:
            raise ValueError(f"{name}: {place[1] - place[0]} bytes for a shape of {shape}")
        places.append(tuple(place))
        arrays[name] = _stored(file, 8 + length + place[0], tuple(shape), stored, dtype == "BF16")
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError("arrays lie upon each other, or there is a gap between them")
        end = last
    if end != size - 8 - length:
        raise ValueError(f"{end:,} bytes of arrays are announced, {size - 8 - length:,} are there")
    return arrays


def _without_repetition(pairs: list) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("the header names something twice")
    return made


def _stored(file: BinaryIO, first: int, shape: tuple, dtype: np.dtype, is_bfloat16: bool):
    """An array whose numbers lie in the file as they are, from byte `first` on."""
    def make() -> np.ndarray:
        file.seek(first)
        content = file.read(math.prod(shape) * dtype.itemsize)
        array = np.frombuffer(content, dtype).reshape(shape)
        return widened(array) if is_bfloat16 else array

    return LazyArray(shape, np.dtype(np.float32) if is_bfloat16 else dtype, make)


def _npz(file: BinaryIO, size: int) -> dict[str, LazyArray]:
    archive = zipfile.ZipFile(file)
    members, arrays = archive.infolist(), {}
    unpacked = sum(member.file_size for member in members)
    if sum(member.compress_size for member in members) > size:
        raise ValueError("several arrays share bytes of the archive: refused")
    if unpacked > max(_MAX_PACKED * size, _SMALL):
        raise ValueError(f"an archive of {size:,} bytes that unpacks to {unpacked:,}: refused; "
                         "save it by numpy.savez if that is meant")
    for member in members:
        name = check_name(member.filename.removesuffix(".npy"))
        if name in arrays:
            raise ValueError(f"{name} is there twice")
        with archive.open(member) as content:
            dtype, by_columns, shape, first = _array_header(content, name)
        if member.file_size != first + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {member.file_size} bytes for a shape of {shape}")
        arrays[name] = _unpacked(archive, member, first, shape, dtype, by_columns)
    return arrays


def _array_header(content: BinaryIO, name: str) -> tuple[np.dtype, bool, tuple, int]:
    """(dtype, whether columns lie together, shape, bytes in front of the numbers)"""
    magic = content.read(8)
    if not magic.startswith(b"\x93NUMPY") or magic[6] not in (1, 2, 3):
        raise ValueError(f"{name} is no array of numpy")
    field = "<H" if magic[6] == 1 else "<I"
    (length,) = struct.unpack(field, content.read(struct.calcsize(field)))
    if length > _MAX_ARRAY_HEADER:
        raise ValueError(f"{name}: a header of {length:,} bytes")
    try:
        header = ast.literal_eval(content.read(length).decode("latin-1").strip())
        descr, by_columns, shape = (header[key] for key in ("descr", "fortran_order", "shape"))
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name}: a damaged header") from error
    if not isinstance(descr, str) or not _NPY_DTYPES.fullmatch(descr):
        raise ValueError(f"{name} is of type {printable(str(descr), 40)}, which is not supported "
                         "(numpy writes bfloat16 as |V2, which nobody can read)")
    if type(by_columns) is not bool or type(shape) is not tuple or len(shape) > 32 or not all(
            map(_is_count, shape)):
        raise ValueError(f"{name}: a damaged header")
    return np.dtype(descr), by_columns, shape, 8 + struct.calcsize(field) + length


def _unpacked(archive, member, first: int, shape: tuple, dtype: np.dtype, by_columns: bool):
    """An array of a .npz archive, its numbers behind `first` bytes of the member."""
    def make() -> np.ndarray:
        content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        filled, rest = 0, memoryview(content)
        with archive.open(member) as source:
            source.read(first)
            while filled < len(content):
                count = source.readinto(rest[filled : filled + _CHUNK])
                if not count:
                    raise ValueError("the archive is cut off")
                filled += count
            source.read(1)  # at the end the CRC-32 is compared
        array = content.view(dtype).reshape(shape, order="F" if by_columns else "C")
        return array.astype(native, copy=False)

    native = dtype.newbyteorder("=")
    return LazyArray(shape, native, make)
