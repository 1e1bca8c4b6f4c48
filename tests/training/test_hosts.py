"""Several processes of this machine in place of hosts, and states sharded over devices.

The processes are real and connect over the loopback interface.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REAL_NETWORK, TINY_FLAGS, environment, run_main, run_program, started, wait_for
from jax.sharding import PartitionSpec
from PIL import Image
from tensorboard_events import read_scalars

import colddiff
from colddiff.experiment import checkpoint
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.runtime.devices import create_mesh, fsdp_shardings
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_npz

FLAGS = (
    *TINY_FLAGS,
    "--config.model.width=64",  # at width 8 shards are so small that the index file holds them
    "--config.train.num_steps=50",
    "--config.train.learning_rate=0.003",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=25",
)


# On a TPU, neighbouring devices of the mesh may belong to different hosts.
INTERLEAVED = """
import types, jax, numpy as np
from jax.sharding import Mesh
from colddiff.runtime import devices
devices.jax = types.ModuleType("jax")
vars(devices.jax).update(vars(jax))
devices.jax.devices = lambda: jax.devices()[::2] + jax.devices()[1::2]
devices.jax.make_mesh = lambda shape, names, axis_types: Mesh(
    np.array(devices.jax.devices()).reshape(shape), names, axis_types=axis_types
)
from small import run
run()
"""


def start_hosts(count, *args, devices=2, last=(), program=("-m", "small")):
    """Start `count` processes of one run, with `devices` each; end them when the block ends.

    `last` are arguments of the last process only.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = (f"--coordinator=127.0.0.1:{port}", f"--num_hosts={count}")
    hosts = [(*joined, f"--host={host}") for host in range(count)]
    hosts[-1] += last
    program = [sys.executable, *program, *map(str, args)]
    return [started([*program, *host], environment(devices)) for host in hosts]


def run_hosts(count, *args, **settings):
    """Run `count` processes to their end; return stdout and stderr of each."""
    with ExitStack() as stack:
        processes = [stack.enter_context(p) for p in start_hosts(count, *args, **settings)]
        with ThreadPoolExecutor() as pool:  # read all at once: one full pipe would stop all
            said = list(pool.map(subprocess.Popen.communicate, processes))
    for p, (_, err) in zip(processes, said, strict=True):
        assert p.returncode == 0, err
    return said


def losses(workdir):
    """Return the loss of every step, in full precision."""
    found = read_scalars(workdir / "tensorboard", "train/loss")
    assert list(found) == list(range(1, 51))
    return np.array(list(found.values()))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Return the workdir of 50 steps on one device, the reference for all others."""
    workdir = tmp_path_factory.mktemp("one")
    done = run_main(*FLAGS, "--mode=train", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert losses(workdir)[0] > 2 * losses(workdir)[-1]  # the loss falls
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_trains_the_same(one_device, devices, tmp_path):
    done = run_main(*FLAGS, "--mode=train", f"--workdir={tmp_path}", devices=devices)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path), losses(one_device), rtol=1e-5)


@pytest.mark.slow
def test_hosts_whose_devices_are_interleaved_train_the_same(one_device, tmp_path):
    run_hosts(2, *FLAGS, "--mode=train", f"--workdir={tmp_path}", program=("-c", INTERLEAVED))
    np.testing.assert_allclose(losses(tmp_path), losses(one_device), rtol=1e-5)


@pytest.mark.slow
def test_states_shared_by_eight_devices_train_the_same(one_device, tmp_path):
    done = run_main(
        *FLAGS, "--mode=train", "--config.mesh.fsdp=8", f"--workdir={tmp_path}", devices=8
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path), losses(one_device), rtol=1e-5)


@pytest.mark.slow
def test_two_hosts_train_the_same_severity_head_as_one(one_device, tmp_path):
    flags = (*FLAGS, "--mode=train", "--config.severity.num_steps=3", "--config.severity.width=4")
    heads = {}
    for hosts, run_them in ((1, run_main), (2, lambda *args: run_hosts(2, *args, devices=1))):
        workdir = shutil.copytree(one_device, tmp_path / str(hosts))
        run_them(*flags, f"--workdir={workdir}")
        _, heads[hosts] = read_npz(workdir / "severity.npz")
        assert (workdir / "severity.json").exists()
    for name, array in heads[1].items():
        np.testing.assert_allclose(heads[2][name], array, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """Return the workdir and the output of a run of two hosts with two devices each."""
    workdir = tmp_path_factory.mktemp("two")
    return workdir, run_hosts(2, *FLAGS, "--config.train.sample_every=25", f"--workdir={workdir}")


@pytest.mark.slow
def test_two_hosts_train_the_same_and_one_of_them_tells(one_device, two_hosts):
    workdir, [(out, err), (other_out, other_err)] = two_hosts
    np.testing.assert_allclose(losses(workdir), losses(one_device), rtol=1e-5)
    assert "2 hosts, 4 devices" in err and "| Degraded (xT) |" in out
    assert "|" not in other_out and "train" not in other_err
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == sorted(set(steps)) and steps[-1] == 50
    [start] = json.loads((workdir / "versions.json").read_text())["starts"]
    assert (start["hosts"], sum(start["devices"].values())) == (2, 4)
    pictures = sorted((workdir / "samples").iterdir())
    assert [p.name for p in pictures] == ["0000025.png", "0000050.png"]
    assert Image.open(pictures[0]).height < 3 * 100  # two images, each once
    assert not list(workdir.glob("hosts-*"))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_a_checkpoint_of_two_hosts_goes_on_on_any_devices(one_device, two_hosts, devices, tmp_path):
    workdir, _ = two_hosts
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "50")
    done = run_main(*FLAGS, "--mode=train", f"--workdir={tmp_path}", devices=devices)
    assert done.returncode == 0 and "resuming from step 25" in done.stderr, done.stderr
    np.testing.assert_allclose(losses(tmp_path)[25:], losses(one_device)[25:], rtol=1e-5)
    t4 = jnp.full(4, 6)
    runs = [colddiff.load(w) for w in (tmp_path, one_device)]
    xT = jax.random.uniform(jax.random.key(0), (4, *runs[0].experiment.image_shape), minval=-1)
    # Not the parameters: Adam's steps have full size even if a gradient is only rounding.
    np.testing.assert_allclose(*(run.restore(run.params, xT, t4) for run in runs), atol=1e-3)


@pytest.mark.slow
def test_two_hosts_score_and_generate_as_one_does(generator, tmp_path):
    """Compare scores up to rounding, and generated images bit for bit."""
    found = {}
    for name, hosts in (("one", 1), ("two", 2)):
        workdir = shutil.copytree(generator, tmp_path / name)
        run_hosts(hosts, f"--workdir={workdir}", "--mode=evaluate")
        flags = ("--mode=generate", "--seeds=0-9", f"--output={workdir}/images")
        run_hosts(hosts, f"--workdir={workdir}", *flags)
        report = json.loads(next(workdir.glob("evaluation/*/report.json")).read_text())
        scores = [[row["rmse"], row["ssim"]] for row in report["rows"]]
        found[name] = scores, [p.read_bytes() for p in sorted((workdir / "images").glob("0*.png"))]
    np.testing.assert_allclose(found["one"][0], found["two"][0], rtol=1e-4)
    assert len(found["one"][1]) == 10 and found["one"][1] == found["two"][1]


@pytest.mark.slow
def test_one_told_host_stops_all_at_the_same_step(tmp_path):
    flags = (*FLAGS, "--mode=train", "--config.train.num_steps=100000", f"--workdir={tmp_path}")
    with ExitStack() as stack:
        first, second = (stack.enter_context(p) for p in start_hosts(2, *flags))
        wait_for(first, "train 3/")
        second.send_signal(signal.SIGTERM)
        (_, err), (_, other) = (p.communicate() for p in (first, second))
    assert first.returncode == second.returncode == 0, err + other
    stopped = int(re.search(r"stopped at step (\d+)", err)[1])
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == stopped
    assert "SIGTERM: saving a checkpoint, then ending" in other


# JAX notices a dead host after 100 s.
SHORT_HEARTBEAT = """
import functools, jax
initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10)
jax.distributed.initialize = initialize
from small import run
run()
"""


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other(tmp_path):
    flags = (*FLAGS, "--mode=train", "--config.train.num_steps=100000", f"--workdir={tmp_path}")
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(p) for p in start_hosts(2, *flags, program=("-c", SHORT_HEARTBEAT))
        )
        wait_for(first, "train 3/")
        second.kill()
        _, err = first.communicate()
    assert first.returncode not in (0, -signal.SIGKILL), err


# A host with an error waits for the others, 30 s.
SHORT_WAIT = """
from colddiff import main
main._SECONDS_TO_LEAVE = 2
from small import run
run()
"""


@pytest.mark.slow
def test_a_host_with_an_error_of_its_own_does_not_wait_for_the_others(tmp_path):
    flags = (*FLAGS, "--mode=train", f"--workdir={tmp_path}")
    wrong = ("--config.train.batch_size=0",)
    with ExitStack() as stack:
        hosts = start_hosts(2, *flags, last=wrong, program=("-c", SHORT_WAIT))
        _, second = (stack.enter_context(p) for p in hosts)
        wait_for(second, "batch_size=0 must")
        assert second.wait() == 2


# A background process gets no Ctrl-C from the shell. The script must, however tests are run.
INTERRUPTIBLE = """
import os, signal, sys
os.setsid()
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def local_processes(*args):
    """Start launch/local_processes.sh with two processes, in its own session."""
    script = ["launch/local_processes.sh", "2", *args]
    return started(
        [sys.executable, "-c", INTERRUPTIBLE, *script],
        environment(2) | {"COLDDIFF_VENV": sys.prefix},
        end=lambda p: subprocess.run(["pkill", "-KILL", "-s", str(p.pid)], check=False),
    )


@pytest.mark.slow
def test_the_script_for_processes_on_this_machine(tmp_path):
    """Check that it trains, passes Ctrl-C on, and returns the exit code of a failed process."""
    flags = (*FLAGS, *REAL_NETWORK, "--mode=train", f"--workdir={tmp_path}")
    with local_processes(*flags, "--config.train.num_steps=100000") as script:
        wait_for(script, "train 3/")
        os.killpg(script.pid, signal.SIGINT)  # as a terminal would
        _, err = script.communicate()
        assert script.returncode == 0 and "stopped at step" in err, err
    with local_processes(*flags, "--config.train.batch_size=6") as script:
        _, err = script.communicate()
        assert script.returncode == 2 and "cannot be shared by 4 devices; use 4 or 8" in err, err


@pytest.mark.slow
def test_a_state_that_hosts_share(one_device, tmp_path):
    """Train, save and evaluate with FSDP; damage the part of one host; resume."""
    flags = (*FLAGS, "--config.mesh.fsdp=4", f"--workdir={tmp_path}")
    [(out, _), _] = run_hosts(2, *flags)
    assert "| Degraded (xT) |" in out
    np.testing.assert_allclose(losses(tmp_path), losses(one_device), rtol=1e-5)
    arrays = list((tmp_path / "checkpoints" / "50" / "state" / "ocdbt.process_1" / "d").iterdir())
    for file in arrays:
        file.write_bytes(b"")  # half of the file may hold all values, so all is deleted
    [(_, err), _] = run_hosts(2, *flags, "--config.train.num_steps=52", "--mode=train")
    assert arrays and "resuming from step 25" in err
    assert (tmp_path / "damaged" / "50").is_dir()
    with checkpoint.open_manager(tmp_path) as manager:
        assert manager.latest_step() == 52


@pytest.mark.slow
def test_a_signal_before_training_ends_it(tmp_path):
    with ExitStack() as stack:
        hosts = [stack.enter_context(p) for p in start_hosts(2, *FLAGS, f"--workdir={tmp_path}")]
        wait_for(hosts[0], "2 hosts, 4 devices")
        for p in hosts:
            p.send_signal(signal.SIGTERM)
        assert [p.wait() for p in hosts] == [-signal.SIGTERM] * 2


def bytes_per_device(state):
    return max(
        sum(leaf.addressable_shards[i].data.nbytes for leaf in jax.tree.leaves(state))
        for i in range(jax.local_device_count())
    )


def test_devices_share_a_state(config):
    """Check that each of four devices holds little more than a quarter."""
    config.mesh.fsdp = 4
    experiment = build(config)
    whole, parts = (init_state(experiment, create_mesh(n)) for n in (1, 4))
    assert bytes_per_device(parts) < bytes_per_device(whole) / 3.5
    for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_array_equal(a, b)
    tree = {"a": jnp.zeros((4, 3, 8)), "b": jnp.zeros((3, 5)), "c": jnp.zeros(())}
    specs = {name: sharding.spec for name, sharding in fsdp_shardings(tree, create_mesh(4)).items()}
    assert specs == {
        "a": PartitionSpec(None, None, "fsdp"),
        "b": PartitionSpec(),
        "c": PartitionSpec(),
    }


@pytest.mark.slow
def test_eight_devices_hold_less_than_a_sixth_each():
    """Add up the shards of the demo's state."""
    code = """
import jax
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.runtime.devices import create_mesh
from configs import blur_digits
experiment = build(blur_digits.get_config())
for fsdp in (1, 8):
    leaves = jax.tree.leaves(init_state(experiment, create_mesh(fsdp)))
    devices = jax.local_devices()
    held = {d: sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == d)
            for d in devices}
    print(max(held.values()))
"""
    done = run_program("-c", code, devices=8)
    whole, parts = map(int, done.stdout.split())
    assert whole > 4 * 4 * 1_000_000 and parts <= whole / 6, done.stdout


def test_devices_that_cannot_be_divided():
    with pytest.raises(
        UserError, match=r"mesh.fsdp=3 must divide the 4 devices: one of \[1, 2, 4\]"
    ):
        create_mesh(3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_hosts=2"], "--num_hosts and --host need --coordinator=ADDRESS:PORT"),
        (["--coordinator=a:1", "--num_hosts=2", "--host=2"], "needs --num_hosts=N and --host in"),
        (["--coordinator=auto"], "cannot join the other hosts: .*give --coordinator=ADDRESS:PORT"),
    ],
)
def test_wrong_hosts(args, message, tmp_path):
    done = run_main("--config=configs/blur_digits.py", f"--workdir={tmp_path}", *args)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
