"""How well a restorer inverts its degradation on the test split: scores, report, picture.

Rows: Degraded (xT itself), then each sampler's x0 against the truth. Every image is degraded with
a pattern of its own number, so no score depends on the batch size or the devices.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from colddiff import data, metrics
from colddiff.build import Experiment, make_sampler
from colddiff.devices import create_mesh, replicate, to_mesh
from colddiff.images import from_uint8, grid, save_png, to_unit
from colddiff.inference import run_sampler
from colddiff.progress import Meter
from colddiff.samplers import direct, image_keys, marks_of, times_between

_TITLES = {
    "degraded": "Degraded (xT)",
    "direct": "Direct",
    "naive": "Naive (Algorithm 1)",
    "tacos": "Sampled (tacos, Algorithm 2)",
    "ddim": "Estimated noise (DDIM)",
    "ddpm": "Estimated noise (DDPM)",
}


class Row(NamedTuple):
    """The scores of one way to restore; `steps` is its number of restorer calls."""

    name: str
    steps: int
    rmse: float
    psnr: float
    ssim: float


class Report(NamedTuple):
    """The scores of a run, with all that they depend on."""

    source: str
    split: str
    num_images: int
    T: int
    weights: str
    step: int
    rows: list[Row]


def load_test_images(config: ConfigDict, limit: int) -> np.ndarray:
    """The first `limit` images of the test split (0: all), uint8 `[N, H, W, C]`."""
    settings = config.data
    return data.load(
        settings.source,
        settings.test_split,
        size=settings.image_size,
        channels=settings.channels,
        limit=limit,
    )


def evaluate(experiment: Experiment, params: Any, step: int) -> Report:
    """Scores `config.eval.samplers` on the test split.

    Args:
      params: of the restorer; not used if there are no samplers.
      step: the training step they are of.
    """
    config = experiment.config
    experiment = experiment._replace(degrade=replicate(experiment.degrade, create_mesh()))
    images = load_test_images(config, config.eval.num_images)
    T_only = np.array([experiment.T])
    rows = [_score(experiment, params, images, "degraded", T_only)]
    for name in config.eval.samplers:
        times = times_between(experiment.T, 1 if name == "direct" else experiment.steps)
        rows.append(_score(experiment, params, images, name, times))
    source, split = config.data.source, config.data.test_split
    weights = "EMA" if config.eval.samplers else "none"
    return Report(source, split, len(images), experiment.T, weights, step, rows)


def _score(
    experiment: Experiment, params: Any, images: np.ndarray, name: str, times: np.ndarray
) -> Row:
    """One row: the images degraded to T, restored along `times`, compared with themselves."""
    config, mesh = experiment.config, create_mesh()
    # Every device takes as many images as the next; none of it shows in the scores.
    batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size
    sampler = Partial(_keep_degraded) if name == "degraded" else make_sampler(config, name)
    mse, ssim = [], []
    firsts = range(0, len(images), batch_size)
    with Meter(_TITLES[name], total=len(firsts), images_per_step=batch_size) as meter:
        for first in firsts:
            batch = images[first : first + batch_size]
            count = len(batch)
            # The last batch is filled up, so that one program serves all.
            batch = np.pad(batch, ((0, batch_size - count), *[(0, 0)] * 3))
            scores = _score_batch(
                sampler,
                experiment.restore,
                experiment.network_input,
                experiment.degrade,
                params,
                to_mesh(batch, mesh, 0),
                jax.random.key(config.seed),
                first,
                times,
            )
            for scored, values in zip((mse, ssim), jax.device_get(scores), strict=True):
                scored.extend(values[:count].tolist())
            meter.advance()
        meter.note()
    mean = math.fsum(mse) / len(mse)
    mean_ssim = math.fsum(ssim) / len(ssim)
    return Row(name, len(times) - 1, metrics.rmse(mean), metrics.psnr(mean), mean_ssim)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _score_batch(sampler, restore, network_input, degrade, params, images, key, first, times):
    """Mean squared error and SSIM of each image, `[B]` both."""
    x0 = from_uint8(images)
    keys = image_keys(key, first, len(images))
    xT = network_input(jax.vmap(degrade, (0, None, 0))(x0, times[0], keys))
    x0_hat = sampler(restore, degrade, params, xT, keys, times)
    truth, found = to_unit(x0), to_unit(x0_hat)
    small = min(images.shape[1:3]) < metrics.SSIM_WINDOW
    ssim = jnp.full(len(images), jnp.nan) if small else metrics.ssim(truth, found)
    return metrics.mean_squared_error(truth, found), ssim


def _keep_degraded(restore, degrade, params, xT, keys, times):
    """The sampler of the Degraded row: xT itself."""
    return xT


def picture(experiment: Experiment, params: Any, images: np.ndarray) -> np.ndarray:
    """x0, xT, direct and iterates of the config's sampler for uint8 `images`; uint8 `[., ., 3]`."""
    sampler = make_sampler(experiment.config)
    times = times_between(experiment.T, experiment.steps)
    marks = marks_of(sampler, times, 6)
    x0, keys = _images_and_keys(experiment, images)
    xT = jax.vmap(experiment.degrade, (0, None, 0))(x0, experiment.T, keys)
    xT = experiment.network_input(xT)
    common = (experiment.restore, experiment.degrade, params, xT, keys, times)
    restored = run_sampler(Partial(direct), *common)
    _, iterates = run_sampler(sampler, *common, marks)
    columns = [x0, xT, restored, *iterates[1:]]
    name = experiment.config.sampler.name
    titles = ["x0", f"xT, T={experiment.T}", "direct", *(f"{name} t={t}" for t in marks[1:])]
    return grid([np.asarray(c) for c in columns], titles)


def gallery(experiment: Experiment, images: np.ndarray) -> np.ndarray:
    """D(x0, t) at t = 0, T/4, T/2, 3T/4 and T for uint8 `images`; uint8 `[., ., 3]`."""
    x0, keys = _images_and_keys(experiment, images)
    times = np.unique(np.round(np.linspace(0, experiment.T, 5)).astype(int))
    columns = degrade_at(experiment.degrade, x0, jnp.asarray(times), keys)
    titles = [f"t = {t}" for t in times[:-1]] + [f"t = T = {experiment.T}"]
    return grid(list(np.asarray(columns)), titles)


@jax.jit
def degrade_at(degrade, x0, times, keys):
    """D(x0, t) of a batch at each of `times`; `[times, B, H, W, C]`."""
    return jax.lax.map(lambda t: jax.vmap(degrade, (0, None, 0))(x0, t, keys), times)


def _images_and_keys(experiment: Experiment, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """x0 and the keys of their patterns, the same in every picture and score."""
    keys = image_keys(jax.random.key(experiment.config.seed), 0, len(images))
    return from_uint8(jnp.asarray(images)), keys


def markdown(report: Report) -> str:
    """The report as a Markdown table under a line that says what it is of."""
    head = (
        f"{report.source}, split {report.split}, n = {report.num_images}, T = {report.T}, "
        f"weights {report.weights} of step {report.step}"
    )
    lines = [head, "", "| | steps | RMSE | PSNR (dB) | SSIM |", "|---|---|---|---|---|"]
    for row in report.rows:
        ssim = "–" if math.isnan(row.ssim) else f"{row.ssim:.4f}"  # images below its window
        scores = f"{row.rmse:.4f} | {row.psnr:.2f} | {ssim}"
        lines.append(f"| {_TITLES[row.name]} | {row.steps} | {scores} |")
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """The report as JSON; a score that does not exist is null."""
    rows = [
        {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        for row in (r._asdict() for r in report.rows)
    ]
    return json.dumps(report._asdict() | {"rows": rows}, indent=2) + "\n"


def write(report: Report, experiment: Experiment, params: Any, workdir: Path) -> Path:
    """Writes `report.json`, `report.md` and `samples.png` (if anything was restored).

    Returns:
      Their folder, `workdir/evaluation/STEP`.
    """
    folder = workdir / "evaluation" / f"{report.step:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(as_json(report))
    (folder / "report.md").write_text(markdown(report))
    if experiment.config.eval.samplers:
        images = load_test_images(experiment.config, experiment.config.eval.pictures)
        save_png(folder / "samples.png", picture(experiment, params, images))
    return folder
