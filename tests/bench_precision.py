"""Compare float32 and bfloat16: the same training in both, in turns.

    python -m tests.bench_precision PICTURE.png [--config.FIELD=VALUE ...]

`configs/blur_digits.py` with its own seed and data; parameters, loss and degradation are float32 in
both. It draws both loss curves and prints a table of times and scores, in minutes. This is not a
test: nothing is asserted.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, logging
from ml_collections import ConfigDict, config_flags

from colddiff.evaluation.evaluate import evaluate
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.reporting.plots import curves
from colddiff.runtime.devices import create_mesh, replicate
from colddiff.runtime.files import markdown_table, save_png
from colddiff.training.examples import load_train_images, train_batches
from colddiff.training.step import make_train_step

DTYPES = ("float32", "bfloat16")
SMOOTHED = 20  # number of steps that one point of a curve averages
_CONFIG = config_flags.DEFINE_config_file("config", "configs/blur_digits.py", "Config file.")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("give the picture to write: PICTURE.png")
    config = _CONFIG.value
    mesh, images = create_mesh(), load_train_images(config)
    steps, experiments, states, compiled = config.train.num_steps, {}, {}, {}
    for dtype in DTYPES:
        varied = ConfigDict(config.to_dict())
        varied.model.dtype = dtype
        experiment = build(varied)
        experiment = experiment._replace(degrade=replicate(experiment.degrade, mesh))
        experiments[dtype], states[dtype] = experiment, init_state(experiment, mesh)
        compiled[dtype] = make_train_step(experiment, mesh)
    losses, seconds = ({dtype: [] for dtype in DTYPES} for _ in range(2))
    for step, batch in enumerate(train_batches(config, mesh, images, start=0, stop=steps), 1):
        for dtype in DTYPES:
            begin = time.perf_counter()
            state, metrics = compiled[dtype](states[dtype], batch, experiments[dtype].degrade)
            states[dtype] = state
            losses[dtype].append(float(metrics["loss"]))
            seconds[dtype].append(time.perf_counter() - begin)
        if step % SMOOTHED == 0:
            recent = {dtype: np.mean(losses[dtype][-SMOOTHED:]).round(4) for dtype in DTYPES}
            logging.info("step %d of %d: %s", step, steps, recent)

    points = {
        dtype: [
            (last, float(np.mean(found[last - SMOOTHED : last])))
            for last in range(SMOOTHED, steps + 1, SMOOTHED)
        ]
        for dtype, found in losses.items()
    }
    title = f"{config.data.source}, {config.model.name}: mean loss of {SMOOTHED} steps"
    save_png(Path(argv[1]), curves(points, title=title, x_label="step", y_label="l1 loss"))

    cells = [["", "step, ms (quartiles)", "loss, last fifth", "RMSE degraded", "direct", "tacos"]]
    for dtype in DTYPES:
        low, median, high = np.quantile(1e3 * np.array(seconds[dtype][1:]), (0.25, 0.5, 0.75))
        loss = np.mean(losses[dtype][-steps // 5 :])
        report = evaluate(experiments[dtype], states[dtype].ema_params, steps, counts=())
        rmse = {row.name: f"{row.rmse:.4f}" for row in report.rows}
        scores = [rmse[name] for name in ("degraded", "direct", "tacos")]
        time_ = f"{median:.3g} ({low:.3g} – {high:.3g})"
        cells.append([dtype, time_, f"{loss:.4f}", *scores])
    device = jax.devices()[0]
    sys.stdout.write(f"\n{jax.device_count()} × {device.platform} {device.device_kind}\n\n")
    sys.stdout.write("\n".join(markdown_table(cells)) + "\n")


if __name__ == "__main__":
    app.run(main)
