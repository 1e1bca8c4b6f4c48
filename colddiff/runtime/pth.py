"""State dicts and training checkpoints in PyTorch's `.pth` and `.pt` files, read without PyTorch.

Both layouts are read. Since PyTorch 1.6 a file is a zip archive with one record per storage. Older
files are a sequence of pickles, followed by the storages.

A pickle is a program. This reader executes only the opcodes that make tensors and the dicts,
tuples, numbers and strings around them. Any other opcode is an error. Nothing that a file names is
imported or called. Callers decide which tensors a network needs.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from colddiff.runtime.errors import UserError, first_line

_STORAGES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch LongStorage": "<i8",
}
_DICT = "collections OrderedDict"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_GLOBALS = {*_STORAGES, _DICT, _TENSOR, _PARAMETER}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

_METADATA = {"_metadata"}  # versions of the modules, which this reader ignores

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"  # first bytes of the two layouts
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # the older layout's magic number and version
_DAMAGED = (EOFError, NotImplementedError, OSError, ValueError, zipfile.BadZipFile)
_DIMENSIONS = 8  # more than a tensor of any network has
_LARGEST = 2**60  # keeps byte counts within 64 bits


class _Global(NamedTuple):
    """The name of a class or function, which is never imported."""

    name: str


class _Storage(NamedTuple):
    """A storage of `count` numbers in the file; tensors are views of it."""

    dtype: str
    key: str
    count: int

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.count * np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by name, in the file's order.

    They are read-only views. Tensors that share a storage in the file share it here. A zip
    archive's checksums are verified. The older layout has none, so wrong numbers go undetected.

    Raises:
      UserError: the file is missing, damaged, big-endian or in neither layout; or it contains
        anything but a dict of tensors; or a tensor or a storage exceeds the file's data.
    """
    state = read_checkpoint(path)
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            kind = type(value).__name__
            raise UserError(
                f"{path} cannot be read as a state dict of PyTorch: its entry {name[:80]!r} is a "
                f"{kind}, not a tensor"
            )
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dict in a file, such as `{"step": 700, "model": {NAME: array, ...}}`.

    Its values are arrays, as in `read_pth`, integers, strings, booleans, None, or dicts of these.

    Raises:
      UserError: as for `read_pth`; or the file contains anything else.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_ZIP):
            return _read_zip(content)
        if content.startswith(_PICKLE):
            return _read_legacy(content)
        raise UserError(f"it begins with {content[:4]!r}, not like a zip archive or a pickle")
    except _DAMAGED as error:
        message = f"{path} cannot be read as a state dict of PyTorch: {first_line(error)}"
        raise UserError(message) from error


def _read_zip(content: bytes) -> dict[str, Any]:
    """Read the dict in PREFIX/data.pkl, and its storages in PREFIX/data/KEY."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise UserError("two of its records have the same name")
        for name, entry in entries.items():
            stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
            if not stored or entry.file_size != entry.compress_size:
                raise UserError(f"its record {name!r} is compressed or encrypted; expected neither")
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"it has {len(pickles)} records PREFIX/data.pkl; expected 1")
        prefix = pickles[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"  # absent before PyTorch 2.1
        if order in entries and archive.read(order) != b"little":
            raise UserError(f"its byte order is {archive.read(order)[:20]!r}; expected b'little'")
        value = _unpickle(io.BytesIO(archive.read(pickles[0])))
        tensors = _tensors(value)

        def read(storage: _Storage) -> bytes:
            name = f"{prefix}data/{storage.key}"
            if name not in entries:
                raise UserError(f"its record {name[:80]!r} is missing")
            found = entries[name].file_size
            if found != storage.size:
                raise UserError(f"its record {name!r} has {found} bytes, not {storage.size}")
            return archive.read(name)

        return _with_arrays(value, _storages(tensors, len(content)), read)


def _read_legacy(content: bytes) -> dict[str, Any]:
    """Read five pickles (magic, version, system, the dict, keys), then the storages in order."""
    file = io.BytesIO(content)
    for expected in _LEGACY:
        if _unpickle(file) != expected:
            raise UserError("it is a pickle that PyTorch did not write")
    system = _unpickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("its byte order is not little-endian")
    value = _unpickle(file)
    keys = _unpickle(file)
    storages = {s.key: s for s in _storages(_tensors(value), len(content))}
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise UserError("its list of storages does not consist of names")
    if sorted(keys) != sorted(storages):
        raise UserError("its list of storages differs from the storages of its tensors")

    def read(storage: _Storage) -> bytes:
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise UserError(f"a storage has {count} numbers, not {storage.count}")
        data = file.read(storage.size)
        if len(data) < storage.size:
            raise UserError("it ends within a storage")
        return data

    found = _with_arrays(value, [storages[key] for key in keys], read)
    if file.read(1):
        raise UserError("it has more bytes after its last storage")
    return found


def _tensors(value: Any, levels: int = 2) -> list[_Tensor]:
    """Return the tensors of a dict and of the dicts in it, down to `levels` levels.

    Raises:
      UserError: it is no dict, or it contains anything but tensors, plain values and such dicts.
    """
    if not levels:
        raise UserError("its dicts are nested too deeply for a state dict")
    if not isinstance(value, dict):
        raise UserError(f"it holds a {type(value).__name__}, not a dict of tensors")
    tensors = []
    for name, member in value.items():
        match member:
            case _Tensor():
                tensors.append(member)
            case dict():
                tensors += _tensors(member, levels - 1)
            case None | bool() | int() | str():
                pass
            case _:
                kind = type(member).__name__
                raise UserError(f"its entry {name[:80]!r} is a {kind}, not a tensor")
    return tensors


def _storages(tensors: list[_Tensor], size: int) -> list[_Storage]:
    """Return the tensors' storages after checking their sizes against the file's `size`."""
    storages = list(dict.fromkeys(tensor.storage for tensor in tensors))
    if len({storage.key for storage in storages}) < len(storages):
        raise UserError("it gives one storage two types or sizes")
    promised = sum(storage.size for storage in storages)
    if promised > size:
        raise UserError(f"its tensors need {promised} bytes, but the file has {size}")
    return storages


def _with_arrays(
    value: dict[str, Any], storages: list[_Storage], read: Callable[[_Storage], bytes]
) -> dict[str, Any]:
    """Return the dict with arrays for tensors; read every storage once, in this order."""
    numbers = {storage: np.frombuffer(read(storage), storage.dtype) for storage in storages}

    def convert(member: Any) -> Any:
        match member:
            case dict():
                return {name: convert(each) for name, each in member.items()}
            case _Tensor():
                flat = numbers[member.storage]
                strides = [stride * flat.itemsize for stride in member.strides]
                # as_strided checks nothing: `_tensor` has checked that the view is in the storage.
                return np.lib.stride_tricks.as_strided(flat[member.offset :], member.shape, strides)
        return member

    return convert(value)


def _unpickle(file: BinaryIO) -> Any:
    """Return the object of the pickle at the file's position, and advance the file to its end."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack below each open mark
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "MARK":
                    below.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = stack, below.pop()
                    stack.append(tuple(items))
                case "SETITEMS" | "APPENDS":
                    items, stack = stack, below.pop()
                    _extend(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "PROTO" | "FRAME":
                    pass
                case name:
                    _follow(name, argument, stack)
    except (IndexError, KeyError) as error:
        raise UserError("its pickle is damaged") from error


def _follow(name: str, argument: Any, stack: list[Any]) -> None:
    """Execute an opcode that needs only the stack, neither marks nor the memo."""

    def pop(count: int) -> list[Any]:
        return [stack.pop() for _ in range(count)][::-1]

    match name:
        case _ if name in _LITERALS:
            stack.append(argument)
        case _ if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_LIST":
            stack.append([])
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(pop(int(name[-1]))))
        case "SETITEM" | "APPEND":
            items = pop(2 if name == "SETITEM" else 1)
            _extend(stack[-1], items)
        case "GLOBAL":
            stack.append(_global(argument))
        case "STACK_GLOBAL":
            stack.append(_global(*pop(2)))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "REDUCE":
            stack.append(_call(*pop(2)))
        case "BUILD":
            state = stack.pop()
            if [type(stack[-1]), type(state)] != [dict, dict] or {*state} != _METADATA:
                raise UserError("its pickle sets attributes that no state dict has")
        case _:
            raise UserError(f"its pickle uses {name}, which no state dict needs")


def _extend(target: Any, items: list[Any]) -> None:
    """Add items to a list, or alternating keys and values to a dict."""
    match target:
        case list():
            target.extend(items)
        case dict() if len(items) % 2 == 0 and all(type(key) is str for key in items[::2]):
            target.update(zip(items[::2], items[1::2], strict=True))
        case _:
            raise UserError(
                "its pickle adds to an object that is neither a list nor a dict of names"
            )


def _global(*names: Any) -> _Global:
    """Return the global of 'module attribute' or two strings; refuse what no state dict needs."""
    name = " ".join(names) if all(type(name) is str for name in names) else ""
    if name not in _GLOBALS:
        asked = name[:80].replace(" ", ".") or "a global without a name"
        raise UserError(f"it asks for {asked}, which no state dict needs; none of it was executed")
    return _Global(name)


def _storage(identity: Any) -> _Storage:
    """Return the storage for ('storage', type, key, device, count); old files add a None."""
    match identity:
        case ("storage", _Global(name), str() as key, str(), int() as count, *rest):
            if name in _STORAGES and rest in ([], [None]) and 0 <= count < _LARGEST:
                return _Storage(_STORAGES[name], key, count)
    raise UserError("its pickle refers to an external object that is not a storage")


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call to one of the three functions that a state dict calls."""
    match function, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case _Global(name), (_Tensor() as tensor, bool(), dict()) if name == _PARAMETER:
            return tensor
        case (
            _Global(name),
            (_Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *rest),
        ) if name == _TENSOR:
            if [type(x) for x in rest] == [bool, dict]:  # requires_grad, hooks
                return _tensor(storage, offset, shape, strides)
    raise UserError("its pickle makes a call that no state dict makes; none of it was executed")


def _tensor(
    storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> _Tensor:
    """Return a tensor after checking that it lies inside its storage and is not larger than it."""
    if len(shape) != len(strides) or len(shape) > _DIMENSIONS:
        raise UserError(
            f"a tensor has {len(shape)} dimensions and {len(strides)} strides; expected as many "
            f"strides as dimensions, at most {_DIMENSIONS}"
        )
    if any(type(n) is not int or not 0 <= n < _LARGEST for n in (offset, *shape, *strides)):
        raise UserError("a tensor's offset, shape or strides are not all integers of 0 or more")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if count > storage.count or offset > storage.count or (count and last >= storage.count):
        raise UserError(
            f"a tensor of shape {shape} with strides {strides} at {offset} does not fit into its "
            f"storage of {storage.count} numbers"
        )
    return _Tensor(storage, offset, shape, strides)
