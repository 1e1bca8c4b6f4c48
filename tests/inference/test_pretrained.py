"""The models that come with the package restore test images."""

import jax
import numpy as np
import pytest

import colddiff
from colddiff.evaluation.evaluate import load_test_images
from colddiff.images import from_uint8
from colddiff.inference.load import PRETRAINED
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import image_keys


def test_they_are_small():
    for path in PRETRAINED.iterdir():
        assert path.suffix == ".safetensors" and path.stat().st_size < 1e6, path


def test_digits_are_deblurred():
    run = colddiff.load_pretrained("blur_digits")
    x0 = from_uint8(load_test_images(run.config, limit=8))
    xT = jax.vmap(run.degrade, (0, None, 0))(x0, run.T, image_keys(jax.random.key(0), 0, 8))
    direct = run.sample(run.params, xT, sampler="direct")
    rmse = [np.sqrt(np.mean((np.asarray(x) - x0) ** 2)) / 2 for x in (xT, direct)]
    assert rmse[0] > 0.15 and rmse[1] < 0.03


def test_other_names_are_refused():
    with pytest.raises(UserError, match=r"unknown pretrained model 'faces'.*blur_digits"):
        colddiff.load_pretrained("faces")
