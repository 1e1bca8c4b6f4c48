"""The benchmark's table on a tiny config; the times themselves are not tested."""

import json

import jax
import pytest
from conftest import REAL_NETWORK, TINY_FLAGS, call_main

from colddiff import benchmark
from colddiff.runtime.compiler import cpu_options
from colddiff.runtime.errors import UserError

QUICK = {"_ROUNDS": 2, "_SIDE": 64, "_LEAST_SECONDS": 1e-3, "_STARTS": 1}


def test_every_part_is_timed_and_written(config, tmp_path, monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setattr(benchmark, name, value)
    found = benchmark.benchmark(config)
    by_name = {t.name: t for t in found.timings}
    T = config.degradation.num_steps
    degrading = [f"degrade, t={t}" for t in (1, T // 2, T)]
    parts = ["train step", "matrix product", "forward", *degrading]
    parts += ["sampling", "sampling, R(x) = x", "data"]
    assert list(by_name) == parts
    for part in found.timings:
        low, median, high = part.seconds
        assert 0 < low <= median <= high
    assert by_name["matrix product"].flops == 2 * 64**3 * jax.device_count()
    assert by_name["train step"].flops > 2 * by_name["forward"].flops > 0
    assert by_name["train step"].images == config.train.batch_size * config.train.accumulation
    assert by_name["train step"].bytes > by_name["forward"].bytes > 0
    assert 0 <= found.waiting <= 1 and found.outside > 0
    path = benchmark.write(found, tmp_path)
    text = path.read_text()
    assert all(f"| {name} |" in text for name in parts)
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert [t["name"] for t in saved["timings"]] == parts
    assert saved["config"]["model"]["name"] == config.model.name
    assert saved["compiler_options"] == (cpu_options() or {})
    assert all(f"{name}=" in text for name in saved["compiler_options"])


def test_a_start_that_fails_says_why():
    with pytest.raises(UserError, match=r"(?s)configs/none.py.*failed:.*configs/none.py"):
        benchmark._time_starts(["--config=configs/none.py"])


@pytest.mark.slow
def test_the_command_times_starts_too(tmp_path, monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setattr(benchmark, name, value)
    done = call_main(*TINY_FLAGS, *REAL_NETWORK, "--mode=benchmark", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines()]
    assert {"start, nothing cached", "start, cached", "train step"} <= set(rows)
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert all(t["seconds"][1] > 0 for t in saved["timings"][:2])
    assert not (tmp_path / "checkpoints").exists()
