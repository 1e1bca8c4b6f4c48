"""Compiler options that keep the convolutions of networks out of YNNPACK."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REAL_NETWORK, TINY_FLAGS, run_program
from jax import lax

from colddiff.runtime import compiler
from colddiff.runtime.compiler import cpu_options, network_jit

X, KERNEL = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))


def convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def ynn_computations(program):
    """Return the bodies of all fusions that YNNPACK runs, from a program's text."""
    fusions = r"calls=%([\w.\-]+),.*__ynn_fusion"
    bodies = dict(re.findall(r"^%([\w.\-]+) \(.*\{\n((?:  .*\n)+)\}", program, re.MULTILINE))
    return [bodies[name] for name in re.findall(fusions, program)]


@pytest.fixture
def fresh():
    """Forget the cached options before and after a test."""
    cpu_options.cache_clear()
    yield
    cpu_options.cache_clear()


def test_convolutions_are_xla_s_own():
    """Check that only a plain `jax.jit` uses YNNPACK, on jaxlib 0.10 and 0.11."""
    program = network_jit(convolve).lower(X, KERNEL).compile().as_text()
    assert "convolution(" in program
    assert not any("convolution(" in body for body in ynn_computations(program))
    plain = jax.jit(convolve).lower(X, KERNEL).compile().as_text()
    if jax.__version_info__[:2] in ((0, 10), (0, 11)) and jax.default_backend() == "cpu":
        assert any("convolution(" in body for body in ynn_computations(plain))


def test_a_program_inside_another_one():
    """Call `network_jit` within a `jit`, where JAX takes no compiler options."""
    inner = network_jit(convolve)
    expected = convolve(X, KERNEL)
    np.testing.assert_allclose(inner(X, KERNEL), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(inner)(X, KERNEL), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda: inner(X, KERNEL))(), expected, rtol=1e-5)
    stacked = jax.vmap(inner, (0, None))(X[None], KERNEL)
    np.testing.assert_allclose(stacked[0], expected, rtol=1e-5)
    found = jax.grad(lambda x: inner(x, KERNEL).sum())(X)
    np.testing.assert_allclose(found, jax.grad(lambda x: convolve(x, KERNEL).sum())(X), rtol=1e-5)
    assert jax.eval_shape(inner, X, KERNEL).shape == expected.shape


def test_the_settings_of_jit_are_kept():
    twice = network_jit(lambda f, x: f(x) * 2, static_argnums=0)
    assert twice(jnp.sin, jnp.float32(1)) == pytest.approx(2 * np.sin(1))


def test_a_program_is_announced_and_compiled_once(compiled, caplog):
    """Prepare it, call it, call it inside a `jit`, then give it another shape."""

    def double(x):
        return 2 * x

    caplog.set_level(logging.INFO)
    announced = network_jit(double, announce="the doubler")
    assert announced.prepare(jnp.ones(3))(jnp.ones(3)).tolist() == [2, 2, 2]
    assert announced(jnp.zeros(3)).tolist() == [0, 0, 0]
    assert jax.jit(lambda x: announced(x) + 1)(jnp.ones(5)).tolist() == [3] * 5
    texts = [r.getMessage() for r in caplog.records if "the doubler" in r.getMessage()]
    assert texts[0] == "compiling the doubler ..." and len(texts) == 2
    assert re.fullmatch(r"compiled the doubler in \d+\.\d s", texts[1])
    assert compiled.count("double") == 1
    announced(jnp.ones(4))
    assert caplog.text.count("compiling the doubler ...") == compiled.count("double") == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COLDDIFF_CPU_TUNING", "0"),
        ("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"),
    ],
)
def test_the_user_can_switch_it_off(fresh, monkeypatch, name, value):
    assert cpu_options() is not None or jax.default_backend() != "cpu"
    monkeypatch.setenv(name, value)
    cpu_options.cache_clear()
    assert cpu_options() is None


@pytest.mark.parametrize(
    "options", [{"xla_no_such_option": "1"}, {compiler._FIELD: "NO_SUCH_TYPE"}]
)
def test_a_jaxlib_that_does_not_know_the_option(fresh, monkeypatch, options):
    monkeypatch.setattr(compiler, "_OPTIONS", options)
    assert cpu_options() is None


@pytest.mark.slow
def test_every_program_of_a_run_has_it(tmp_path):
    """Check that YNNPACK runs nothing of training, scoring and a classifier's features.

    In other programs it runs nothing of rank 7 or more, where it may crash (jax issue 39257).
    """
    dump = tmp_path / "programs"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*"
    flags += " --xla_backend_optimization_level=0"
    done = run_program(
        "-m",
        "colddiff.main",
        *TINY_FLAGS,
        *REAL_NETWORK,
        f"--workdir={tmp_path}/run",
        "--config.train.num_steps=2",
        "--config.eval.features=('classifier',)",
        "--config.eval.samplers=('tacos',)",
        variables={
            "XLA_FLAGS": flags,
            "COLDDIFF_CACHE": str(tmp_path / "cache"),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
    )
    assert done.returncode == 0, done.stderr
    programs = {path.name: path.read_text() for path in dump.glob("*after_optimizations.txt")}
    networks = {name: text for name, text in programs.items() if "convolution(" in text}
    for part in ("train_step", "run_sampler", "_score_batch", "_extract", "_classify", "jit_step"):
        assert any(part in name for name in networks), (part, sorted(networks))
    for name, text in programs.items():
        bodies = ynn_computations(text)
        assert name not in networks or not bodies, name
        shapes = re.findall(r"= \w+\[([\d,]+)\]", "".join(bodies))
        assert max((shape.count(",") + 1 for shape in shapes), default=0) < 7, name
