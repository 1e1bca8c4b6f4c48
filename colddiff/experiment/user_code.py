"""A user's own degradation, which a config names as FILE.py:FUNCTION, and hashes of its source.

Errors of the user's code name the file and the line, with a hint. `checks.py` checks what the
degradation returns. Other modules decide what happens to a run whose source has changed.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.tree_util import Partial

from colddiff.degradations import as_partial, split
from colddiff.experiment.config_files import run_file
from colddiff.runtime.devices import all_hosts, barrier, is_first_host
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import read_json, write_json, write_text

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PACKAGE = Path(__file__).resolve().parents[1]  # colddiff itself
_TRACED = "JAX traces D, so x0, t, key and all that a Partial holds have no values yet. "
_HINTS = (  # types of error, a pattern of the message, what to write instead
    (
        jax.errors.TracerBoolConversionError,
        "",
        f"{_TRACED}In place of if, and, or, not use jnp.where(condition, a, b); in place of while "
        "use jax.lax.while_loop",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "",
        f"{_TRACED}In place of x0[mask] use jnp.where(mask, a, b)",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "",
        f"{_TRACED}In place of a NumPy, SciPy or PIL function use the one of jnp, jax.scipy or "
        "jax.image; turn a NumPy table into a jnp array before it is indexed by t",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "",
        f"{_TRACED}In place of LIST[t] use jnp.asarray(LIST)[t] with T + 1 values; in place of "
        "range(t) use a table for t = 0..T, or jax.lax.fori_loop. Keep a plain number, such as "
        "num_steps, out of a Partial",
    ),
    (
        jax.errors.ConcretizationTypeError,
        r"arose with the `\w+` function|`item`",
        f"{_TRACED}In place of a math function use the one of jnp (jnp.deg2rad for math.radians); "
        "in place of int(t) or float(t) use t or t.astype(jnp.float32)",
    ),
    (
        (TypeError, IndexError),  # ConcretizationTypeError is a TypeError
        r"^Abstract tracer|^Shapes must be 1D|^Slice entries must be|^Array slice indices must",
        f"{_TRACED}No shape, and no end of a slice, can depend on them. Compute all pixels, and "
        "choose with jnp.where, such as jnp.where(jnp.arange(n) < t, a, b)",
    ),
    (
        TypeError,
        "^Error interpreting argument",
        "A jax.tree_util.Partial holds arrays only. Keep text and other settings in a closure, as "
        "in lambda x0, t, key: ...",
    ),
    (
        TypeError,
        "immutable|does not support item assignment",
        "JAX arrays cannot be changed in place. In place of x0[i] = y use x0 = x0.at[i].set(y)",
    ),
)


class Own(NamedTuple):
    """A user's own degradation.

    Attributes:
      name: FILE.py:FUNCTION.
      factory: FUNCTION; None if `degrade` is a composition with FUNCTION's degradation.
      degrade: `D(x0, t, key) -> xt` for one image, which FUNCTION returned.
    """

    name: str
    factory: Callable[..., Any] | None
    degrade: Partial

    @property
    def function(self) -> str:
        """Return the name of FUNCTION."""
        return _parts(self.name)[1]

    def failed(self, error: Exception, shape: tuple[int, int, int]) -> UserError:
        """Return the error for an exception that D raised for one image of `shape`."""
        place = raised_at(self.name, error) or self.defined_at()
        hint = (
            f"D(x0, t, key) gets x0, float32 {shape}, t, an int32 scalar, and key, a typed PRNG "
            "key; before them, the arrays that a Partial holds"
        )
        return _failure(f"the degradation {self.function} fails at {place}", error, hint)

    def defined_at(self) -> str:
        """Return where the user's file defines D, or else FUNCTION; or only the file."""
        _, apply = split(self.degrade)
        functions = (apply, self.factory)
        places = (_definition(self.name, function) for function in functions)
        return next(filter(None, places), str(_parts(self.name)[0]))


def make_own(name: str, settings: Mapping[str, Any]) -> Own:
    """Load the user's file, and call its function with those `settings` that it takes.

    Args:
      name: FILE.py:FUNCTION.
      settings: the function's keyword arguments. `image_size` is left out if it has no such one.

    Raises:
      UserError: the file or the function fails, or the function returns no function.
    """
    factory = load_function(name)
    place = _definition(name, factory) or str(_parts(name)[0])
    signature = inspect.signature(factory)
    if "image_size" not in signature.parameters:
        settings = {k: v for k, v in settings.items() if k != "image_size"}
    given = ", ".join(f"{k}={reprlib.repr(v)}" for k, v in settings.items() if k != "bank")
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise UserError(
            f"config.degradation: {place} does not fit the settings {given}: {error}; it takes "
            f"{', '.join(signature.parameters)}. It must take the settings by name, and return "
            "the function D(x0, t, key)"
        ) from error
    try:
        degrade = factory(**settings)
    except UserError:
        raise
    except Exception as error:  # the user's code can raise any type
        what = f"the factory {_parts(name)[1]} fails at {raised_at(name, error) or place}"
        raise _failure(what, error, f"It was called with {given}") from error
    if not callable(degrade):
        raise UserError(
            f"the factory {_parts(name)[1]} must return a function; it returned {degrade!r}. At "
            f"{place}: return D(x0, t, key) itself, such as Partial(_function, table)"
        )
    return Own(name, factory, as_partial(degrade))


def first_own(degradation: Mapping[str, Any]) -> str | None:
    """Return the first FILE.py:FUNCTION of a config's `degradation` or its parts; None for none."""
    return next(_own_names(degradation), None)


def load_function(name: str) -> Callable[..., Any]:
    """Return the function that 'FILE.py:FUNCTION' names.

    Raises:
      UserError: there is no such file or function, or the file cannot be loaded.
    """
    path, function = _parts(name)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"degradation.name={name!r} must be FILE.py:FUNCTION; there is no Python file "
            f"{path.absolute()}. Give a path relative to the config file or the working directory"
        )
    try:
        module = run_file(path, f"colddiff_own_{path.stem}")
    except Exception as error:  # the user's code can raise any type
        reason = f"{type(error).__name__}: {first_line(error)}"
        place = raised_at(name, error)
        raise UserError(f"{path.absolute()} cannot be loaded: {reason}, at {place}") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"{path.absolute()} has no function {function!r} (degradation.name={name})")
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


def raised_at(name: str, error: BaseException) -> str:
    """Return the last line of the user's files that an exception passed; '' if there is none.

    Args:
      name: FILE.py:FUNCTION; the user's files are FILE.py and those in its folder.
      error: the exception, or a SyntaxError of such a file.
    """
    lines = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno or 1))
    places = [_line(name, file, line) for file, line in lines]
    return next(filter(None, reversed(places)), "")


def _definition(name: str, function: Any) -> str:
    """Return the place of a function's definition; '' if it is not in the user's files."""
    while isinstance(function, functools.partial):  # and Partial, its subclass
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return _line(name, code.co_filename, code.co_firstlineno) if code else ""


def _line(name: str, file: str, number: int) -> str:
    """Return 'FILE, line NUMBER, `CODE`' for a line of the user's files; '' for any other."""
    own = _parts(name)[0].resolve()
    if Path(file).resolve() != own and not _is_the_users(Path(file).resolve(), own.parent):
        return ""
    linecache.checkcache(file)
    return f"{file}, line {number}, `{linecache.getline(file, number).strip()}`"


def _failure(what: str, error: Exception, hint: str) -> UserError:
    """Return the error for an exception; `hint` is used if the exception has no better one."""
    for types, pattern, better in _HINTS:
        if isinstance(error, types) and re.search(pattern, str(error)):
            return UserError(f"{what}: {type(error).__name__}. {better}")
    return UserError(f"{what}: {type(error).__name__}: {first_line(error).rstrip('.')}. {hint}")


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
    installed = "site-packages" in file.parts or file.is_relative_to(_PACKAGE)
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
