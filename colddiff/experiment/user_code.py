"""A user's own function, which a config names as FILE.py:FUNCTION, and hashes of its source.

Other modules call the function, and decide what happens to a run whose function has changed.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from colddiff.runtime.devices import all_hosts, barrier, is_first_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_json, write_json, write_text

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def load_function(name: str) -> Callable[..., Any]:
    """Return the function that 'FILE.py:FUNCTION' names.

    Raises:
      UserError: there is no such file or function, or the file cannot be loaded.
    """
    path, function = _parts(name)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"degradation.name={name!r} must be FILE.py:FUNCTION; there is no Python file "
            f"{path.absolute()}"
        )
    spec = importlib.util.spec_from_file_location(f"colddiff_own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code can raise any type
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path.absolute()} cannot be loaded: {reason}") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"{path.absolute()} has no function {function!r} (degradation.name={name})")
    logging.info("degradation: %s of %s", function, path.absolute())
    return getattr(module, function)


def source_hashes(degradation: Mapping[str, Any]) -> dict[str, str]:
    """Return SHA-256 hashes of the source of the user's own functions in a degradation.

    Functions in the parts of a `compose` are included. The keys are paths relative to the folder of
    FILE.py: the file itself, and the files that it imports from that folder. Docstrings, the
    function `get_config`, empty lines and comments between functions are left out, because they do
    not change the results. The result is {} if no function is the user's own.

    Args:
      degradation: the config's `degradation`, after its functions were loaded.
    """
    files = _source_files(degradation)
    return {key: hashlib.sha256(_code(file).encode()).hexdigest() for key, file in files.items()}


def _source_files(degradation: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files that `source_hashes` covers, by the same keys."""
    files = {}
    for name in _own_names(degradation):
        path, _ = _parts(name)
        folder = path.resolve().parent
        for file in sorted(_imported(path.resolve(), folder)):
            files[file.relative_to(folder).as_posix()] = file
    return files


def check_source(workdir: Path, degradation: Mapping[str, Any], *, accept: bool, new: bool) -> None:
    """Refuse a changed source of the user's own degradation; write it to the workdir.

    `source.json` holds the hashes, and the folder `source` copies of the files.

    Args:
      workdir: the run's folder.
      degradation: the config's `degradation`, after its functions were loaded.
      accept: resume even if the source has changed.
      new: the run has no checkpoint yet, so hashes in the workdir belong to another run.

    Raises:
      UserError: the source has changed since the run began, and `accept` is False.
    """
    changes = [] if new else source_changes(workdir, degradation)
    if not all_hosts(not changes or accept):
        differences = "\n  ".join(changes) or "see the other hosts' messages"
        raise UserError(
            f"the source of the degradation is not the one that the run in {workdir} began with:\n"
            f"  {differences}\nRestore it, use another --workdir, or give --accept_source to "
            "resume with the new source"
        )
    for change in changes:
        logging.warning("resuming with a changed source of the degradation: %s", change)
    if is_first_host():
        path, hashes = workdir / "source.json", source_hashes(degradation)
        for stale in set(read_json(path) or ()) - set(hashes):
            (workdir / "source" / stale).unlink(missing_ok=True)
        for key, file in _source_files(degradation).items():
            write_text(workdir / "source" / key, file.read_text())
        if hashes:
            write_json(path, hashes)
        elif path.exists():
            path.unlink()
    barrier()


def source_changes(workdir: Path, degradation: Mapping[str, Any]) -> list[str]:
    """Return the differences between the degradation's source and the hashes in the workdir."""
    then, now = read_json(workdir / "source.json"), source_hashes(degradation)
    if then is None:
        return []
    names = sorted(k for k in then | now if then.get(k) != now.get(k))
    return [f"{k}: sha256 {then.get(k)} saved, {now.get(k)} now" for k in names]


def _parts(name: str) -> tuple[Path, str]:
    place, _, function = name.rpartition(":")
    return Path(place).expanduser(), function


def _own_names(degradation: Mapping[str, Any]) -> Iterator[str]:
    if ":" in str(degradation.get("name", "")):
        yield degradation["name"]
    for part in degradation.get("parts", ()):
        yield from _own_names(part)


def _imported(path: Path, folder: Path, seen: frozenset[Path] = frozenset()) -> set[Path]:
    """Return the file and the loaded modules below `folder` that it imports, directly or not."""
    found = {path}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = getattr(sys.modules.get(name), "__file__", None)
            file = file and Path(file).resolve()
            if file and file not in seen | found and _is_the_users(file, folder):
                found |= _imported(file, folder, seen | found)
    return found


def _is_the_users(file: Path, folder: Path) -> bool:
    """Return whether a module is the user's: below `folder`, neither installed nor colddiff's."""
    installed = "site-packages" in file.parts or file.is_relative_to(Path(__file__).parent)
    return file.suffix == ".py" and file.is_relative_to(folder) and not installed


def _code(path: Path) -> str:
    """Return the source without the parts that do not change a function's results."""
    text = path.read_text()
    tree, lines, left_out, code = ast.parse(text), text.splitlines(), set(), []
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            if docstring.lineno > getattr(node, "lineno", 0):  # `def` is on another line
                left_out |= set(range(docstring.lineno, docstring.end_lineno + 1))
    for node in tree.body:
        if getattr(node, "name", "") != "get_config":
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            numbers = set(range(first, node.end_lineno + 1)) - left_out
            code += [lines[number - 1] for number in sorted(numbers)]
    return "\n".join(line for line in code if line.strip())
