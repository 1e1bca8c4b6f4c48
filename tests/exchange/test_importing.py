"""Checkpoints of the paper's released code, and weights of our own names, become workdirs.

`authors.npz` holds outputs of the original PyTorch modules (at their commit f8b1379, in PyTorch
2.14.1) for weights that `draw` makes: the inputs, t, and the outputs of both sets of weights.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
from conftest import call_main, tiny_config
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from pth_files import save_arrays

import colddiff
from colddiff.exchange.importing import import_weights
from colddiff.experiment import checkpoint
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.experiment.weights import read_weights, write_safetensors
from colddiff.runtime.devices import create_mesh
from colddiff.runtime.errors import UserError
from colddiff.training.loop import train

OUTPUTS = Path(__file__).with_name("authors.npz")
CONVNEXT = dict(name="convnext_unet", width=8, multipliers=(1, 2), dtype="float32")
NETWORKS = {
    "convnext": dict(CONVNEXT, time_embedding=True, residual=False),
    "convnext_one_level": dict(CONVNEXT, multipliers=(1,), time_embedding=True, residual=False),
    "convnext_residual": dict(CONVNEXT, time_embedding=False, residual=True),
    "convnext_three_levels": dict(
        CONVNEXT, width=10, multipliers=(1, 2, 3), time_embedding=True, residual=True
    ),
    "resnet": dict(
        name="resnet_unet",
        width=32,
        multipliers=(1, 2, 1),
        num_blocks=1,
        attention_sizes=(8,),
        dropout=0.1,
        dtype="float32",
    ),
}
STEP = 700


@pytest.fixture(scope="module")
def stored():
    with np.load(OUTPUTS) as file:
        return {name: file[name] for name in file.files}


def draw(stored, network, seed):
    """Return the weights of a network, in the order of its state dict."""
    shapes = json.loads(str(stored[f"{network}.shapes"]))
    rng = np.random.default_rng(seed)
    return {n: (rng.normal(size=s) * 0.2).astype(np.float32) for n, s in shapes.items()}


def config_of(network):
    config = tiny_config()
    config.model = ConfigDict(NETWORKS[network])
    config.degradation.num_steps = 20
    config.data.channels = 3 if network == "convnext_three_levels" else 1
    config.data.source = "color_digits" if config.data.channels == 3 else "digits"
    return config.lock()


def trained(stored, network="convnext", prefix="module.denoise_fn."):
    """Return what the authors' trainers save, with what is no weight of the network."""

    def state(seed):
        named = {prefix + name: array for name, array in draw(stored, network, seed).items()}
        kernel = np.ones((1, 1, 3, 3), np.float32)
        beside = {
            "module.gaussian_kernels.0.weight": kernel,
            "alphas_cumprod": kernel,
            "one_shot_denoise_fn.conv_in.weight": kernel,
        }
        return beside | named

    return {"step": STEP, "model": state(1), "ema": state(2)}


@pytest.mark.parametrize(
    ("network", "prefix", "legacy"),
    [
        ("convnext_residual", "module.denoise_fn.", False),
        ("convnext_three_levels", "defade_fn.", True),
        ("resnet", "denoise_fn.module.", False),
    ],
)
def test_a_checkpoint_of_theirs(network, prefix, legacy, stored, tmp_path):
    """Compare outputs and losses with those of the original modules, which take t - 1."""
    path, experiment = tmp_path / "model.pt", build(config_of(network))
    save_arrays(path, trained(stored, network, prefix), legacy=legacy)
    weights = read_weights(path, experiment)
    assert weights.step == STEP
    x, t, x0 = (stored[f"{network}.{name}"] for name in ("x", "t", "x0"))
    restore = jax.jit(experiment.restore)
    for params, kind in ((weights.params, "model"), (weights.ema_params, "ema")):
        found, expected = restore(params, x, t), stored[f"{network}.{kind}"]
        assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
        loss = np.abs(x0 - found).mean()
        np.testing.assert_allclose(loss, stored[f"{network}.{kind}.loss"], rtol=1e-4)


@pytest.mark.slow
def test_training_goes_on(stored, tmp_path, caplog):
    """Check the step, the schedule's and the fresh optimiser's counts, and that EMA goes on."""
    network = "convnext_one_level"
    path, workdir, config = tmp_path / "model.pt", tmp_path / "run", config_of(network)
    with config.unlocked():
        config.train.lr_schedule = "cosine"
        config.train.num_steps = STEP + 2
    save_arrays(path, trained(stored, network))
    import_weights(config, path, workdir)
    before = checkpoint.restore_last(workdir, init_state(build(config), create_mesh()))
    weights = read_weights(path, build(config))
    jax.tree.map(np.testing.assert_array_equal, before.params, weights.params)
    jax.tree.map(np.testing.assert_array_equal, before.ema_params, weights.ema_params)
    assert [int(n) for n in counts(before.opt_state)] == [0, STEP]
    with caplog.at_level("INFO"):
        assert train(config, workdir)
    assert f"resuming from step {STEP}" in caplog.text
    after = checkpoint.restore_last(workdir, init_state(build(config), create_mesh()))
    assert [int(n) for n in counts(after.opt_state)] == [2, STEP + 2]
    moved = [np.abs(a - b).max() for a, b in zip(*map(leaves, (before, after)), strict=True)]
    assert 0 < max(moved) < 0.01  # Adam moves a weight by about the learning rate


def counts(opt_state):
    return [n for _, n in optax.tree_utils.tree_get_all_with_path(opt_state, "count")]


def leaves(state):
    return jax.tree.leaves(state.params)


def flat(params):
    return {".".join(p.lstrip("_") for p in path): a for path, a in flatten_dict(params).items()}


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_weights_of_our_own_names(kind, stored, tmp_path):
    """Import them at step 0, from which training goes on instead of beginning anew."""
    config, path = tiny_config(), tmp_path / f"weights.{kind}"
    experiment = build(config)
    params = flat(init_state(experiment, create_mesh()).params)
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in params.items()}
    if kind == "npz":
        np.savez(path, **params)
    else:
        path.write_bytes(safetensors.numpy.save(params))
    assert import_weights(config, path, tmp_path / "run") == 0
    for name, array in flat(colddiff.load(tmp_path / "run").params).items():
        np.testing.assert_array_equal(array, params[name])
    with config.unlocked():
        config.train.num_steps = 1
        config.train.learning_rate = 1e-9
    assert train(config, tmp_path / "run")
    for name, array in flat(colddiff.load(tmp_path / "run").params).items():
        np.testing.assert_allclose(array, params[name], atol=1e-7)


def changed(network="convnext", **changes):
    """Return a writer of a checkpoint whose sets of weights lack or have other tensors."""

    def write(path, stored):
        value = trained(stored, network)
        for name, array in changes.items():
            key = "module.denoise_fn." + name
            if array is None:
                del value["ema"][key]
            else:
                value["ema"][key] = array
        save_arrays(path, value)

    return write


def one(shape=(8,), value=0.5, dtype=np.float32):
    return np.full(shape, value, dtype)


def with_entry(**entries):
    return lambda path, stored: save_arrays(path, trained(stored) | entries)


WRONG = {  # file name, its writer, and the message
    "missing": ("model.pt", lambda path, stored: None, "is no file"),
    "folder": ("model.pt", lambda path, stored: path.mkdir(), "is no file"),
    "suffix": ("model.bin", lambda p, _: p.write_bytes(b"1"), "must be a .safetensors, .npz, .pt"),
    "text": ("model.pt", lambda p, _: p.write_text("weights"), "begins with b'weig'"),
    "cut": (
        "model.pt",
        lambda p, s: (changed()(p, s), p.write_bytes(p.read_bytes()[:5000])),
        "cannot be read as a state dict",
    ),
    "no ema": (
        "model.pt",
        lambda p, s: save_arrays(p, {k: v for k, v in trained(s).items() if k != "ema"}),
        "must hold 'step', 'model' and 'ema'.*'step' is no tensor",
    ),
    "nested": ("model.pt", with_entry(more={"a": {"b": one()}}), "nested too deeply"),
    "step": ("model.pt", with_entry(step=-3), "step=-3"),
    "huge step": ("model.pt", with_entry(step=2**31), "step=2147483648"),
    "other network": (
        "model.pt",
        changed("resnet"),
        r"missing: downs.0.0.ds_conv.bias.*unexpected: conv_in.bias.*config.model=.*'resnet_unet'",
    ),
    "other widths": (
        "model.pt",
        changed("convnext_three_levels"),
        r"of another shape: .*--config.data.channels=\"3\" --config.model.width=\"10\" "
        r"--config.model.multipliers=\"\(1, 2, 3\)\"",
    ),
    "no time": (
        "model.pt",
        changed("convnext_residual"),
        r"20 missing: .*mlp.*--config.model.time_embedding=\"False\"",
    ),
    "one missing": (
        "model.pt",
        changed(**{"mid_block1.net.1.bias": None}),
        "1 missing: mid_block1.net.1.bias\n",
    ),
    "one unexpected": (
        "model.pt",
        changed(**{"mid_block1.net.7.bias": one()}),
        "1 unexpected: mid_block1.net.7.bias\n",
    ),
    "one shape": (
        "model.pt",
        changed(**{"final_conv.1.weight": one((1, 8))}),
        r"final_conv.1.weight is \(1, 8\), not \(1, 8, 1, 1\)",
    ),
    "integers": (
        "model.pt",
        changed(**{"final_conv.1.bias": one((1,), 1, np.int64)}),
        "final_conv.1.bias is int64; expected floats",
    ),
    "not finite": (
        "model.pt",
        changed(**{"final_conv.1.bias": one((1,), np.nan)}),
        "final_conv.1.bias has values that are not finite",
    ),
    "npz of others": (
        "model.npz",
        lambda p, _: np.savez(p, kernel=one()),
        r"missing: Block_0.Conv_0.bias.*unexpected: kernel",
    ),
    "npz with objects": (
        "model.npz",
        lambda p, _: np.savez(p, kernel=np.array([{}])),
        "cannot be read as .npz",
    ),
    "other settings": (
        "model.safetensors",
        lambda p, _: write_safetensors(p, {}, config_of("convnext_residual"), 3, "float32"),
        "model.residual: True saved, False now",
    ),
    "no safetensors": (
        "model.safetensors",
        lambda p, _: p.write_bytes(b"0" * 40),
        "cannot be read as .safetensors",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_files_are_refused(what, stored, tmp_path):
    name, write, message = WRONG[what]
    write(tmp_path / name, stored)
    with pytest.raises(UserError, match=f"(?s){message}") as raised:
        import_weights(config_of("convnext"), tmp_path / name, tmp_path / "run")
    assert str(tmp_path / name) in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_advised_fields_fit(stored, tmp_path):
    path = tmp_path / "model.pt"
    save_arrays(path, trained(stored, "convnext_residual"))
    flags = ("--mode=import", "--config=configs/blur_digits.py", "--config.data.image_size=16")
    flags += (f"--input={path}", f"--workdir={tmp_path / 'run'}")
    done = call_main(*flags)
    assert done.returncode == 2
    advised = re.search(r'--config.model="(.*)"$', done.stderr, re.MULTILINE)
    done = call_main(*flags, f"--config.model={advised[1]}")
    assert done.returncode == 0, done.stderr
    assert "holds a checkpoint of step 700" in done.stdout
    done = call_main(*flags, f"--config.model={advised[1]}")
    assert done.returncode == 2 and "is not empty" in done.stderr
