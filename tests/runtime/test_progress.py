"""Progress on a terminal, also a narrow one, and without a terminal."""

import logging
import time

import pytest
from rich.console import Console

from colddiff.runtime.progress import Meter


@pytest.fixture
def meter(monkeypatch):
    """Return a meter after 99 of 700,000 steps and 100 seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter("train", total=700_000, images_per_step=64)
    now[0] += 100
    for _ in range(99):
        meter.advance()
    return meter


def test_log_lines_tell_days(meter, caplog):
    caplog.set_level(logging.INFO)
    meter.advance()
    meter.note("loss 0.1234")
    (line,) = (r.getMessage() for r in caplog.records)
    expected = "train 100/700000  1 steps/s  64 images/s  ETA 8 days, 2:25:00  loss 0.1234"
    assert line == expected


def test_a_narrow_terminal_keeps_steps_speed_and_eta(meter):
    meter._live.live.transient = meter._live.disable = False
    meter.advance()
    meter.note("loss 0.1234  grad_norm 12.345")
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(meter._live.get_renderable())
    shown = captured.get().strip()
    assert shown.startswith("train 100/700000  1 steps/s  64 images/s  ETA 8 days, 2:25:00  loss 0")
    assert "\n" not in shown


def test_time_that_is_not_counted_is_in_no_speed_and_no_eta(monkeypatch, caplog):
    """Compile for 50 seconds, then take 10 steps of one second."""
    caplog.set_level(logging.INFO)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter("train", total=40, images_per_step=8)
    with meter.uncounted():
        now[0] += 50
    for _ in range(10):
        now[0] += 1
        meter.advance()
    assert meter.speeds() == (1, 8)
    meter.note()
    assert "train 10/40  1 steps/s  8 images/s  ETA 0:00:30" in caplog.text


def test_waiting_is_measured(monkeypatch):
    """Wait one second for each item, then work three seconds; a note starts a new count."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def items():
        for i in range(4):
            now[0] += 1
            yield i

    meter = Meter("train", total=4, images_per_step=1)
    shares = []
    for i in meter.waiting_for(items()):
        now[0] += 3
        shares.append(meter.waited())
        if i == 1:
            meter.note()
    assert shares == [1 / 4, 2 / 8, 1 / 4, 2 / 8]
    assert list(meter.waiting_for([])) == []
