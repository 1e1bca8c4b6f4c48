"""Preparation of a training without the training: `--dry_run`."""

import math
import time
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from colddiff.evaluation.evaluate import load_test_images
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.runtime.compiler import program_bytes
from colddiff.runtime.devices import create_mesh
from colddiff.training.examples import load_train_images, train_batches
from colddiff.training.step import make_train_step


def dry_run(config: ConfigDict) -> str:
    """Build everything that a training needs; return a text on its size. It writes no file.

    The train step is compiled and the first batch is read, but no step is taken and no state is
    allocated.

    Raises:
      UserError: the config cannot work, or the data cannot be read.
    """
    experiment, mesh = build(config), create_mesh(config.mesh.fsdp)
    images = load_train_images(config)
    batch = next(train_batches(config, mesh, images, start=0, stop=1))
    pictured = load_test_images(config, config.eval.pictures)
    state = jax.eval_shape(lambda: init_state(experiment, mesh))
    logging.info("compiling the train step")
    begin = time.perf_counter()
    program = make_train_step(experiment, mesh).lower(state, batch, experiment.degrade).compile()
    seconds = time.perf_counter() - begin
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    needed = program_bytes(program)
    memory = f"{needed / 2**20:,.0f} MiB on each device" if needed else "unknown"
    return (
        f"devices: {mesh.size} × {jax.devices()[0].device_kind}\n"
        f"data: {len(images)} training images of {config.data.source}; read the batch "
        f"{' × '.join(map(str, batch.shape))} and {len(pictured)} test images\n"
        f"degradation: {Path(config.degradation.name).name}, T = {experiment.T}\n"
        f"parameters: {parameters:,} ({config.model.name})\n"
        f"train step: compiled in {seconds:.1f} s; memory {memory}\n"
    )
