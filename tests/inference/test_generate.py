"""Images from seeds: independent of the batch, the devices and interruptions."""

import dataclasses
import json
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_main, sample, start_main, tiny_generator_config
from jax.tree_util import Partial
from ml_collections import ConfigDict
from PIL import Image

import colddiff
from colddiff.data import sources
from colddiff.degradations import gaussian_noise
from colddiff.inference.generate import folder_of, generate, parse_seeds
from colddiff.inference.run import Run, _places, run_sampler
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import array_digest
from colddiff.sampling.priors import Mixture
from colddiff.sampling.samplers import ddim, tacos
from colddiff.training.loop import train


@pytest.fixture(scope="module")
def run(generator):
    return colddiff.load(generator)


def pngs(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in folder.glob("0*.png")}


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-3", [0, 1, 2, 3]), ("7", [7]), ("3, 10-11,0", [3, 10, 11, 0]), ("5-5", [5])],
)
def test_seeds_of_a_text(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1,,2", "1-2-3", "1.5"])
def test_wrong_seeds_are_refused(text):
    with pytest.raises(UserError, match="must be like 0-9999 or 3,7,20-29; got"):
        parse_seeds(text)
    with pytest.raises(UserError, match="seed 1 is given more than once; give each"):
        parse_seeds("1,0-3")
    with pytest.raises(UserError, match="4294967296 is above the largest seed, 4294967295"):
        parse_seeds("4294967296")
    with pytest.raises(UserError, match="more than 10000000 seeds"):
        parse_seeds("0-4294967295")


def test_an_image_is_its_seeds_alone(run):
    """Compare bits: seeds in two rounds of four devices, in one round, and alone."""
    seeds = [
        5,
        0,
        9,
        2,
        4,
        1,
        77,
        2**32 - 1,
        12,
        13,
    ]  # four even seeds, first in a chunk of 2, and six odd seeds
    together, iterates = run.generate(run.params, seeds, iterates_at=[4, 0])
    together = np.asarray(together)
    for some in ([2, 9, 5], [2**32 - 1], [13, 4, 2, 9, 5, 0, 1, 12, 77]):
        alone, others = run.generate(run.params, some, iterates_at=[4, 0])
        places = [seeds.index(seed) for seed in some]
        assert np.array_equal(alone, together[places])
        assert np.array_equal(others, np.asarray(iterates)[:, places])
    together = together[:8]
    flat = together.reshape(8, -1)
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + np.eye(8)
    assert distances.min() > 1e-4  # eight different images


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize(
    "seeds", [range(20), range(1000, 1100), [3], [7, 0, 14, 21, 2**32 - 1, 2**32 - 2, 1], [5, 5, 5]]
)
def test_a_seed_has_one_place_in_every_chunk(seeds, count):
    seeds = np.array(seeds)
    places = _places(seeds, count)
    assert np.array_equal(places % count, seeds % count) and len(set(places)) == len(seeds)
    largest = max(np.sum(seeds % count == r) for r in range(count))
    assert places.max() // count == largest - 1  # as few chunks as possible


def test_generating_is_sampling_from_the_prior(run):
    """Compare with sampling from the prior's xT, not truncated; D has the same key."""
    noise = gaussian_noise(num_steps=6)
    config = run.config.copy_and_resolve_references()
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))
    hot = dataclasses.replace(run, experiment=run.experiment._replace(degrade=noise, config=config))
    keys = jax.vmap(jax.random.key)(jnp.array([3, 8]))
    for some, degrade in ((run, run.degrade), (hot, noise)):
        x0, iterates = some.generate(some.params, [3, 8], times=[6, 2, 0], iterates_at=[6, 0])
        xT = jax.jit(jax.vmap(some.prior))(keys)
        np.testing.assert_allclose(iterates[0], xT, atol=1e-6)
        expected = sample(tacos, some.restore, degrade, some.params, xT, keys, np.array([6, 2, 0]))
        np.testing.assert_allclose(x0, expected, atol=1e-4)
        assert np.array_equal(iterates[1], x0)


def test_one_compilation_for_all_seeds_and_for_all_eta(run, compiled):
    for seeds in (range(6), range(7, 13), np.array([5, 4, 3, 2, 1, 2**32 - 1])):
        run.generate(run.params, seeds, steps=2)
    assert compiled.count("run_sampler") == 1
    assert compiled.count("_draw") <= 1  # at most once; another test may have compiled it

    noise = gaussian_noise(num_steps=6)
    xT, keys = jnp.zeros((2, 16, 16, 1)), jax.random.split(jax.random.key(0))
    way = run.restoration(run.params)._replace(degrade=noise)
    found = [
        run_sampler(way._replace(sampler=Partial(ddim, eta=eta)), xT, keys, np.array([6, 3, 0]))
        for eta in (0.1, 0.5, 1.0)
    ]
    assert compiled.count("run_sampler") == 2
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_files_and_pictures(run, tmp_path):
    seeds = parse_seeds("0-69")
    generate(run, seeds, tmp_path)
    expected = {f"{seed:06d}.png" for seed in seeds}
    assert {p.name for p in tmp_path.iterdir()} == expected | {
        "grid.png",
        "process.gif",
        "settings.json",
    }
    with Image.open(tmp_path / "000069.png") as image:
        assert image.size == (16, 16) and image.mode == "L"
        truth = np.asarray(run.generate(run.params, [69]))[0, :, :, 0]
        shown = np.asarray(image) / 127.5 - 1
        assert np.abs(shown - truth.clip(-1, 1)).max() <= 1 / 127.5  # half a level, plus rounding
    with Image.open(tmp_path / "grid.png") as image:
        tile = np.asarray(image)[2:66, 2:66, 0]  # 8 × 8 images of 64 pixels, 2 between them
        assert image.size == (8 * 66 + 2, 8 * 66 + 2)
        first = np.asarray(Image.open(tmp_path / "000000.png"))
        assert np.array_equal(tile, first.repeat(4, axis=0).repeat(4, axis=1))
    with Image.open(tmp_path / "process.gif") as gif:
        assert gif.n_frames == 7  # T = 6
        frames = []
        for t in range(7):
            gif.seek(t)
            frames.append(np.asarray(gif.convert("L")).astype(int))
    flat, restored = (np.ptp(frame[-60:-10, -60:-10]) for frame in (frames[0], frames[-1]))
    assert flat < 2 < restored


def test_pictures_are_of_the_first_seeds(run, tmp_path):
    generate(run, [30, 7, 12], tmp_path)
    first = np.asarray(Image.open(tmp_path / "000030.png")).repeat(4, axis=0).repeat(4, axis=1)
    with Image.open(tmp_path / "grid.png") as image:
        assert np.array_equal(np.asarray(image)[2:66, 2:66, 0], first)
    with Image.open(tmp_path / "process.gif") as gif:
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L")).astype(int)
    header = last.shape[0] - 2 * 66
    assert np.abs(last[header : header + 64, 2:66] - first).max() <= 2  # GIFs have a palette


def test_a_file_is_there_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def save(self, file, *args, **options):
        file.write(b"half of an image")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="no space left"):
        generate(run, [0], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_no_seed_comes_twice(run, tmp_path):
    with pytest.raises(UserError, match="seed 3 is given more than once"):
        generate(run, [3, 1, 3], tmp_path)


def test_a_batch_is_no_larger_than_what_is_missing(run, tmp_path, monkeypatch):
    """Check the batch size, so that images per second count no padding."""
    config = run.config.copy_and_resolve_references()
    config.eval.batch_size = 64
    sizes = []
    whole = Run.generate

    def noted(self, params, seeds, **options):
        sizes.append(len(seeds))
        return whole(self, params, seeds, **options)

    monkeypatch.setattr(Run, "generate", noted)
    experiment = run.experiment._replace(config=config)
    generate(dataclasses.replace(run, experiment=experiment), range(5), tmp_path)
    assert sizes[0] == 5


@pytest.mark.parametrize("sampler", ["direct", "naive"])
def test_pictures_of_every_sampler(run, generator, tmp_path, sampler):
    config = run.config.copy_and_resolve_references()
    config.sampler.name = sampler
    generate(colddiff.load(generator, config=config), [0, 1], tmp_path)
    with Image.open(tmp_path / "process.gif") as gif:
        assert gif.n_frames == {"direct": 2, "naive": 7}[sampler]


def test_what_is_there_is_kept_and_what_is_missing_is_made(run, tmp_path):
    generate(run, range(10), tmp_path)
    before = bytes_of(tmp_path)
    (tmp_path / "000004.png").unlink()
    (tmp_path / "000002.png").write_bytes(before["000003.png"])  # a mark that must be kept
    (tmp_path / "000005.unfinished").write_bytes(b"half of a")
    generate(run, range(10), tmp_path)
    after = bytes_of(tmp_path)
    assert after["000004.png"] == before["000004.png"]
    assert after["000002.png"] == before["000003.png"]


def test_images_of_other_settings_are_never_mixed(run, generator, tmp_path):
    generate(run, [0, 1], tmp_path)
    other = run.config.copy_and_resolve_references()
    with other.unlocked():
        other.sampler.name = "naive"
        other.prior.noise_std = 0.1
    changed = colddiff.load(generator, config=other)
    with pytest.raises(UserError, match="holds images made with other settings") as error:
        generate(changed, [2], tmp_path)
    assert "'name': 'tacos'" in str(error.value) and "'noise_std': 0.1" in str(error.value)
    assert "weights" not in str(error.value)
    earlier = colddiff.load(generator, step=3)
    with pytest.raises(UserError, match=r"weights: .*'step': 8.* saved, .*'step': 3.* now"):
        generate(earlier, [2], tmp_path)
    brighter = dataclasses.replace(run, params=jax.tree.map(lambda p: p * 1.1, run.params))
    with pytest.raises(UserError, match=r"weights: .*'step': 8.* saved, .*'step': 8.* now"):
        generate(brighter, [2], tmp_path)
    assert not (tmp_path / "000002.png").exists()
    xT = run.experiment._replace(degrade=jax.tree.map(lambda x: x * 1.1, run.degrade))
    with pytest.raises(UserError, match=r"tables: .* saved, .* now") as error:
        generate(dataclasses.replace(run, experiment=xT), [2], tmp_path)
    assert "weights" not in str(error.value)
    others = (run, changed, earlier, brighter, dataclasses.replace(run, experiment=xT))
    assert len({folder_of(other) for other in others}) == 5
    assert folder_of(run).parent == generator / "generated"

    (tmp_path / "settings.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"settings.json cannot be read: "):
        generate(run, [2], tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match=r"holds images, but no settings\.json .* with --output"):
        generate(run, [2], tmp_path)


def test_images_of_another_mixture_or_chunk_are_never_mixed(run, generator, tmp_path):
    """Use a prior fitted to other numbers, and another `eval.chunk`; both change the images."""
    generate(run, [0], tmp_path / "images")
    workdir = shutil.copytree(generator, tmp_path / "copy")
    [fitted] = (workdir / "prior").iterdir()
    with np.load(fitted) as arrays:
        brighter = dict(arrays) | {"means": arrays["means"] + np.float32(0.1)}
    digest = array_digest({name: brighter[name] for name in Mixture._fields})
    np.savez(fitted, **brighter | {"digest": digest})
    other_mixture = colddiff.load(workdir)
    config = run.config.copy_and_resolve_references()
    config.eval.chunk = 2 * run.config.eval.chunk
    other_chunk = colddiff.load(generator, config=config)

    with pytest.raises(UserError, match=r"tables: .*'prior': .* saved, .*'prior': .* now"):
        generate(other_mixture, [1], tmp_path / "images")
    with pytest.raises(UserError, match="chunk: 2 saved, 4 now"):
        generate(other_chunk, [1], tmp_path / "images")
    assert not (tmp_path / "images" / "000001.png").exists()
    assert len({folder_of(some).name for some in (run, other_mixture, other_chunk)}) == 3


def test_images_that_are_not_finite_are_not_written(run, tmp_path):
    broken = jax.tree.map(lambda p: p * np.nan, run.params)
    with pytest.raises(UserError, match=r"images of seeds \[1, 4\] are not finite, .* not written"):
        generate(dataclasses.replace(run, params=broken), [1, 4], tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_a_run_without_a_prior_says_so(trained, tmp_path):
    run = colddiff.load(trained)
    assert run.prior is None
    with pytest.raises(UserError, match=r"prior\.name is 'none'"):
        run.generate(run.params, [0])


@pytest.mark.parametrize(
    ("seeds", "arguments", "message"),
    [
        ([-1], {}, "seeds must be integers in 0..4294967295"),
        ([2**32], {}, "seeds must be integers"),
        ([0.5], {}, "seeds must be integers"),
        ([], {}, "seeds must be integers"),
        ([0], {"times": [4, 0]}, r"times must begin at T=6; got \[4 0\]"),
        ([0], {"times": [7, 0]}, "times must begin at T=6 or below"),
        ([0], {"times": [6, 0], "steps": 2}, "not both"),
        ([0], {"sampler": "ddim"}, "ddim and ddpm take only blends"),
        ([0], {"sampler": "magic"}, "unknown sampler 'magic'; valid: ddim, ddpm, direct"),
    ],
    ids=str,
)
def test_wrong_arguments(run, seeds, arguments, message):
    with pytest.raises(UserError, match=message):
        run.generate(run.params, seeds, **arguments)


def test_the_prior_is_fitted_once_and_kept(generator, tmp_path, monkeypatch):
    """Check that it then needs no data, and that other settings are fitted on first use."""
    [kept] = (generator / "prior").iterdir()
    train = sources.load("digits", "train", size=16, channels=1)
    with np.load(kept) as arrays:
        assert arrays["means"].item() == pytest.approx(train.mean() / 127.5 - 1, abs=1e-6)
        assert arrays["factors"].item() == pytest.approx(
            np.std(train.mean(axis=(1, 2)) / 127.5), rel=1e-3
        )
    monkeypatch.setattr("colddiff.data.sources.load", lambda *args, **kwargs: 1 / 0)
    run = colddiff.load(generator)
    assert run.prior is run.prior
    monkeypatch.undo()
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.prior.size, config.prior.components = 2, 3
    workdir = shutil.copytree(generator, tmp_path / "copy")
    other = colddiff.load(workdir, config=config)
    assert [path.name for path in (workdir / "prior").iterdir()] == [kept.name]
    other_prior = other.prior
    [path] = {*(workdir / "prior").iterdir()} - {workdir / "prior" / kept.name}
    with np.load(path) as arrays:
        assert arrays["means"].shape == (3, 2, 2, 1)
    xT = np.asarray(jax.jit(other_prior)(jax.random.key(0)))
    assert np.ptp(xT[:8, :8]) < 0.03 < np.ptp(xT)

    for there in (kept.read_bytes()[:100], b""):
        (workdir / "prior" / kept.name).write_bytes(there)
        with pytest.raises(UserError, match=rf"{kept.name} cannot be read: .*; delete it"):
            _ = colddiff.load(workdir).prior
    shutil.copy(path, workdir / "prior" / kept.name)
    with pytest.raises(
        UserError, match=r"was written for .*\[3, 2, 2, 1\].*, but .* was asked for; delete it"
    ):
        _ = colddiff.load(workdir).prior


def test_a_new_run_fits_its_own_prior(generator, tmp_path, monkeypatch):
    """Check that a new run replaces an old prior, and that a resumed run keeps its own."""
    monkeypatch.setattr("colddiff.training.loop.load_truth", lambda config: 1 / 0)
    [fitted] = (generator / "prior").iterdir()
    left = tmp_path / "new" / "prior" / fitted.name
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    with pytest.raises(ZeroDivisionError):
        train(tiny_generator_config(), tmp_path / "new")
    assert left.read_bytes() == fitted.read_bytes()

    workdir = shutil.copytree(generator, tmp_path / "old")
    kept = workdir / "prior" / fitted.name
    os.utime(kept, (0, 0))
    config = tiny_generator_config()
    config.train.num_steps = 9
    with pytest.raises(ZeroDivisionError):
        train(config, workdir)
    assert kept.stat().st_mtime == 0


FLAGS = (
    "--config=configs/generate_blur_digits.py",
    "--config.degradation.num_steps=6",
    "--config.model.width=8",
    "--config.model.multipliers=(1,)",
    "--config.model.num_blocks=1",
    "--config.train.num_steps=20",
    "--config.train.batch_size=8",
    "--config.train.sample_every=0",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return the workdir of a run of the command line on one device."""
    folder = tmp_path_factory.mktemp("generate")
    done = run_main(*FLAGS, f"--workdir={folder}", "--mode=train")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_128_seeds_on_one_and_four_devices_in_batches_of_16_and_64(workdir, tmp_path):
    found = {}
    for devices, batch_size in ((1, 16), (1, 64), (4, 64)):
        output = tmp_path / f"{devices}-{batch_size}"
        flags = (f"--output={output}", f"--config.eval.batch_size={batch_size}", "--seeds=0-127")
        done = run_main(*FLAGS, f"--workdir={workdir}", "--mode=generate", *flags, devices=devices)
        assert done.returncode == 0, done.stderr
        assert f"128 images, grid.png and process.gif: {output}" in done.stdout
        assert "images/s" in done.stderr
        found[devices, batch_size] = pngs(output)
    first = found.pop((1, 16))
    assert len(first) == 128
    for others in found.values():
        assert others.keys() == first.keys()
        assert max(np.abs(others[name] - first[name]).max() for name in first) <= 1


@pytest.mark.slow
def test_killed_half_way_and_restarted_it_ends_with_the_same_files(workdir, tmp_path):
    flags = (*FLAGS, f"--workdir={workdir}", "--mode=generate", "--seeds=0-199")
    flags = (*flags, "--config.eval.batch_size=8")
    done = run_main(*flags, f"--output={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    with start_main(*flags, f"--output={killed}") as process:
        while len(list(killed.glob("0*.png"))) < 60:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    count = len(list(killed.glob("0*.png")))
    assert 60 <= count < 200 and not (killed / "grid.png").exists()
    done = run_main(*flags, f"--output={killed}")
    assert done.returncode == 0, done.stderr
    assert f"{count} of 200 images are there already" in done.stderr
    whole, resumed = bytes_of(tmp_path / "whole"), bytes_of(killed)
    leftovers = {name for name in resumed if name.endswith(".unfinished")}
    assert {name: b for name, b in resumed.items() if name not in leftovers} == whole
    assert json.loads(whole["settings.json"])["prior"]["noise_std"] == 0.002
