"""The contract of every registered degradation, and of every config's.

To test a new entry of DEGRADATIONS here, add an entry to SETTINGS. test_formulas.py tests formulas.
"""

import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS, config_anywhere, sample, tiny_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from colddiff.data import sources
from colddiff.degradations import DEGRADATIONS, compose, linear, split
from colddiff.experiment.build import build
from colddiff.images import from_uint8
from colddiff.reporting.pictures import degrade_at
from colddiff.sampling.samplers import image_keys, tacos, times_between
from colddiff.training.examples import make_example
from configs.swirl_digits import swirl

T = 12
SQUARE, WIDE = (32, 32), (16, 24)
BANK = np.random.default_rng(0).integers(0, 256, (10, *SQUARE, 3), np.uint8)
SETTINGS = {
    "animorph": dict(num_steps=T, bank=BANK),
    "desaturate": dict(num_steps=T),
    "gaussian_blur": dict(
        num_steps=T, kernel_size=7, std=linear(T, start=0.4, step=0.2), padding="reflect",
        mean_at_end=True,
    ),
    "gaussian_mask": dict(
        num_steps=T, std=linear(T, start=1, step=0.5), center=(1, 31), fade_to="random"
    ),
    "gaussian_noise": dict(num_steps=T),
    "pixelate": dict(num_steps=5),
    "snow": dict(num_steps=T, threshold=(1.15, 0.7), motion_std=(0.05, 16.0)),
    "swirl": dict(num_steps=T, turns=0.5),
}  # fmt: skip
ON_WIDE = {  # settings that do not fit the square's
    "animorph": dict(bank=BANK[:, :16, :24]),
    "gaussian_mask": dict(center=((1, 15), (2, 23))),
    "pixelate": dict(num_steps=3),
}
SIZED = {"gaussian_blur", "gaussian_mask", "pixelate", "snow"}
RANDOM = {"animorph", "compose", "gaussian_mask", "gaussian_noise", "snow"}
LARGEST = {"animorph": math.sqrt(2), "gaussian_noise": 8.0}  # |xt|; for all others 1
FACTORIES = DEGRADATIONS | {"swirl": swirl}


def settings_of(name, size):
    """Return the arguments of a factory for images of this size; swirl takes an integer."""
    settings = SETTINGS[name] | (ON_WIDE.get(name, {}) if size == WIDE else {})
    if name in SIZED:
        settings["image_size"] = size
    return settings | ({"image_size": size[0]} if name == "swirl" else {})


def make(name, size):
    if name == "compose":
        parts = ("gaussian_blur", "gaussian_mask", "desaturate")
        return compose(*(make(part, size) for part in parts))
    return FACTORIES[name](**settings_of(name, size))


# Every degradation on H×W. Formulas and configs are tested on squares, so the properties are slow
# there, except for swirl, which is for squares alone.
CASES = [pytest.param(name, WIDE, id=name) for name in sorted(DEGRADATIONS)]
CASES += [pytest.param("swirl", SQUARE, id="swirl")]
CASES += [
    pytest.param(name, SQUARE, id=f"{name}-square", marks=pytest.mark.slow)
    for name in sorted(DEGRADATIONS)
]


def pytest_generate_tests(metafunc):
    if "size" in metafunc.fixturenames:
        metafunc.parametrize(("name", "size"), CASES)


@pytest.fixture
def degrade(name, size):
    return make(name, size)


@pytest.fixture
def last(name, size):
    """Return T of the degradation."""
    return T if name == "compose" else settings_of(name, size)["num_steps"]


@pytest.fixture
def x0(size):
    return jax.random.uniform(jax.random.key(1), (8, *size, 3), minval=-1, maxval=1)


@pytest.fixture
def keys():
    return jax.random.split(jax.random.key(3), 8)


def test_identity_at_zero_to_the_bit(degrade, x0):
    x0 = x0[0].at[0, 0].set(jnp.array([-1.0, 1.0, 1e-30]))
    assert np.array_equal(degrade(x0, 0, jax.random.key(0)), x0)
    assert np.array_equal(jax.jit(degrade)(x0, 0, jax.random.key(0)), x0)


def test_same_key_same_pattern_however_it_is_called(degrade, last, x0, keys):
    """Call D one by one, not jitted, in batches of two sizes, and split over four devices."""
    t, single = min(5, last), jax.jit(degrade)
    expected = jnp.stack([single(x, t, k) for x, k in zip(x0, keys, strict=True)])
    batch = jax.vmap(degrade, (0, None, 0))
    np.testing.assert_allclose(degrade(x0[1], t, keys[1]), expected[1], atol=1e-5)
    np.testing.assert_allclose(jax.jit(batch)(x0[2:5], t, keys[2:5]), expected[2:5], atol=1e-5)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    x0, keys = jax.device_put((x0, keys), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(jax.jit(batch)(x0, t, keys), expected, atol=1e-5)


def test_one_pattern_at_all_t(name, degrade, last, x0, keys):
    """Check D against `apply` with the pattern of `draw`; keys matter only if D is random."""
    draw, apply = split(degrade)
    pattern = draw(keys[0], x0[0].shape)
    for t in range(last + 1):
        np.testing.assert_allclose(apply(x0[0], t, pattern), degrade(x0[0], t, keys[0]), atol=1e-6)
    assert "random" not in str(jax.make_jaxpr(apply)(x0[0], 1, pattern))  # `apply` draws nothing
    xT = [degrade(x0[0], last, key) for key in keys]
    assert any(not np.array_equal(xT[0], other) for other in xT) == (name in RANDOM)


def test_finite_and_in_range_with_finite_gradients(name, degrade, last, x0, keys):
    times = np.arange(last + 1)
    xt = degrade_at(degrade, x0, times, keys)
    assert np.all(np.isfinite(xt)) and np.max(np.abs(xt)) <= LARGEST.get(name, 1) + 1e-5
    gradient = jax.grad(lambda x: jnp.sum(degrade_at(degrade, x, times, keys) ** 2))(x0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def real_images(size, channels=3, limit=32):
    images = sources.load("color_digits", "test", size=size, channels=channels, limit=limit)
    return from_uint8(jnp.asarray(images))


def mean_distance(xt, x0):
    """Return the mean of |D(x0, t) - x0| over the images, for each t."""
    return np.mean(np.abs(xt - x0[None]), axis=(1, 2, 3, 4))


def distances(degrade, x0, times):
    keys = image_keys(jax.random.key(0), 0, len(x0))
    return mean_distance(degrade_at(degrade, x0, times, keys), x0)


def test_severity_grows(degrade, last, size):
    distance = distances(degrade, real_images(size), np.arange(last + 1))
    assert distance[0] == 0 and distance[-1] > 0.02
    assert np.all(np.diff(distance) >= -1e-6)


def test_a_perfect_restorer_gives_x0(degrade, last, x0, keys):
    xT = jax.vmap(degrade, (0, None, 0))(x0, last, keys)
    oracle = lambda params, x, t: params  # noqa: E731
    found = sample(tacos, oracle, degrade, x0, xT, keys, times_between(last, last))
    np.testing.assert_allclose(found, x0, atol=1e-5)


def test_another_t_compiles_nothing(degrade, last, x0):
    assert isinstance(degrade, Partial)
    run = jax.jit(lambda degrade, x0, t, key: degrade(x0, t, key))
    for t in range(last + 1):
        run(degrade, x0[0], t, jax.random.key(t))
    assert run._cache_size() == 1


_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def largest_constant(compiled):
    """Return the bytes of the largest constant of a compiled program."""
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* constant\(", compiled.as_text())
    assert found
    return max(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in found
    )


def test_a_constant_is_found_where_there_is_one():
    table = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
    lowered = jax.jit(lambda t: jnp.asarray(table)[t]).lower(3)
    assert largest_constant(lowered.compile()) == table.nbytes
    assert len(lowered.as_text()) > table.nbytes


# The contract of the configs' degradations, at the paper's settings.


# Large images and many steps make tables that take seconds.
LARGE = ("generate_blur_afhq", "generate_blur_celeba", "generate_inpaint_celeba", "animorph_celeba")


@pytest.mark.parametrize(
    "config_name",
    [pytest.param(c, marks=[pytest.mark.slow] if c in LARGE else []) for c in CONFIGS],
)
def test_configs_have_small_programs_and_grow_in_severity(config_name):
    """Check that tables and banks are arguments, not constants, of D and of training examples."""
    config = config_anywhere(config_name)
    config.model = tiny_config().model  # quicker to trace
    experiment, settings = build(config), config.data
    x0 = real_images(settings.image_size, settings.channels, limit=4)
    times = np.unique(np.round(np.linspace(0, experiment.T, 16)).astype(int))
    keys = image_keys(jax.random.key(0), 0, len(x0))
    compiled = degrade_at.lower(experiment.degrade, x0, times, keys).compile()
    assert largest_constant(compiled) < 1e6

    @jax.jit
    def examples(degrade, images, keys):
        return jax.vmap(make_example(experiment, degrade))(images, keys)

    size = settings.image_size + settings.crop_margin
    images = jax.ShapeDtypeStruct((4, size, size, settings.channels), jnp.uint8)
    assert len(examples.lower(experiment.degrade, images, keys).as_text()) < 1e6

    distance = mean_distance(compiled(experiment.degrade, x0, times, keys), x0)
    assert distance[0] == 0 and distance[-1] > 0.02
    if "animorph" not in config_name:  # a blend of two dark digits is darker than both
        assert np.all(np.diff(distance) >= -1e-4), np.diff(distance)


ON_CIFAR10 = [c for c in CONFIGS if c.endswith("_cifar10")]


@pytest.mark.parametrize("config_name", [*ON_CIFAR10, "noise_celeba", "animorph_celeba"])
def test_severity_grows_on_cifar10(config_name, real_data):
    config = importlib.import_module(f"configs.{config_name}").get_config()
    config.model, config.data.image_size = tiny_config().model, 32
    if config_name == "animorph_celeba":
        config.degradation.bank.update({"source": "tfds:cifar10", "limit": 1000})
    images = sources.load("tfds:cifar10", "test", size=32, channels=3, limit=10)
    times = np.arange(config.degradation.num_steps + 1)
    distance = distances(build(config).degrade, from_uint8(jnp.asarray(images)), times)
    assert np.all(np.diff(distance) >= -1e-5), np.diff(distance)
