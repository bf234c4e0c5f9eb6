"""Reads a pickle without running it.

A pickle is a program: it names Python objects and calls them. Here ``pickletools`` splits it into its instructions,
and they are carried out on plain values alone. A name becomes a :class:`Placeholder`, which does nothing; a call looks
that name up in a table of the caller's functions, and is a placeholder too where the table lacks it. So nothing that
a file names is imported or called, and no attribute of any object is read or set.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from .mapped import DamagedFile


class Placeholder:
    """A Python object that a pickle names, calls or builds, without any of its behaviour.

    Attributes:
        name: its full name, such as ``pathlib.PosixPath``.
        items: what the pickle put into it by key, for objects that are dictionaries.
    """

    __slots__ = ("items", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] = {}


_ARGUMENT_IS_VALUE = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


def read_pickle(
    stream: IO[bytes],
    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]],
    load_persistent: Callable[[Any], Any],
) -> Any:
    """The object that a pickle describes, with placeholders for all that is not a plain value.

    Plain values are None, numbers, strings, bytes, lists, tuples and dictionaries. A set is a placeholder: to fill one
    means to hash, and Python's hash of a tuple recurses without a limit. For the same reason a dictionary's key that
    is not a number, a string or None is replaced by a placeholder.

    Args:
        stream: read to the end of the pickle, and no further.
        calls: by full name, the functions that stand for what the pickle calls; each takes the tuple of arguments.
        load_persistent: gives the object for a persistent id.

    Raises:
        DamagedFile: not a whole pickle, or one that misuses its stack.
    """
    interpreter = _Interpreter(calls, load_persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            interpreter.step(opcode.name, argument)
        return interpreter.stack.pop()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise DamagedFile(f"its pickle is invalid: {type(error).__name__}") from error


def make_dict(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of the file's keys and values; see :func:`read_pickle` for the keys."""
    return {key if type(key) in _PLAIN_KEYS else Placeholder("key"): value for key, value in pairs}


class _Interpreter:
    """The stack machine of the pickle protocols 0 to 5."""

    def __init__(
        self, calls: Mapping[str, Callable[[tuple[Any, ...]], Any]], load_persistent: Callable[[Any], Any]
    ) -> None:
        self.stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._calls, self._load_persistent = calls, load_persistent

    def step(self, name: str, argument: Any) -> None:
        """Carries out one instruction."""
        stack = self.stack
        if name in _ARGUMENT_IS_VALUE:
            stack.append(argument)
            return
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "MARK":
                self._outer.append(stack)
                self.stack = []
            case "POP_MARK":
                self._pop_mark()
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self._pop_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                if not self._build_container(name):
                    self._build_object(name, argument)

    def _build_container(self, name: str) -> bool:
        """Carries out an instruction for constants and containers; False where it is none of them."""
        stack = self.stack
        match name:
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise IndexError
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = self._pop_mark()
                self.stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                items = self._pop_mark()
                self.stack.append(items)
            case "APPEND":
                item = stack.pop()
                self._extend([item])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._pop_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._pop_mark()
                self.stack.append({})
                self._set_items(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case "EMPTY_SET":
                stack.append(Placeholder("builtins.set"))
            case "FROZENSET":
                self._pop_mark()
                self.stack.append(Placeholder("builtins.frozenset"))
            case _:
                return False
        return True

    def _build_object(self, name: str, argument: Any) -> None:
        """Carries out an instruction that, in a real unpickler, imports or runs something."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(Placeholder(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(module) is not str or type(attribute) is not str:
                    raise DamagedFile("its pickle names an object by something other than a string")
                stack.append(Placeholder(f"{module}.{attribute}"))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Placeholder(f"copyreg extension {argument}"))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._call(called, arguments))
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._call(called, arguments))
            case "OBJ":
                called, *arguments = self._pop_mark()
                self.stack.append(self._call(called, tuple(arguments)))
            case "INST":
                arguments = tuple(self._pop_mark())
                self.stack.append(self._call(Placeholder(argument.replace(" ", ".", 1)), arguments))
            case "BUILD":
                stack.pop()  # the state: a placeholder has none, and plain values need none
            case "PERSID":
                stack.append(self._load_persistent(argument))
            case "BINPERSID":
                stack.append(self._load_persistent(stack.pop()))
            case _:
                raise DamagedFile(f"its pickle has the instruction {name}, which belongs in no file")

    def _pop_mark(self) -> list[Any]:
        """The items above the newest mark; the stack below it is the stack again."""
        items, self.stack = self.stack, self._outer.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Placeholder:
            raise DamagedFile("its pickle appends to something other than a list")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Placeholder:
            target = target.items
        if type(target) is not dict:
            raise DamagedFile("its pickle sets items of something other than a dictionary")
        target.update(make_dict(zip(items[::2], items[1::2], strict=True)))

    def _call(self, called: Any, arguments: Any) -> Any:
        if type(called) is not Placeholder or type(arguments) is not tuple:
            raise DamagedFile("its pickle calls something other than a name")
        function = self._calls.get(called.name)
        return Placeholder(called.name) if function is None else function(arguments)
