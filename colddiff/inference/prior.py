"""The prior of a run, fitted to its training images and stored in `WORKDIR/prior`.

Priors themselves are defined in `sampling/priors.py`.
"""

from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.experiment.build import Experiment, make_prior
from colddiff.images import height_width
from colddiff.runtime.devices import create_mesh, replicate
from colddiff.runtime.files import cached_npz, read_json
from colddiff.runtime.progress import Meter
from colddiff.sampling.priors import Mixture, Prior, fit_mixture

_NAME = "mixture"  # beginning of the file names in `workdir/prior`


def load_prior(experiment: Experiment, workdir: Path) -> Prior | None:
    """Return the prior that the experiment's config names; None for 'none'.

    A mixture is fitted to the training split on first use and stored in `workdir/prior`. The
    fingerprint of these images in `workdir/data.json` identifies it, so other images get another
    mixture.

    Raises:
      UserError: the training split or the stored mixture cannot be read.
    """

    def mixture_of(*, size: int | tuple[int, int], components: int) -> Mixture:
        settings = experiment.config.data
        identity = {
            "images": read_json(workdir / "data.json"),
            "shape": [components, *height_width(size), settings.channels],
            "seed": experiment.config.seed,
        }

        def make() -> dict[str, np.ndarray]:
            logging.info("fitting the prior to %s, split %s", settings.source, settings.train_split)
            return _fit_mixture(experiment.config, size, components)._asdict()

        return Mixture(**cached_npz(workdir / "prior", _NAME, identity, make))

    prior = make_prior(experiment, mixture_of)
    return None if prior is None else replicate(prior, create_mesh())


def forget_priors(workdir: Path) -> None:
    """Delete the mixtures that `load_prior` stored, so that a new run fits its own."""
    for path in (workdir / "prior").glob(f"{_NAME}-*.npz"):
        logging.info("deleting %s of an earlier run", path)
        path.unlink()


def _fit_mixture(config: ConfigDict, size: int | tuple[int, int], components: int) -> Mixture:
    """Fit a mixture to the training split, one image at a time to bound memory."""
    settings = config.data
    shape = sources.shape_of(settings)
    images = sources.load(settings.source, settings.train_split, cache=False, **shape)
    with Meter("fit prior", total=len(images), images_per_step=1) as meter:

        def each():
            for i in range(len(images)):
                yield images[i]
                meter.advance()

        return fit_mixture(each(), size=size, components=components, seed=config.seed)
