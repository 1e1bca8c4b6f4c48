"""Exports: the folder loads back, its program runs with JAX alone, and its card is true."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import call_main, tiny_config
from ml_collections import ConfigDict

import colddiff
from colddiff.exchange.exporting import export
from colddiff.exchange.program import export_sampler
from colddiff.experiment.build import build, init_params
from colddiff.experiment.weights import read_metadata
from colddiff.inference.run import Run
from colddiff.runtime.errors import UserError
from colddiff.training.loop import train


@pytest.fixture(scope="module")
def exported(generator, tmp_path_factory):
    """Return the folder of an export by the command line, of a run with a prior and scores."""
    workdir = shutil.copytree(generator, tmp_path_factory.mktemp("run") / "run")
    done = call_main("--mode=evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    folder = workdir.parent / "my-model"
    done = call_main("--mode=export", f"--workdir={workdir}", f"--output={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_an_export_is_the_run(exported, generator):
    """Compare the parameters bit for bit, and generated images, which need the prior."""
    run, again = colddiff.load(generator), colddiff.load(exported)
    assert again.step == run.step and again.config.to_json() == run.config.to_json()
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    images = [r.generate(r.params, [3, 5]) for r in (run, again)]
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_modes_take_an_export_as_their_workdir(exported, tmp_path):
    flags = (
        "--mode=generate",
        "--seeds=0-1",
        f"--workdir={exported}",
        f"--output={tmp_path / 'i'}",
    )
    done = call_main(*flags)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "i").glob("0*.png"))) == 2
    done = call_main(*flags, "--step=3")
    assert done.returncode == 2 and "is an export of step 8 alone" in done.stderr
    config = exported / "config.json"
    done = call_main("--mode=train", f"--config={config}", f"--workdir={exported}")
    assert done.returncode == 2 and "cannot be trained; make a workdir of it" in done.stderr


# It refuses every package but JAX's own, as if nothing else were installed.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("colddiff", "flax", "optax", "orbax", "ml_collections"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import jax, numpy as np
sampler = jax.export.deserialize(open(sys.argv[1], "rb").read())
with np.load(sys.argv[2]) as file:
    found = {name: sampler.call(xT, np.uint32(7)) for name, xT in file.items()}
np.savez(sys.argv[3], **found)
"""


@pytest.mark.slow
def test_the_program_runs_with_jax_alone(exported, generator, tmp_path):
    """Compare with `run.sample`, for several numbers of images."""
    run, rng = colddiff.load(generator), np.random.default_rng(0)
    xT = {str(n): rng.uniform(-1, 1, (n, 16, 16, 1)).astype(np.float32) for n in (1, 3, 17)}
    np.savez(tmp_path / "xT.npz", **xT)
    files = (exported / "sampler.jax", tmp_path / "xT.npz", tmp_path / "x0.npz")
    subprocess.run([sys.executable, "-c", ALONE, *map(str, files)], check=True, cwd=tmp_path)
    with np.load(tmp_path / "x0.npz") as found:
        for name, images in xT.items():
            expected = run.sample(run.params, images, jax.random.key(7))
            np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.slow
def test_a_program_with_consistency():
    """Check the other network, whose loops on the CPU run over the images."""
    config = tiny_config()
    with config.unlocked():
        model = dict(width=8, multipliers=(1, 2), time_embedding=True, residual=False)
        config.model = ConfigDict(dict(name="convnext_unet", dtype="float32", **model))
        config.sampler.consistency = 4
        config.sampler.steps = 2
    experiment = build(config)
    run = Run(experiment, init_params(experiment, jax.random.key(0)))
    xT = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    found = export_sampler(run, ["cpu"]).call(xT, np.uint32(1))
    np.testing.assert_allclose(found, run.sample(run.params, xT), atol=1e-5)


@pytest.mark.parametrize(
    ("degradation", "sampler"),
    [
        (dict(name="gaussian_noise", num_steps=6, schedule="cosine"), "ddpm"),
        (dict(name="snow", num_steps=6, threshold=(1.15, 0.7), motion_std=(0.05, 16.0)), "naive"),
    ],
)
def test_random_programs_draw_from_the_seed(degradation, sampler):
    config = tiny_config()
    with config.unlocked():
        config.degradation = ConfigDict(degradation)
        config.sampler.name = sampler
    experiment = build(config)
    run = Run(experiment, init_params(experiment, jax.random.key(0)))
    program, xT = export_sampler(run), np.zeros((3, 16, 16, 1), np.float32)
    found = [program.call(xT, np.uint32(seed)) for seed in (1, 2)]
    expected = run.sample(run.params, xT, jax.random.key(1))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.slow
def test_the_card_tells_what_was_measured(exported, generator):
    text = (exported / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "colddiff" and "jax" in metadata["tags"]
    [model] = metadata["model-index"]
    report = json.loads(
        next((exported.parent / "run" / "evaluation").glob("*/report.json")).read_text()
    )
    assert model["name"] == "my-model"
    for row, result in zip(report["rows"], model["results"], strict=True):
        values = {metric["type"]: metric["value"] for metric in result["metrics"]}
        assert values == {name: row[name] for name in ("rmse", "psnr", "ssim")}
    assert f"{report['rows'][0]['rmse']:.4f}" in body
    assert (exported / "samples.png").exists() and "![" in body


def test_half_precision_rounds(generator, tmp_path):
    run = colddiff.load(generator)
    export(run, tmp_path / "half", dtype="float16", with_program=False)
    assert not (tmp_path / "half" / "sampler.jax").exists()
    again = colddiff.load(tmp_path / "half").params
    halved = jax.tree.map(lambda a: a.astype(jnp.float16).astype(jnp.float32), run.params)
    jax.tree.map(np.testing.assert_array_equal, again, halved)


def test_numbers_that_do_not_fit_are_refused(generator, tmp_path):
    run = colddiff.load(generator)
    large = dataclasses.replace(run, params=jax.tree.map(lambda a: a + 1e6, run.params))
    with pytest.raises(UserError, match=r"values up to 1e\+06, which float16 cannot hold"):
        export(large, tmp_path / "out", dtype="float16", with_program=False)
    with pytest.raises(UserError, match="unknown dtype 'int8'; valid: bfloat16, float16, float32"):
        export(run, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_any_order_in_memory_is_written(generator, tmp_path):
    run = colddiff.load(generator)
    turned = jax.tree.map(np.asfortranarray, jax.device_get(run.params))
    export(dataclasses.replace(run, params=turned), tmp_path / "out", with_program=False)
    again = colddiff.load(tmp_path / "out").params
    jax.tree.map(np.testing.assert_array_equal, again, run.params)


def test_a_degradation_of_ones_own_comes_along(tmp_path):
    """Export a run of FILE.py:FUNCTION, delete the file, and load the export elsewhere."""
    source = tmp_path / "mine.py"
    source.write_text(
        "from jax.tree_util import Partial\n"
        "def dim(*, num_steps):\n    return Partial(_dim)\n"
        "def _dim(x0, t, key):\n    return x0 * (1 - t / 6)\n"
    )
    config = tiny_config()
    with config.unlocked():
        config.degradation = ConfigDict(dict(name=f"{source}:dim", num_steps=6))
        config.train.num_steps = 1
    train(config, tmp_path / "run")
    export(colddiff.load(tmp_path / "run"), tmp_path / "out", with_program=False)
    source.unlink()
    shutil.rmtree(tmp_path / "run")
    run = colddiff.load(tmp_path / "out")
    np.testing.assert_allclose(run.degrade(np.ones((16, 16, 1)), 3, jax.random.key(0)), 0.5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mine.py:dim" in card and str(tmp_path) not in card


def test_folders_with_files_are_left(generator, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; give another --output"):
        export(colddiff.load(generator), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_without_a_workdir(generator, tmp_path):
    run = dataclasses.replace(colddiff.load(generator), workdir=None)
    export(run, tmp_path / "out", with_program=False)
    assert "There is no report of this step." in (tmp_path / "out" / "README.md").read_text()
    _, step = read_metadata(tmp_path / "out" / "model.safetensors")
    assert step == run.step
