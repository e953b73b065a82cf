"""Applies a name table to a dict of arrays, in either direction, strictly.

All transforms move numbers and compute nothing, so that a round trip is exact bit for bit and
gradients convert like the weights they belong to.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from beit_jax.convert.layouts import Layout
from beit_jax.lazy_array import LazyArray, printable

Array = np.ndarray | LazyArray
# (reference -> ours, ours -> reference)
TRANSFORMS = {
    "same": (lambda a: a, lambda a: a),
    "transpose": (lambda a: a.T, lambda a: a.T),  # torch Linear [out, in], ours [in, out]
    # torch convolution [out, in, kh, kw], ours [kh, kw, in, out]
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
    "token": (lambda a: a[None, None], lambda a: a[0, 0]),  # [d], ours [1, 1, d]
    "table": (lambda a: a[None], lambda a: a[0]),  # [n, d], ours [1, n, d]
    # [1, n, d], ours [2 + n, d]: two rows in front that are never read, zeros after an import
    "offset": (lambda a: np.pad(a[0], ((2, 0), (0, 0))), lambda a: a[None, 2:]),
}
# dimensions of the reference's array, and of ours (of one block); "same" takes any
_RANKS = {"transpose": (2, 2), "conv": (4, 4), "token": (1, 3), "table": (2, 3), "offset": (3, 2)}
_WIDENED = ("float16", "bfloat16")  # weights are float32 here, which holds these exactly
_JOIN = re.compile(r"join(\d)of(\d)")  # one of n Linears whose outputs stand side by side in ours
_PART = re.compile(r"part(\d)of(\d)")  # one of n of ours whose outputs stand side by side there
_FIELD = re.compile(r"\{(\w+)\}")
_MAX_PREFIXES, _MAX_TRIED = 4, 200  # of names
_NUMBER = "0|[1-9][0-9]{0,3}"  # of a block: as programs write it, so that each has one name


@dataclasses.dataclass(frozen=True)
class Format:
    """How another framework names and lays out the same weights.

    Attributes:
      names: rows (reference, ours, transform[, condition]); see tables.py.
      layout: what a whole network of it holds; see layouts.py.
      ignored: rows (regular expression, reason): reference entries without a counterpart.
      expand_shared_table: whether export gives every block its own copy of a relative-position
        table that all blocks share, because the other side knows no shared one.
      refused: rows (regular expression over our paths, reason): leaves that the other side cannot
        hold, so that export must stop.
      left_behind: such rows of leaves that export leaves out, because the other side holds a part
        of our network on purpose.
      prefix: regular expression of what may stand before every name of the reference.
      renamed: rows (regular expression at a name's beginning, what is read in its place).
      outside: why names without the prefix are left out where others bear it; "": they are not.
      dead_state: (our flat leaves) -> arrays that export adds under the reference's names, because
        the other side wants them.
      statistics: rows (regular expression over the reference's names, (mean, std) or None): by
        which pixels in [0, 1] were normalised where weights of such names were trained. The first
        row that any name matches counts; None, or no row: the names do not tell.
    """

    names: tuple[tuple[str, ...], ...]
    layout: Layout
    ignored: tuple[tuple[str, str], ...] = ()
    expand_shared_table: bool = False
    refused: tuple[tuple[str, str], ...] = ()
    left_behind: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    outside: str = ""
    dead_state: Callable[[Mapping[str, np.ndarray]], dict] = lambda ours: {}
    statistics: tuple[tuple[str, tuple | None], ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did: names read, names left out with the reason, leaves made."""

    used: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    made: tuple[str, ...]


def _pattern(template: str) -> re.Pattern:
    """A row's name as a regular expression; {i}, {g} ... become numbers."""
    parts = _FIELD.split(template)
    text = "".join(
        re.escape(part) if k % 2 == 0 else rf"(?P<{part}>{_NUMBER})" for k, part in enumerate(parts)
    )
    return re.compile(text)


def _fill(template: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: fields[match[1]], template)


def import_arrays(
    reference: Mapping[str, np.ndarray], fmt: Format
) -> tuple[dict[str, np.ndarray], Report]:
    """Reference names -> our flat "a/b/c" names, all at once. See `plan_import`."""
    ours, report = plan_import(reference, fmt)
    return {name: np.asarray(value) for name, value in ours.items()}, report


def plan_import(
    reference: Mapping[str, Array], fmt: Format
) -> tuple[dict[str, LazyArray], Report]:
    """Reference names -> our flat "a/b/c" names, of arrays that are made one by one.

    Raises: ValueError: a name that no row and no ignored entry knows, a missing block or part, an
      array that holds no weights or has not the dimensions of its row.
    """
    rows = [(_pattern(row[0]), *row[:3]) for row in fmt.names]
    # our name -> block number or None -> part number -> array
    found: dict[str, dict] = {}
    parts_wanted: dict[str, int] = {}
    depths: dict[str, dict[str, int]] = {}  # of every stack: our names, and their blocks
    used, ignored, unknown = [], [], []
    some_have_prefix = any(_bare(name, fmt) != name for name in reference)
    for name, value in reference.items():
        bare = _bare(name, fmt)
        if fmt.outside and some_have_prefix and bare == name:
            ignored.append((name, fmt.outside))
            continue
        known = False
        for pattern, theirs, ours, transform in rows:
            match = pattern.fullmatch(bare)
            if match:
                fields = match.groupdict()
                block = int(fields["i"]) if "i" in fields else None
                target = _fill(ours, fields)
                array, part, parts = _to_ours(name, value, transform)
                parts_wanted[target] = parts
                by_part = found.setdefault(target, {}).setdefault(block, {})
                if part in by_part:
                    raise ValueError(f"{name} is one of two arrays for the same place, {target}")
                by_part[part] = array
                if block is not None:
                    depths.setdefault(theirs.split("{i}")[0], {})[target] = len(found[target])
                known = True
                if not _PART.fullmatch(transform):
                    break
        if known:
            used.append(name)
        else:
            reason = _reason(bare, fmt.ignored)
            (ignored if reason else unknown).append((name, reason) if reason else name)
    if unknown:
        raise ValueError(_unknown(unknown, len(reference), fmt))
    ours = {name: _stack(name, blocks, parts_wanted[name]) for name, blocks in found.items()}
    for stack in depths.values():
        _check_depth(stack)
    return ours, Report(tuple(used), tuple(ignored), tuple(ours))


def record_of(reference: Mapping[str, np.ndarray], source: str, fmt: Format,
              given: tuple | None = None) -> dict:
    """What a file made of these weights says beside them, see `checkpoint.recorded`.

    Args:
      source: name of the format.
      given: (mean, std) as the user says; they win over what the names tell.
    Returns: {"source": name}, and {"data": {"mean": ..., "std": ...}} where they are known.
    """
    told = (mean_std for pattern, mean_std in fmt.statistics
            if any(re.search(pattern, name) for name in reference))
    mean_std = given or next(told, None)
    record = {"source": source}
    if mean_std:
        record["data"] = {"mean": list(mean_std[0]), "std": list(mean_std[1])}
    return record


def _bare(name: str, fmt: Format) -> str:
    """A reference name without what the format allows in front of it."""
    bare = re.sub(f"^(?:{fmt.prefix})", "", name)
    for pattern, other in fmt.renamed:
        bare = re.sub(f"^{pattern}", other, bare)
    return bare


def targets(names: Iterable[str], fmt: Format) -> set[str]:
    """Our names of the reference's that the table knows."""
    rows = [(_pattern(row[0]), row[1]) for row in fmt.names]
    return {_fill(ours, match.groupdict()) for name in names for pattern, ours in rows
            if (match := pattern.fullmatch(_bare(name, fmt)))}


def common_prefix(names: Collection[str], fmt: Format) -> str:
    """What a program has put in front of every name, such as "module."; "" for nothing.

    It is one only where no name is known with it, and some are without.
    """
    prefix = ""
    for _ in range(_MAX_PREFIXES):
        if not names or targets((name[len(prefix):] for name in names), fmt):
            break
        head, dot, _ = next(iter(names))[len(prefix):].partition(".")
        prefix += head + dot
        if not dot or not all(name.startswith(prefix) for name in names):
            return ""
    return prefix if targets((name[len(prefix):] for name in names), fmt) else ""


def _unknown(unknown: list[str], total: int, fmt: Format) -> str:
    """What to do about names that no row knows."""
    counts: dict[str, int] = {}
    for name in unknown[:_MAX_TRIED]:
        parts = name.split(".")
        for i in range(1, min(len(parts), _MAX_PREFIXES)):
            prefix = ".".join(parts[:i]) + "."
            if targets([name[len(prefix):]], fmt):
                counts[prefix] = counts.get(prefix, 0) + 1
    hint = "is it another format?"
    if counts:
        prefix = max(counts, key=counts.get)
        hint = (f"they are known without {prefix!r} in front, which is taken off where all names "
                f"have it: leave the others out by --drop '(?!{re.escape(prefix)}).*'")
    return f"no row of the name table knows {_list(unknown)} (of {total} arrays): {hint}"


def export_arrays(
    ours: Mapping[str, np.ndarray], fmt: Format
) -> tuple[dict[str, np.ndarray], Report]:
    """Our flat "a/b/c" names -> reference names, all at once, every array C-contiguous."""
    reference, report = plan_export(ours, fmt)
    return {name: np.asarray(value) for name, value in reference.items()}, report


def plan_export(
    ours: Mapping[str, np.ndarray], fmt: Format
) -> tuple[dict[str, Array], Report]:
    """Our flat "a/b/c" names -> reference names, of arrays that are made one by one.

    Raises: ValueError: a leaf that no row knows or that the other side cannot hold.
    """
    ignored = [(name, reason) for name in ours if (reason := _reason(name, fmt.left_behind))]
    left_out = {name for name, _ in ignored}
    ours = {name: np.asarray(value) for name, value in ours.items() if name not in left_out}
    for name in ours:
        reason = _reason(name, fmt.refused)
        if reason:
            raise ValueError(f"{name} cannot be exported: {reason}")
    if fmt.expand_shared_table:
        ours = _expand_shared_table(ours)
    rows = [(row[0], _pattern(row[1]), row[2]) for row in fmt.names if _applies(row, ours)]
    reference, unknown = {}, []
    parts: dict[str, dict[int, np.ndarray]] = {}  # of reference names that several leaves make

    def put(name: str, array: np.ndarray, transform: str) -> None:
        part = _PART.fullmatch(transform)
        if part:
            parts.setdefault(name, {})[int(part[1])] = array
        else:
            reference[name] = _to_reference(name, array, transform)

    for name, value in ours.items():
        known = False
        for template, pattern, transform in rows:
            match = pattern.fullmatch(name)
            if not match:
                continue
            known = True
            if "{i}" in template:
                for i, block in enumerate(value):
                    fields = match.groupdict() | {"i": str(i)}
                    put(_fill(template, fields), block, transform)
            else:
                put(_fill(template, match.groupdict()), value, transform)
        if not known:
            unknown.append(name)
    if unknown:
        raise ValueError(f"no row of the name table knows our {_list(unknown)}")
    for name, by_part in parts.items():
        if sorted(by_part) != list(range(len(by_part))) or len(by_part) < _parts_of(name, fmt):
            raise ValueError(f"{name} is made of {_parts_of(name, fmt)} leaves of ours; "
                             f"{len(by_part)} are there")
        reference[name] = np.concatenate([by_part[i].T for i in range(len(by_part))])
    reference |= fmt.dead_state(ours)
    return reference, Report(tuple(ours), tuple(ignored), tuple(reference))


def _to_ours(name: str, value: Array, transform: str) -> tuple[LazyArray, int, int]:
    """(array in our layout, which part it is, how many parts there are)."""
    value = value if isinstance(value, LazyArray) else np.asarray(value)
    dtype = np.dtype(np.float32) if value.dtype.name in _WIDENED else value.dtype
    if dtype.name not in ("float32", "float64"):
        raise ValueError(f"{name} holds numbers of type {value.dtype}; weights are float16, "
                         "bfloat16, float32 or float64")
    join, part = _JOIN.fullmatch(transform), _PART.fullmatch(transform)
    if join:
        rank, turn = (1, 2), lambda a: a.T
    elif part:
        rank, turn = (1, 2), lambda a: np.split(a, int(part[2]))[int(part[1])].T
        if value.ndim and value.shape[0] % int(part[2]):
            raise ValueError(f"{name} of shape {value.shape} is not made of {part[2]} parts")
    else:
        rank, turn = _RANKS.get(transform, (None,))[:1], TRANSFORMS[transform][0]
    if None not in rank and value.ndim not in rank or (
            transform == "offset" and value.shape[0] != 1):
        raise ValueError(f"{name} has shape {value.shape}, which no weight of its name has")
    array = _turned(value, turn, dtype)
    return array, int(join[1]) if join else 0, int(join[2]) if join else 1


def _turned(value: Array, turn: Callable, dtype: np.dtype) -> LazyArray:
    """turn(value), made when it is asked for."""
    # moves no numbers, so that the shape can be had without them
    shape = turn(np.broadcast_to(np.zeros((), np.int8), value.shape)).shape
    return LazyArray(shape, dtype, lambda: np.array(turn(np.asarray(value)), dtype, order="C"))


def _parts_of(name: str, fmt: Format) -> int:
    """How many of our leaves make the reference's array."""
    return sum(_pattern(row[0]).fullmatch(name) is not None for row in fmt.names)


def _to_reference(name: str, array: np.ndarray, transform: str) -> LazyArray:
    join = _JOIN.fullmatch(transform)
    if join:
        turn = lambda a: np.split(a, int(join[2]), axis=-1)[int(join[1])].T  # noqa: E731
        fits = array.ndim in (1, 2) and array.shape[-1] % int(join[2]) == 0
    else:
        turn = TRANSFORMS[transform][1]
        fits = array.ndim == _RANKS.get(transform, (0, array.ndim))[1]
    if not fits:
        raise ValueError(f"what becomes {name} has shape {array.shape}, which none of our weights "
                         "of that name has")
    return _turned(array, turn, array.dtype)  # contiguous: writers need it


def _stack(name: str, blocks: dict[int | None, dict[int, LazyArray]], parts: int) -> LazyArray:
    """Joins the parts of every block and stacks the blocks on a leading axis."""
    joined = {}
    for block, by_part in blocks.items():
        if sorted(by_part) != list(range(parts)):
            raise ValueError(f"{name}: only {len(by_part)} of its {parts} parts are there")
        joined[block] = _side_by_side(name, [by_part[part] for part in range(parts)])
    if None in joined:
        return joined[None]
    if sorted(joined) != list(range(len(joined))):
        there = str(sorted(joined)[:30])
        raise ValueError(f"{name}: blocks {there} are there; some between are missing")
    ordered = [joined[i] for i in range(len(joined))]
    _check_alike(name, "block", [block.shape for block in ordered])
    shape = (len(ordered), *ordered[0].shape)
    dtype = np.result_type(*(block.dtype for block in ordered))

    def make() -> np.ndarray:
        stacked = np.empty(shape, dtype)  # filled block by block: only one of them is there twice
        for i, block in enumerate(ordered):
            stacked[i] = np.asarray(block)
        return stacked

    return LazyArray(shape, dtype, make)


def _side_by_side(name: str, parts: list[LazyArray]) -> LazyArray:
    """The parts joined on their last axis."""
    if len(parts) == 1:
        return parts[0]
    _check_alike(name, "part", [part.shape for part in parts])
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    dtype = np.result_type(*(part.dtype for part in parts))
    return LazyArray(shape, dtype, lambda: np.concatenate(
        [np.asarray(part) for part in parts], axis=-1, dtype=dtype))


def _check_alike(name: str, what: str, shapes: list[tuple[int, ...]]) -> None:
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"{name}: {what} {i} has shape {shape}, {what} 0 {shapes[0]}")


def _check_depth(depths: Mapping[str, int]) -> None:
    """Every leaf of one stack must come from equally many blocks."""
    if len(set(depths.values())) > 1:
        deepest = max(depths.values())
        short = [f"{name} ({depth})" for name, depth in depths.items() if depth < deepest]
        raise ValueError(f"of {deepest} blocks, some lack {_list(short)}")


def _applies(row: tuple[str, ...], ours: Mapping[str, np.ndarray]) -> bool:
    """Whether a row's fourth column, if it has one, lets it be exported."""
    condition = row[3] if len(row) > 3 else ""
    if not condition:
        return True
    return (condition.lstrip("!") in ours) != condition.startswith("!")


def _expand_shared_table(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives every block a copy of the shared relative-position table, if there is one."""
    shared = ours.pop("rel_pos_bias/relative_position_bias_table", None)
    if shared is None:
        return ours
    if "blocks/norm1/scale" not in ours:
        raise ValueError("the weights have a table of positions but no blocks/norm1/scale")
    depth = ours["blocks/norm1/scale"].shape[0]
    tables = np.repeat(shared[None], depth, axis=0)
    own = ours.get("blocks/attn/relative_position_bias_table", 0)  # the two kinds add up
    return ours | {"blocks/attn/relative_position_bias_table": tables + own}


def _reason(name: str, rows) -> str:
    return next((reason for pattern, reason in rows if re.fullmatch(pattern, name)), "")


def _list(names, most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
