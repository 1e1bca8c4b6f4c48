"""Configs become experiments; what cannot work is refused by the name of its field."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_anywhere
from ml_collections import ConfigDict

from colddiff import data
from colddiff.build import build
from colddiff.degradations import gaussian_blur, gaussian_mask, linear
from colddiff.errors import UserError


@pytest.mark.parametrize("name", ["default", *CONFIGS])
def test_every_config_builds_and_says_what_it_is(name):
    module = importlib.import_module(f"configs.{name}")
    experiment = build(config_anywhere(name))
    x0 = jnp.zeros(experiment.image_shape)
    assert experiment.degrade(x0, experiment.T, jax.random.key(0)).shape == x0.shape
    if name != "default":
        assert f"--config configs/{name}.py --workdir" in module.__doc__
    with pytest.raises(AttributeError):
        module.get_config().no_such_field = 1  # locked


def test_table_1_settings():
    """The paper's σ schedules reach the degradation: rows of A[1] are the first kernel."""
    cifar = build(importlib.import_module("configs.blur_cifar10").get_config())
    assert cifar.T == 50
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 0.35) ** 2)
    np.testing.assert_allclose(
        cifar.degrade.args[0][1, 16, 11:22], kernel / kernel.sum(), atol=1e-6
    )


def test_no_steps_means_all(config):
    assert build(config).steps == 6
    config.sampler.steps = 2
    assert build(config).steps == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("degradation.name", "fog", "unknown degradation 'fog'; valid: .*gaussian_blur"),
        ("model.name", "unet", "unknown model 'unet'; valid: convnext_unet, resnet_unet"),
        ("model.dtype", "float64", "unknown model.dtype 'float64'; valid: bfloat16, float32"),
        ("train.optimizer", "lion", "unknown train.optimizer 'lion'; valid: adam"),
        ("train.lr_schedule", "step", "unknown train.lr_schedule 'step'; valid: constant, cosine"),
        ("sampler.name", "ddpm", "unknown sampler 'ddpm'; valid: direct, naive, tacos"),
        ("sampler.steps", 7, r"steps=7 must lie in 1\.\.T=6"),
        ("train.batch_size", 0, "config.train.batch_size=0 must be 1 or more"),
        ("seed", -1, r"config.seed=-1 must be in 0\.\.4294967295"),
        ("train.ema_decay", 1.5, r"config.train.ema_decay=1.5 must be in 0\.\.1"),
        ("data.pad", -1, "config.data.pad=-1 must be 0 or more"),
        ("data.crop", "left", "unknown data.crop 'left'; valid: center, random"),
        ("data.channels", 2, r"config.data.channels=2 must be 1 \(gray\) or 3 \(RGB\)"),
        ("model.width", 0, "config.model.width=0 must be 1 or more"),
        ("model.dropout", 1.5, r"config.model.dropout=1.5 must be in 0\.\.1"),
        (
            "model.multipliers",
            (1, 0),
            r"multipliers=\(1, 0\) must be one or more positive integers",
        ),
        ("model.multipliers", (), r"multipliers=\(\) must be one or more positive integers"),
        ("eval.samplers", ("direct", "dirct"), "unknown sampler 'dirct'; valid: direct"),
        ("data.image_size", 15, "image_size=15 cannot be halved 1 times"),
        ("degradation.padding", "zero", "unknown padding 'zero'"),
    ],
)
def test_what_cannot_work_is_refused(config, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        build(config)


def test_a_setting_of_another_model_is_refused(config):
    with config.unlocked():
        config.model.heads = 3
    with pytest.raises(
        UserError, match="unexpected keyword argument 'heads'; it takes channels, width"
    ):
        build(config)


def test_a_config_without_a_section_is_refused(config):
    with config.unlocked():
        del config.eval
    with pytest.raises(UserError, match=r"the config has no eval\.batch_size; begin it with"):
        build(config)


def test_unknown_schedules_are_refused(config):
    with config.unlocked():
        del config.degradation.std
        config.degradation.std = {"schedule": "square", "start": 1.0}
    with pytest.raises(
        UserError, match=r"unknown schedule of degradation.std 'square'; valid: exp"
    ):
        build(config)


def degradation(config, **settings):
    """The config with another degradation."""
    with config.unlocked():
        config.degradation = {"num_steps": 6, **settings}
    return config


def test_parts_are_composed_in_their_order(config):
    """T and the image size reach each of them; also from a saved config, where tuples are lists."""
    blur = {"name": "gaussian_blur", "kernel_size": 5, "std": 1.0, "padding": "reflect"}
    mask = {
        "name": "gaussian_mask",
        "std": {"schedule": "linear", "start": 1.0, "step": 0.5},
        "center": "image",
    }
    degradation(config, name="compose", parts=(blur, mask))
    saved = ConfigDict(json.loads(config.to_json()))
    x0 = jax.random.uniform(jax.random.key(0), (16, 16, 1))
    key = jax.random.key(1)
    first = gaussian_blur(image_size=16, num_steps=6, kernel_size=5, std=1.0, padding="reflect")
    second = gaussian_mask(
        image_size=16, num_steps=6, std=linear(6, start=1.0, step=0.5), center="image"
    )
    expected = second(first(x0, 6, key), 6, key)
    for same in (config, saved):
        np.testing.assert_allclose(build(same).degrade(x0, 6, key), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"missing a required .*argument: 'parts'"):
        build(degradation(config, name="compose"))
    with pytest.raises(UserError, match="compose needs one degradation"):
        build(degradation(config, name="compose", parts=()))
    with pytest.raises(UserError, match="unknown degradation 'fog'"):
        build(degradation(config, name="compose", parts=({"name": "fog"},)))
    with pytest.raises(UserError, match="a part of compose has its num_steps=6; leave out"):
        build(degradation(config, name="compose", parts=({"name": "desaturate", "num_steps": 9},)))


def test_a_bank_is_images_of_the_config_s_size(config):
    bank = {"source": "color_digits", "split": "test", "limit": 7, "sharded": False}
    experiment = build(degradation(config, name="animorph", schedule="cosine", bank=bank))
    stored = experiment.degrade.args[0].args[0]
    expected = data.load("color_digits", "test", size=16, channels=1, limit=7)
    assert stored.dtype == np.uint8 and np.array_equal(stored, expected)
    for wrong, message in (
        ({"split": "tests"}, "unknown split of digits 'tests'"),
        ({"source": "folder:nowhere"}, "no folder nowhere"),
        (
            {"sharding": True},
            "degradation.bank: got an unexpected .* it takes source, split",
        ),
    ):
        with pytest.raises(UserError, match=message):
            build(degradation(config, name="animorph", schedule="cosine", bank=bank | wrong))


MINE = """
import jax.numpy as jnp

def fade(*, num_steps, to=0.0):
    return lambda x0, t, key: x0 + (to - x0) * t / num_steps

def halve(*, num_steps):
    return lambda x0, t, key: x0[::2]

def double(*, num_steps):
    return lambda x0, t, key: (x0, x0)
"""


def test_a_function_of_a_file_of_one_s_own(config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    experiment = build(degradation(config, name=f"{path}:fade", to=1.0))
    x0 = jnp.full((16, 16, 1), -0.5)
    np.testing.assert_allclose(
        experiment.degrade(x0, 3, jax.random.key(0)), 0.25 * jnp.ones_like(x0)
    )
    jax.jit(lambda degrade: degrade(x0, 6, jax.random.key(0)))(experiment.degrade)  # a pytree
    for name, message in (
        (f"{path}:fog", f"{path} has no function 'fog'"),
        (f"{path}:jnp", f"{path} has no function 'jnp'"),
        (f"{tmp_path}/other.py:fade", f"must be FILE.py:FUNCTION; .*{tmp_path}/other.py"),
        ("colddiff.degradations:snow", "must be FILE.py:FUNCTION"),
        (f"{path}:halve", r"makes \(\(8, 16, 1\), .*float32.*\) of images .* keep shape and dtype"),
        (f"{path}:double", r"makes \(None, 'tuple'\) of images"),
    ):
        with pytest.raises(UserError, match=message):
            build(degradation(config, name=name))
    with pytest.raises(UserError, match="unexpected keyword argument 'too'; it takes num_steps"):
        build(degradation(config, name=f"{path}:fade", too=1.0))
