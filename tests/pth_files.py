"""A writer of PyTorch's state dicts, opcode by opcode, to test the reader."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Global(NamedTuple):
    """The name of a class or function in a pickle; it need not exist."""

    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: Any


class Persistent(NamedTuple):
    identity: Any


class Pickler(pickle._Pickler):
    """Python's pickler, which also writes the three classes above."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global) and self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        elif isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Persistent):
            self.save(obj.identity)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def pickled(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


KINDS = {np.dtype("float32"): "FloatStorage", np.dtype("int64"): "LongStorage"}


def storage(key, array, *, legacy=False):
    kind = Global("torch", KINDS[array.dtype])
    return Persistent(("storage", kind, key, "cpu", array.size, *[None] * legacy))


def tensor(storage, offset, shape, strides):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, OrderedDict()))


def write_zip(path, state, storages, *, prefix="archive", protocol=2, **records):
    """Write a zip file. `records` replaces records such as data_pkl; None leaves one out."""
    records = {
        "data_pkl": pickled(state, protocol),
        "byteorder": b"little",
        "version": b"3\n",
        **{f"data_{key}": array.tobytes() for key, array in storages.items()},
    } | records
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            if content is not None:
                name = "data.pkl" if name == "data_pkl" else name.replace("_", "/")
                archive.writestr(f"{prefix}/{name}", content)


LITTLE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4, "long": 4}}


def write_legacy(path, state, storages, *, system=LITTLE):
    pickles = (0x1950A86A20F9469CFC6C, 1001, system, state, [*storages])
    parts = [pickled(value) for value in pickles]
    for array in storages.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    path.write_bytes(b"".join(parts))


def save_arrays(path: Path, value: dict[str, Any], *, legacy: bool = True) -> None:
    """Write a dict of arrays, numbers and such dicts, in the layout of 2019 or as a zip file."""
    storages = {}

    def tensors(member):
        if isinstance(member, dict):
            return OrderedDict((name, tensors(each)) for name, each in member.items())
        if not isinstance(member, np.ndarray):
            return member
        key = str(len(storages))
        storages[key] = member
        strides = tuple(n // member.itemsize for n in member.strides)
        return tensor(storage(key, member, legacy=legacy), 0, member.shape, strides)

    (write_legacy if legacy else write_zip)(path, tensors(value), storages)
