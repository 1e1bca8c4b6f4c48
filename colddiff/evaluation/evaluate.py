"""Score how well a restorer inverts its degradation on the test split.

The first row scores the degraded images, xT itself. Each further row scores one sampler's x0
against the truth. An image's random pattern depends on its index only, so scores do not depend on
the batch size or the devices. `colddiff.reporting` makes tables, plots and pictures of the scores.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.evaluation import bootstrap, metrics
from colddiff.evaluation.features import (
    KEPT,
    Collected,
    Features,
    check_spaces,
    collect,
    load_split,
    make_features,
    of_split,
)
from colddiff.experiment.build import (
    CONSISTENT,
    Experiment,
    build,
    consistency_steps,
    make_consistency,
    make_sampler,
)
from colddiff.experiment.checks import check_sampler
from colddiff.experiment.state import ema_name
from colddiff.images import to_data_type, to_model_range, to_unit
from colddiff.inference.run import Restoration, Run, degrade_and_restore
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.devices import create_mesh, split_rows, to_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.progress import Meter
from colddiff.sampling.samplers import image_keys, times_between, visited

_FEWEST = 4  # images that a kernel distance needs
_BATCH = 64  # images between two calls of `between`, such as `Stop.check`


class Way(NamedTuple):
    """A way to restore: a sampler's name, and its number of steps from T to 0.

    'tacos+consistency' is tacos with data consistency, and 'tacos' is tacos without, whatever
    `config.sampler.consistency` is.
    """

    sampler: str
    steps: int


class Distance(NamedTuple):
    """Distances between the restored images and the whole test split, in one feature space.

    Attributes:
      space: a name of `colddiff.evaluation.features.SPACES`.
      features: the space's full name, shown beside the numbers.
      frechet: Fréchet distance; in the space 'inception-2015-12-05' it is called FID.
      kernel: kernel distance (KID) with its standard error; None for fewer than 4 images.
      frechet_at: Fréchet distance of a subset of n restored images, by n.
      dimension: number of features; 0 if it is not known.
      few: whether `frechet` compares fewer images than there are features, and so is too large.
    """

    space: str
    features: str
    frechet: float
    kernel: metrics.Estimate | None
    frechet_at: dict[int, float]
    dimension: int = 0
    few: bool = False


class Row(NamedTuple):
    """The scores of one way to restore.

    Attributes:
      name: 'degraded', or the sampler's name, which may end with '+consistency'.
      steps: restorer calls for each image.
      times: the severities that the sampler visits, from T to 0; only T for 'degraded'.
      seconds: time for each image, with the degradation and without compilation.
      consistency: conjugate-gradient steps of data consistency; 0 for none.
      replicates: rmse, ssim and fd/SPACE of `config.eval.bootstrap` resamples of the images.
    """

    name: str
    steps: int
    times: list[int]
    rmse: float
    psnr: float
    ssim: float
    seconds: float
    distances: list[Distance]
    consistency: int = 0
    replicates: Mapping[str, list[float]] = MappingProxyType({})


class Report(NamedTuple):
    """The scores of a run and everything they depend on.

    Attributes:
      num_images: number of test images that were degraded and restored.
      num_reference: size of the test split in the distances; 0 without feature spaces.
      weights: 'EMA', or 'none' if nothing was restored.
      paper: the paper's (FID, SSIM, RMSE) by row; empty if the paper has none.
    """

    source: str
    split: str
    num_images: int
    num_reference: int
    degradation: str
    T: int
    weights: str
    step: int
    rows: list[Row]
    paper: dict[str, list[float]]


class Truth(NamedTuple):
    """The images and feature statistics that restored images are compared with.

    Attributes:
      images: test images `[N, H, W, C]`, uint8 or float32 on [-1, 1].
      order: int `[N]`, the order of images in subsets and distances (`sources.Split`).
      spaces: feature spaces, each with the feature statistics of the whole test split.
    """

    images: np.ndarray
    order: np.ndarray
    spaces: list[tuple[Features, Collected]]


def load_test_images(config: ConfigDict, limit: int) -> np.ndarray:
    """Return `limit` images of the test split (0: all), `[N, H, W, C]`."""
    return load_split(config, config.data.test_split, limit=limit).images


def load_truth(config: ConfigDict, num_images: int | None = None, *, split: str = "") -> Truth:
    """Return images of a split and its feature statistics for `config.eval.features`.

    Args:
      config: the config.
      num_images: the number of images; `config.eval.num_images` if None; 0 means all.
      split: the split; the test split if empty.
    """
    split = split or config.data.test_split
    spaces = [make_features(name, config) for name in config.eval.features]
    statistics = [of_split(features, config, split) for features in spaces]
    count = config.eval.num_images if num_images is None else num_images
    images, _, order = load_split(config, split, limit=count)
    return Truth(images, order, list(zip(spaces, statistics, strict=True)))


def ways_of(
    experiment: Experiment, samplers: Sequence[str] | None = None, steps: Sequence[int] = ()
) -> list[Way]:
    """Return a `Way` for each sampler and each number of steps; direct takes one step.

    Args:
      experiment: the config, degradation and T to restore with.
      samplers: names of samplers; the config's `eval.samplers` if None.
      steps: numbers of sampler steps; the config's if empty.

    Raises:
      UserError: a number of steps is outside 1..T, a sampler does not exist or does not support
        the degradation, or JAX cannot differentiate a degradation for consistency.
    """
    ways = []
    for name in experiment.config.eval.samplers if samplers is None else samplers:
        check_sampler(make_sampler(experiment.config, name), experiment.degrade)
        consistency = consistency_steps(experiment.config, name)
        make_consistency(experiment.config, experiment.degrade, consistency)  # refuses wrong ones
        is_direct = name.removesuffix(CONSISTENT) == "direct"
        for count in (1,) if is_direct else steps or (experiment.steps,):
            times_between(experiment.T, count)
            ways.append(Way(name, count))
    return ways


def check_ways(
    config: ConfigDict, samplers: Sequence[str] | None = None, steps: Sequence[int] = ()
) -> None:
    """Refuse settings that `evaluate` would refuse, before training and without decoding images.

    Raises:
      UserError: as for `ways_of`; or a feature space does not exist or does not take the images, or
        the test split is too small for `config.eval.counts`.
    """
    names = config.eval.samplers if samplers is None else samplers
    if {name.removesuffix(CONSISTENT) for name in names} & {"ddim", "ddpm"}:
        ways_of(build(config), samplers, steps)
    for name in names:
        make_sampler(config, name)
    check_spaces(config.eval.features, config.data.channels)
    for count in steps:
        times_between(config.degradation.num_steps, count)
    if config.eval.counts:
        settings = config.data
        split = sources.fingerprint(settings.source, settings.test_split, settings.channels)
        _check_counts(config.eval.counts, min(config.eval.num_images or math.inf, split["files"]))


def _check_counts(counts: Sequence[int], total: int) -> None:
    if wrong := [n for n in counts if not 2 <= n <= total]:
        raise UserError(
            f"config.eval.counts has {wrong}; use counts in 2..{total}, the number of test images"
        )


def evaluate(
    run: Run,
    *,
    truth: Truth | None = None,
    ways: Sequence[Way] | None = None,
    counts: Sequence[int] | None = None,
    resamples: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> Report:
    """Score the degraded images and each way to restore them.

    Args:
      run: the run to score; it must be trained unless `ways` is empty.
      truth: `load_truth` of the config if None.
      ways: `ways_of` the experiment if None.
      counts: sizes of subsets whose Fréchet distances are computed too; `config.eval.counts` if
        None.
      resamples: number of resamples that are scored too; `config.eval.bootstrap` if None.
      between: callback after each batch, such as `Stop.check`.

    Raises:
      UserError: there are fewer images than `counts` asks for, or other settings are invalid.
    """
    config, experiment = run.config, run.experiment
    if truth is None:
        sources.log_sizes(config.data)
        truth = load_truth(config)
    counts = config.eval.counts if counts is None else counts
    _check_counts(counts, len(truth.images))
    resamples = config.eval.bootstrap if resamples is None else resamples
    if resamples and truth.spaces and len(truth.images) > KEPT:
        raise UserError(
            f"config.eval.bootstrap={resamples} is for at most {KEPT} images; there are "
            f"{len(truth.images)}. Set config.eval.num_images={KEPT}"
        )
    ways = ways_of(experiment) if ways is None else ways
    rows = [_score(run, truth, way, counts, resamples, between) for way in (None, *ways)]
    return Report(
        source=config.data.source,
        split=config.data.test_split,
        num_images=len(truth.images),
        num_reference=truth.spaces[0][1].count if truth.spaces else 0,
        degradation=Path(config.degradation.name).name,  # FILE.py:FUNCTION without folders
        T=experiment.T,
        weights=_weights(run) if ways else "none",
        step=run.step,
        rows=rows,
        paper={name: list(scores) for name, scores in config.paper.items()},
    )


def _weights(run: Run) -> str:
    """Return the name of a run's parameters, such as 'EMA', or 'EMA 0.99' of `train.ema_decays`."""
    return "EMA" if run.ema is None else f"EMA {ema_name(run.ema)}"


def _score(
    run: Run,
    truth: Truth,
    way: Way | None,
    counts: Sequence[int],
    resamples: int,
    between: Callable[[], None],
) -> Row:
    """Degrade the images to T, restore them unless `way` is None, and return their scores."""
    config, mesh, T = run.config, create_mesh(), run.T
    # All devices take equally many images. Scores do not depend on the batch size.
    batch_size = min(config.eval.batch_size, len(truth.images))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    name = "degraded" if way is None else way.sampler
    times = np.array([T]) if way is None else run.times(way.steps)
    consistency = 0 if way is None else consistency_steps(config, name)
    sampler = _no_step if way is None else name
    restoration = run.restoration(run.params, sampler, consistency)
    times = visited(restoration.sampler, times)
    # Times of one length and their number: one program serves every number of steps.
    padded = np.pad(times, (0, T + 1 - len(times))), np.int32(len(times) - 1)
    images = truth.images
    mse, ssim, restored = [], [], []
    firsts = range(0, len(images), batch_size)
    what = f"score {name} ({len(times) - 1} sampler steps)"
    with Meter(what, total=len(firsts), images_per_step=batch_size) as meter:
        for first in firsts:
            batch = images[first : first + batch_size]
            count = len(batch)
            # The last batch is padded, so that one compiled program serves all batches.
            batch = np.pad(batch, ((0, batch_size - count), *[(0, 0)] * 3))
            keys = image_keys(jax.random.key(config.seed), first, batch_size)
            arguments = (restoration, split_rows(batch, mesh), keys, *padded)
            if not first:
                with meter.uncounted():
                    _score_batch.prepare(*arguments)
                began = time.monotonic()
            *scores, x0_hat = _score_batch(*arguments)
            for scored, values in zip((mse, ssim), to_host(scores), strict=True):
                scored.extend(values[:count].tolist())
            if truth.spaces:
                restored.append(to_data_type(to_host(x0_hat), images.dtype)[:count])
            meter.advance()
            between()
        meter.note()
    seconds = (time.monotonic() - began) / len(images)
    distances, own = [], {}
    if truth.spaces:
        restored = np.concatenate(restored)[truth.order]
        for features, reference in truth.spaces:
            distance, values = _distance(features, reference, restored, counts, between)
            distances.append(distance)
            if resamples:  # `collect` returned all images' features
                own[features.space] = (values[np.argsort(truth.order)], reference.gaussian)
    replicates = {}
    if resamples:
        each = {"mse": mse, "ssim": ssim}
        replicates = bootstrap.replicates(each, own, count=resamples, between=between)
    mean, mean_ssim = math.fsum(mse) / len(mse), math.fsum(ssim) / len(ssim)
    scores = metrics.rmse(mean), metrics.psnr(mean), mean_ssim, seconds, distances
    return Row(name, len(times) - 1, times.tolist(), *scores, consistency, replicates)


def _distance(
    features: Features,
    reference: Collected,
    images: np.ndarray,
    counts: Sequence[int],
    between: Callable[[], None],
) -> tuple[Distance, np.ndarray]:
    """Return the distances of restored images, in `Truth.order`, to the reference; and features.

    The features are those of the first `KEPT` images.
    """

    def each():
        for first in range(0, len(images), _BATCH):
            yield images[first : first + _BATCH]
            between()

    total = len(images)
    found = collect(features, each(), total=total, counts=counts)
    at = {
        n: metrics.frechet_distance(moments.gaussian, reference.gaussian)
        for n, moments in found.moments.items()
    }
    few = min(len(found.first), len(reference.first)) < _FEWEST
    # Paired: restored image i was made from image i of the reference.
    kernel = None if few else metrics.kernel_distance(found.first, reference.first, paired=True)
    dimension = reference.dimension
    distance = Distance(
        features.space,
        features.name,
        at[total],
        kernel,
        {n: at[n] for n in counts},
        dimension,
        few=min(total, reference.count) < dimension,
    )
    return distance, found.first


@functools.partial(network_jit, announce="the sampler and its scores")
def _score_batch(
    restoration: Restoration,
    images: jax.Array,
    keys: jax.Array,
    times: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return each image's mean squared error and SSIM, both `[B]`, and x0_hat.

    SSIM is NaN if the images are smaller than its window. The sampler takes `count` steps.
    """
    x0 = to_model_range(images)
    x0_hat = degrade_and_restore(restoration, x0, keys, times, None, count)
    truth, restored = to_unit(x0), to_unit(x0_hat)
    small = min(images.shape[1:3]) < metrics.SSIM_WINDOW
    ssim = jnp.full(len(images), jnp.nan) if small else metrics.ssim(truth, restored)
    return metrics.mean_squared_error(truth, restored), ssim, x0_hat


def _no_step(R, D, x, s, s_next):
    """Return x unchanged; the row 'degraded' takes no step and calls no restorer."""
    return x
