"""Configs become experiments; what cannot work is refused by the name of its field."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_anywhere

from colddiff.build import build
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
