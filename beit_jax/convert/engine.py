"""Applies a name table to a dict of arrays, in either direction, strictly.

All transforms move numbers and compute nothing, so that a round trip is exact bit for bit and
gradients convert like the weights they belong to.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

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
_JOIN = re.compile(r"join(\d)of(\d)")  # one of n Linears whose outputs stand side by side in ours
_PART = re.compile(r"part(\d)of(\d)")  # one of n of ours whose outputs stand side by side there
_FIELD = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Format:
    """How another framework names and lays out the same weights.

    Attributes:
      names: rows (reference, ours, transform[, condition]); see tables.py.
      ignored: rows (regular expression, reason): reference entries without a counterpart.
      expand_shared_table: whether export gives every block its own copy of a relative-position
        table that all blocks share, because the other side knows no shared one.
      refused: rows (regular expression over our paths, reason): leaves that the other side cannot
        hold, so that export must stop.
      left_behind: such rows of leaves that export leaves out, because the other side holds a part
        of our network on purpose.
      prefix: regular expression of what may stand before every name of the reference.
      outside: why names without the prefix are left out where others bear it; "": they are not.
      dead_state: (our flat leaves) -> arrays that export adds under the reference's names, because
        the other side wants them.
      statistics: rows (regular expression over the reference's names, (mean, std) or None): by
        which pixels in [0, 1] were normalised where weights of such names were trained. The first
        row that any name matches counts; None, or no row: the names do not tell.
    """

    names: tuple[tuple[str, ...], ...]
    ignored: tuple[tuple[str, str], ...] = ()
    expand_shared_table: bool = False
    refused: tuple[tuple[str, str], ...] = ()
    left_behind: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
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
        re.escape(part) if k % 2 == 0 else rf"(?P<{part}>\d+)" for k, part in enumerate(parts)
    )
    return re.compile(text)


def _fill(template: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: fields[match[1]], template)


def import_arrays(
    reference: Mapping[str, np.ndarray], fmt: Format
) -> tuple[dict[str, np.ndarray], Report]:
    """Reference names -> our flat "a/b/c" names.

    Raises: ValueError: a name that no row and no ignored entry knows, a missing block or part.
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
                array, part, parts = _to_ours(np.asarray(value), transform)
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
        raise ValueError(f"no row of the name table knows {_list(unknown)}: is it another format?")
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
    return re.sub(f"^(?:{fmt.prefix})", "", name)


def export_arrays(
    ours: Mapping[str, np.ndarray], fmt: Format
) -> tuple[dict[str, np.ndarray], Report]:
    """Our flat "a/b/c" names -> reference names, every array C-contiguous.

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
            reference[name] = _to_reference(array, transform)

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


def _to_ours(array: np.ndarray, transform: str) -> tuple[np.ndarray, int, int]:
    """(array in our layout, which part it is, how many parts there are)."""
    if array.dtype == np.float16:  # weights are float32 here; float16 fits into it exactly
        array = array.astype(np.float32)
    join, part = _JOIN.fullmatch(transform), _PART.fullmatch(transform)
    if join:
        return array.T, int(join[1]), int(join[2])
    if part:
        return np.split(array, int(part[2]))[int(part[1])].T, 0, 1
    return TRANSFORMS[transform][0](array), 0, 1


def _parts_of(name: str, fmt: Format) -> int:
    """How many of our leaves make the reference's array."""
    return sum(_pattern(row[0]).fullmatch(name) is not None for row in fmt.names)


def _to_reference(array: np.ndarray, transform: str) -> np.ndarray:
    join = _JOIN.fullmatch(transform)
    if join:
        array = np.split(array, int(join[2]), axis=-1)[int(join[1])].T
    else:
        array = TRANSFORMS[transform][1](array)
    return np.array(array, order="C")  # a copy that owns its memory: writers need contiguity


def _stack(name: str, blocks: dict, parts: int) -> np.ndarray:
    """Joins the parts of every block and stacks the blocks on a leading axis."""
    joined = {}
    for block, by_part in blocks.items():
        if sorted(by_part) != list(range(parts)):
            raise ValueError(f"{name}: only {len(by_part)} of its {parts} parts are there")
        ordered = [by_part[part] for part in range(parts)]
        joined[block] = ordered[0] if parts == 1 else np.concatenate(ordered, axis=-1)
    if None in joined:
        return np.array(joined[None], order="C")
    if sorted(joined) != list(range(len(joined))):
        raise ValueError(f"{name}: blocks {sorted(joined)} are there; some between are missing")
    return np.stack([joined[i] for i in range(len(joined))])


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
    depth = ours["blocks/norm1/scale"].shape[0]
    tables = np.repeat(shared[None], depth, axis=0)
    own = ours.get("blocks/attn/relative_position_bias_table", 0)  # the two kinds add up
    return ours | {"blocks/attn/relative_position_bias_table": tables + own}


def _reason(name: str, rows) -> str:
    return next((reason for pattern, reason in rows if re.fullmatch(pattern, name)), "")


def _list(names, most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
