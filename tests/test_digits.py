"""Every *_digits config, on smaller images, with a smaller network: training pays."""

import json
from pathlib import Path

import pytest
from conftest import CONFIGS, run_main

FLAGS = (
    "--config.data.image_size=16",
    "--config.model.width=16",
    "--config.model.multipliers=(1, 2)",
    "--config.train.num_steps=300",
    "--config.train.batch_size=16",
    "--config.train.sample_every=0",
    "--config.train.checkpoint_every=300",
    "--config.eval.num_images=100",
    "--config.eval.samplers=('direct', 'tacos')",
)
MORE = {"inpaint_digits": ("--config.degradation.center=(2, 13)",)}  # within the smaller image


@pytest.mark.slow
@pytest.mark.parametrize("name", [c for c in CONFIGS if c.endswith("_digits")])
def test_direct_restoration_beats_the_degraded_image(name, tmp_path):
    flags = (f"--config=configs/{name}.py", f"--workdir={tmp_path}", *FLAGS, *MORE.get(name, ()))
    done = run_main(*flags)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split("report and pictures: ")[1].strip())
    degraded, direct, tacos = json.loads((folder / "report.json").read_text())["rows"]
    assert direct["rmse"] < 0.9 * degraded["rmse"]
    assert tacos["rmse"] < degraded["rmse"]
    assert (folder / "samples.png").exists()
