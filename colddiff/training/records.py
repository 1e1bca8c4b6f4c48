"""What a run records about itself in its workdir, besides checkpoints and pictures.

    config.json     the config of the last start; `--config WORKDIR/config.json` repeats the run
    versions.json   program versions and devices, for each start
    metrics.jsonl   the numbers of training, one line for each log
    tensorboard/    the same numbers, and pictures
    profile/        a trace of some steps (`config.train.profile_steps`)

`config.train.sinks` names trackers that get the config and the lines of metrics.jsonl as well.
docs/workdir.md lists all files of a workdir.
"""

import collections
import importlib.util
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jaxlib
from absl import logging
from ml_collections import ConfigDict

import colddiff
from colddiff.experiment.saved_config import config_json
from colddiff.runtime.devices import is_first_host
from colddiff.runtime.errors import UserError, first_line, unknown_name
from colddiff.runtime.files import read_json, write_json, write_text

Line = dict[str, float]  # of metrics.jsonl
Sink = Callable[[Line], None]
STARTS = "starts"  # a key that identifies a versions.json as colddiff's


def record_start(config: ConfigDict, workdir: Path, step: int) -> None:
    """Write the config, and add the versions of this start at `step`, on the first host."""
    if not is_first_host():
        return
    write_json(workdir / "config.json", config_json(config))
    path = workdir / "versions.json"
    starts = (read_json(path) or {}).get(STARTS, [])
    write_json(path, {STARTS: [*starts, {"step": step, **_versions()}]})


def _versions() -> dict[str, Any]:
    """Return the time and the versions that a run's results depend on, and its devices by kind."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "colddiff": colddiff.__version__,
        **_commit(Path(colddiff.__file__).parents[1]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "devices": dict(collections.Counter(device.device_kind for device in jax.devices())),
        "hosts": jax.process_count(),
    }


def _commit(root: Path) -> dict[str, Any]:
    """Return the commit of a git checkout, and whether its files differ; {} if it is none."""
    if not (root / ".git").exists():
        return {}
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(
            [*command, "--abbrev=40"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that git refuses
        return {}
    commit, _, dirty = described.partition("-")
    return {"commit": commit, "dirty": bool(dirty)}


def check_sinks(names: Sequence[str]) -> None:
    """Refuse names of `config.train.sinks` that do not exist or are not installed.

    Raises:
      UserError: the message lists the valid names, or says how to install the tracker.
    """
    for name in names:
        if name not in SINKS:
            raise unknown_name("sink of config.train.sinks", name, SINKS)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # None: only a folder of that name
            raise UserError(
                f"config.train.sinks has {name!r}, which is not installed; run pip install {name}, "
                "or leave it out"
            )


@contextmanager
def open_sinks(config: ConfigDict, workdir: Path, *, start: int) -> Iterator[list[Sink]]:
    """Yield metrics.jsonl, without the lines after step `start`, and the trackers of the config.

    On other hosts than the first, yield none.

    Raises:
      UserError: metrics.jsonl was not written by colddiff, or a tracker does not start.
    """
    with ExitStack() as stack:
        sinks = []
        if is_first_host():
            sinks.append(stack.enter_context(_metrics_file(workdir / "metrics.jsonl", start)))
            for name in config.train.sinks:
                sinks.append(stack.enter_context(_tracker(name, config, workdir)))
        yield sinks


@contextmanager
def _metrics_file(path: Path, start: int) -> Iterator[Sink]:
    write_text(path, "".join(f"{line}\n" for line in _lines_until(path, start)))
    with path.open("a") as file:

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield write


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the lines of metrics.jsonl up to a step; lines cut by a killed process are left out.

    Raises:
      UserError: the run is new, and the file was not written by colddiff.
    """
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except (KeyError, TypeError, ValueError) as error:
            if not step:
                message = f"{path} was not written by colddiff; use another --workdir"
                raise UserError(message) from error
    return lines


@contextmanager
def _tracker(name: str, config: ConfigDict, workdir: Path) -> Iterator[Sink]:
    """Start a tracker's run, named as the workdir; finish it when the block ends."""
    settings = {"project": "colddiff", "name": workdir.name, "config": config_json(config)}
    try:
        run = SINKS[name](workdir, settings)
    except Exception as error:  # the tracker's own, of any type
        reason = f"{name} of config.train.sinks does not start: {first_line(error)}"
        raise UserError(f"{reason}; mend it, or leave {name} out") from error
    try:
        yield lambda line: run.log({k: line[k] for k in line if k != "step"}, step=line["step"])
    finally:
        run.finish()


def _wandb(workdir: Path, settings: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(dir=workdir, **settings)


def _trackio(workdir: Path, settings: Mapping[str, Any]) -> Any:
    import trackio

    return trackio.init(**settings)


# Each function starts a run and returns it; the run has `log(line, step=)` and `finish()`.
SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "wandb": _wandb,
    "trackio": _trackio,
}


class Profile:
    """A trace of the training steps first..last, written to a folder for XProf and TensorBoard.

    It is a context manager, which ends a trace that is under way. Every host traces its devices.
    """

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        """Trace the steps `steps[0]` to `steps[1]`, counted from 1; none if `steps` is ()."""
        self._first, self._last = steps or (0, 0)
        self._folder, self._active = folder, False

    def before(self, step: int) -> None:
        """Start the trace if `step` is to be traced and no trace is under way."""
        if self._first <= step <= self._last and not self._active:
            jax.profiler.start_trace(self._folder)
            self._active = True

    def after(self, step: int, results: Any) -> None:
        """Wait for the step's results and end the trace if `step` is the last one to trace."""
        if self._active and step == self._last:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        self._active = False
        jax.profiler.stop_trace()
        logging.info("the trace is in %s; xprof --logdir %s shows it", self._folder, self._folder)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._end()
