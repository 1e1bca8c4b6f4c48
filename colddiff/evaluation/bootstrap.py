"""Bootstrap over images: how far scores would move with other test images.

Every row of a report is scored on the same resamples of the images, so the difference of two rows'
replicates is paired. `evaluate` computes the scores themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from colddiff.evaluation import metrics


class Interval(NamedTuple):
    """A difference with its 95% confidence interval."""

    value: float
    low: float
    high: float


def replicates(
    scores: Mapping[str, np.ndarray],
    features: Mapping[str, tuple[np.ndarray, metrics.Gaussian]],
    *,
    count: int,
    between: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Return each score of `count` resamples of the images, drawn with replacement.

    The resamples depend on the number of images alone. The RMSE is that of all pixels of the
    resampled images; other scores are means over them.

    Args:
      scores: `[N]` values by score: 'mse', whose root is returned as 'rmse', and others.
      features: by feature space, the restored images' features `[N, D]`, in the order of the
        images, and the Gaussian of the reference; the result is the Fréchet distance 'fd/SPACE'.
      count: number of resamples.
      between: callback before each Fréchet distance, such as `Stop.check`.
    """
    total = len(next(iter(scores.values())))
    rng = np.random.default_rng(0)
    weights = rng.multinomial(total, np.full(total, 1 / total), size=count)
    resampled = {name: weights @ np.asarray(v, np.float64) / total for name, v in scores.items()}
    if "mse" in resampled:
        resampled["rmse"] = np.sqrt(resampled.pop("mse"))
    for space, (values, reference) in features.items():
        resampled[f"fd/{space}"] = distances = []
        for row in weights:
            between()
            gaussian = _weighted(np.asarray(values, np.float64), row)
            distances.append(metrics.frechet_distance(gaussian, reference))
    return {name: [float(v) for v in values] for name, values in resampled.items()}


def _weighted(features: np.ndarray, weights: np.ndarray) -> metrics.Gaussian:
    """Return the mean and covariance of features that occur `weights` times."""
    drawn, times = features[weights > 0], weights[weights > 0, None]
    mean = (times * drawn).sum(0) / times.sum()
    centred = drawn - mean
    return metrics.Gaussian(mean, (times * centred).T @ centred / (times.sum() - 1))


def difference(
    value: float, others: float, own: Sequence[float], theirs: Sequence[float]
) -> Interval:
    """Return `value - others` with its paired 95% interval.

    The quantiles are those of the replicates' differences around their mean, because a resample has
    fewer distinct images, which makes every Fréchet distance larger.

    Args:
      value: a score.
      others: the same score of another row.
      own: replicates of the score.
      theirs: replicates of the other.
    """
    differences = np.asarray(own) - np.asarray(theirs)
    low, high = np.quantile(differences - differences.mean(), (0.025, 0.975))
    found = value - others
    return Interval(found, found + float(low), found + float(high))
