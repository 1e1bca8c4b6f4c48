"""Curves: the pixels of each series in the picture."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib.colors import to_rgb

from colddiff.reporting.plots import curves
from colddiff.runtime.errors import UserError

TEXTS = {"title": "scores", "x_label": "steps", "y_label": "PSNR (dB)"}
FIRST, SECOND = "#0072B2", "#D55E00"


def ink(picture, color, *, legend=False):
    """Return (row, column) `[N, 2]` of the pixels of one colour, with or without the legend."""
    places = np.argwhere((picture == np.round(np.array(to_rgb(color)) * 255)).all(axis=-1))
    return places if legend else places[places[:, 0] < 450]


def bend(picture):
    """Return the largest distance of a line's pixels from a straight line, in pixels."""
    row, column = ink(picture, FIRST).T
    return np.abs(row - np.polyval(np.polyfit(column, row, 1), column)).max()


def test_lines_lie_where_their_values_are():
    low, high = [(x, 1.0) for x in range(5)], [(x, 3.0) for x in range(5)]
    picture = curves({"low": low, "high": high}, **TEXTS)
    assert picture.dtype == np.uint8 and picture.shape == (560, 900, 3)
    first, second = ink(picture, FIRST), ink(picture, SECOND)
    assert first[:, 0].min() > second[:, 0].max() + 200
    for places in (first, second):
        assert np.ptp(places[:, 1]) > 600 and np.ptp(places[:, 0]) < 12
    swapped = ink(curves({"high": high, "low": low}, **TEXTS), FIRST)
    assert swapped[:, 0].mean() == pytest.approx(second[:, 0].mean(), abs=2)


def test_a_straight_line_is_straight_on_its_own_kind_of_axis():
    x = np.geomspace(1, 1000, 60)
    straight, logarithm = {"": np.stack([x, x], 1)}, {"": np.stack([x, np.log(x)], 1)}
    assert bend(curves(straight, **TEXTS)) < 6 < bend(curves(straight, **TEXTS, log_x=True))
    assert bend(curves(logarithm, **TEXTS, log_x=True)) < 6 < bend(curves(logarithm, **TEXTS))


def test_one_point_is_a_point():
    picture = curves({"line": [(1, 0), (9, 9)], "direct": [(5, 2)]}, **TEXTS)
    places = ink(picture, SECOND)
    assert len(places) > 20 and (np.ptp(places, axis=0) < 12).all()


def test_what_is_not_finite_is_left_out():
    inf, nan = float("inf"), float("nan")
    clean = curves({"a": [(1, 2), (3, 5)], "b": [(2, 2)]}, **TEXTS)
    holes = {"a": [(1, 2), (2, nan), (nan, 1), (3, 5), (4, inf)], "": [(1, -inf)], "b": [(2, 2)]}
    assert np.array_equal(curves(holes, **TEXTS), clean)
    logarithmic = curves({"a": [(1, 2), (3, 5)]}, **TEXTS, log_x=True)
    more = {"a": [(0, 9), (1, 2), (-1, 0), (3, 5)]}
    assert np.array_equal(curves(more, **TEXTS, log_x=True), logarithmic)


@pytest.mark.parametrize("series", ({}, {"a": []}, {"a": [(1, float("nan"))]}))
def test_nothing_to_draw(series):
    with pytest.raises(UserError, match="nothing to draw in 'scores'"):
        curves(series, **TEXTS)


def test_bad_points_are_refused():
    with pytest.raises(UserError, match="a finite point with x > 0"):
        curves({"a": [(0, 1), (-2, 1)]}, **TEXTS, log_x=True)
    for points in ([1, 2], [(1, 2, 3)], [(1, "high")], [(1, None)]):
        with pytest.raises(UserError, match=r"series 'a' must consist of pairs of numbers"):
            curves({"a": points}, **TEXTS)


def test_names_are_plain_text():
    """Use `$`, which would begin mathematics, and `_` in front, which would hide a name."""
    points = [(1, 1), (2, 2)]
    odd = r"$\frac{$ _x^"
    texts = {"title": odd, "x_label": odd, "y_label": odd}
    picture = curves({odd: points, "_hidden": points}, **texts)
    hidden, shown = (curves({name: points}, **TEXTS) for name in ("_hidden", "shown"))
    assert len(ink(picture, SECOND, legend=True)) > len(ink(picture, SECOND)) + 20
    assert len(ink(hidden, FIRST, legend=True)) == len(ink(shown, FIRST, legend=True))
    assert not np.array_equal(hidden, shown)


def test_long_and_many_names_stay_on_the_picture():
    points = {f"a rather long name of a series, number {i}": [(1, i), (2, i)] for i in range(12)}
    texts = TEXTS | {"title": "a title that goes on and on " * 6}
    for series in (points, {"x" * 150: [(1, 1)]}):
        picture = curves(series, **texts)
        edge = np.concatenate([picture[:4].ravel(), picture[-4:].ravel()])
        sides = np.concatenate([picture[:, :4].ravel(), picture[:, -4:].ravel()])
        assert (edge == 255).all() and (sides == 255).all()
        assert np.ptp(ink(picture, FIRST)[:, 1]) > 5


def ticks(picture):
    """Return the columns of the vertical grid lines, and whether each has a label below it."""
    gray = (picture == 0xDD).all(axis=-1)
    columns = np.flatnonzero(np.diff((gray.mean(axis=0) > 0.3).astype(int)) == 1) + 1
    bottom = np.flatnonzero(gray[:, columns[0]]).max()
    dark = (picture[bottom + 4 : bottom + 24] < 0x60).all(axis=-1).any(axis=0)
    return columns, [dark[max(column - 8, 0) : column + 8].any() for column in columns]


@pytest.mark.parametrize("x", [(1,), (1, 2), (1, 3, 7, 20), (1, 85, 100), range(1, 14), (1, 1e12)])
def test_every_step_of_a_logarithmic_axis_has_a_label(x):
    columns, labelled = ticks(curves({"a": [(x, 1 / x) for x in x]}, **TEXTS, log_x=True))
    assert len(columns) == len(x) and all(labelled)


def test_labels_that_do_not_fit_are_left_out():
    columns, labelled = ticks(curves({"a": [(x, 1) for x in (1, 960, 1000)]}, **TEXTS, log_x=True))
    assert len(columns) == 3 and labelled[0] and labelled[2]


@pytest.mark.parametrize("x", [(8,), (4, 5, 6)])
def test_whole_numbers_have_whole_ticks(x):
    columns, labelled = ticks(curves({"a": [(x, x) for x in x]}, **TEXTS))
    assert len(columns) == len(x) and all(labelled)


def test_it_leaves_nothing_behind():
    first = curves({"a": [(1, 1), (2, 2)]}, **TEXTS)
    curves({"b": [(1, 1)], "c": [(3, 1)]}, **TEXTS, log_x=True)
    assert np.array_equal(curves({"a": [(1, 1), (2, 2)]}, **TEXTS), first)
    assert first.flags.owndata and first.flags.writeable
    code = "import sys, matplotlib; from colddiff.reporting.plots import curves\n"
    code += "before = dict(matplotlib.rcParams)\n"
    code += f"curves({{'a': [(1, 1)]}}, log_x=True, **{TEXTS})\n"
    code += "assert dict(matplotlib.rcParams) == before\n"
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    environment = os.environ | {"MPLBACKEND": "agg"}  # if unset, reading it imports pyplot
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
