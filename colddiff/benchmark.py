"""Benchmark of a config on this machine: `--mode=benchmark`.

Every round times all parts in turn, so that other load on the machine affects all parts alike. The
table gives the median and the quartiles over the rounds. No training result is saved.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from colddiff.experiment.build import Experiment, build
from colddiff.experiment.state import init_state
from colddiff.images import size_text
from colddiff.inference.run import Run
from colddiff.runtime.compiler import cpu_options, network_jit, program_bytes
from colddiff.runtime.devices import create_mesh, replicated, split_axis
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import markdown_table, write_json, write_text
from colddiff.runtime.progress import Meter
from colddiff.sampling.samplers import image_keys
from colddiff.training.examples import load_train_images, train_batches
from colddiff.training.step import make_train_step

_ROUNDS, _STARTS = 15, 3
_SIDE = 4096  # side of the matrices multiplied to measure the peak FLOP/s
_LEAST_SECONDS = 0.2  # least time of a part in a round; a faster part is repeated
_MOST_SECONDS = 120.0  # most time of a part; after it, the part skips later rounds
_PEAK, _SAMPLING, _NO_NETWORK = "matrix product", "sampling", "sampling, R(x) = x"


class Timing(NamedTuple):
    """The timing of one part.

    Attributes:
      name: the part's name in the table.
      seconds: seconds of one call: lower quartile, median and upper quartile over the rounds.
      images: number of images in one call; 0 if it handles none.
      flops: the compiler's count of a call's FLOPs, a loop's body counted once; 0 if unknown.
      bytes: memory that the program needs on a device, including its arguments; 0 if unknown.
      compile_seconds: compile time, which a compilation cache shortens; 0 without a program.
    """

    name: str
    seconds: tuple[float, float, float]
    images: int = 0
    flops: float = 0
    bytes: int = 0
    compile_seconds: float = 0

    @property
    def median(self) -> float:
        """Return the median of the seconds."""
        return self.seconds[1]


class Benchmark(NamedTuple):
    """All timings, and the conditions they depend on.

    Attributes:
      peak: median FLOP/s of a large matrix product in the network's dtype, on all devices.
      waiting: share of the training loop's time spent waiting for data, while steps run.
      outside: share of full sampling's time spent outside the network.
      compiler_options: options for programs with the network (`runtime.compiler`); empty for none.
    """

    device: str
    devices: int
    jax: str
    config: dict[str, Any]
    peak: float
    waiting: float
    outside: float
    compiler_options: dict[str, str]
    timings: list[Timing]


class _Part(NamedTuple):
    """A part to time: `call()` starts the work and returns arrays to wait for."""

    name: str
    call: Callable[[], Any]
    images: int = 0
    program: Any = None
    compile_seconds: float = 0


def benchmark(config: ConfigDict, *, arguments: Sequence[str] = ()) -> Benchmark:
    """Time the parts of a config on all devices.

    Args:
      config: the config to time.
      arguments: config flags of the command whose start is timed; () skips this timing.

    Raises:
      UserError: the config cannot work, or the data cannot be read.
    """
    starts = _time_starts(arguments) if arguments else []  # before this process takes the devices
    experiment, mesh = build(config), create_mesh()
    images = load_train_images(config)
    batches = train_batches(config, mesh, images, start=0, stop=2**31)
    batch = next(batches)

    state = init_state(experiment, mesh)
    params = jax.tree.map(jnp.copy, state.params)
    train_step = make_train_step(experiment, mesh)
    program, seconds = _compile(train_step, state, batch, experiment.degrade)

    def step(batch):
        nonlocal state  # the step donates its buffers
        state, metrics = program(state, batch, experiment.degrade)
        return metrics

    per_step = config.train.batch_size * config.train.accumulation
    parts = [
        _Part("train step", lambda: step(batch), per_step, program, seconds),
        *_parts(experiment, mesh, params),
        _Part("data", lambda: next(batches), per_step),
    ]
    logging.info("timing %d parts, %d rounds", len(parts), _ROUNDS)
    times = _time(parts)
    timings = {part.name: _timing(part, times[part.name]) for part in parts}
    peak, device = timings[_PEAK], jax.devices()[0]
    return Benchmark(
        device=f"{device.platform} {device.device_kind}, {os.cpu_count()} CPU cores",
        devices=mesh.size,
        jax=jax.__version__,
        config=config.to_dict(),
        peak=peak.flops / peak.median,
        waiting=_waiting(step, batches, ready=4 * config.data.threads),
        outside=timings[_NO_NETWORK].median / timings[_SAMPLING].median,
        compiler_options=cpu_options() or {},
        timings=[*starts, *timings.values()],
    )


def _parts(experiment: Experiment, mesh: jax.sharding.Mesh, params: Any) -> Iterator[_Part]:
    """Yield the parts other than the train step and the data."""
    config, T = experiment.config, experiment.T
    dtype, split = jnp.dtype(config.model.dtype), split_axis(mesh, 0)

    square = jax.device_put(jnp.ones((_SIDE * mesh.size, _SIDE), dtype), split)
    right = jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), replicated(mesh))
    yield _compiled(_PEAK, 0, jax.jit(jnp.matmul), square, right)

    count, key = config.train.batch_size, jax.random.key(0)
    x0 = jax.random.uniform(key, (count, *experiment.image_shape), minval=-1.0, maxval=1.0)
    x0, keys, t = jax.device_put((x0, image_keys(key, 0, count), jnp.full(count, T)), split)
    yield _compiled("forward", count, network_jit(experiment.restore), params, x0, t)

    one = lambda degrade, x0, t, key: degrade(x0, t, key)  # noqa: E731
    each = jax.jit(jax.vmap(one, (None, 0, None, 0)))
    for t in dict.fromkeys((1, max(T // 2, 1), T)):
        yield _compiled(f"degrade, t={t}", count, each, experiment.degrade, x0, jnp.int32(t), keys)

    run = Run(experiment, params)
    yield _Part(_SAMPLING, lambda: run.sample(params, x0), count)
    idle = Run(experiment._replace(restore=lambda params, xt, t: xt))
    yield _Part(_NO_NETWORK, lambda: idle.sample(None, x0), count)


def _compiled(name: str, images: int, function: Callable, *arguments: Any) -> _Part:
    program, seconds = _compile(function, *arguments)
    return _Part(name, lambda: program(*arguments), images, program, seconds)


def _compile(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Compile `function` for the arguments; return the program and the seconds it took."""
    begin = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - begin


def _time(parts: Sequence[_Part]) -> dict[str, list[float]]:
    """Return the seconds per call of each part, for each round; slow parts skip later rounds."""
    for part in parts:  # warm up: the first call may compile
        jax.block_until_ready(part.call())
    times: dict[str, list[float]] = {part.name: [] for part in parts}
    spent = dict.fromkeys(times, 0.0)
    for round_ in range(1, _ROUNDS + 1):
        for part in parts:
            if spent[part.name] < _MOST_SECONDS:
                calls, seconds = _repeat(part.call)
                times[part.name].append(seconds / calls)
                spent[part.name] += seconds
        logging.info("round %d of %d", round_, _ROUNDS)
    return times


def _repeat(call: Callable[[], Any]) -> tuple[int, float]:
    """Repeat a call for at least `_LEAST_SECONDS`; return the number of calls and the seconds."""
    begin, calls, seconds = time.perf_counter(), 0, 0.0
    while seconds < _LEAST_SECONDS:
        jax.block_until_ready(call())
        calls, seconds = calls + 1, time.perf_counter() - begin
    return calls, seconds


def _timing(part: _Part, seconds: Sequence[float]) -> Timing:
    flops, needed = 0.0, 0
    if part.program is not None:
        costs = part.program.cost_analysis() or {}
        flops = float(costs.get("flops", 0)) * jax.device_count()  # costs are per device
        needed = program_bytes(part.program)
    quartiles = _quartiles(seconds)
    return Timing(part.name, quartiles, part.images, flops, needed, part.compile_seconds)


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return low, median, high


def _waiting(
    step: Callable[[jax.Array], Any], batches: Iterator[jax.Array], *, ready: int
) -> float:
    """Return the share of a short training run's time spent waiting for the next batch.

    Args:
      step: runs one train step on a batch.
      batches: the source of batches.
      ready: the largest number of prefetched batches. They are discarded first, because they would
        hide a slow source.
    """
    steps = _ROUNDS + 1
    for _ in range(ready):
        next(batches)
    with Meter("waiting for data", total=steps, images_per_step=0) as meter:
        previous = step(next(batches))
        meter.note()
        for batch in meter.waiting_for(itertools.islice(batches, steps)):
            found = step(batch)
            jax.block_until_ready(previous)  # one step in flight, as in training
            previous = found
        jax.block_until_ready(previous)
        return meter.waited()


def _time_starts(arguments: Sequence[str]) -> list[Timing]:
    """Time the command until the first training step ends, with and without a compilation cache."""
    cold, warm = [], []
    for number in range(1, _STARTS + 1):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            for found in (cold, warm):
                command = [sys.executable, "-m", "colddiff.main", *arguments]
                command += ["--mode=train", f"--workdir={folder}/{len(warm)}-{len(cold)}"]
                command += ["--config.train.num_steps=1", "--config.train.sample_every=0"]
                command += ["--config.train.scored=0", "--config.train.best="]
                found.append(_until_first_step(command, environment))
        told = "start %d of %d: %.3g s without a compilation cache, %.3g s with it"
        logging.info(told, number, _STARTS, cold[-1], warm[-1])
    return [
        Timing("start, nothing cached", _quartiles(cold)),
        Timing("start, cached", _quartiles(warm)),
    ]


def _until_first_step(command: Sequence[str], environment: dict[str, str]) -> float:
    begin, said = time.perf_counter(), []
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        seconds = None
        for line in process.stderr:
            said.append(line)
            if "train 1/1" in line and seconds is None:
                seconds = time.perf_counter() - begin
    if process.returncode or seconds is None:
        raise UserError(f"{' '.join(command)} failed:\n{''.join(said[-5:])}")
    return seconds


def markdown(found: Benchmark) -> str:
    """Return the table of timings and the other results, in Markdown."""
    cells = [["", "median", "quartiles", "images/s", "GFLOP", "of the peak", "memory", "compiling"]]
    for part in found.timings:
        low, median, high = part.seconds
        cells.append(
            [
                part.name,
                _seconds(median),
                f"{_seconds(low)} – {_seconds(high)}",
                f"{part.images / median:.4g}" if part.images else "–",
                f"{part.flops / 1e9:.4g}" if part.flops else "–",
                f"{part.flops / median / found.peak:.0%}" if part.flops else "–",
                f"{part.bytes / 2**20:.4g} MiB" if part.bytes else "–",
                f"{part.compile_seconds:.1f} s" if part.compile_seconds else "–",
            ]
        )
    settings = found.config
    options = ", ".join(f"{name}={value!r}" for name, value in found.compiler_options.items())
    lines = [
        f"{found.devices} × {found.device}, jax {found.jax}; {settings['model']['name']}, "
        f"{settings['model']['dtype']}, images of {size_text(settings['data']['image_size'])} × "
        f"{settings['data']['channels']}, batch {settings['train']['batch_size']} × "
        f"{settings['train']['accumulation']}; {_ROUNDS} rounds",
        "",
        *markdown_table(cells),
        "",
        f"Matrix products of {_SIDE}²: {found.peak / 1e9:.4g} GFLOP/s, the peak. "
        f"Training waits for data {found.waiting:.1%} of its time. "
        f"Of sampling, {found.outside:.1%} is not the network.",
        f"Compiler options of the network's programs: {options or 'none'}.",
    ]
    return "\n".join(lines)


def write(found: Benchmark, workdir: Path) -> Path:
    """Write benchmark.md and benchmark.json to `workdir`; return the path of benchmark.md."""
    timings = [t._asdict() for t in found.timings]
    write_json(workdir / "benchmark.json", found._asdict() | {"timings": timings})
    path = workdir / "benchmark.md"
    write_text(path, markdown(found) + "\n")
    return path


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
