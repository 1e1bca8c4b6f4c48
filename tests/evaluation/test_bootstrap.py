"""The bootstrap against closed forms and a plain resampling."""

import numpy as np
import pytest
from conftest import tiny_config

from colddiff.evaluation import bootstrap, evaluate, features, metrics
from colddiff.experiment.build import build
from colddiff.inference.run import Run
from colddiff.runtime.errors import UserError


def test_replicates_are_scores_of_resampled_images():
    """Compare with copies of the images, as many as each resample has."""
    rng = np.random.default_rng(1)
    mse, ssim = rng.uniform(size=30), rng.uniform(size=30)
    values, reference = rng.normal(size=(30, 4)), metrics.moments(rng.normal(size=(99, 4)))
    spaces = {"pca": (values, reference.gaussian)}
    found = bootstrap.replicates({"mse": mse, "ssim": ssim}, spaces, count=3)
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=3)
    for i, own in enumerate(weights):
        taken = np.repeat(np.arange(30), own)
        assert len(taken) == 30 > len(set(taken))
        assert found["rmse"][i] == pytest.approx(np.sqrt(mse[taken].mean()))
        assert found["ssim"][i] == pytest.approx(ssim[taken].mean())
        resampled = metrics.moments(values[taken]).gaussian
        distance = metrics.frechet_distance(resampled, reference.gaussian)
        assert found["fd/pca"][i] == pytest.approx(distance)
    assert found.keys() == {"rmse", "ssim", "fd/pca"}


def test_the_interval_of_a_difference_is_that_of_paired_images():
    """Compare with 1.96 standard errors of the mean difference, as for a normal distribution."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=4000)
    other = own + rng.normal(0.02, 0.1, size=4000)  # far closer to its pair than to the others
    found = [bootstrap.replicates({"ssim": x}, {}, count=2000)["ssim"] for x in (own, other)]
    low, high = (own - other).mean() + np.array([-1.96, 1.96]) * (own - other).std() / 4000**0.5
    interval = bootstrap.difference(own.mean(), other.mean(), *found)
    assert interval.value == pytest.approx((own - other).mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_a_report_has_replicates_in_the_order_of_the_images():
    config = tiny_config()
    config.eval.num_images, config.eval.bootstrap = 12, 4
    config.eval.features = ("pca",)
    experiment = build(config)._replace(restore=lambda params, xt, t: 0.9 * xt)
    ways = [("naive", 1), ("naive", 3), ("direct", 1)]
    rows = evaluate.evaluate(Run(experiment), ways=[evaluate.Way(*way) for way in ways]).rows
    assert rows[0].replicates.keys() == {"rmse", "ssim", "fd/pca"}
    one, three, direct = (row.replicates for row in rows[1:])
    assert one["fd/pca"] == pytest.approx(direct["fd/pca"])  # one step of naive is direct
    assert one["rmse"] == pytest.approx(direct["rmse"]) != pytest.approx(three["rmse"])
    assert all(len(values) == 4 for row in rows for values in row.replicates.values())

    # Features are collected in the order of the split, and resampled in that of the images.
    truth = evaluate.load_truth(config)
    turned = truth._replace(order=truth.order[::-1])
    again = evaluate.evaluate(Run(experiment), truth=turned, ways=[evaluate.Way("naive", 3)]).rows
    assert again[1].replicates["fd/pca"] == pytest.approx(three["fd/pca"])


def test_more_images_than_are_kept(monkeypatch):
    monkeypatch.setattr(evaluate, "KEPT", 10)
    monkeypatch.setattr(features, "KEPT", 10)
    config = tiny_config()
    config.eval.num_images = 12
    run = Run(build(config)._replace(restore=lambda params, xt, t: 0.9 * xt))
    rows = evaluate.evaluate(run, ways=[evaluate.Way("naive", 1)]).rows
    assert rows[1].distances[0].frechet > 0 and not rows[1].replicates
    with pytest.raises(UserError, match=r"bootstrap=4 is for at most 10 images; there are 12"):
        evaluate.evaluate(run, ways=[evaluate.Way("naive", 1)], resamples=4)
