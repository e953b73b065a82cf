"""Config sections into frozen dataclasses and linen modules: one clear line for every typo and for
every value that cannot be meant.

What a key may be stands beside it, as the type of its field: `depth: Count`, `decay: BelowOne`,
`remat: Literal["none", "dots"]`. A number without a range is a fault of the program, and told.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

_LINEN_FIELDS = {"parent", "name"}  # linen adds them to every module; a config never sets them
_LARGEST, _LARGEST_WHOLE = 3.4e38, 2**31 - 1  # of float32 and int32, in which devices count
_KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text",
          Mapping: "a section of keys", types.NoneType: "None"}
_UNIONS = (typing.Union, types.UnionType)  # Annotated[int, ...] | None and int | None


class Rule(NamedTuple):
    """What a value must be beside its type; `text` goes on after "must be"."""

    accepts: Callable[[Any], bool]
    text: str


def within(low: float | None = None, high: float | None = None, *, above: float | None = None,
           below: float | None = None) -> Rule:
    """The range of a number: low <= x, x <= high, above < x, x < below, as far as given."""
    def accepts(value) -> bool:
        return ((low is None or low <= value) and (high is None or value <= high)
                and (above is None or above < value) and (below is None or value < below))

    if low is not None and high is not None:
        return Rule(accepts, f"from {low} to {high}")
    bounds = ((low, "{} or more"), (above, "above {}"), (below, "below {}"), (high, "at most {}"))
    return Rule(accepts, " and ".join(text.format(x) for x, text in bounds if x is not None))


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


Whole = Annotated[int, within()]
Count = Annotated[int, within(1)]
Natural = Annotated[int, within(0)]
Finite = Annotated[float, within()]
Positive = Annotated[float, within(above=0)]
NonNegative = Annotated[float, within(0)]
Share = Annotated[float, within(0, 1)]
BelowOne = Annotated[float, within(0, below=1)]
Pattern = Annotated[str, Rule(_is_pattern, "a regular expression")]
Dtype = Literal["float32", "bfloat16"]
# red, green and blue of images in [0, 1]
Mean = tuple[Share, Share, Share]
Std = tuple[(Annotated[float, within(above=0, high=1)],) * 3]


def fault(kind, value) -> str:
    """What is wrong with a value, to be read behind it; "" if nothing.

    Args: kind: a type as it stands beside a field: one of `_KINDS`, Annotated with a Rule, Literal,
      a union, a tuple, or Any.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return ""
    if origin is Literal:
        return "" if value in parts else f"is none of {', '.join(map(str, parts))}"
    if origin in _UNIONS:
        faults = [fault(part, value) for part in parts]
        return "" if "" in faults else " or ".join(
            [faults[0], *(text.removeprefix("must be ") for text in faults[1:])])
    if origin is tuple:
        return _fault_of_list(parts, value)
    base, *rules = parts if origin is Annotated else (origin or kind,)
    is_kind = isinstance(value, (int, float) if base is float else base)
    if is_kind and base in (int, float):  # True is an int; NaN is not below anything
        is_kind = not isinstance(value, bool) and abs(value) <= _LARGEST
    if not is_kind:
        return ", ".join([f"must be {_KINDS[base]}", *(rule.text for rule in rules if rule.text)])
    if base is int and abs(value) > _LARGEST_WHOLE:
        return f"must be at most {_LARGEST_WHOLE}"
    return next((f"must be {rule.text}" for rule in rules if not rule.accepts(value)), "")


def _fault_of_list(parts: tuple, value) -> str:
    """`fault` of tuple[part, ...], and of tuple[part, part, part], whose length is fixed."""
    is_open = parts[1:] == (Ellipsis,)
    if not isinstance(value, tuple):
        hint = "" if fault(parts[0], value) else f": write ({value!r},)"
        return f"is no list{hint}" if is_open else f"must be a list of {len(parts)} values"
    if not is_open and len(value) != len(parts):
        return f"must be a list of {len(parts)} values"
    each = parts[:1] * len(value) if is_open else parts
    faults = (f": {item!r} {text}" for part, item in zip(each, value, strict=True)
              if (text := fault(part, item)))
    return next(faults, "")


def check(cls, values: Mapping[str, Any], where: str, keys: Iterable[str] | None = None) -> None:
    """Refuses values that the fields of `cls` do not allow.

    Args:
      values: key -> value. where: name of the section, "config.data".
      keys: those of the values that are looked at; None: all.
    Raises: ValueError: naming key, value and what it must be.
    """
    kinds = kinds_of(cls)
    for key, value in values.items():
        if (keys is None or key in keys) and (text := fault(kinds[key], freeze(value))):
            gap = "" if text.startswith(":") else " "
            raise ValueError(f"{where}.{key}={freeze(value)!r}{gap}{text}")


@functools.cache
def kinds_of(cls) -> dict[str, Any]:
    """What the fields of `cls` may be, by the keys that a config can set.

    Raises: TypeError: a field that does not say enough: a number without a range, a bare tuple.
    """
    kinds = {name: field.type for name, field in _fields(cls).items()}
    for name, kind in kinds.items():
        if not _says_enough(kind):
            raise TypeError(f"{cls.__name__}.{name}: {kind} does not say what a value may be")
    return kinds


def _says_enough(kind) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return parts[0] in _KINDS
    if origin is tuple or origin in _UNIONS:
        return all(part is Ellipsis or _says_enough(part) for part in parts)
    return kind is Any or origin is Literal or (origin or kind) in _KINDS.keys() - {int, float}


def _fields(cls) -> dict[str, dataclasses.Field]:
    """The fields that a config can set, by name."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if _LINEN_FIELDS <= fields.keys():
        fields = {name: f for name, f in fields.items() if name not in _LINEN_FIELDS}
    return fields


def build(cls, section: Mapping[str, Any] | None, where: str, **extra):
    """Builds `cls` from a config section and refuses keys that nobody would read.

    Args:
      cls: a dataclass or a linen module (which is one).
      section: key -> value, or None for an empty one; lists become tuples, so that the result can
        be hashed.
      where: name of the section in messages, "config.data".
      **extra: fields that do not come from the config; they win over the section.
    Returns: an instance of `cls`.
    Raises: ValueError: no section; a key that is unknown, missing, or overruled by `extra`; a value
      out of its range, or one that `cls` itself refuses.
    """
    fields, values = _fields(cls), read_section({} if section is None else section, where)
    for key in values:
        if key not in fields:
            raise ValueError(unknown_key(key, fields, where))
    check(cls, values, where)
    for key in values.keys() & extra.keys():
        if values[key] != extra[key]:
            raise ValueError(f"{where}.{key}={values[key]!r} has no effect here: it is always "
                             f"{extra[key]}; remove it")
    values.update(extra)
    required = [
        name for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: set it in the config file")
    return cls(**values)


def read_section(section: Any, where: str) -> dict[str, Any]:
    """A section as a dict of frozen values. Raises: ValueError: it is none."""
    if not hasattr(section, "items"):
        raise ValueError(f"{where}={freeze(section)!r} must be {_KINDS[Mapping]}")
    return {key: freeze(value) for key, value in section.items()}


def unknown_key(key: str, known, where: str) -> str:
    """One line that names an unknown key, the nearest known one, and all known ones."""
    close = difflib.get_close_matches(key, list(known), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{where}.{key} is unknown{hint}; known: {', '.join(sorted(known)) or 'none'}"


def freeze(value):
    """Lists, tuples and mappings of a config as hashable or plain Python values."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {key: freeze(item) for key, item in dict(value).items()}
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def require_empty(config, sections, task: str) -> None:
    """Refuses a filled section that the task does not read.

    Raises: ValueError: naming the section and the task.
    """
    for name in sections:
        if config.get(name):
            raise ValueError(
                f"config.{name} is set, but task {task} does not read it: remove the section")
