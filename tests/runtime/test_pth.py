"""State dicts from files written here, and from PyTorch's if it is installed."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from pth_files import (
    LITTLE,
    Call,
    Global,
    Persistent,
    pickled,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

from colddiff.runtime.errors import UserError
from colddiff.runtime.pth import read_pth

BASE, COUNT = np.arange(24, dtype=np.float32) / 7, np.array([5])
STORAGES = {"0": BASE, "1": COUNT}
EXPECTED = {
    "layer.weight": BASE.reshape(2, 3, 4),
    "turned": BASE.reshape(2, 3, 4)[1].T,
    "part": BASE.reshape(2, 3, 4)[:, ::2, 1:],
    "count": np.array(5),
    "none": np.zeros((0, 3), np.float32),
}


def example(*, legacy=False):
    base, count = (storage(key, array, legacy=legacy) for key, array in STORAGES.items())
    parameter = Global("torch._utils", "_rebuild_parameter")
    state = OrderedDict()
    state["layer.weight"] = tensor(base, 0, (2, 3, 4), (12, 4, 1))
    state["turned"] = Call(parameter, (tensor(base, 12, (4, 3), (1, 4)), True, OrderedDict()))
    state["part"] = tensor(base, 1, (2, 2, 3), (12, 8, 1))
    state["count"] = tensor(count, 0, (), ())
    state["none"] = tensor(base, 24, (0, 3), (3, 1))
    state._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    return state


WRITERS = {
    "zip": lambda path: write_zip(path, example(), STORAGES),
    "zip of another name": lambda path: write_zip(path, example(), STORAGES, prefix="my weights"),
    "zip with STACK_GLOBAL": lambda path: write_zip(path, example(), STORAGES, protocol=4),
    "zip without byteorder": lambda path: write_zip(path, example(), STORAGES, byteorder=None),
    "legacy": lambda path: write_legacy(path, example(legacy=True), STORAGES),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_tensors_come_back(path, write):
    """Include views of one storage, with offsets and strides; they share it, read-only."""
    write(path)
    found = read_pth(path)
    assert list(found) == list(EXPECTED)
    for name, array in EXPECTED.items():
        assert found[name].dtype == array.dtype
        assert not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)
    assert np.shares_memory(found["layer.weight"], found["turned"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_agrees_with_pytorch(path, zipped):
    """Read PyTorch's file here, and read the file written here with PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = OrderedDict((k, torch.from_numpy(v.copy())) for k, v in EXPECTED.items())
    state["turned"] = torch.nn.Parameter(state["layer.weight"][1].T)
    state["part"] = state["layer.weight"][:, ::2, 1:]
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    for name, array in read_pth(path).items():
        np.testing.assert_array_equal(array, EXPECTED[name])

    WRITERS["zip" if zipped else "legacy"](path)
    for name, found in torch.load(path, weights_only=True).items():
        np.testing.assert_array_equal(found.detach().numpy(), EXPECTED[name])


def attacks(marker):
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "system": (os.system, (command,)),
        "eval": (eval, (code,)),
        "exec": (exec, (code,)),
        "open": (open, (str(marker), "w")),
    }


class Attack:
    def __init__(self, function, arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


PLACES = {
    "all of it": lambda attack: attack,
    "a tensor": lambda attack: OrderedDict(a=attack),
    "a name": lambda attack: {attack: tensor(storage("0", BASE), 0, (24,), (1,))},
    "in the depths": lambda attack: OrderedDict(a=[{"b": (1, [attack])}]),
    "a storage": lambda attack: {"a": tensor(attack, 0, (1,), (1,))},
    "a persistent id": lambda attack: {"a": tensor(Persistent(attack), 0, (1,), (1,))},
    "a shape": lambda attack: {"a": tensor(storage("0", BASE), 0, attack, (1,))},
    "what is called": lambda attack: {"a": Call(attack, ())},
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ["system", "eval", "exec", "open"])
def test_nothing_is_run(path, tmp_path, name, place, protocol):
    marker = tmp_path / "marker"
    attack = Attack(*attacks(marker)[name])
    pickle.loads(pickle.dumps(attack, protocol))
    assert marker.exists()  # the attack would have worked
    marker.unlink()
    write_zip(path, place(attack), STORAGES, protocol=protocol)
    with pytest.raises(UserError, match=r"none of it was executed|which no state dict needs"):
        read_pth(path)
    if protocol == 2:
        write_legacy(path, place(attack), STORAGES)
        with pytest.raises(UserError, match="none of it was executed"):
            read_pth(path)
    assert not marker.exists()


def raw(body):
    return b"\x80\x02" + body + b"."


FLOAT, REBUILD = b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
LETTER = b"X\x01\x00\x00\x00a"
METADATA = b"}X\x09\x00\x00\x00_metadata}s"
PROGRAMS = {
    "a global that is not called": (raw(b"cos\nsystem\n"), r"asks for os\.system, which"),
    "another attribute": (raw(b"ctorch\nload\n"), r"asks for torch\.load, which"),
    "another OrderedDict": (raw(b"ccollections.abc\nOrderedDict\n"), "asks for collections.abc"),
    "a name in pieces": (raw(b"ctorch FloatStorage\n\n"), "asks for torch.FloatStorage.,"),
    "a dotted name": (raw(b"\x8c\x05torch\x8c\x09load.load\x93"), r"asks for torch\.load\.load"),
    "a global without a name": (raw(b"K\x01K\x02\x93"), "asks for a global without a name,"),
    "a huge one": (raw(b")" + b"q\x00h\x00\x86" * 99 + b"K\x01\x93"), "a global without a name"),
    "an instance": (raw(b"(ios\nsystem\n"), "uses INST"),
    "an object": (raw(b"(" + FLOAT + b"o"), "uses OBJ"),
    "a new object": (raw(FLOAT + b")\x81"), "uses NEWOBJ"),
    "an extension": (raw(b"\x82\x01"), "uses EXT1"),
    "an old persistent id": (raw(b"P0\n"), "uses PERSID"),
    "a call of a storage": (raw(FLOAT + b")R"), "makes a call"),
    "a call of a dict": (raw(b"}(R"), "damaged"),
    "a dict called with arguments": (raw(b"ccollections\nOrderedDict\n]\x85R"), "makes a call"),
    "attributes of a function": (raw(REBUILD + METADATA + b"b"), "sets attributes"),
    "attributes that are none": (raw(b"}](]eb"), "sets attributes"),
    "a tensor of nothing": (raw(REBUILD + b")R"), "makes a call"),
    "other attributes": (raw(b"}}" + LETTER + b"K\x01sb"), "sets attributes"),
    "numbers for names": (raw(b"}K\x01K\x02s"), "neither a list nor a dict"),
    "an odd dict": (raw(b"}(" + LETTER + b"u"), "neither a list nor a dict"),
    "items of a string": (raw(LETTER + b"(K\x01e"), "neither a list nor a dict"),
    "an empty stack": (raw(b""), "damaged"),
    "an unknown memo": (raw(b"h\x07"), "damaged"),
    "no mark": (raw(b"t"), "damaged"),
    "no end": (b"\x80\x02}", "exhausted before seeing STOP"),
    "no opcode": (raw(b"\xff"), "unknown"),
    "a long string": (raw(b"X\xff\xff\xff\x7fa"), "expected 2147483647 bytes"),
    "a longer one": (raw(b"\x8d" + b"\xff" * 8), "unicodestring8"),
    "a list": (raw(b"]"), "holds a list, not a dict of tensors"),
    "a number by a name": (raw(b"}" + LETTER + b"K\x01s"), "its entry 'a' is a int, not a tensor"),
}


@pytest.mark.parametrize(("program", "message"), PROGRAMS.values(), ids=PROGRAMS)
def test_other_programs_are_refused(path, program, message):
    write_zip(path, None, STORAGES, data_pkl=program)
    with pytest.raises(UserError, match=rf"weights\.pth cannot be read as .*{message}"):
        read_pth(path)


VIEWS = {
    "past the end": (20, (5,), (1,)),
    "an offset past the end": (25, (0,), (1,)),
    "strides past the end": (0, (2, 2), (1, 23)),
    "wider than the storage": (0, (25,), (0,)),
    "an enormous one of zeros": (0, (10**9, 10**9), (0, 0)),
    "a negative offset": (-1, (2,), (1,)),
    "negative strides": (23, (24,), (-1,)),
    "a negative shape": (0, (-1, -1), (1, 1)),
    "a fraction": (0, (2.0,), (1,)),
    "truth": (0, (True,), (1,)),
    "more digits than numbers have": (0, (2**80,), (1,)),
    "a stride of more bytes than can be": (0, (1,), (2**60,)),
    "fewer strides": (0, (2, 2), (1,)),
    "many dimensions": (0, (1,) * 99, (1,) * 99),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_tensors_lie_inside_their_storage(path, view):
    write_zip(path, {"a": tensor(storage("0", BASE), *view)}, STORAGES)
    with pytest.raises(UserError, match=r"a tensor('s| of| has)|uses BINFLOAT"):
        read_pth(path)


@pytest.mark.parametrize("rest", [(), (False,), (0, {}), (False, 0), (False, {}, {})])
def test_tensors_are_plain(path, rest):
    """Refuse arguments of a tensor other than a flag and empty hooks."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    state = {"a": Call(rebuild, (storage("0", BASE), 0, (1,), (1,), *rest))}
    write_zip(path, state, STORAGES)
    with pytest.raises(UserError, match="makes a call that no state dict makes"):
        read_pth(path)


IDENTITIES = {
    "no tuple": "storage",
    "another kind": ("module", Global("torch", "FloatStorage"), "0", "cpu", 24),
    "a name for the type": ("storage", "FloatStorage", "0", "cpu", 24),
    "another type": ("storage", Global("torch._utils", "_rebuild_tensor_v2"), "0", "cpu", 24),
    "a number for the key": ("storage", Global("torch", "FloatStorage"), 0, "cpu", 24),
    "a negative size": ("storage", Global("torch", "FloatStorage"), "0", "cpu", -1),
    "an enormous size": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**70),
    "too short": ("storage", Global("torch", "FloatStorage"), "0"),
    "too long": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 24, None, None),
    "a view": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 24, ("1", 0, 4)),
}


@pytest.mark.parametrize("identity", IDENTITIES.values(), ids=IDENTITIES)
def test_persistent_ids_are_storages(path, identity):
    write_zip(path, {"a": tensor(Persistent(identity), 0, (1,), (1,))}, STORAGES)
    with pytest.raises(UserError, match="external object that is not a storage"):
        read_pth(path)


def of_size(count, kind="FloatStorage"):
    found = Persistent(("storage", Global("torch", kind), "0", "cpu", count))
    return {"a": tensor(found, 0, (1,), (1,))}


RECORDS = {
    "missing": (example(), dict(data_0=None), r"record 'archive/data/0' is missing"),
    "short": (example(), dict(data_0=BASE.tobytes()[:-1]), r"has 95 bytes, not 96"),
    "long": (example(), dict(data_0=BASE.tobytes() + b"."), r"has 97 bytes, not 96"),
    "other numbers": (of_size(24, "LongStorage"), {}, "has 96 bytes, not 192"),
    "more than the file": (of_size(10**15), {}, r"need 40{15} bytes, but the file has \d+"),
    "two sizes": (of_size(24) | {"b": of_size(12)["a"]}, {}, "two types or sizes"),
    "big-endian": (example(), dict(byteorder=b"big"), "byte order is b'big'"),
    "no pickle": (example(), dict(data_pkl=None), "has 0 records PREFIX/data.pkl; expected 1"),
}


@pytest.mark.parametrize(("state", "records", "message"), RECORDS.values(), ids=RECORDS)
def test_records_must_fit(path, state, records, message):
    write_zip(path, state, STORAGES, **records)
    with pytest.raises(UserError, match=message):
        read_pth(path)


def test_compressed_and_double_records_are_refused(path):
    """Refuse records that could be larger than the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match=r"'archive/data\.pkl' is compressed"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(example()))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", pickled({}))
    with pytest.raises(UserError, match="same name"):
        read_pth(path)


def test_the_older_layout_is_checked_too(path):
    state = example(legacy=True)
    write_legacy(path, state, STORAGES, system=LITTLE | {"little_endian": False})
    with pytest.raises(UserError, match="not little-endian"):
        read_pth(path)
    write_legacy(path, state, {"0": BASE})
    with pytest.raises(UserError, match="list of storages differs from the storages of"):
        read_pth(path)
    write_legacy(path, state, STORAGES | {"0": BASE[:-1]})
    with pytest.raises(UserError, match="has 23 numbers, not 24"):
        read_pth(path)
    path.write_bytes(pickled({"a": 1}))
    with pytest.raises(UserError, match="a pickle that PyTorch did not write"):
        read_pth(path)
    write_legacy(path, state, STORAGES)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="more bytes after its last storage"):
        read_pth(path)


@pytest.mark.parametrize("content", [b"", b"P", b"<html>", bytes(99), b"PK\x05\x06" + bytes(18)])
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth cannot be read .* it begins with b"):
        read_pth(path)


def test_a_missing_file_is_said_to_be(path):
    with pytest.raises(UserError, match=r"weights\.pth cannot be read .*No such file"):
        read_pth(path)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_truncated_files_are_refused(path, layout):
    WRITERS[layout](path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"weights\.pth cannot be read"):
            read_pth(path)


def test_flipped_bits_change_nothing_unseen(path):
    """Check that a flipped bit of a zip archive is refused, or changes no tensor."""
    WRITERS["zip"](path)
    content = path.read_bytes()
    refused = 0
    for place in range(8 * len(content)):
        if place % 8 != place // 8 % 8:  # flip one bit of each byte
            continue
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_pth(path)
        except UserError:
            refused += 1
        else:
            assert list(found) == list(EXPECTED)
            for name, array in EXPECTED.items():
                np.testing.assert_array_equal(found[name], array)
    assert refused > len(content) / 2
