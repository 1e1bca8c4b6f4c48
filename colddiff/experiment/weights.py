"""Weights in files: `.safetensors` and `.npz` with our names, `.pt` and `.pth` with the authors'.

Our names are the paths of Flax's parameters, joined by dots and without leading underscores, such
as `Block_0.Conv_1.kernel`. An exported folder (colddiff/exchange) holds `model.safetensors`, whose
metadata has the config and the step. This module makes no workdir.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from colddiff.experiment import authors
from colddiff.experiment.build import Experiment, init_params
from colddiff.experiment.checkpoint import check_same
from colddiff.experiment.saved_config import config_from_json, config_json
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import atomic_write, patiently
from colddiff.runtime.pth import read_checkpoint

FILE = "model.safetensors"
_SHOWN = 6  # names in a message


class Weights(NamedTuple):
    """The weights of a restorer.

    Attributes:
      step: the number of training steps behind them; 0 if unknown.
      params: the parameters of training.
      ema_params: their moving average; `params` themselves if the file has only one set.
    """

    step: int
    params: Any
    ema_params: Any


def read_weights(path: Path, experiment: Experiment) -> Weights:
    """Return the weights in a file, as NumPy arrays for the experiment's network.

    Args:
      path: a `.safetensors` or `.npz` file with our names, or a `.pt` or `.pth` file of the paper's
        released code: `{"step": ..., "model": ..., "ema": ...}`, or a state dict alone.
      experiment: an experiment with that network.

    Raises:
      UserError: the file cannot be read, or does not fit the network; the message lists the tensors
        that differ, and the config fields that would fit if it can tell.
    """
    readers = {
        ".safetensors": _read_ours,
        ".npz": _read_ours,
        ".pt": _read_authors,
        ".pth": _read_authors,
    }
    if path.suffix not in readers:
        raise UserError(f"{path} must be a {', '.join(readers)} file; got {path.suffix!r}")
    if not path.is_file():
        raise UserError(f"{path} is no file; give a file with weights: {', '.join(readers)}")
    return readers[path.suffix](path, experiment)


def write_safetensors(path: Path, params: Any, config: ConfigDict, step: int, dtype: Any) -> None:
    """Write parameters under our names as `dtype`, with the config and the step; atomic.

    Raises:
      UserError: a value is too large for `dtype`.
    """
    flat = {}
    for parameter, array in flatten_dict(params).items():
        name, array = _name(parameter), np.asarray(array)
        with np.errstate(over="ignore"):
            # safetensors writes the buffer as it lies in memory.
            flat[name] = np.asarray(array, dtype, order="C")
        if not np.all(np.isfinite(flat[name].astype(np.float32))):
            largest = np.abs(array).max()
            raise UserError(f"{name} has values up to {largest:g}, which {dtype} cannot hold")
    metadata = {"format": "flax", "config": json.dumps(config_json(config)), "step": str(step)}
    with atomic_write(path) as file:
        file.write(safetensors.numpy.save(flat, metadata))


def read_metadata(path: Path) -> tuple[ConfigDict, int]:
    """Return the config, locked, and the step in a file that `write_safetensors` wrote.

    Raises:
      UserError: the file cannot be read, or was not written by `write_safetensors`.
    """
    metadata = _metadata(path)
    try:
        config = config_from_json(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has no config in its metadata, so it was not exported by colddiff; import it "
            "with --mode=import and a --config"
        ) from error
    return config, _step(path, metadata.get("step"))


def read_params(path: Path, experiment: Experiment) -> Any:
    """Return the parameters in a file with our names, float32, for the experiment's network.

    Raises:
      UserError: as for `read_weights`.
    """
    arrays, shapes = _read_arrays(path), _shapes(experiment)
    expected = {_name(p): shape for p, shape in shapes.items()}
    _check(path, arrays, expected, experiment.config, {})
    return unflatten_dict({p: np.asarray(arrays[_name(p)], np.float32) for p in shapes})


def _read_ours(path: Path, experiment: Experiment) -> Weights:
    metadata = _metadata(path) if path.suffix == ".safetensors" else {}
    if "config" in metadata:
        # Another residual or eight_bit has the same tensors.
        saved, _ = read_metadata(path)
        check_same(("model", "data.eight_bit"), saved, experiment.config, path)
    params = read_params(path, experiment)
    return Weights(_step(path, metadata.get("step", "0")), params, params)


def _read_authors(path: Path, experiment: Experiment) -> Weights:
    content = read_checkpoint(path)
    nested = {"model", "ema"} <= content.keys()
    states = [content["model"], content["ema"]] if nested else [content]
    for state in states:
        if not isinstance(state, dict):
            raise UserError(f"{path} must hold dicts of tensors; 'model' or 'ema' is none")
        if others := [n for n, tensor in state.items() if not isinstance(tensor, np.ndarray)]:
            raise UserError(
                f"{path} must hold 'step', 'model' and 'ema', as the paper's released code saves "
                f"them, or be a state dict; {others[0]!r} is no tensor"
            )
    if getattr(experiment.model, "patch", 1) > 1:
        raise UserError("the paper's networks have no patches; use --config.model.patch=1")
    step = _step(path, content.get("step")) if nested else 0
    tensors = authors.tensors_of(experiment.model, _shapes(experiment))
    expected = {tensor.name: tensor.shape for tensor in tensors.values()}
    sets = []
    for state in map(authors.of_network, states):
        fitting = authors.fitting_fields(state, experiment.config.data.image_size)
        _check(path, state, expected, experiment.config, fitting)
        sets.append(unflatten_dict(authors.convert(tensors, state)))
    return Weights(step, sets[0], sets[-1])


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a `.safetensors` file, without reading its tensors."""

    def read() -> dict[str, str]:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}

    return _tried(path, read)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a `.safetensors` or `.npz` file by name."""

    def read() -> dict[str, np.ndarray]:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    return _tried(path, read)


def _tried(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return patiently(read, str(path))
    except Exception as error:  # damaged files raise many types of exception
        raise UserError(f"{path} cannot be read as {path.suffix}: {first_line(error)}") from error


def _shapes(experiment: Experiment) -> dict[authors.ParamPath, tuple[int, ...]]:
    """Return the shapes of the restorer's parameters, by path."""
    params = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}


def _name(path: authors.ParamPath) -> str:
    return ".".join(part.lstrip("_") for part in path)


def _step(path: Path, step: Any) -> int:
    """Return a file's step, an integer or its text; refuse what is no number of steps."""
    text = str(step)
    if isinstance(step, int | str) and text.isdecimal() and len(text) < 11 and int(text) < 2**31:
        return int(text)
    raise UserError(f"{path} has step={text[:40]}; it must be a whole number from 0 to 2³¹ - 1")


def _check(
    path: Path,
    state: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    config: ConfigDict,
    fitting: Mapping[str, Any],
) -> None:
    """Refuse tensors that are not those of the network; advise the `fitting` fields."""
    both = expected.keys() & state.keys()
    shapes = [
        f"{name} is {state[name].shape}, not {expected[name]}"
        for name in sorted(both)
        if state[name].shape != expected[name]
    ]
    differences = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": shapes,
    }
    lines = [f"{len(n)} {kind}: {_some(n)}" for kind, n in differences.items() if n]
    if not lines:
        for name in sorted(both):
            _check_values(path, name, state[name])
        return
    advice = (
        "Use the config that these weights were trained with; this one describes a "
        f"{config.model.name}"
    )
    flat = flatten_dict({"model": config.model.to_dict(), "data": config.data.to_dict()}, sep=".")
    if changes := {k: v for k, v in fitting.items() if _plain(flat.get(k)) != _plain(v)}:
        if "model.name" in changes:  # another network takes other settings
            section = {k.removeprefix("model."): v for k, v in fitting.items() if "model." in k}
            changes = {k: v for k, v in changes.items() if "model." not in k} | {"model": section}
        flags = " ".join(f'--config.{k}="{v}"' for k, v in changes.items())
        advice = f"Its tensors fit the config with {flags}"
    listed = "\n  ".join(lines)
    raise UserError(f"{path} does not fit the network; tensors\n  {listed}\n{advice}")


def _check_values(path: Path, name: str, array: np.ndarray) -> None:
    """Refuse tensors that are not floats, or not finite."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{path}: {name} is {array.dtype}; expected floats")
    if not np.all(np.isfinite(array.astype(np.float32))):
        raise UserError(f"{path}: {name} has values that are not finite; the training diverged")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _some(names: Any) -> str:
    """Return the first names, and how many more there are."""
    names = list(map(str, names))
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
