"""What a run records about itself: config, versions, log lines, metrics and trackers."""

import gzip
import importlib
import json
import logging
import re
import sys
import time

import jax
import jaxlib
import numpy as np
import pytest
from conftest import CONFIGS, ROOT, call_main, tiny_config
from ml_collections import ConfigDict
from tensorboard_events import read_events

import colddiff
from colddiff.experiment.build import build
from colddiff.experiment.saved_config import config_json, read_config
from colddiff.runtime.errors import UserError
from colddiff.runtime.events import EventLog
from colddiff.runtime.files import read_json, write_json
from colddiff.runtime.log_file import log_file
from colddiff.training import records
from colddiff.training.loop import train


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["default", *CONFIGS])
def test_a_saved_config_comes_back_with_its_types(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    write_json(tmp_path / "config.json", config_json(config))
    found = read_config(tmp_path / "config.json")
    saved = ConfigDict(config.to_dict()).lock()  # without references
    assert found.is_locked and repr(found) == repr(saved)  # (1, 2) is not [1, 2], 1 not 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no config: .*No such file.*; give the config.json of a run"),
        ("{", "holds no config: Expecting.*; give the config.json of a run"),
        ('{"step": 3}', "holds no config: it must have the sections data, .*; give"),
        ('{"data": 3, "degradation": {}, "model": {}, "train": {}}', "must have the sections"),
    ],
)
def test_other_files_are_no_config(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "config.json")
    done = call_main(f"--config={tmp_path}/config.json", f"--workdir={tmp_path}")
    assert done.returncode == 2 and re.match(f"colddiff: .*{message}", done.stderr)


def test_a_run_is_made_again_from_its_workdir_alone(trained, tmp_path):
    """Compare the parameters bit for bit, and change a field of the saved config by a flag."""
    flags = ["--mode=train", "--workdir", tmp_path, "--config.train.checkpoints_kept=2"]
    done = call_main("--config", trained / "config.json", *flags)
    assert done.returncode == 0, done.stderr
    runs = colddiff.load(trained), colddiff.load(tmp_path)
    assert runs[0].step == runs[1].step == 8
    for before, again in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        assert np.array_equal(before, again)
    assert runs[1].config.train.checkpoints_kept == 2 != runs[0].config.train.checkpoints_kept


def test_a_run_records_each_start_and_each_step_once(tmp_path):
    """Stop at step 3, go on to step 8, then lose checkpoint 8 and go on from step 6."""
    config = tiny_config()
    config.train.num_steps = 3
    assert train(config, tmp_path)
    config.train.update({"num_steps": 8, "lr_schedule": "constant", "learning_rate": 5e-4})
    assert train(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # as a killed process leaves it
    for lost in (tmp_path / "checkpoints" / "8").rglob("*"):
        if lost.is_file():
            lost.unlink()
    assert train(config, tmp_path)

    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    rates = [1e-3 * (1 + np.cos(np.pi * step / 3)) / 2 for step in (1, 2)] + [5e-4] * 3
    np.testing.assert_allclose([line["learning_rate"] for line in lines], rates, rtol=1e-5)
    for line in lines:
        assert list(line)[:2] == ["step", "loss"]
        assert line["images_per_second"] == pytest.approx(8 * line["steps_per_second"])
        assert min(line["grad_norm"], line["param_norm"], line["steps_per_second"]) > 0
        assert 0 <= line["waiting_for_data"] <= 1
    assert read_json(tmp_path / "config.json") == config_json(config)
    events = read_events(tmp_path / "tensorboard")
    assert [s for s, tag in events if tag == "session"] == [1, 4, 7]  # hides the first step 8
    for name in set(lines[0]) - {"step"}:
        assert [s for s, tag in events if tag == f"train/{name}"] == [2, 3, 4, 6, 8, 8]
    starts = read_json(tmp_path / "versions.json")["starts"]
    assert [start["step"] for start in starts] == [0, 3, 6]
    start = starts[-1]
    assert (start["jax"], start["jaxlib"]) == (jax.__version__, jaxlib.__version__)
    assert start["colddiff"] == colddiff.__version__ and start["devices"] == {"cpu": 4}
    if (ROOT / ".git").exists():
        assert len(start["commit"]) == 40 and start["dirty"] in (True, False)
    log = (tmp_path / "log.txt").read_text()
    assert "WARNING the config differs from the saved one in train.num_steps: 3 saved, 8" in log
    assert log.count(f"WARNING moved {tmp_path}/checkpoints/8") == 1


def test_starts_in_the_same_second_keep_their_events(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    for start in (0, 3):
        with EventLog(tmp_path, start=start) as events:
            events.scalar("a", 1.0, start + 1)
    assert read_events(tmp_path) == [(1, "session"), (1, "a"), (4, "session"), (4, "a")]


def test_a_log_file_has_the_lines_before_it_was_opened_and_the_error(tmp_path):
    logger = logging.getLogger("test_records")
    with pytest.raises(UserError), log_file() as write_to:
        logger.warning("at %s", "first")
        write_to(tmp_path / "log.txt")
        logger.warning("then")
        raise UserError("no space")
    logger.warning("afterwards")
    with log_file():
        logger.warning("never written")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    texts = ["WARNING at first", "WARNING then", "ERROR UserError: no space"]
    assert [line.split(" ", 2)[2] for line in lines] == texts


def test_a_commit_is_that_of_the_checkout_alone(tmp_path):
    assert records._commit(tmp_path) == {}  # even below another repository
    (tmp_path / ".git").mkdir()
    assert records._commit(tmp_path) == {}  # not a repository


def test_another_file_of_that_name_is_left(config, tmp_path):
    for name, text in (("metrics.jsonl", "1,2\n"), ("config.json", '{"mine": 1}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} was not written by colddiff; use another"):
            train(config, tmp_path)
        assert (tmp_path / name).read_text() == text


TRACKER = """
seen = []

def init(**settings):
    seen.append(settings)
    if settings["name"] == "refused":
        raise RuntimeError("log in first")
    return Run()

class Run:
    def log(self, line, step):
        assert "step" not in line
        seen.append({"step": step, **line})

    def finish(self):
        seen.append("finished")
"""


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """Return what a stand-in for wandb is given."""
    (tmp_path / "modules" / "wandb").mkdir(parents=True)
    (tmp_path / "modules" / "wandb" / "__init__.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield importlib.import_module("wandb").seen
    sys.modules.pop("wandb", None)


def test_a_tracker_gets_the_config_and_the_lines_of_metrics(config, tracker, tmp_path):
    config.train.num_steps = 3
    config.train.sinks = ("wandb",)
    assert train(config, tmp_path / "run")
    settings, *lines, last = tracker
    assert settings == {
        "dir": tmp_path / "run",
        "project": "colddiff",
        "name": "run",
        "config": config_json(config),
    }
    written = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines == written and last == "finished"
    with pytest.raises(UserError, match=r"wandb of config\.train\.sinks does not start: log in"):
        train(config, tmp_path / "refused")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "'wandb', which is not installed; run pip install wandb, or leave it out"),
        ("tensorboard", "unknown sink of config.train.sinks 'tensorboard'; valid: trackio, wandb"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_before_anything_is_written(
    name, message, config, tmp_path, monkeypatch
):
    (tmp_path / "wandb").mkdir()  # as a tracker leaves in the working directory
    monkeypatch.syspath_prepend(tmp_path)
    config.train.sinks = (name,)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stops", [False, True])
def test_a_trace_holds_the_steps_that_were_asked_for(stops, tmp_path):
    """Read the steps in the trace; the second run ends while it is traced."""
    config = tiny_config()
    config.train.num_steps = 4
    config.train.profile_steps = (2, 9) if stops else (2, 3)
    train(config, tmp_path)
    (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]
    assert steps == ([2, 3, 4] if stops else [2, 3])


@pytest.mark.parametrize("steps", [(3,), (0, 2), (3, 2)])
def test_wrong_steps_to_trace_are_refused(steps):
    config = tiny_config()
    config.train.profile_steps = steps
    with pytest.raises(UserError, match=r"profile_steps=\(.*\) must be \(first, last\)"):
        build(config)
