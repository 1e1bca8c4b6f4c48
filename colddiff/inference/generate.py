"""Generate images, one PNG file for each seed (paper, section 5): `--mode=generate`.

    FOLDER/000042.png    the image of seed 42, the same for any batch size and devices
    FOLDER/grid.png      the first images, side by side
    FOLDER/process.gif   the iterates of the first images, from t = T to 0
    FOLDER/settings.json everything the images depend on, besides their seeds

Seeds whose file exists are skipped. If a command is interrupted, rerun it to generate the missing
seeds. `colddiff.evaluation.compare` scores the images.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from colddiff.experiment.build import full_name, make_sampler
from colddiff.experiment.saved_config import config_json
from colddiff.images import mosaic, to_uint8
from colddiff.inference.outputs import claim, digest, run_settings, sampler_settings
from colddiff.inference.run import LARGEST_SEED, Run
from colddiff.runtime.devices import create_mesh, from_first_host, is_first_host, to_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import save_gif, save_png
from colddiff.runtime.progress import Meter
from colddiff.sampling.samplers import marks_of

_IN_GRID, _IN_GIF, _FRAMES = 64, 16, 50
_MOST_SEEDS = 10_000_000  # per command


def parse_seeds(text: str) -> list[int]:
    """Return the seeds listed in a text like '3,7,20-29', in order; ranges include both ends.

    Raises:
      UserError: the text is not such a list, repeats a seed, or has too many or too large seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise UserError(f"--seeds={text!r} must be like 0-9999 or 3,7,20-29; got {part!r}")
        if int(last) > LARGEST_SEED:
            raise UserError(f"--seeds={text!r}: {last} is above the largest seed, {LARGEST_SEED}")
        more = range(int(first), int(last) + 1)
        if len(seeds) + len(more) > _MOST_SEEDS:
            raise UserError(f"--seeds={text!r} names more than {_MOST_SEEDS} seeds; take fewer")
        seeds.extend(more)
    _check_unique(seeds)
    return seeds


def folder_of(run: Run) -> Path:
    """Return the default folder of a run's images; each set of settings has its own folder."""
    digest = hashlib.sha256(json.dumps(_settings(run), sort_keys=True).encode()).hexdigest()
    sampler = full_name(run.config, run.config.sampler.name).replace("+", "-")
    name = f"{run.step:07d}-{sampler}-{run.experiment.steps}-{digest[:6]}"
    return run.workdir / "generated" / name


def generate(run: Run, seeds: Sequence[int], folder: Path) -> None:
    """Write the missing images of `seeds` to `folder`, then the grid and the GIF.

    Raises:
      UserError: the folder holds images made with other settings, the run has no prior, a seed is
        repeated, an image is not finite, or the images have neither 1 nor 3 channels.
    """
    _check_unique(seeds)
    if run.config.data.channels not in (1, 3):
        raise UserError(
            f"config.data.channels={run.config.data.channels}, but PNG files hold 1 or 3 channels. "
            "Generate in Python: x0 = run.generate(run.params, seeds), and save it with np.save"
        )
    claim(folder, _settings(run), "*.png")
    at_once = run.config.eval.chunk * create_mesh().size
    there = from_first_host(np.array([_path(folder, seed).exists() for seed in seeds]))
    missing = [seed for seed, done in zip(seeds, there, strict=True) if not done]
    batch_size = -(-run.config.eval.batch_size // at_once) * at_once
    batch_size = min(batch_size, max(1, len(missing)))
    if len(missing) < len(seeds):
        logging.info("%d of %d images are there already", len(seeds) - len(missing), len(seeds))
    firsts = range(0, len(missing), batch_size)
    with (
        Meter("generate", total=len(firsts), images_per_step=batch_size) as meter,
        ThreadPoolExecutor() as pool,
    ):
        for first in firsts:
            batch = missing[first : first + batch_size]
            x0 = to_host(run.generate(run.params, batch))
            bad = [s for s, image in zip(batch, x0, strict=True) if not np.isfinite(image).all()]
            if bad:
                raise UserError(
                    f"the images of seeds {bad} are not finite, so their batch was not written; "
                    "try another checkpoint or sampler"
                )
            if is_first_host():
                paths = [_path(folder, seed) for seed in batch]
                list(pool.map(save_png, paths, to_uint8(x0)))
            meter.advance()
            meter.note()
    _pictures(run, seeds, folder)


def _path(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def _check_unique(seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed, count in Counter(seeds).items() if count > 1)
        raise UserError(f"seed {twice} is given more than once; give each seed once")


def _pictures(run: Run, seeds: Sequence[int], folder: Path) -> None:
    """Write `grid.png` and `process.gif` of the first seeds."""
    times = run.times()
    marks = marks_of(make_sampler(run.config), times, _FRAMES)
    iterates = to_host(run.generate(run.params, seeds[:_IN_GIF], iterates_at=marks)[1])
    if not is_first_host():
        return
    images = [np.asarray(Image.open(_path(folder, seed))) for seed in seeds[:_IN_GRID]]
    shape = run.experiment.image_shape
    save_png(folder / "grid.png", mosaic(np.stack(images).reshape(-1, *shape)))
    frames = [mosaic(x, caption=f"t = {t}") for x, t in zip(iterates, marks, strict=True)]
    save_gif(folder / "process.gif", frames)


def _settings(run: Run) -> dict[str, Any]:
    """Return everything an image depends on besides its seed; JSON types."""
    config = config_json(run.config)
    # Arrays that the config does not fix, such as a fitted mixture or a bank's images.
    tables = {"prior": digest(run.prior), "degradation": digest(run.degrade)}
    return run_settings(run) | {
        "prior": config["prior"],
        "sampler": sampler_settings(run),
        "steps": run.experiment.steps,
        "tables": tables,
    }
