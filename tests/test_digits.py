"""Training of the *_digits configs improves the scores, on smaller images with a smaller network.

generate_blur_digits also generates: broken symmetry makes different images (section 5.2).
"""

import json
from pathlib import Path

import pytest
from conftest import CONFIGS, run_main, run_program

FLAGS = (
    "--config.data.image_size=8",
    "--config.model.width=16",
    "--config.model.multipliers=(1,)",
    "--config.train.batch_size=16",
    "--config.train.sample_every=0",
    "--config.eval.num_images=40",
    "--config.eval.samplers=('tacos',)",
)
# Two convolutions, which compile in a second, are enough for most degradations.
SMALL = (
    "--config.model.name=small",
    "--config.train.num_steps=600",
    "--config.train.learning_rate=3e-3",
    "--config.train.checkpoint_every=600",
)
OWN_NETWORK = {
    # Its degraded images are close to x0, so it takes more training to improve on them.
    "color_digits": ("--config.train.num_steps=200", "--config.train.learning_rate=4e-3"),
    # The hole is within the smaller image.
    "inpaint_digits": ("--config.train.num_steps=100", "--config.degradation.center=(2, 5)"),
    "swirl_digits": ("--config.train.num_steps=100",),
}

# Left out: these train the degradation of another config with other images or another network.
ALIKE = {
    "blur_color_digits",
    "generate_blur_digits",  # trained below
    "generate_inpaint_digits",
    "generate_superres_digits",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [c for c in CONFIGS if c.endswith("_digits") and c not in ALIKE])
def test_restoration_beats_the_degraded_image(name, tmp_path):
    flags = (f"--config=configs/{name}.py", f"--workdir={tmp_path}", *FLAGS)
    flags += OWN_NETWORK.get(name, SMALL)
    done = run_main(*flags)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split("report and pictures: ")[1].strip())
    degraded, tacos = json.loads((folder / "report.json").read_text())["rows"]
    assert tacos["rmse"] < 0.85 * degraded["rmse"]
    assert (folder / "samples.png").exists()


# One process compiles once for all command lines.
RUN_ALL = """
import json, sys
from conftest import call_main
for line in json.loads(sys.argv[1]):
    done = call_main(*line)
    assert done.returncode == 0, done.stderr
"""


@pytest.mark.slow
def test_broken_symmetry_makes_different_images(tmp_path):
    """Check the paper's order of Fréchet distances, on smaller images with less training."""
    common = (
        "--config=configs/generate_blur_digits.py",
        f"--workdir={tmp_path}",
        "--config.data.image_size=16",
        "--config.train.num_steps=200",
        "--config.train.batch_size=32",
        "--config.train.sample_every=0",
        "--config.model.width=16",
        "--config.model.multipliers=(1, 2)",
    )
    rows = {
        "perfect": ("--config.prior.noise_std=0.0",),
        "broken": (),
        "naive": ("--config.sampler.name=naive",),
        "direct": ("--config.sampler.name=direct",),
    }
    commands = [("--mode=train",)]
    commands += [
        ("--mode=generate", "--seeds=0-63", f"--output={tmp_path / title}", *flags)
        for title, flags in rows.items()
    ]
    commands.append(("--mode=compare", *(f"--folder={t}={tmp_path / t}" for t in rows)))
    lines = json.dumps([[*common, *flags] for flags in commands])
    done = run_program("-c", RUN_ALL, lines, variables={"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "comparison.json").read_text())
    found = {row["title"]: row for row in report["rows"]}
    assert found["broken"]["pairwise"] > 2 * found["perfect"]["pairwise"]
    for other in ("perfect", "naive", "direct"):
        assert found["broken"]["gaps"][0]["test"] < found[other]["gaps"][0]["test"], other
