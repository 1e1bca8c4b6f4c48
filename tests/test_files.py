"""Files that are there whole or not at all."""

import pytest

from colddiff.errors import UserError
from colddiff.files import read_json, whole, write_json


def test_a_file_appears_when_it_is_finished(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole(path) as file:
        file.write(b"one")
        assert not path.exists()
        with whole(path) as other:  # of another process, say
            other.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="half way"), whole(path) as file:
        file.write(b"after")
        raise ValueError("half way")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"a": [1, None, "µ"]})
    assert read_json(path) == {"a": [1, None, "µ"]}
    for wrong in ("{", "3", "[1]", '"text"'):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"a\.json cannot be read: "):
            read_json(path)
