"""Settings and helpers of all tests: four virtual devices, the cache, no silent broadcasting."""

import importlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import jax
import pytest
import small  # noqa: F401 - it adds a network
from absl import logging as absl_logging
from absl.testing import flagsaver
from ml_collections import ConfigDict

from colddiff import main
from colddiff.sampling.samplers import bind_params, draw_patterns, walk
from colddiff.training.loop import train
from configs import blur_digits


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-seed",
        type=int,
        default=time.time_ns() % 10**6,
        help="Seed of the moments at which tests kill processes; a test that fails logs it.",
    )


ROOT = Path(__file__).parent.parent
COMPILATION_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

os.environ["COLDDIFF_CACHE"] = str(ROOT / ".cache" / "colddiff")
# Most of the suite's time is compiling: LLVM's optimisations cost more than they win here.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
).strip()
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_compilation_cache_dir", COMPILATION_CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")


_MATHS = (
    "test_degradations",
    "test_formulas",
    "test_images",
    "test_metrics",
    "test_priors",
    "test_samplers",
)


@pytest.fixture(autouse=True)
def no_silent_change_of_dtype(request):
    """Refuse dtype promotion in tests of the maths; Flax and optax rely on it."""
    strict = request.module.__name__ in _MATHS
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "default")


def config_anywhere(name: str) -> ConfigDict:
    """Return the config configs/NAME.py, with digits in place of a bank that needs data."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if "bank" in config.degradation:
        config.degradation.bank.source = "color_digits"
        config.degradation.bank.limit = 100
    return config


def tiny_config() -> ConfigDict:
    """Return blur_digits with a small network and small images; a step takes milliseconds."""
    config = blur_digits.get_config()
    config.data.image_size = 16
    config.degradation.num_steps = 6
    config.degradation.kernel_size = 5
    config.model.name = "small"
    config.model.width = 8
    config.model.multipliers = (1, 2)
    config.train.num_steps = 8
    config.train.batch_size = 8
    config.train.ema_start = 2
    config.train.log_every = 2
    config.train.sample_every = 0
    config.train.checkpoint_every = 3
    config.eval.batch_size = 8
    config.eval.chunk = 2
    config.eval.num_images = 20
    config.eval.pictures = 3
    return config


@pytest.fixture
def config() -> ConfigDict:
    return tiny_config()


def tiny_generator_config() -> ConfigDict:
    """Return the tiny config with a prior that draws one gray level."""
    config = tiny_config()
    config.data.eight_bit = True
    config.degradation.padding = "circular"
    config.degradation.mean_at_end = True
    config.prior = ConfigDict(dict(name="gaussian_mixture", size=1, components=1, noise_std=0.002))
    return config


@pytest.fixture(scope="session")
def generator(tmp_path_factory) -> Path:
    """Return the workdir of a finished tiny run with a prior; do not write to it."""
    workdir = tmp_path_factory.mktemp("generator")
    train(tiny_generator_config(), workdir)
    return workdir


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return the workdir of a finished tiny run on four devices; do not write to it."""
    workdir = tmp_path_factory.mktemp("trained")
    train(tiny_config(), workdir)
    return workdir


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Yield a list of the names of the functions that JAX compiles in this test, in order."""
    names = []
    handler = logging.Handler()
    handler.emit = lambda record: names.extend(
        re.findall(r"^Compiling (?:jit\()?([\w<>]+)", record.getMessage())
    )
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)


def sample(sampler, restore, degrade, params, xT, keys, times, iterates_at=None):
    """Return `walk` of a restorer with its parameters and a degradation with each image's key."""
    R, D = bind_params(restore, params), draw_patterns(degrade, keys, xT.shape[1:])
    return walk(sampler, R, D, xT, times, iterates_at)


@pytest.fixture
def real_data() -> None:
    """Skip the test unless TFDS has prepared MNIST and CIFAR-10."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not (folder / "mnist").is_dir() or not (folder / "cifar10").is_dir():
        pytest.skip(f"no MNIST and CIFAR-10 in {folder}: set TFDS_DATA_DIR to where TFDS has them")


TINY_FLAGS = (
    "--config=configs/blur_digits.py",
    "--config.data.image_size=16",
    "--config.degradation.num_steps=6",
    "--config.degradation.kernel_size=5",
    "--config.model.name=small",
    "--config.model.width=8",
    "--config.model.multipliers=(1, 2)",
    "--config.train.batch_size=8",
    "--config.train.sample_every=0",
    "--config.eval.num_images=20",
    "--config.eval.pictures=2",
)

REAL_NETWORK = (  # after TINY_FLAGS, for commands without the network `small`
    "--config.model.name=resnet_unet",
    "--config.model.width=8",
    "--config.model.multipliers=(1,)",
    "--config.model.num_blocks=1",
)


def command(*args: object) -> list[str]:
    """Return the command line of colddiff.main, with `small` among the networks."""
    return [sys.executable, "-m", "small", *map(str, args)]


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a subprocess with this number of virtual devices."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        "JAX_COMPILATION_CACHE_DIR": COMPILATION_CACHE,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    }


@contextmanager
def started(
    command: Sequence[str], env: dict[str, str], end: Callable = subprocess.Popen.kill
) -> Iterator[subprocess.Popen]:
    """Start a process; `end` ends it when the block ends, or after half an hour."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(1800, end, [process])
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            watchdog.cancel()
            end(process)


def start_main(*args: object, devices: int = 1) -> AbstractContextManager[subprocess.Popen]:
    """Start `command`; end it when the block ends."""
    return started(command(*args), environment(devices))


def wait_for(process: subprocess.Popen, text: str, count: int = 1) -> None:
    """Read the stderr of a process until `count` lines contain `text`."""
    for line in process.stderr:
        count -= text in line
        if not count:
            return
    raise AssertionError(f"it ended before it said {text!r}")


def run_main(*args: object, devices: int = 1) -> subprocess.CompletedProcess:
    """Run `command` to its end."""
    return run_program("-m", "small", *args, devices=devices)


def call_main(*args: object) -> subprocess.CompletedProcess:
    """Run the command line in this process, which has imported and compiled everything."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handler, loggers = absl_logging.get_absl_handler(), [logging.getLogger(n) for n in ("", "absl")]
    before = handler.python_handler.stream, list(handler.filters)
    levels = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    handler.python_handler.stream = err
    try:
        with (
            flagsaver.flagsaver(),
            mock.patch.object(sys, "argv", ["main.py", *map(str, args)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main.run()
    except SystemExit as end:
        code = end.code or 0
    finally:  # flagsaver restores flags, which also sets log levels
        handler.python_handler.stream, handler.filters[:] = before
        for logger, level, handlers in levels:
            logger.setLevel(level)
            logger.handlers[:] = handlers
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def run_program(
    *args: object, devices: int = 1, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run Python to its end with these arguments and additional environment variables."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        env=environment(devices) | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
