"""Experiments built from configs; errors of invalid configs name the field."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_anywhere
from jax.tree_util import Partial
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.degradations import gaussian_blur, gaussian_mask, gaussian_noise, linear, split
from colddiff.experiment.build import build, make_sampler
from colddiff.experiment.checks import check_sampler
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import ddim, tacos


@pytest.mark.parametrize("name", ["default", *CONFIGS])
def test_every_config_builds_and_says_what_it_is(name):
    module = importlib.import_module(f"configs.{name}")
    experiment = build(config_anywhere(name))
    x0 = jax.ShapeDtypeStruct(experiment.image_shape, jnp.float32)
    xT = jax.eval_shape(experiment.degrade, x0, experiment.T, jax.random.key(0))
    assert (xT.shape, xT.dtype) == (x0.shape, x0.dtype)
    if name != "default":
        assert f"--config configs/{name}.py --workdir" in module.__doc__
    with pytest.raises(AttributeError):
        module.get_config().no_such_field = 1  # locked


def test_table_1_settings():
    """Check that the σ schedule reaches D: rows of A[1] are the first kernel."""
    cifar = build(importlib.import_module("configs.blur_cifar10").get_config())
    assert cifar.T == 50
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 0.35) ** 2)
    np.testing.assert_allclose(
        split(cifar.degrade)[1].args[0][1, 16, 11:22], kernel / kernel.sum(), atol=1e-6
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
        ("sampler.name", "sde", "unknown sampler 'sde'; valid: ddim, ddpm, direct, momentum"),
        ("sampler.name", "ddpm", "ddim and ddpm take only blends"),
        ("eval.samplers", ("direct", "ddim"), "ddim and ddpm take only blends"),
        ("sampler", dict(name="tacos", steps=0, eta=1.0), "eta; besides .* tacos takes nothing"),
        (
            "sampler",
            dict(name="ddim", steps=0, etha=1.0),
            "config.sampler has etha; besides name and steps, ddim takes eta",
        ),
        ("prior", dict(name="gmm"), "unknown prior 'gmm'; valid: gaussian_mixture, none, pattern"),
        ("prior", dict(name="pattern", noise_std=-1.0), "noise_std=-1.0 of a prior must be finite"),
        (
            "prior",
            dict(name="pattern", noise_std=0.0),
            "'pattern' needs a degradation that leaves nothing .* gaussian_blur leaves 100%",
        ),
        ("prior", dict(name="pattern"), "config.prior: missing a required argument: 'noise_std'"),
        (
            "prior",
            dict(name="gaussian_mixture", size=5, components=1, noise_std=0.0),
            "size=5 of a prior must divide the images' 16 pixels",
        ),
        (
            "prior",
            dict(name="gaussian_mixture", size=1, components=0, noise_std=0.0),
            "config.prior.components=0 must be 1 or more",
        ),
        (
            "prior",
            dict(name="gaussian_mixture", size=2000, components=1, noise_std=0.0),
            "size=2000 of a prior must divide the images' 16 pixels, and be at most 32",
        ),
        ("sampler.steps", 7, r"steps=7 must lie in 1\.\.T=6"),
        ("train.batch_size", 0, "config.train.batch_size=0 must be 1 or more"),
        ("seed", -1, r"config.seed=-1 must be in 0\.\.4294967295"),
        ("train.ema_decay", 1.5, r"config.train.ema_decay=1.5 must be in 0\.\.1"),
        ("data.pad", -1, "config.data.pad=-1 must be 0 or more"),
        ("data.crop", "left", "unknown data.crop 'left'; valid: center, random"),
        ("data.channels", 2, r"data.channels=2 of digits must be 1 \(gray\) or 3 \(RGB\)"),
        ("data.channels", 0, "config.data.channels=0 must be 1 or more"),
        (
            "data.image_size",
            (16,),
            r"image_size=\(16,\) must be 1 or more, an integer, or \(H, W\)",
        ),
        ("data.image_size", (16, 15), r"image_size=\(16, 15\) cannot be halved 1 times"),
        ("model.width", 0, "config.model.width=0 must be 1 or more"),
        ("model.dropout", 1.5, r"config.model.dropout=1.5 must be in 0\.\.1"),
        (
            "model.multipliers",
            (1, 0),
            r"multipliers=\(1, 0\) must be one or more positive integers",
        ),
        ("model.multipliers", (), r"multipliers=\(\) must be one or more positive integers"),
        ("eval.samplers", ("direct", "dirct"), "unknown sampler 'dirct'; valid: ddim"),
        ("data.image_size", 15, "image_size=15 cannot be halved 1 times"),
        ("degradation.padding", "zero", "unknown padding 'zero'"),
    ],
)
def test_what_cannot_work_is_refused(config, field, value, message):
    if isinstance(value, dict):
        with config.unlocked():
            config[field] = value
    else:
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        build(config)


def test_the_config_gives_its_sampler_its_arguments(config):
    """Check also that another sampler, chosen by its name, does not get them."""
    with config.unlocked():
        config.sampler = {"name": "ddim", "steps": 0, "eta": 0.5}
    assert make_sampler(config).keywords == make_sampler(config, "ddim").keywords == {"eta": 0.5}
    assert make_sampler(config).func is ddim
    assert (
        make_sampler(config, "tacos").func is tacos and not make_sampler(config, "tacos").keywords
    )


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
    with pytest.raises(UserError, match=r"the config has no eval\.batch_size; start it from conf"):
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
    """Return the config with another degradation."""
    with config.unlocked():
        config.degradation = {"num_steps": 6, **settings}
    return config


def test_parts_are_composed_in_their_order(config):
    """Check that each part gets T and the image size, also from a saved config with lists."""
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
    with pytest.raises(UserError, match=r"of compose sets num_steps, .* num_steps=6; leave it out"):
        build(degradation(config, name="compose", parts=({"name": "desaturate", "num_steps": 9},)))


def test_a_bank_is_images_of_the_config_s_size(config):
    bank = {"source": "color_digits", "split": "test", "limit": 7, "sharded": False}
    experiment = build(degradation(config, name="animorph", schedule="cosine", bank=bank))
    stored = split(experiment.degrade)[0].args[0]
    expected = sources.load("color_digits", "test", size=16, channels=1, limit=7)
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
from __future__ import annotations
import dataclasses
import jax
import jax.numpy as jnp
from colddiff.degradations import from_pattern

@dataclasses.dataclass
class Note:
    text: str

def fade(*, num_steps, to=0.0):
    return lambda x0, t, key: x0 + (to - x0) * t / num_steps

def halve(*, num_steps):
    return lambda x0, t, key: x0[::2]

def rounded(*, num_steps):
    return lambda x0, t, key: x0.astype(jnp.float16)

def dim(*, num_steps):
    return lambda x0, t, key: 0.9 * x0

def branch(*, num_steps):
    return lambda x0, t, key: x0 if t == 0 else -x0

def nothing(*, num_steps):
    pass

def shift(*, num_steps):
    draw = lambda key, shape: jax.random.normal(key, (1, 1, shape[-1]))
    return from_pattern(draw, lambda x0, t, pattern: x0 + t / num_steps * pattern)

def double(*, num_steps):
    return lambda x0, t, key: (x0, x0)
"""


def test_a_function_of_a_file_of_one_s_own(config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    experiment_of = lambda name, **more: build(degradation(config, name=f"{path}:{name}", **more))  # noqa: E731
    experiment = experiment_of("fade", to=1.0)
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
        (
            f"{path}:halve",
            r"must return float32 \(16, 16, 1\) for .*; it returns float32 \(8, 16, 1\)",
        ),
        (f"{path}:double", "for one image; it returns tuple"),
        (f"{path}:rounded", r"for one image; it returns float16 \(16, 16, 1\)"),
        (f"{path}:dim", "must return x0 unchanged, to the bit, at t = 0"),
        (f"{path}:branch", r"fails at .*mine\.py, line .*: TracerBoolConversionError"),
        (f"{path}:nothing", "must return a function; it returned None"),
    ):
        with pytest.raises(UserError, match=message):
            build(degradation(config, name=name))
    with pytest.raises(UserError, match="unexpected keyword argument 'too'; it takes num_steps"):
        build(degradation(config, name=f"{path}:fade", too=1.0))

    random = experiment_of("shift")
    draw, apply = split(random.degrade)
    shift = draw(jax.random.key(1), (16, 16, 1))
    found = jax.jit(lambda degrade: degrade(x0, 3, jax.random.key(1)))(random.degrade)
    np.testing.assert_allclose(found, apply(x0, 3, shift), atol=1e-6)

    path.write_text("import no_such_module")
    with pytest.raises(UserError, match=r"mine\.py cannot be loaded: ModuleNotFoundError"):
        build(degradation(config, name=f"{path}:fade"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(name=["snow"]), r"unknown degradation \['snow'\]; valid: animorph"),
        (
            dict(name="animorph", bank="digits"),
            r"bank must be dict\(...\); got 'digits'",
        ),
        (dict(name="compose", parts=("snow",)), r"members must be dict\(...\); got 'snow'"),
        (dict(name="gaussian_noise", image_size=8), "data.image_size is used; leave it out"),
        (
            dict(name="gaussian_noise", schedule=dict(schedule="linear", start=1.0, step=0.1)),
            r"unknown schedule \[1.0, .*; valid: cosine",
        ),
        (
            dict(name="snow", threshold=("a", "b"), motion_std=(1.0, 2.0)),
            r"threshold=.*'a', 'b'.* must be two numbers",
        ),
        (
            dict(name="gaussian_mask", center="image", std=["1"] * 6),
            "std must be positive and finite at every step; got '1'",
        ),
        (
            dict(
                name="animorph", bank=dict(source="digits", split="test", limit=-1, sharded=False)
            ),
            "limit=-1 of digits must be 1 or more, or 0 for all",
        ),
    ],
)
def test_degradations_that_cannot_work_are_refused(config, settings, message):
    with pytest.raises(UserError, match=message):
        build(degradation(config, **settings))


def test_building_leaves_the_config_as_it_is(config):
    """Include a schedule within a part, because a loaded run builds its config again."""
    std = {"schedule": "linear", "start": 1.0, "step": 0.1}
    blur = {"name": "gaussian_blur", "kernel_size": 5, "std": std, "padding": "reflect"}
    degradation(config, name="compose", parts=(blur,))
    before = config.to_json()
    build(config)
    assert config.to_json() == before
    build(config)


# From sections 4 and 5, and appendix A. A schedule is given by its start, and its step or rate.
CELEBA = dict(crop_margin=15, crop="random", flip=True, pad=0)
SMALL = CELEBA | dict(crop_margin=3)
PLAIN = dict(crop_margin=0, flip=False, pad=0)
BLUR = dict(mean_at_end=False, eight_bit=False)
HALVE = dict(method="area", eight_bit=False)
MASK = dict(fade_to=0.0, inward=False, eight_bit=True)
INPAINT = MASK | dict(num_steps=50, std=(1.0, 0.1), center=(1, 31))
GENERATE_BLUR = CELEBA | dict(
    num_steps=300, kernel_size=27, std=(1.0, 0.01), padding="circular", mean_at_end=True,
    eight_bit=True,
)  # fmt: skip
HOT = CELEBA | dict(num_steps=200, schedule="cosine", eight_bit=False)
OF_THE_PAPER = [c for c in CONFIGS if not c.endswith(("_digits", "_small"))]
PAPER = {
    "blur_mnist": SMALL | BLUR | dict(num_steps=20, kernel_size=11, std=7.0, padding="circular"),
    "blur_cifar10": SMALL | BLUR
    | dict(num_steps=50, kernel_size=11, std=(0.35, 0.01), padding="reflect"),
    "blur_celeba": CELEBA | BLUR
    | dict(num_steps=200, kernel_size=15, std=(1.0, 0.01), padding="reflect"),
    "inpaint_mnist": PLAIN | INPAINT,
    "inpaint_cifar10": PLAIN | INPAINT | dict(pad=4, flip=True),
    "inpaint_celeba": CELEBA | MASK | dict(num_steps=100, std=(0.2, 0.2), center="image"),
    "superres_mnist": HALVE | dict(num_steps=3, crop_margin=3, crop="center", flip=False),
    "superres_cifar10": SMALL | HALVE | dict(num_steps=3),
    "superres_celeba": CELEBA | HALVE | dict(num_steps=6),
    "snow_cifar10": PLAIN | dict(num_steps=200, threshold=(1.15, 0.7), motion_std=(0.05, 16.0)),
    "snow_celeba": PLAIN | dict(num_steps=200, threshold=(1.15, 0.55), motion_std=(0.05, 20.0)),
    "color_cifar10": PLAIN | dict(num_steps=50),
    "color_celeba": PLAIN | dict(num_steps=20),
    "noise_celeba": HOT,
    "noise_afhq": HOT,
    "generate_blur_celeba": GENERATE_BLUR,
    "generate_blur_afhq": GENERATE_BLUR,
    "generate_inpaint_celeba": CELEBA
    | dict(num_steps=750, std=(0.05, 0.05), center="image", fade_to="random", inward=True),
    "generate_superres_celeba": CELEBA | HALVE | dict(num_steps=6),
    "animorph_celeba": HOT,
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_configs_have_the_paper_s_settings(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    for field, expected in PAPER[name].items():
        section = config.data if field in config.data else config.degradation
        found = section[field]
        if isinstance(found, ConfigDict):
            found = (found.start, found[{"linear": "step", "exponential": "rate"}[found.schedule]])
        assert found == expected, field
    large = name.endswith(("_celeba", "_afhq"))
    assert config.data.image_size == (128 if large else 32)
    assert config.model.name == ("resnet_unet" if "cifar10" in name else "convnext_unet")
    inpainting = name.startswith("inpaint")
    assert config.train.num_steps == (60_000 if inpainting else 700_000)
    assert config.train.batch_size == (64 if inpainting else 32)


ONE, FOUR = (dict(name="gaussian_mixture", size=size, components=1) for size in (1, 2))
PRIORS = {  # each with the sampler of the best row
    "noise_celeba": (dict(name="pattern", noise_std=0), "ddim"),
    "noise_afhq": (dict(name="pattern", noise_std=0), "ddim"),
    "generate_blur_celeba": (ONE | dict(noise_std=0.002), "tacos"),
    "generate_blur_afhq": (ONE | dict(noise_std=0.002), "tacos"),
    "generate_inpaint_celeba": (dict(name="pattern", noise_std=0), "tacos"),
    "generate_superres_celeba": (FOUR | dict(noise_std=0), "tacos"),
    "animorph_celeba": (dict(name="pattern", noise_std=0), "ddim"),
}


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_configs_generate_as_in_the_paper(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    found = config.prior.to_dict(), config.sampler.name
    assert found == PRIORS.get(name, (dict(name="none"), "tacos"))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "1", None])
def test_eta_is_a_number_from_0_to_1(config, eta):
    config.degradation = ConfigDict(dict(name="gaussian_noise", num_steps=6, schedule="cosine"))
    config.sampler = ConfigDict(dict(name="ddim", steps=0, eta=eta))
    with pytest.raises(UserError, match=r"eta=.* of ddim must be a number in 0\.\.1"):
        build(config)
    degrade = gaussian_noise(num_steps=6)
    with pytest.raises(UserError, match=r"eta=.* of ddim must be a number"):
        check_sampler(Partial(ddim, eta=eta), degrade)
    for good in (0, 1, 0.5, jnp.float32(1), np.float32(0.3)):
        check_sampler(Partial(ddim, eta=good), degrade)


def test_a_pattern_shows_a_tenth_of_the_image_at_most(config, tmp_path):
    """Refuse a D that leaves 30% of the contrast, and accept one that leaves 5%."""
    code = "def fade(*, num_steps, left):\n"
    code += "    return lambda x0, t, key: x0 * (1 - (1 - left) * t / num_steps)\n"
    (tmp_path / "own.py").write_text(code)
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))
    settings = dict(name=f"{tmp_path}/own.py:fade", num_steps=6)
    config.degradation = ConfigDict(settings | dict(left=0.05))
    build(config)
    config.degradation = ConfigDict(settings | dict(left=0.3))
    with pytest.raises(UserError, match=r"own\.py:fade leaves 30% .*Use .*'gaussian_mixture'"):
        build(config)


@pytest.mark.parametrize(
    ("name", "image_size", "warns"),
    [
        ("generate_superres_digits", 16, False),
        ("generate_superres_digits", 32, True),  # three halvings end at 4²
        ("generate_superres_celeba", 128, False),
        ("generate_blur_digits", 16, False),
        ("generate_blur_celeba", 128, False),
    ],
)
def test_a_mixture_of_other_blocks_than_those_of_D_is_named(name, image_size, warns, caplog):
    config = config_anywhere(name)
    config.data.image_size = image_size
    config.model.width = 8
    with caplog.at_level("WARNING"):
        build(config)
    found = [m for m in caplog.messages if "not trained on such xT" in m]
    assert len(found) == warns, caplog.messages
