"""The prior of a run, fitted to its training images and stored in `WORKDIR/prior`.

Priors themselves are defined in `sampling/priors.py`.
"""

import json
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from colddiff.data import sources
from colddiff.experiment.build import Experiment, make_prior
from colddiff.runtime.devices import create_mesh, replicate
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import atomic_write, read_json
from colddiff.runtime.progress import Meter
from colddiff.sampling.priors import Mixture, Prior, fit_mixture


def load_prior(experiment: Experiment, workdir: Path) -> Prior | None:
    """Return the prior that the experiment's config names; None for 'none'.

    A mixture is fitted to the training split on first use and stored in `workdir/prior`. Its file
    records the fingerprint of these images. If `workdir/data.json` holds another fingerprint, the
    mixture is fitted again.

    Raises:
      UserError: the training split or the stored mixture cannot be read, or the mixture has another
        shape than the config needs.
    """
    settings = experiment.config.data

    def mixture_of(*, size: int, components: int) -> Mixture:
        path = _mixture_path(workdir, size, components)
        images = json.dumps(read_json(workdir / "data.json"), sort_keys=True)
        if path.exists() and images != "null" and _fitted_to(path) not in (images, ""):
            logging.warning("%s was fitted to other images: fitting it anew", path)
            path.unlink(missing_ok=True)
        if not path.exists():
            logging.info("fitting the prior to %s, split %s", settings.source, settings.train_split)
            mixture = _fit_mixture(experiment.config, size, components)
            with atomic_write(path) as file:
                np.savez(file, images=images, **mixture._asdict())
        try:
            with np.load(path) as arrays:
                mixture = Mixture(*(arrays[name] for name in Mixture._fields))
        except Exception as error:  # damaged archives raise many types of exception
            raise UserError(
                f"{path} cannot be read: {first_line(error)}; delete it to fit it again"
            ) from error
        expected = (components, size, size, settings.channels)
        if mixture.means.shape != expected:
            found = mixture.means.shape
            raise UserError(f"{path} has means {found}, not {expected}; delete it to fit it again")
        return mixture

    prior = make_prior(experiment, mixture_of)
    return None if prior is None else replicate(prior, create_mesh())


def _fitted_to(path: Path) -> str:
    """Return the fingerprint in a prior's file; "" if there is none or it cannot be read."""
    try:
        with np.load(path) as arrays:
            return str(arrays["images"])
    except Exception:  # the error is reported where the arrays are read
        return ""


def forget_priors(workdir: Path) -> None:
    """Delete the mixtures that `load_prior` stored, so that a new run fits its own."""
    for path in (workdir / "prior").glob(_mixture_path(workdir, "*", "*").name):
        logging.info("deleting %s, of an earlier run", path)
        path.unlink()


def _mixture_path(workdir: Path, size: int | str, components: int | str) -> Path:
    return workdir / "prior" / f"mixture-{size}x{size}-{components}.npz"


def _fit_mixture(config: ConfigDict, size: int, components: int) -> Mixture:
    """Fit a mixture to the training split, one image at a time to bound memory."""
    settings = config.data
    shape = sources.shape_of(settings)
    images = sources.load(settings.source, settings.train_split, cache=False, **shape)
    with Meter("prior", total=len(images), images_per_step=1) as meter:

        def each():
            for i in range(len(images)):
                yield images[i]
                meter.advance()

        return fit_mixture(each(), size=size, components=components, seed=config.seed)
