"""Config sections into frozen dataclasses and linen modules, with one clear line for every typo."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

_LINEN_FIELDS = {"parent", "name"}  # linen adds them to every module; a config never sets them


def build(cls, section: Mapping[str, Any] | None, where: str, **extra):
    """Builds `cls` from a config section and refuses keys that nobody would read.

    Args:
      cls: a dataclass or a linen module (which is one).
      section: key -> value; lists become tuples, so that the result can be hashed.
      where: name of the section in messages, "config.data".
      **extra: fields that do not come from the config; they win over the section.
    Returns: an instance of `cls`.
    Raises: ValueError: an unknown key, a missing one, one that `extra` overrules, or a value that
      `cls` itself refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if _LINEN_FIELDS <= fields.keys():
        fields = {name: f for name, f in fields.items() if name not in _LINEN_FIELDS}
    values = {key: freeze(value) for key, value in dict(section or {}).items()}
    for key in values:
        if key not in fields:
            raise ValueError(unknown_key(key, fields, where))
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
