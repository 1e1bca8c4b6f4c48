"""Curves as pictures, by matplotlib, without files, windows or global state."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from colddiff.runtime.errors import UserError

_INCHES, _DPI = (9.0, 5.6), 100
_LETTERS = 75  # per line of text
_AXIS = 730  # pixels of the x axis, about
_DIGIT, _LINE = 11, 17  # pixels that a tick's label takes, per digit and across
# Okabe & Ito 2008, distinct for the colour-blind; without yellow, which is too pale on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_MARKERS = "osD^vp<>"  # 8 markers × 7 colours: the first 56 series differ
_INK, _GRID = "#333333", "#dddddd"


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> np.ndarray:
    """Draw a line with markers through the points of each series, in the order given.

    All texts are plain: `$` does not begin mathematics. Ticks of whole numbers are whole.

    Args:
      series: points (x, y) by name. Points that are not finite and, with `log_x`, points with
        x ≤ 0 are left out. A series without points is left out.
      title: text above the axes.
      x_label: text of the x axis.
      y_label: text of the y axis.
      log_x: whether the x axis is logarithmic, with a tick at every point.

    Returns:
      One picture, uint8 `[560, 900, 3]`.

    Raises:
      UserError: a series does not consist of pairs of numbers, or no point is left.
    """
    points = {name: _points(name, pairs, log_x) for name, pairs in series.items()}
    points = {name: xy for name, xy in points.items() if len(xy)}
    if not points:
        kind = "finite point with x > 0" if log_x else "finite point"
        raise UserError(f"nothing to draw in {title!r}: no series of {list(series)} has a {kind}")
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)  # inches
    figure = Figure(_INCHES, _DPI, facecolor="white", layout=margins)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _dress(axes)
    x = np.unique(np.concatenate([xy[:, 0] for xy in points.values()]))
    if log_x:
        _log_axis(axes, x)
    elif (x == x.round()).all():
        ticks = MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
        axes.xaxis.set_major_locator(ticks)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(textwrap.fill(title, _LETTERS), parse_math=False, size=15, color=_INK, pad=12)
    axes.set_xlabel(x_label, parse_math=False, size=13, color=_INK)
    axes.set_ylabel(y_label, parse_math=False, size=13, color=_INK)
    lines = [
        axes.plot(
            *xy.T,
            color=_COLORS[i % len(_COLORS)],
            marker=_MARKERS[i % len(_MARKERS)],
            linewidth=2,
            markersize=7,
            markeredgecolor="white",
            zorder=3,
        )[0]
        for i, xy in enumerate(points.values())
    ]
    _legend(figure, lines, list(points))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _points(name: str, pairs: Sequence[tuple[float, float]], log_x: bool) -> np.ndarray:
    """Return the points that can be drawn, float64 `[N, 2]`."""
    try:
        xy = np.array([(float(x), float(y)) for x, y in pairs]).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise UserError(f"series {name!r} must consist of pairs of numbers (x, y)") from error
    drawn = np.isfinite(xy).all(axis=1)
    return xy[drawn & (xy[:, 0] > 0)] if log_x else xy[drawn]


def _log_axis(axes: Axes, x: np.ndarray) -> None:
    """Make x logarithmic, with a tick and a label at each of `x`, which increase.

    Labels that would overlap are turned by 90°. Where they would overlap even so, only the larger
    x has a label.
    """
    places = _AXIS * np.log(x / x[0]) / max(np.log(x[-1] / x[0]), 1e-9)
    texts = [f"{value:g}" for value in x]
    widths = np.array([_DIGIT * len(text) for text in texts])
    crowded = (np.diff(places) < (widths[1:] + widths[:-1]) / 2).any()
    free = np.inf
    for i in reversed(range(len(x))) if crowded else ():
        if free - places[i] < _LINE:
            texts[i] = ""
        else:
            free = places[i]
    axes.set_xscale("log")
    axes.set_xticks(x, texts, rotation=90 if crowded else 0)
    axes.xaxis.set_minor_locator(NullLocator())


def _dress(axes: Axes) -> None:
    """Style the grid, the frame and the ticks."""
    axes.grid(color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(color=_GRID, labelcolor=_INK, labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")


def _legend(figure: Figure, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    """Add a legend below the axes, where it covers no line."""
    columns = max(1, min(len(names), (_LETTERS + 15) // (max(map(len, names)) + 7)))
    names = [textwrap.fill(name, _LETTERS) for name in names]
    legend = figure.legend(
        lines, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=12
    )
    for text in legend.get_texts():
        text.set(parse_math=False, color=_INK)
