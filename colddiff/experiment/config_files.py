"""Config files: the packaged ones by name, a user's own by path, and changes of their fields.

This module imports no JAX, so that `--help` and mistakes in a config are quick.
"""

import ast
import difflib
import importlib.machinery
import importlib.util
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from colddiff.experiment.saved_config import read_config
from colddiff.runtime.errors import UserError, unknown_name

CONFIGS = Path(__file__).parents[1] / "configs"  # in a checkout, a link to its folder configs
_BY_NAME = ("degradation", "model", "prior", "sampler")  # their `name` decides which fields exist
_SIZES = ("data.image_size", "prior.size")  # an integer, or a pair
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


def packaged_configs() -> dict[str, str]:
    """Return the first line of each packaged config's docstring, by the config's name."""
    lines = {}
    for path in sorted(CONFIGS.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        lines[path.stem] = docstring.splitlines()[0]
    return lines


def load_config(name: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Return the config of a file, changed and locked.

    The paths of the user's own functions become absolute (`locate`).

    Args:
      name: the name of a packaged config, the path of a Python file that has `get_config()`, or
        a run's `config.json`. With FILE.py:TEXT it calls `get_config(TEXT)`.
      changes: arguments `--config.FIELD=VALUE`, as for `change`.

    Raises:
      UserError: there is no such config, its code fails, or a change is invalid.
    """
    path, text = _find(name)
    if path.suffix == ".json":
        config = read_config(path)
    else:
        try:
            config = run_file(path, "colddiff_config").get_config(*text)
        except Exception as error:  # the file's code can raise any type
            raise UserError(_reason(error)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"cannot use --config: get_config() of {path} must return a ConfigDict; it returned "
            f"{config!r}"
        )
    config = change(config, changes)
    folder = path.absolute().parent
    locate(config, [folder, folder / "source"])
    return config


def _find(name: str) -> tuple[Path, list[str]]:
    """Return the path of a config, and the argument of its `get_config`, if any."""
    place, colon, text = name.partition(":")
    packaged = CONFIGS / f"{place}.py"
    path = packaged if "/" not in place and packaged.is_file() else Path(place).expanduser()
    if path.is_file() or path.suffix == ".json":  # `read_config` has its own error
        return path, [text] if colon else []
    if "/" not in place and not place.endswith(".py"):
        raise unknown_name("config", place, packaged_configs())
    known = CONFIGS / path.name
    hint = f"the packaged config is called {known.stem}" if known.is_file() else "check the path"
    raise UserError(f"--config={name}: there is no file {path.absolute()}; {hint}")


def run_file(path: Path, name: str) -> ModuleType:
    """Run a user's Python file, and return it as the module `name`.

    The file may import modules from its own folder and from the working directory. The packaged
    configs are there as `colddiff.configs`, and also as `configs`, as in a checkout.
    """
    _provide_configs()
    for folder in (str(path.absolute().parent), os.getcwd()):
        if folder not in sys.path:
            sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def _provide_configs() -> None:
    """Add the packaged configs to the package `configs`; make this package if there is none."""
    if "configs" not in sys.modules and importlib.util.find_spec("configs") is None:
        spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    package = importlib.import_module("configs")
    folders = getattr(package, "__path__", None)  # None: the user's own module configs.py
    if folders is not None and str(CONFIGS) not in folders:
        package.__path__ = [*folders, str(CONFIGS)]


def _reason(error: Exception) -> str:
    """Return what is wrong with a config file, and the line if it is in `get_config`."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.name in ("get_config", "<module>")]
    return (
        f"{own[-1].filename}:{own[-1].lineno}: {reason}"
        if own
        else f"cannot use --config: {reason}"
    )


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into its arguments `--config.FIELD=VALUE` and the others.

    Flags may also be `--config.FIELD VALUE`, and `--config.FIELD` or `--noconfig.FIELD` if the
    field is a boolean.
    """
    changes, others, rest = [], [], list(argv)
    while rest:
        argument = rest.pop(0)
        if not re.match(r"--?(no)?config\.", argument):
            others.append(argument)
            continue
        changes.append(argument)
        value = rest[0] if rest and "=" not in argument else "-"
        if not value.startswith("-") or _NEGATIVE_NUMBER.match(value):
            changes.append(rest.pop(0))
    return changes, others


def change(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Return the config, locked, with fields set by arguments `--config.FIELD=VALUE`.

    A value is converted to its field's type. There are three exceptions. In `degradation`, a
    number, a tuple of T numbers and the dict of a schedule may replace each other. In
    `data.image_size` and `prior.size`, an integer and a pair may; `build` checks these. The
    sections `degradation`, `model`, `prior` and `sampler` may get new fields; `build` checks them.

    Raises:
      UserError: there is no such field, or its type is not the value's.
    """
    values = flags.FlagValues()
    try:
        for field, text in _assignments(changes):
            _make_room(config, field, text)
        changes = [*_without_sizes(changes)]  # because `_make_room` has set these
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["", *changes]
        )
        extra = values(["", *changes])[1:]
    except (AttributeError, KeyError) as error:
        reason = error.args[0]  # str() of it, or of the KeyError that it may be, escapes the text
        reason = reason.args[0] if isinstance(reason, KeyError) else reason
        raise UserError(f"no such field for a --config.FIELD flag: {reason}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if extra:
        raise UserError(f"unexpected argument {extra[0]!r}; options begin with --")
    return values.config.lock()


def _assignments(changes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (FIELD, VALUE) of each argument that has a value."""
    for argument, following in itertools.zip_longest(changes, changes[1:], fillvalue="--"):
        if argument.startswith("--config."):
            field, equals, value = argument.removeprefix("--config.").partition("=")
            if equals or not following.startswith("--"):
                yield field, value if equals else following


def _without_sizes(changes: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, but neither those of `_SIZES` nor the values that follow these."""
    rest = list(changes)
    while rest:
        argument = rest.pop(0)
        size = any(argument == f"--config.{field}" for field in _SIZES)
        if size and rest and not rest[0].startswith("--"):
            rest.pop(0)
        elif not any(argument.startswith(f"--config.{field}=") for field in _SIZES):
            yield argument


def _make_room(config: ConfigDict, field: str, text: str) -> None:
    """Set a field to `text` in the cases where `config_flags` would refuse it (`change`)."""
    name, _, own = field.partition(".")
    section = config.get(name)
    if not isinstance(section, ConfigDict) or not own.isidentifier():
        return
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    typo = difflib.get_close_matches(own, section, cutoff=0.8)
    new = name in _BY_NAME and own not in section and not typo
    size = field in _SIZES and own in section
    if new or size or (name == "degradation" and _is_other_kind(section.get(own), value)):
        with config.unlocked(), config.ignore_type():
            section[own] = tuple(value) if isinstance(value, list) else value


def _is_other_kind(old: Any, new: Any) -> bool:
    """Return whether one is a number and the other a list or schedule, or similar."""
    if isinstance(old, float):
        return isinstance(new, dict | list | tuple)
    return isinstance(old, ConfigDict | tuple) and isinstance(
        new, int | float | dict | list | tuple
    )


def describe(config: ConfigDict) -> str:
    """Return the config, one field a line; `*` marks fields that differ from default.py."""
    default = dict(_fields(load_config("default")))
    lines = []
    for name, value in _fields(config):
        line = f"config.{name} = {value!r}"
        if name not in default:
            line = f"* {line:<50}  # not in default.py"
        elif value != default[name]:
            line = f"* {line:<50}  # default: {default[name]!r}"
        lines.append(line if line.startswith("*") else f"  {line}")
    return "\n".join([*lines, "", f"* differs from {CONFIGS / 'default.py'}"]) + "\n"


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def locate(config: ConfigDict, folders: Sequence[Path]) -> None:
    """Make the paths of the user's own functions, FILE.py:FUNCTION, absolute.

    A relative path is looked up in `folders` and in the working directory. If there is no such
    file, a file of that name in `folders` or among the packaged configs is used. A path that is
    nowhere stays as it is.
    """

    def absolute(name: str) -> str:
        place, _, function = name.rpartition(":")
        path = Path(place).expanduser()
        places = [*(folder / path for folder in folders), path.absolute()]
        places += [folder / path.name for folder in (*folders, CONFIGS)]
        return next((f"{p.resolve()}:{function}" for p in places if p.is_file()), name)

    located = rename_own(config.degradation.to_dict(), absolute)
    if located != config.degradation.to_dict():
        with config.unlocked():
            config.degradation = located


def rename_own(degradation: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Return a degradation's settings with each FILE.py:FUNCTION renamed, also in its parts."""
    renamed = dict(degradation)
    if ":" in str(renamed.get("name", "")):
        renamed["name"] = rename(renamed["name"])
    if isinstance(parts := renamed.get("parts"), list | tuple):
        of_part = lambda part: rename_own(part, rename) if isinstance(part, Mapping) else part  # noqa: E731
        renamed["parts"] = type(parts)(map(of_part, parts))
    return renamed
