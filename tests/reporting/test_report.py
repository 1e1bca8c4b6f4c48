"""Tables, JSON and pages of known scores."""

import json
import math

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from colddiff.evaluation import evaluate
from colddiff.evaluation.metrics import Estimate
from colddiff.experiment.build import build, init_params
from colddiff.inference.run import Run
from colddiff.reporting import pictures, report


def distance(value, at=None):
    estimate = Estimate(value / 100, 0.0012)
    return evaluate.Distance("pca", "pca-32 of digits", value, estimate, at or {})


def row(name, steps, **changes):
    scores = {"rmse": 0.25, "psnr": 12.04, "ssim": 0.5, "seconds": 0.0123}
    scores |= {"times": [6, 0], "distances": [distance(3.5)]} | changes
    return evaluate.Row(name=name, steps=steps, **scores)


def make(rows, **changes):
    fields = dict(
        source="digits", split="test", num_images=20, num_reference=297,
        degradation="gaussian_blur", T=6, weights="EMA", step=8, rows=rows, paper={},
    )  # fmt: skip
    return evaluate.Report(**fields | changes)


def test_the_table_in_the_paper_s_layout():
    rows = [row("degraded", 0), row("direct", 1, rmse=0.0, psnr=math.inf, ssim=math.nan)]
    rows.append(row("tacos", 6))
    paper = {"degraded": [438.59, 0.287, 0.287], "tacos": [None, 0.718, 0.154]}
    lines = report.markdown({"a run": make(rows, paper=paper)}).splitlines()
    assert lines[0] == (
        "digits, split test, n = 20, distances to all 297, gaussian_blur, T = 6, "
        "weights EMA of step 8"
    )
    assert lines[2:] == [
        "| | steps | FD, pca-32 of digits | KD, pca-32 of digits | SSIM | RMSE | PSNR (dB) | "
        "ms / image | SSIM, the paper | RMSE, the paper | FID of Inception, the paper |",
        "|" + "---|" * 11,
        "| Degraded (xT) | 0 | 3.50 | 0.035 ± 0.001 | 0.5000 | 0.2500 | 12.04 | 12.3 | 0.287 | "
        "0.287 | 438.59 |",
        "| Direct | 1 | 3.50 | 0.035 ± 0.001 | – | 0.0000 | – | 12.3 | – | – | – |",
        "| Sampled (tacos, Algorithm 2) | 6 | 3.50 | 0.035 ± 0.001 | 0.5000 | 0.2500 | 12.04 | "
        "12.3 | 0.718 | 0.154 | – |",
    ]
    fewer = report.markdown({"a run": make([row("tacos", 2)], paper=paper)}).splitlines()
    assert fewer[-1].endswith("| 12.3 | – | – | – |")  # the paper's take T steps


def test_differences_to_algorithm_2():
    """Write replicates whose quantiles are known: 2.5% and 97.5% of 0..40 are 1 and 39."""
    even = [n / 1000 for n in range(41)]
    base = row("tacos", 6, replicates={"rmse": [0.25] * 41, "fd/pca": [3.5] * 41})
    best = row("naive", 2, rmse=0.2, replicates={"rmse": even, "fd/pca": [v * 1e3 for v in even]})
    few = row("tacos", 3, replicates={"rmse": [0.0] * 41, "fd/pca": [0.0] * 41})
    lines = report.markdown({"a run": make([row("degraded", 0), base, best, few])}).splitlines()
    at = lines.index("| | steps | RMSE | FD pca |")
    assert lines[at - 2].startswith("Differences to Sampled (tacos, Algorithm 2) with 6 steps; 95%")
    assert lines[at + 2 :] == [
        "| Sampled (tacos, Algorithm 2) | 6 | base | base |",
        "| Naive (Algorithm 1) | 2 | -0.05 (-0.069 … -0.031) * | +0 (-19 … +19) |",
        "| Sampled (tacos, Algorithm 2) | 3 | +0 (+0 … +0) | +0 (+0 … +0) |",
    ]
    assert report.differences(make([row("tacos", 6)])) is None
    assert report.differences(make([best])) is None


def test_one_table_of_several_runs():
    """Use different spaces: each row names its run, and has dashes for the other spaces."""
    other = evaluate.Distance("classifier", "classifier of tfds:mnist", 7.0, None, {10: 8.5})
    reports = {
        "one": make([row("degraded", 0)]),
        "two": make([row("degraded", 0, distances=[other])], source="tfds:mnist"),
        "three": make([row("degraded", 0, distances=[])], num_reference=0),
    }
    lines = report.markdown(reports).splitlines()
    assert lines[0].startswith("one: digits, ") and lines[1].startswith("two: tfds:mnist, ")
    assert "distances" not in lines[2]
    assert lines[4] == (
        "| | steps | FD, pca-32 of digits | KD, pca-32 of digits | FD, classifier of tfds:mnist | "
        "KD, classifier of tfds:mnist | FD at n = 10, classifier of tfds:mnist | SSIM | RMSE | "
        "PSNR (dB) | ms / image |"
    )
    assert lines[6].startswith("| one: Degraded (xT) | 0 | 3.50 | 0.035 ± 0.001 | – | – | – | 0.5")
    assert lines[7].startswith("| two: Degraded (xT) | 0 | – | – | 7.00 | – | 8.50 | 0.5")
    assert lines[8].startswith("| three: Degraded (xT) | 0 | – | – | – | – | – | 0.5")


def test_counts_of_all_runs_are_columns():
    rows = [[row("degraded", 0, distances=[distance(2.0, at)])] for at in ({10: 5.0}, {}, {7: 6.0})]
    lines = report.markdown({str(i): make(r) for i, r in enumerate(rows)}).splitlines()
    name = "pca-32 of digits"
    assert f"| KD, {name} | FD at n = 7, {name} | FD at n = 10, {name} |" in lines[4]
    found = [line.split(" | ")[4:6] for line in lines[6:]]
    assert found == [["–", "5.00"], ["–", "–"], ["6.00", "–"]]


def test_distances_of_few_images_are_marked():
    """Use 20 images in two spaces: one where only a subset is small, one with few references."""
    of_many = distance(3.5, {5: 4.5, 20: 4.0})._replace(dimension=8)
    of_few = evaluate.Distance("pixels", "pixels", 2.5, None, {5: 5.5, 20: 5.0}, 10, few=True)
    written = make([row("degraded", 0, distances=[of_many, of_few])])
    found = report.table({"a run": written})
    marked = [cell for cell in found.rows[0] if cell.endswith("†")]
    assert marked == ["4.50 †", "2.50 †", "5.50 †", "5.00 †"]
    lines = report.markdown({"a run": written}).splitlines()
    assert lines[-2:] == ["", found.note] and found.note.startswith("† fewer images than")


def test_scores_by_name():
    rows = [row("degraded", 0), row("tacos", 6), row("direct", 1, psnr=math.inf, distances=[])]
    assert report.scores_of(make(rows)) == {
        "tacos/rmse": 0.25, "tacos/psnr": 12.04, "tacos/ssim": 0.5, "tacos/fd/pca": 3.5,
        "tacos/kd/pca": 0.035, "direct/rmse": 0.25, "direct/ssim": 0.5,
    }  # fmt: skip


@pytest.fixture(scope="module")
def experiment():
    return build(tiny_config())


@pytest.mark.parametrize("name", ["report", "study"])
def test_what_is_written(name, experiment, tmp_path):
    params = init_params(experiment, jax.random.key(0))
    far = distance(3.5)._replace(features="pca-32 of digits 32²×1")
    rows = [row("degraded", 0, distances=[far])]
    rows += [row("direct", 1, psnr=math.inf, distances=[far])]
    rows += [row("tacos", n, rmse=1 / n, distances=[far]) for n in (2, 6)]
    (tmp_path / "evolution.json").write_text(
        '{"num_images": 5, "scores": {"4": {"tacos/rmse": 0.3}, "8": {"tacos/rmse": 0.2}}}'
    )
    folder = report.write(make(rows), Run(experiment, params, 0, tmp_path), name=name)
    assert folder == tmp_path / "evaluation" / "0000008"
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["num_images"] == 20 and found["weights"] == "EMA" and found["step"] == 8
    assert found["rows"][1]["psnr"] is None and found["rows"][0]["times"] == [6, 0]
    assert found["rows"][0]["distances"][0]["kernel"] == {"value": 0.035, "error": 0.0012}
    assert (folder / f"{name}.md").read_text() == report.markdown({tmp_path.name: make(rows)})
    with Image.open(folder / "restoration.gif") as gif:
        assert gif.n_frames == 7 and gif.width > 3 * 2 * 64  # t = 6..0; xT, xt and x0 side by side
    picture = np.asarray(Image.open(folder / "samples.png"))
    assert picture.shape[1] > 6 * 96 and picture.std() > 10
    page = (folder / f"{name}.html").read_text()
    assert "Sampled (tacos, Algorithm 2)" in page and "weights EMA of step 8" in page
    assert page.count("RMSE in training") >= 1
    plots = sorted(p.name for p in folder.glob("study-*.png"))
    expected = ["study-fd_pca_32_of_digits_32_1.png", "study-rmse.png", "study-ssim.png"]
    assert plots == (expected if name == "study" else [])


def test_nothing_was_restored(experiment, tmp_path):
    folder = report.write(make([row("degraded", 0)], step=0), Run(experiment, workdir=tmp_path))
    assert {p.name for p in folder.iterdir()} == {"report.json", "report.md", "report.html"}


def test_a_table_is_written(tmp_path):
    reports = {"one": make([row("degraded", 0)]), "two": make([row("degraded", 0)])}
    report.write_table(reports, tmp_path / "new")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "table.json",
        "table.md",
        "table.html",
    }
    assert list(json.loads((tmp_path / "new" / "table.json").read_text())) == ["one", "two"]


def test_a_picture_of_a_known_walk(experiment):
    """Compare with the picture that computes the walk itself."""
    run = Run(experiment, init_params(experiment, jax.random.key(0)))
    images = evaluate.load_test_images(experiment.config, 2)
    way = pictures.record_walk(run, images, 50)
    assert way.times == [6, 5, 4, 3, 2, 1, 0]
    few = pictures.record_walk(run, images, 6)
    assert few.times == [6, 5, 4, 2, 1, 0]
    for i, t in enumerate(few.times):
        np.testing.assert_allclose(few.iterates[i], way.iterates[6 - t], atol=1e-5)
    drawn = [pictures.picture(run, images, w).astype(int) for w in (None, way)]
    assert drawn[0].shape == drawn[1].shape
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
