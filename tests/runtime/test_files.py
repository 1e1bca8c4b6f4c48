"""Atomic writes, and reads from a disk that fails."""

import errno
import os
import types

import pytest

from colddiff.runtime import files
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import (
    atomic_write,
    file_system_failed,
    patiently,
    read_json,
    write_json,
)


def test_a_file_appears_when_it_is_finished(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
        with atomic_write(path) as other:  # as another process would
            other.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="half way"), atomic_write(path) as file:
        file.write(b"after")
        raise ValueError("half way")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Check the order, because a loss of power could leave an empty file."""
    path, sizes, fsync = tmp_path / "a.txt", [], os.fsync

    def noting(number):
        sizes.append((os.fstat(number).st_size, path.exists()))
        fsync(number)

    monkeypatch.setattr(files.os, "fsync", noting)
    with atomic_write(path) as file:
        file.write(b"one")
    assert sizes == [(3, False)]


def test_a_failing_disk_is_tried_again(monkeypatch):
    pauses = []
    monkeypatch.setattr(files, "time", types.SimpleNamespace(sleep=pauses.append))

    def reading(failures, error):
        def read():
            if len(pauses) < failures:
                raise error
            return "read"

        return lambda: patiently(read, "x")

    damage = OSError("image file is truncated")  # as raised by PIL, without an errno
    for error, failed in (
        (OSError(errno.EIO, "Input/output error"), True),
        (ValueError("UNKNOWN: Error reading: Stale file handle [os_error_code='116']"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("NOT_FOUND: ... [os_error_code='2']"), False),
        (damage, False),
    ):
        pauses.clear()
        assert file_system_failed(error) == failed
        if failed:
            assert reading(3, error)() == "read" and pauses == [1, 3, 10]
            pauses.clear()
        with pytest.raises(type(error)):
            reading(9, error)()
        assert len(pauses) == (3 if failed else 0)
    try:
        raise ValueError("orbax says") from OSError(errno.EIO, "Input/output error")
    except ValueError as error:
        assert file_system_failed(error)


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"a": [1, None, "µ"]})
    assert read_json(path) == {"a": [1, None, "µ"]}
    for wrong in ("{", "3", "[1]", '"text"'):
        path.write_text(wrong)
        with pytest.raises(
            UserError, match=r"a\.json cannot be read: .* hold a JSON object; restore"
        ):
            read_json(path)
