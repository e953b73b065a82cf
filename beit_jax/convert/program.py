"""Follows a pickle as data: its steps build dicts, lists and plain values, and call nothing.

A pickle is a program that may name any function and hand objects to it. Here a name is only a name,
and who reads decides what stands in its place. Nothing is changed by a step but dicts, lists and
shells that the same program made. Steps, size and memory are bounded. Source: Python's pickletools,
which describes every opcode.
"""

import dataclasses
import pickletools
from collections.abc import Callable

from beit_jax.lazy_array import printable

MAX_BYTES = 16 * 2**20  # of a program; one of 1,000 tensors has 0.1 MB
_MAX_STEPS = 1_000_000  # and what they copy; one of 1,000 tensors takes 40,000

_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a program names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Shell:
    """Stands in for an object of the class `name`, which is not to be loaded: vars() are its
    attributes, and a slot keeps them off the name."""

    __slots__ = ("name", "__dict__")

    def __init__(self, name: Name):
        self.name = name


@dataclasses.dataclass(frozen=True)
class Reader:
    """What the names of a program mean to who reads it.

    Attributes:
      admit: raises ValueError on a name that is not known.
      call: (name, arguments) -> the value that stands for what the name would have made.
      persistent: (reference) -> the value that stands outside the pickle.
    """

    admit: Callable[[Name], None]
    call: Callable[[Name, tuple], object]
    persistent: Callable[[object], object]


def follow(file, reader: Reader) -> object:
    """The object that the program at the file's position builds; the file then stands behind it.

    Dicts keep what stands under text, other keys are left out. Sets come as lists.
    Raises: ValueError: an unknown step or name, no end, a step that does not fit, too large.
    """
    machine = _Machine(reader)
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(file)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("a damaged pickle: a step lacks what it works on") from error
    raise ValueError("a damaged pickle: it has no end")


class _Bounded:
    """The rest of the file, of which no more than MAX_BYTES are handed out."""

    def __init__(self, file):
        here = file.tell()
        self._file, self._left = file, min(MAX_BYTES, file.seek(0, 2) - here)
        file.seek(here)

    def read(self, count: int) -> bytes:
        # before it is read: memory is taken for what is asked for, not for what is there
        if count > self._left:
            raise ValueError("a damaged pickle: it is cut off, or has more than "
                             f"{MAX_BYTES:,} bytes beside its tensors")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


class _Machine:
    """Stack, marks and memo of one program."""

    def __init__(self, reader: Reader):
        self.stack, self._marks, self._memo = [], [], {}
        self._reader, self._steps_left = reader, _MAX_STEPS

    def _charge(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise ValueError(f"a pickle of more than {_MAX_STEPS:,} steps")

    def _popped(self) -> list:
        """What lies above the newest mark, taken off."""
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument) -> None:
        """One opcode."""
        self._charge(1)
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name]:])
            del stack[-_TUPLES[name]:]
            stack.append(items)
        elif name == "TUPLE":
            stack.append(tuple(self._popped()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._popped())
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "DICT":
            items, made = self._popped(), {}
            _put(made, items)
            stack.append(made)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _put(stack[-1], (key, value))
        elif name == "SETITEMS":
            items = self._popped()
            _put(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif name in ("APPENDS", "ADDITEMS"):
            items = self._popped()
            _extend(stack[-1], items)
        elif name in ("GLOBAL", "INST"):
            self._name(Name(*argument.split(" ", 1)))
            if name == "INST":
                self._call(stack.pop(), tuple(self._popped()))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if type(attribute) is not str or type(module) is not str:
                raise ValueError("a damaged pickle: a name that is no text")
            self._name(Name(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            self._call(function, arguments)
        elif name == "NEWOBJ_EX":
            _, arguments, function = stack.pop(), stack.pop(), stack.pop()
            self._call(function, arguments)
        elif name == "OBJ":
            function, *arguments = self._popped()
            self._call(function, tuple(arguments))
        elif name == "BUILD":
            self._build(stack.pop(), stack[-1])
        elif name == "BINPERSID":
            stack.append(self._reader.persistent(stack.pop()))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            self._popped()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"a pickle with {name}, which tensors do not need: refused")

    def _name(self, name: Name) -> None:
        self._reader.admit(name)
        self.stack.append(name)

    def _call(self, function, arguments) -> None:
        if type(function) is not Name or type(arguments) is not tuple:
            raise ValueError("a damaged pickle: it calls what has no name")
        # what a call may copy
        self._charge(sum(len(item) for item in arguments if type(item) in (list, dict)))
        self.stack.append(self._reader.call(function, arguments))

    def _build(self, state, target) -> None:
        """Gives attributes to a shell; those of a dict are left out, nothing else can have any."""
        if type(target) is dict:
            return
        if type(target) is not Shell:
            raise ValueError(f"a pickle that sets attributes of a {kind(target)}: refused")
        for part in state if type(state) is tuple else (state,):  # (attributes, slots)
            if type(part) is dict:
                self._charge(len(part))
                vars(target).update(part)


def _put(target, items) -> None:
    """Sets key, value, key, value, ... in a dict; a shell's items are not needed."""
    if len(items) % 2:
        raise ValueError("a damaged pickle: a key without a value")
    if type(target) is dict:
        for i in range(0, len(items), 2):
            if type(items[i]) is str:
                target[items[i]] = items[i + 1]
    elif type(target) is not Shell:
        raise ValueError(f"a pickle that sets items of a {kind(target)}: refused")


def _extend(target, items: list) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is not Shell:
        raise ValueError(f"a pickle that appends to a {kind(target)}: refused")


def kind(value) -> str:
    """What a value is, for messages. Never its contents, which can be endless."""
    if isinstance(value, Name):
        return printable(str(value))
    return printable(str(value.name)) if isinstance(value, Shell) else type(value).__name__
