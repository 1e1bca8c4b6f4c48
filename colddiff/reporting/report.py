"""Scores as tables, plots and pages: Markdown, JSON, and one HTML file with its pictures inside.

The files are `WORKDIR/evaluation/STEP/report.*` for one run, `study.*` for one run with several
numbers of sampler steps, and `table.*` for several runs. `colddiff.evaluation.evaluate` defines the
scores.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colddiff.evaluation.bootstrap import difference
from colddiff.evaluation.evaluate import Report, Row, load_test_images
from colddiff.evaluation.features import FEW, FEW_NOTE
from colddiff.experiment.build import CONSISTENT, full_name
from colddiff.images import mosaic
from colddiff.inference.run import Run
from colddiff.reporting import page, plots
from colddiff.reporting.pictures import animation, picture, record_walk
from colddiff.runtime.devices import is_first_host
from colddiff.runtime.files import (
    as_json,
    markdown_table,
    read_json,
    save_gif,
    save_png,
    write_json,
    write_text,
)

_TITLES = {
    "degraded": "Degraded (xT)",
    "direct": "Direct",
    "naive": "Naive (Algorithm 1)",
    "tacos": "Sampled (tacos, Algorithm 2)",
    "tacos_x0": "Algorithm 2 that ends with R(x, s)",
    "second_order": "Algorithm 2 of second order",
    "momentum": "Algorithm 2 with momentum",
    "ddim": "Estimated noise (DDIM)",
    "ddpm": "Estimated noise (DDPM)",
}
_FRAMES = 50  # largest number of frames of the page's walk
_NOTHING = "–"
# Last and with its space's name, so that nobody compares it with an FD in another space.
_PAPER_FID = "FID of Inception, the paper"


def title_of(name: str) -> str:
    """Return the title of a row, 'degraded' or a sampler's name; it may end with '+consistency'."""
    base = name.removesuffix(CONSISTENT)
    return _TITLES[base] + (" + consistency" if name != base else "")


def headline(report: Report) -> str:
    """Return one line that says which run, data and degradation a report is about."""
    reference = f", distances to all {report.num_reference}" if report.num_reference else ""
    return (
        f"{report.source}, split {report.split}, n = {report.num_images}{reference}, "
        f"{report.degradation}, T = {report.T}, weights {report.weights} of step {report.step}"
    )


def table(reports: Mapping[str, Report]) -> page.Table:
    """Return one table of the reports, in the paper's layout, with the paper's scores.

    With several reports, each row begins with the title of its report.
    """
    spaces = list(
        dict.fromkeys(d.features for r in reports.values() for row in r.rows for d in row.distances)
    )
    counts: dict[str, list[int]] = {space: [] for space in spaces}
    for distance in (d for r in reports.values() for row in r.rows for d in row.distances):
        known = counts[distance.features]
        known[:] = sorted({*known, *distance.frechet_at})
    papers = any(report.paper for report in reports.values())
    several = len(reports) > 1
    header = ["", "steps"]
    for space in spaces:
        header += [f"FD, {space}", f"KD, {space}"]
        header += [f"FD at n = {n}, {space}" for n in counts[space]]
    header += ["SSIM", "RMSE", "PSNR (dB)", "ms / image"]
    header += ["SSIM, the paper", "RMSE, the paper", _PAPER_FID] if papers else []
    rows = []
    for title, report in reports.items():
        for row in report.rows:
            name = f"{title}: {title_of(row.name)}" if several else title_of(row.name)
            cells = [name, str(row.steps), *_distances(row, spaces, counts)]
            cells += [_number(row.ssim, 4), _number(row.rmse, 4), _number(row.psnr, 2)]
            cells.append(_number(1000 * row.seconds, 1))
            if papers:
                theirs = row.name in ("degraded", "direct") or row.steps == report.T
                said = report.paper.get(row.name) if theirs else None
                fid, ssim, rmse = said or [None] * 3
                cells += [_number(ssim, 3), _number(rmse, 3), _number(fid, 2)]
            rows.append(cells)
    # With one run, the page already shows the headline as its subtitle.
    heads = "; ".join(f"{t}: {headline(r)}" for t, r in reports.items()) if several else ""
    note = ". ".join(filter(None, [heads, *_legend(rows)]))
    return page.Table("Scores", header, rows, note)


def differences(report: Report) -> page.Table | None:
    """Return each restored row's scores minus those of Algorithm 2 with most steps.

    Differences are followed by their paired 95% intervals over the images (`bootstrap`); those
    whose interval does not include 0 are marked. It is None without replicates, or without a row of
    Algorithm 2.
    """
    rows = [row for row in report.rows[1:] if row.replicates]
    base = max(
        (row for row in rows if row.name == "tacos"), key=lambda row: row.steps, default=None
    )
    if base is None:
        return None
    kinds = [kind for kind in base.replicates if math.isfinite(_score(base, kind))]
    lines = []
    for row in rows:
        cells = [title_of(row.name), str(row.steps)]
        for kind in kinds if row is not base else ():
            values = _score(row, kind), _score(base, kind)
            value, low, high = difference(*values, row.replicates[kind], base.replicates[kind])
            mark = "" if low <= 0 <= high else " *"
            cells.append(f"{value:+.4g} ({low:+.4g} … {high:+.4g}){mark}")
        lines.append(cells + ["base"] * (len(kinds) if row is base else 0))
    title = f"Differences to {title_of(base.name)} with {base.steps} steps"
    note = "95% intervals over the images, paired; * does not include 0"
    return page.Table(title, ["", "steps", *map(_name, kinds)], lines, note)


def _score(row: Row, kind: str) -> float:
    """Return a row's score by the name that its replicates have: rmse, ssim or fd/SPACE."""
    name, _, space = kind.partition("/")
    if not space:
        return getattr(row, name)
    return next(d.frechet for d in row.distances if d.space == space)


def _legend(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return what the marks in a table's cells mean."""
    return [FEW_NOTE] if any(cell.endswith(FEW) for row in rows for cell in row) else []


def _distances(row: Row, spaces: Sequence[str], counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the cells of a row's distances in each space."""
    own, cells = {d.features: d for d in row.distances}, []
    for space in spaces:
        if space not in own:
            cells += [_NOTHING] * (2 + len(counts[space]))
            continue
        found = own[space]
        kernel = _NOTHING
        if found.kernel is not None:
            kernel = f"{found.kernel.value:.3g} ± {found.kernel.error:.1g}"
        cells += [_number(found.frechet, 2) + FEW * found.few, kernel]
        for n in counts[space]:
            few = n in found.frechet_at and (found.few or n < found.dimension)
            cells.append(_number(found.frechet_at.get(n), 2) + FEW * few)
    return cells


def _number(value: float | None, digits: int) -> str:
    """Return a score with `digits` decimals, or a dash if it is missing or not finite."""
    exists = value is not None and math.isfinite(value)
    return f"{value:.{digits}f}" if exists else _NOTHING


def markdown(reports: Mapping[str, Report]) -> str:
    """Return the headline of each report, then one table of all reports, in Markdown."""
    found = table(reports)
    several = len(reports) > 1
    heads = [f"{t}: {headline(r)}" if several else headline(r) for t, r in reports.items()]
    legend = ["", *text] if (text := _legend(found.rows)) else []
    lines = [*heads, "", *markdown_table([found.header, *found.rows]), *legend]
    for title, report in reports.items():
        if further := differences(report):
            lines += ["", f"{title}: " * several + f"{further.title}; {further.note}", ""]
            lines += markdown_table([further.header, *further.rows])
    return "\n".join(lines) + "\n"


def scores_of(report: Report) -> dict[str, float]:
    """Return the scores of the restored rows by 'SAMPLER/SCORE'.

    SCORE is rmse, psnr, ssim, fd/SPACE or kd/SPACE. Scores that are not finite are left out.
    """
    scores = {}
    for row in report.rows[1:]:
        found = {"rmse": row.rmse, "psnr": row.psnr, "ssim": row.ssim}
        for distance in row.distances:
            found[f"fd/{distance.space}"] = distance.frechet
            if distance.kernel is not None:
                found[f"kd/{distance.space}"] = distance.kernel.value
        scores |= {f"{row.name}/{name}": v for name, v in found.items() if math.isfinite(v)}
    return scores


def study_plots(report: Report) -> dict[str, np.ndarray]:
    """Plot each score against the number of sampler steps, with a curve for each sampler."""
    kinds = {"RMSE": lambda row: row.rmse, "SSIM": lambda row: row.ssim}
    for place, distance in enumerate(report.rows[0].distances):
        kinds[f"FD, {distance.features}"] = lambda row, i=place: row.distances[i].frechet
    found = {}
    for kind, of in kinds.items():
        series: dict[str, list[tuple[float, float]]] = {}
        for row in report.rows[1:]:
            series.setdefault(title_of(row.name), []).append((row.steps, of(row)))
        if any(math.isfinite(y) for points in series.values() for _, y in points):
            found[kind] = plots.curves(
                series,
                title=f"{kind} against steps: {report.source}, {report.degradation}",
                x_label="steps",
                y_label=kind,
                log_x=True,
            )
    return found


def evolution_plots(evolution: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Plot each score at the checkpoints of training, with a curve for each sampler.

    Args:
      evolution: content of evolution.json, `{"num_images": n, "split": name, "scores": {step:
        scores_of(.)}}`.
    """
    by_kind: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for step, scores in evolution.get("scores", {}).items():
        for name, value in scores.items():
            sampler, _, kind = name.partition("/")
            series = by_kind.setdefault(kind, {})
            series.setdefault(title_of(sampler), []).append((int(step), value))
    split = evolution.get("split", "test")
    title = f"{{}} of the first {evolution.get('num_images')} {split} images"
    return {
        kind: plots.curves(
            series,
            title=title.format(_name(kind)),
            x_label="training step",
            y_label=_name(kind),
        )
        for kind, series in by_kind.items()
    }


def _name(kind: str) -> str:
    """Return a score's name for readers, such as 'RMSE' or 'FD pca'."""
    score, _, space = kind.partition("/")
    return f"{score.upper()} {space}".strip()


def write(report: Report, run: Run, *, name: str = "report", pictured: str = "") -> Path:
    """Write NAME.json, NAME.md and NAME.html.

    If anything was restored, also write samples.png, and restoration.gif with the walk from xT to
    x0. All hosts must call it; the first host writes.

    Args:
      report: the scores.
      run: the run that was scored.
      name: begins with 'report', or with 'study' to add plots over the number of sampler steps.
      pictured: added to the names of the pictures, which depend on the weights, the images and the
        times, but not on the samplers that are scored.

    Returns:
      The folder of the files, `workdir/evaluation/STEP`.
    """
    workdir = run.workdir
    folder = workdir / "evaluation" / f"{report.step:07d}"
    reports = {workdir.name: report}
    sections, pictures, frames = [table(reports)], {}, []
    sections += filter(None, [differences(report)])
    if name.startswith("study"):
        for kind, plot in study_plots(report).items():
            pictures[f"{name}-{file_name(kind)}.png"] = plot
            sections.append(page.Picture(kind, plot))
    if len(report.rows) > 1:
        images = load_test_images(run.config, run.config.eval.pictures)
        way = record_walk(run, images, _FRAMES)
        pictures[f"samples{pictured}.png"] = samples = picture(run, images, way)
        frames = animation(images, way)
        title = f"From xT to x0: {title_of(full_name(run.config, run.config.sampler.name))}"
        iterates = [mosaic(x) for x in way.iterates]
        ends = (("x0", mosaic(images)), ("xT", iterates[0]))
        sections.append(page.Walk(title, way.times, iterates, beside=ends))
        sections.append(page.Picture("Restored images", samples))
    if not is_first_host():
        return folder
    evolution = read_json(workdir / "evolution.json")
    if evolution is not None:
        for kind, plot in evolution_plots(evolution).items():
            sections.append(page.Picture(f"{_name(kind)} in training", plot))
    for file, image in pictures.items():
        save_png(folder / file, image)
    if frames:
        save_gif(folder / f"restoration{pictured}.gif", frames)
    write_json(folder / f"{name}.json", as_json(report))
    write_text(folder / f"{name}.md", markdown(reports))
    text = page.render(workdir.name, sections, subtitle=headline(report))
    write_text(folder / f"{name}.html", text)
    return folder


def write_table(reports: Mapping[str, Report], folder: Path) -> None:
    """Write one table of several runs to table.json, table.md and table.html."""
    if not is_first_host():
        return
    write_json(folder / "table.json", as_json(dict(reports)))
    write_text(folder / "table.md", markdown(reports))
    write_text(folder / "table.html", page.render("Scores", [table(reports)]))


def file_name(text: str) -> str:
    """Return the text as an ASCII file name: lower case, `_` in place of all but a-z and 0-9."""
    return re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")
