"""A run as files for others: `--mode=export --output=FOLDER`.

    FOLDER/model.safetensors   the EMA parameters, with the config and the step in the metadata
    FOLDER/sampler.jax         the whole sampler as one program (colddiff/exchange/program.py)
    FOLDER/README.md           the model card (colddiff/exchange/card.py), with samples.png
    FOLDER/config.json         the config
    FOLDER/...                 what else the run has: the prior, the severity head, own source

`colddiff.load(FOLDER)` gives the run back, and the modes that need no training take FOLDER as
--workdir.
"""

import shutil
from pathlib import Path

import jax.numpy as jnp
from absl import logging

from colddiff.exchange import card, program
from colddiff.experiment.saved_config import config_json
from colddiff.experiment.weights import FILE, write_safetensors
from colddiff.inference.run import Run
from colddiff.inference.severity import FILE as SEVERITY
from colddiff.runtime.devices import is_first_host, to_host
from colddiff.runtime.errors import UserError, unknown_name
from colddiff.runtime.files import atomic_write, check_empty, write_json, write_text

DTYPES = ("float32", "float16", "bfloat16")
# Files and folders copied from the workdir if they exist. The prior is looked up by data.json.
_COPIED = (SEVERITY, "prior", "spacing", "data.json", "source", "source.json")


def export(run: Run, folder: Path, *, dtype: str = "float32", with_program: bool = True) -> None:
    """Write a run to a new or empty folder.

    Args:
      run: a trained run.
      folder: the output folder.
      dtype: type of the numbers in model.safetensors, one of `DTYPES`.
      with_program: whether to write sampler.jax.

    Raises:
      UserError: the folder holds files, the sampler cannot be exported, or `dtype` cannot hold the
        parameters. Nothing is written then.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    check_empty(folder, "--output")
    workdir = run.workdir
    if workdir is not None and any(folder.is_relative_to(workdir / name) for name in _COPIED):
        raise UserError(f"{folder} lies in a folder that is exported; give another --output")
    params = to_host(run.params)
    run.times()  # measures uneven times, on all hosts
    sampler = None
    if with_program:
        logging.info("exporting the sampler for %s ...", ", ".join(program.PLATFORMS))
        sampler = program.export_sampler(run).serialize()
    if not is_first_host():
        return
    write_safetensors(folder / FILE, params, run.config, run.step, jnp.dtype(dtype))
    if sampler is not None:
        with atomic_write(folder / program.FILE) as file:
            file.write(sampler)
    write_json(folder / "config.json", config_json(run.config))
    for name in _COPIED if workdir is not None else ():
        path = workdir / name
        if path.is_dir():
            shutil.copytree(path, folder / name)
        elif path.exists():
            shutil.copyfile(path, folder / name)
    evaluation = card.evaluation_of(run)
    if evaluation is not None and (evaluation / "samples.png").exists():
        shutil.copyfile(evaluation / "samples.png", folder / "samples.png")
    write_text(folder / "README.md", card.render(run, folder.name, evaluation))
