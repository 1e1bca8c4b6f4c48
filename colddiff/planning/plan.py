"""Compile a config's programs for a topology, and say what they need: `--mode=plan`.

No program runs and no image is read, except where a degradation needs a bank of images. The times
are those at the chip's peaks, not predictions.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from colddiff.experiment.build import Experiment, build
from colddiff.experiment.state import TrainState, init_state, state_shardings
from colddiff.images import height_width, size_text
from colddiff.inference.run import Run, run_sampler
from colddiff.planning.chips import Chip, Topology, find_topology
from colddiff.planning.program import Traffic, count_flops, read_traffic
from colddiff.runtime.compiler import program_bytes
from colddiff.runtime.devices import create_mesh, fsdp_shardings, replicated, split_axis
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import as_json, markdown_table, write_json, write_text
from colddiff.sampling.samplers import image_keys
from colddiff.training.step import make_train_step

_USABLE = 0.9  # share of a device's memory that programs can have


class Program(NamedTuple):
    """What one compiled program needs.

    Attributes:
      name: 'train step' or 'sampler'.
      images: images of one call, on all devices.
      compile_seconds: time to compile it here.
      flops: FLOPs of convolutions and matrix products of one call, on all devices.
      memory: bytes on each device, arguments included; 0 if unknown.
      traffic: what it moves on each device, without the bodies of loops.
      flops_seconds: least time of one call, its FLOPs at the peak; None if the peak is unknown.
      bytes_seconds: its bytes at the memory's bandwidth; less where kernels find data in a cache;
        None without figures, and for the sampler, which is a loop.
    """

    name: str
    images: int
    compile_seconds: float
    flops: int
    memory: int
    traffic: Traffic
    flops_seconds: float | None
    bytes_seconds: float | None


class Plan(NamedTuple):
    """The programs of a config on a topology.

    Attributes:
      state: bytes on each device of the parameters, their averages and the optimiser's moments.
      parameters: number of parameters.
    """

    topology: str
    chip: Chip | None
    devices: int
    config: dict[str, Any]
    parameters: int
    state: dict[str, int]
    programs: list[Program]


def plan(config: ConfigDict, topology: str, batches: Sequence[int] = ()) -> Plan:
    """Compile the train step and the sampler of a config for a topology.

    Args:
      config: the config.
      topology: as for `chips.find_topology`.
      batches: values of `train.batch_size` to compile the train step for; the config's if empty.

    Raises:
      UserError: the config cannot work, a batch cannot be split over the devices, or there is no
        such topology or no package to compile for it.
    """
    found = find_topology(topology)
    mesh = create_mesh(config.mesh.fsdp, found.devices)
    batches = batches or (config.train.batch_size,)
    if wrong := [size for size in batches if size < 1 or size % mesh.size]:
        raise UserError(f"batches {wrong} cannot be split evenly over {mesh.size} devices")
    experiment = _elsewhere(build(config), mesh)
    state = _on(jax.eval_shape(lambda: init_state(experiment, create_mesh())), experiment, mesh)
    programs = [_train_step(experiment, mesh, state, size, found) for size in batches]
    programs.append(_sampler(experiment, mesh, state, found))
    parts = {
        "parameters": state.params,
        "averages": (state.ema_params, state.more_ema),
        "moments": state.opt_state,
    }
    return Plan(
        topology,
        found.chip,
        mesh.size,
        config.to_dict(),
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        {name: _bytes_on_a_device(part) for name, part in parts.items()},
        programs,
    )


def _elsewhere(experiment: Experiment, mesh: Mesh) -> Experiment:
    """Return the experiment with shapes in place of the degradation's tables, for `lower`."""
    tables = jax.tree.map(lambda x: _shape(x, replicated(mesh)), experiment.degrade)
    return experiment._replace(degrade=tables)


def _on(state: TrainState, experiment: Experiment, mesh: Mesh) -> TrainState:
    """Return the state's shapes, with their shardings on the mesh."""
    return jax.tree.map(_shape, state, state_shardings(experiment, mesh))


def _shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _bytes_on_a_device(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    return sum(math.prod(s) * leaf.dtype.itemsize for s, leaf in zip(shapes, leaves, strict=True))


def _train_step(
    experiment: Experiment, mesh: Mesh, state: TrainState, batch_size: int, found: Topology
) -> Program:
    data, accumulation = experiment.config.data, experiment.config.train.accumulation
    height, width = (side + data.crop_margin for side in height_width(data.image_size))
    shape = (accumulation, batch_size, height, width, data.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split_axis(mesh, 1))
    step = make_train_step(experiment, mesh)
    arguments = (state, images, experiment.degrade)
    return _compiled("train step", accumulation * batch_size, step, arguments, experiment, found)


def _sampler(experiment: Experiment, mesh: Mesh, state: TrainState, found: Topology) -> Program:
    count = -(-experiment.config.eval.batch_size // mesh.size) * mesh.size
    split = split_axis(mesh, 0)
    shape = (count, *experiment.image_shape)
    xT = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    keys = _shape(jax.eval_shape(lambda: image_keys(jax.random.key(0), 0, count)), split)
    times = jax.ShapeDtypeStruct((experiment.steps + 1,), jnp.int32, sharding=replicated(mesh))
    params = jax.tree.map(_shape, state.params, fsdp_shardings(state.params, mesh))
    restoration = Run(experiment, params).restoration(params)
    arguments = (restoration, xT, keys, times)
    return _compiled("sampler", count, run_sampler, arguments, experiment, found)


def _compiled(
    name: str,
    images: int,
    function: Callable,
    arguments: tuple[Any, ...],
    experiment: Experiment,
    found: Topology,
) -> Program:
    """Compile a program for its arguments' shapes and read what it does."""
    logging.info("compiling the %s of %d images for %s ...", name, images, found.text)
    began = time.monotonic()
    compiled = function.lower(*arguments).compile()
    seconds = time.monotonic() - began
    logging.info("compiled it in %.1f s", seconds)
    flops = count_flops(jax.make_jaxpr(function)(*arguments))
    traffic, times = read_traffic(compiled.as_text()), (None, None)
    if found.chip is not None:
        peak = getattr(found.chip, experiment.config.model.dtype) * len(found.devices)
        moving = traffic.bytes / found.chip.bandwidth if name == "train step" else None
        times = flops / peak, moving
    return Program(name, images, seconds, flops, program_bytes(compiled), traffic, *times)


def markdown(found: Plan) -> str:
    """Return the plan as Markdown: the state, and a table of the programs."""
    config, chip = found.config, found.chip
    steps = config["train"]["num_steps"]
    header = ["", "images", "memory a device", "fits", "TFLOP", "GB moved", "kernels"]
    header += ["collectives", "FLOPs at the peak", "bytes at the bandwidth", "images/s"]
    header += [f"hours to {steps:,} steps"]
    cells = [header]
    for program in found.programs:
        room = chip and _USABLE * chip.memory
        trains = program.name == "train step"
        longer = max((program.flops_seconds or 0, program.bytes_seconds or 0))
        moved = ", ".join(
            f"{count} {kind} of {size / 2**20:,.0f} MiB"
            for kind, (count, size) in program.traffic.collectives.items()
        )
        cells.append(
            [
                program.name,
                str(program.images),
                f"{program.memory / 2**20:,.0f} MiB" if program.memory else "–",
                ("yes" if program.memory <= room else "no") if room and program.memory else "–",
                f"{program.flops / 1e12:.4g}",
                f"{program.traffic.bytes / 1e9:.3g}" if trains else "–",
                str(program.traffic.kernels) if trains else "–",
                moved or "–",
                _milliseconds(program.flops_seconds),
                _milliseconds(program.bytes_seconds),
                f"{program.images / longer:,.0f}" if longer else "–",
                f"{steps * longer / 3600:.3g}" if longer and trains else "–",
            ]
        )
    model, data = config["model"], config["data"]
    state = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in found.state.items())
    peaks = "No figures of these devices are known, so there are no times."
    if chip is not None:
        peaks = (
            f"Peaks of a device ({chip.source}): {getattr(chip, model['dtype']) / 1e12:,.0f} "
            f"TFLOP/s in {model['dtype']}, {chip.bandwidth / 1e9:,.0f} GB/s, "
            f"{chip.memory / 2**30:,.0f} GiB."
        )
    return "\n".join(
        [
            f"{found.topology}: {found.devices} × {chip.name if chip else 'here'}, jax "
            f"{jax.__version__}; {model['name']} of {found.parameters:,} parameters, "
            f"{model['dtype']}, images of {size_text(data['image_size'])} × {data['channels']}, "
            f"fsdp {config['mesh']['fsdp']}. On each device: {state}.",
            "",
            *markdown_table(cells),
            "",
            f"{peaks} FLOPs at the peak are a lower bound of the time. Bytes at the bandwidth are "
            "an estimate: caches make it shorter. images/s and hours are of the longer of both. "
            "Nothing has run.",
        ]
    )


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g} ms"


def write(found: Plan, workdir: Path) -> Path:
    """Write plan-TOPOLOGY.md and .json to `workdir`; return the path of the first."""
    path = workdir / f"plan-{found.topology.replace(':', '-')}.md"
    write_json(path.with_suffix(".json"), as_json(found))
    write_text(path, markdown(found) + "\n")
    return path
