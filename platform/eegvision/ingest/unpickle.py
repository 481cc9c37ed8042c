"""Pickled arrays from files we did not make: read without running anything in them, samples left where they lie.

THINGS-EEG2 comes as pickles of up to 8 GB. A pickle is a program for a small stack machine. The one here knows only
the opcodes and the six names that dicts, lists, text and NumPy arrays need; a name stands for one of our own stand-ins,
never for the object it is called after, so nothing in a file can be run or written to. Bytes of arrays are not read:
their place in the file is noted, and they are memory-mapped.
"""

from __future__ import annotations

import codecs
import math
import pickletools
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eegvision.vocab import InputError

MAX_OPCODES = 4_000_000  # the largest known file, lists of 66,160 names three times, needs 600,000
MAX_DEPTH = 16
MAX_READ_BYTES = 256 << 20  # everything but the samples
MAX_INLINE_BYTES = 1 << 16  # a text or byte string above this is left in the file
_CHUNK_BYTES = 4 << 20
_DTYPE = re.compile(r"[biufcSU]\d{1,6}|O\d?")
_REMEDY = "download it again; code in a file is never run, and only dicts, lists, text, numbers and arrays are read"

# NumPy 1 called numpy._core numpy.core.
_NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    **{f"numpy.{core}.multiarray _reconstruct": "_reconstruct" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray scalar": "scalar" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": "_frombuffer" for core in ("core", "_core")},
}
_ARGUMENTS: dict[bytes, tuple[str, Callable[[Any], Any] | None]] = {
    opcode.code.encode("latin-1"): (opcode.name, opcode.arg.reader if opcode.arg else None)
    for opcode in pickletools.opcodes
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "MARK": lambda: _MARK,
}  # fmt: skip
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "SHORT_BINBYTES", "SHORT_BINUNICODE",
}  # fmt: skip
_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
# Bytes of the length that precedes a payload, and how the payload is to be understood.
_PAYLOADS = {
    "BINBYTES": (4, ""), "BINBYTES8": (8, ""), "BYTEARRAY8": (8, ""),
    "BINUNICODE": (4, "utf-8"), "BINUNICODE8": (8, "utf-8"),
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _RefusedError(Exception):
    """Why a file is not read."""


@dataclass(frozen=True, kw_only=True)
class TextArray:
    """An array whose bytes stand in the file as text, which protocols 0 to 2 do; `array` decodes them."""

    path: Path
    start: int
    size: int
    coding: str
    dtype: np.dtype
    shape: tuple[int, ...]
    order: str

    def array(self) -> np.ndarray:
        """Return the array, read-only and mapped from a temporary file that vanishes with it.

        Raises:
            InputError: the text is not that of as many bytes as the array has.
        """
        decoder = codecs.getincrementaldecoder(self.coding)()
        file = tempfile.TemporaryFile()  # noqa: SIM115  the mapping keeps it
        try:
            with self.path.open("rb") as source:
                source.seek(self.start)
                for at in range(0, self.size, _CHUNK_BYTES):
                    text = decoder.decode(source.read(min(_CHUNK_BYTES, self.size - at)))
                    file.write(text.encode("latin-1"))
            file.write(decoder.decode(b"", final=True).encode("latin-1"))
            file.flush()
            if file.tell() != math.prod(self.shape) * self.dtype.itemsize:
                raise ValueError(f"{file.tell()} bytes for an array of shape {list(self.shape)} {self.dtype}")
            return _checked(np.memmap(file, self.dtype, "r", shape=self.shape, order=_order(self.order)))
        except ValueError as error:  # also UnicodeError
            raise InputError(f"{self.path} is damaged at byte {self.start:,} ({error}): download it again") from error
        finally:
            file.close()


def array(value: object) -> np.ndarray | None:
    """Return an array that `load` gave as it can be indexed; None for what is no array."""
    return value.array() if isinstance(value, TextArray) else value if isinstance(value, np.ndarray) else None


def load(path: Path, offset: int = 0) -> Any:
    """Read a pickle (protocols 0 to 5) or `.npy` file of dicts, lists, text, numbers and NumPy arrays.

    Large arrays are not read but come as read-only `numpy.memmap`s, or as `TextArray`s where the file holds them as
    text. An array of objects without axes, as which `numpy.save` stores a dict, comes as that object.

    Args:
        path: the file.
        offset: where in it the pickle begins.
    Raises:
        InputError: no such file; it is cut short, damaged, too large to be what it says, or has something left over
            at the end; it holds anything but the above, code above all.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="error"):
            size = path.stat().st_size
            file.seek(offset)
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                file.seek(offset)
                return _load_npy(path, file, size)
            file.seek(offset)
            return _run(path, file, size)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its rights") from error
    except Exception as error:  # whatever a damaged file makes of our stack and of NumPy's header
        raise _input_error(path, error) from error


def load_torch(path: Path, *, verify: bool = True) -> Any:
    """Read what `torch.save` wrote (a zip file): dicts, lists, text, numbers and NumPy arrays as `load`, or tensors.

    Tensors are read by torch with `weights_only`, memory-mapped.

    Args:
        path: the file.
        verify: compare every byte with the checksums in the file first.
    Raises:
        InputError: no such file, not such a file, damaged; or it holds something else, code above all.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise _RefusedError(f"its member {member.filename!r} is compressed or encrypted")
            if verify and (bad := archive.testzip()):
                raise _RefusedError(f"the bytes of its member {bad!r} do not match their checksum")
            pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
            if len(pickles) != 1:
                raise _RefusedError(f"it has {len(pickles)} members NAME/data.pkl, not 1: torch did not write it")
        if any(re.fullmatch(r"[^/]+/data/.+", member.filename) for member in members):
            import torch

            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            # Only the header before the member itself says how long its names are there.
            file.seek(pickles[0].header_offset + 26)
            start = file.tell() + 4 + sum(int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(start)
            return _run(path, file, start + pickles[0].file_size)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its rights") from error
    except Exception as error:
        raise _input_error(path, error) from error


def _input_error(path: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = str(error) if isinstance(error, _RefusedError) else f"it is damaged ({type(error).__name__}: {error})"
    return InputError(f"{path} cannot be used: {reason[:300]}; {_REMEDY}")


def _load_npy(path: Path, file: BinaryIO, size: int) -> Any:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise _RefusedError(f"its .npy version is {version}, not 1.0 or 2.0")
    shape, is_fortran, dtype = readers[version](file)
    if not dtype.hasobject:
        span = _Span(start=file.tell(), size=size - file.tell(), coding="")
        stand_in = _Array(path=path, shape=shape, order="F" if is_fortran else "C", data=span)
        stand_in.dtype = _Dtype(dtype=_plain(dtype), is_built=True)
        stand_in.check()
        return stand_in.finish(lambda value: value)
    value = _run(path, file, size)
    given = value.shape if isinstance(value, np.ndarray) else ()
    if given != shape:
        raise _RefusedError(f"its header says shape {list(shape)}, its content has {list(given)}")
    return value


def _run(path: Path, file: BinaryIO, end: int) -> Any:
    return _Finish().value(_Machine(path=path, file=file, left=end - file.tell()).run(), 0)


def _order(name: str) -> Any:  # "C" or "F"
    return name


def _plain(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "biufcSUO" or dtype.subdtype or dtype.names:
        raise _RefusedError(f"an array has elements of type {str(dtype)[:80]}, not plain numbers or text")
    return dtype


def _checked(array: np.ndarray) -> np.ndarray:
    """Text that is no Unicode makes NumPy raise wherever it is touched later."""
    if array.dtype.kind == "U" and array.size:
        codes = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if codes.max(initial=0) > 0x10FFFF:
            raise ValueError("text that is no Unicode")
    return array


@dataclass(frozen=True, kw_only=True)
class _Name:
    """One of the names a pickle may call."""

    name: str


@dataclass(frozen=True, kw_only=True)
class _Span:
    """A byte string (no coding) or text of the file that was left there."""

    start: int
    size: int
    coding: str
    is_encoded: bool = False  # text that stands for bytes

    @property
    def is_bytes(self) -> bool:
        return self.is_encoded or not self.coding


@dataclass(kw_only=True)
class _Dtype:
    """Stands for a numpy.dtype: ('f8', False, True), then a state with the byte order."""

    dtype: np.dtype
    is_built: bool = False

    def build(self, state: Any) -> None:
        version, byte_order, *sub_names_fields = state[:5]
        if self.is_built or version not in (3, 4) or byte_order not in ("<", ">", "|", "="):
            raise _RefusedError("an array's type has a state of an unknown kind")
        if any(part is not None for part in sub_names_fields) or len(state) > 8:
            raise _RefusedError("an array has elements with fields, not plain numbers or text")
        self.dtype, self.is_built = self.dtype.newbyteorder(byte_order), True


@dataclass(kw_only=True)
class _Array:
    """Stands for a numpy.ndarray: first empty, then with a state, or with everything at once."""

    path: Path
    shape: Any = ()
    order: Any = "C"
    data: Any = None
    dtype: Any = None

    def build(self, state: Any) -> None:
        version, self.shape, dtype, is_fortran, data = state
        if self.dtype is not None or version != 1 or type(is_fortran) not in (bool, int):
            raise _RefusedError("an array has a state of an unknown kind")
        self.dtype, self.data, self.order = dtype, data, "F" if is_fortran else "C"
        self.check()

    def check(self) -> None:
        is_shape = type(self.shape) is tuple and len(self.shape) <= 32 and self.order in ("C", "F")
        if not is_shape or any(type(n) is not int or n < 0 for n in self.shape) or type(self.dtype) is not _Dtype:
            raise _RefusedError("an array has no shape or type")
        dtype, n_items, data = self.dtype.dtype, math.prod(self.shape), self.data
        if dtype.hasobject:
            is_whole = type(data) is list and len(data) == n_items
        elif isinstance(data, _Span) and data.is_encoded:
            # A byte takes 1 to 2 bytes of UTF-8, or up to 6 as \u000a; decoding compares exactly.
            is_whole = n_items * dtype.itemsize <= data.size <= 6 * n_items * dtype.itemsize
        elif isinstance(data, _Span):
            is_whole = data.is_bytes and data.size == n_items * dtype.itemsize
        else:
            is_whole = type(data) is bytes and len(data) == n_items * dtype.itemsize
        if not is_whole:
            raise _RefusedError(f"an array of shape {list(self.shape)}, {dtype}, has not as many bytes as that takes")

    def finish(self, finished: Callable[[Any], Any]) -> np.ndarray | TextArray | Any:
        if self.dtype is None:
            raise _RefusedError("an array has no content")
        dtype, data = self.dtype.dtype, self.data
        if dtype.hasobject:
            items = np.empty(len(data), object)
            for index, item in enumerate(data):
                items[index] = finished(item)
            return items.reshape(self.shape) if self.shape else items[0]
        if isinstance(data, bytes):
            return _checked(np.frombuffer(data, dtype).reshape(self.shape, order=self.order))
        if data.is_encoded:
            return TextArray(
                path=self.path, start=data.start, size=data.size, coding=data.coding,
                dtype=dtype, shape=self.shape, order=self.order,
            )  # fmt: skip
        if data.size == 0:
            return np.empty(self.shape, dtype)
        return _checked(np.memmap(self.path, dtype, "r", offset=data.start, shape=self.shape, order=self.order))


@dataclass(kw_only=True)
class _Machine:
    """The stack machine; `left` bytes of the file belong to the pickle."""

    path: Path
    file: BinaryIO
    left: int
    n_read: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            name, read_argument = _ARGUMENTS.get(code := self.read(1), ("", None))
            if name == "STOP":
                if self.left:
                    raise _RefusedError(f"{self.left:,} bytes follow its end")
                (value,) = self.stack
                return value
            if name in _NEW:
                self.stack.append(_NEW[name]())
            elif name in _PAYLOADS:
                width, coding = _PAYLOADS[name]
                self.stack.append(self.payload(int.from_bytes(self.read(width), "little"), coding))
            elif name in _VALUES and read_argument:
                self.stack.append(read_argument(self))
            elif name in _GETS and read_argument:
                self.stack.append(self.memo[read_argument(self)])
            elif name in _PUTS and read_argument:
                self.memo[read_argument(self)] = self.stack[-1]
            elif name in _TUPLES:
                self.stack[-_TUPLES[name] :] = [tuple(self.pop(_TUPLES[name], keep=True))]
            elif action := getattr(self, f"do_{name.lower()}", None):
                action()
            else:
                raise _RefusedError(f"it uses the pickle opcode {name or code!r}, which only code or old files need")
        raise _RefusedError(f"it has more than {MAX_OPCODES:,} parts")

    def read(self, size: int) -> bytes:
        data = self.file.read(self.take(size)) if 0 <= size <= MAX_INLINE_BYTES else b""
        if len(data) != size:
            raise _RefusedError(f"a piece of {size:,} bytes is not in it")
        return data

    def readline(self) -> bytes:
        line = self.file.readline(MAX_INLINE_BYTES)
        if not line.endswith(b"\n"):
            raise _RefusedError("a line in it does not end")
        self.take(len(line))
        return line

    def take(self, size: int) -> int:
        self.left -= size
        self.n_read += size
        if self.left < 0:
            raise _RefusedError("it is cut short")
        if self.n_read > MAX_READ_BYTES:
            raise _RefusedError(f"it has more than {MAX_READ_BYTES:,} bytes beside its arrays")
        return size

    def payload(self, size: int, coding: str) -> Any:
        if size <= MAX_INLINE_BYTES:
            data = self.read(size)
            return data.decode(coding, "strict") if coding else data
        if size > self.left:
            raise _RefusedError(f"a piece of {size:,} bytes is not in it")
        self.left -= size
        span = _Span(start=self.file.tell(), size=size, coding=coding)
        self.file.seek(size, 1)
        return span

    def pop(self, count: int, *, keep: bool = False) -> list[Any]:
        items = self.stack[-count:]
        if len(items) != count:
            raise _RefusedError("a value is missing")
        if not keep:
            del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise _RefusedError("a list has no beginning")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def do_proto(self) -> None:
        if self.read(1)[0] > 5:
            raise _RefusedError("it has a pickle protocol above 5")

    def do_frame(self) -> None:
        self.read(8)  # how much to read ahead; we do not

    def do_unicode(self) -> None:
        """Text to the end of the line; a long one is an array's and stays in the file."""
        start, size = self.file.tell(), 0
        while not (line := self.file.readline(_CHUNK_BYTES)).endswith(b"\n"):
            size += len(line)
            if not line:
                raise _RefusedError("a line in it does not end")
        size += len(line) - 1
        self.file.seek(start)
        self.stack.append(self.payload(size, "raw-unicode-escape"))
        self.readline()

    def do_readonly_buffer(self) -> None:
        pass  # everything is

    def do_pop(self) -> None:
        self.pop(1)

    def do_pop_mark(self) -> None:
        self.pop_mark()

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def do_list(self) -> None:
        self.stack.append(self.pop_mark())

    def do_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.fill(items)

    def do_append(self) -> None:
        self.extend(self.pop(1))

    def do_appends(self) -> None:
        self.extend(self.pop_mark())

    def do_setitem(self) -> None:
        self.fill(self.pop(2))

    def do_setitems(self) -> None:
        self.fill(self.pop_mark())

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _RefusedError("something is appended to what is no list")
        self.stack[-1].extend(items)

    def fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _RefusedError("something is put into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise _RefusedError(f"a key of a dict is of type {type(key).__name__}, not text")
            if key in target:
                raise _RefusedError(f"a dict has the key {str(key)[:80]!r} twice")
            target[key] = value

    def do_global(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.push_name(module, name)

    def do_stack_global(self) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise _RefusedError("it asks for a name that is no text")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        if (known := _NAMES.get(f"{module} {name}")) is None:
            raise _RefusedError(f"it asks for {module}.{name}, which is code")
        self.stack.append(_Name(name=known))

    def do_build(self) -> None:
        target, state = self.pop(2)
        if type(target) not in (_Array, _Dtype) or type(state) is not tuple:
            raise _RefusedError("it gives a state to what is no array")
        target.build(state)
        self.stack.append(target)

    def do_reduce(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise _RefusedError("it calls what is no name")
        self.stack.append(self.call(function.name, arguments))

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        match name, arguments:
            case "dtype", (str(text), *_) if _DTYPE.fullmatch(text):
                return _Dtype(dtype=_plain(np.dtype(object if text.startswith("O") else text)))
            case "_reconstruct", (_Name(name="ndarray"), (0,), bytes()):
                return _Array(path=self.path)
            case "_frombuffer", (data, dtype, shape, order):
                array = _Array(path=self.path, data=data, dtype=dtype, shape=shape, order=order)
                array.check()
                return array
            case "scalar", (_Dtype(dtype=dtype), bytes(data)) if not dtype.hasobject and len(data) == dtype.itemsize:
                return _checked(np.frombuffer(data, dtype))[0]
            case "encode", (str(text), "latin1"):
                return text.encode("latin-1")
            case "encode", (_Span(start=start, size=size, coding=coding, is_encoded=False), "latin1") if coding:
                return _Span(start=start, size=size, coding=coding, is_encoded=True)
        raise _RefusedError(f"it calls {name} in a way arrays do not need")


class _Finish:
    """Turns stand-ins into arrays, every object once, and refuses whatever else is left."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}
        self.open: set[int] = set()

    def value(self, value: Any, depth: int) -> Any:
        if value is None or type(value) in (str, bytes, bool, int, float) or isinstance(value, np.generic):
            return value
        if id(value) in self.open or depth > MAX_DEPTH:
            raise _RefusedError(f"it is nested more than {MAX_DEPTH} deep, or holds itself")
        if id(value) not in self.done:
            self.open.add(id(value))
            self.done[id(value)] = self.container(value, depth + 1)
            self.open.discard(id(value))
        return self.done[id(value)]

    def container(self, value: Any, depth: int) -> Any:
        if type(value) in (list, tuple):
            return type(value)(self.value(item, depth) for item in value)
        if type(value) is dict:
            return {key: self.value(item, depth) for key, item in value.items()}
        if type(value) is _Array:
            return value.finish(lambda item: self.value(item, depth))
        if type(value) is _Span:
            raise _RefusedError(f"it holds a text of {value.size:,} bytes that belongs to no array")
        raise _RefusedError("it holds something that is neither text, number, list, dict nor array")
