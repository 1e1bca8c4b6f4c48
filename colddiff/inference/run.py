"""A trained run, for notebooks: `run.sample(run.params, xT)`, `run.restore_images(images)`.

`load.py` loads it, and `prior.py` draws xT for `run.generate`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from colddiff.degradations import Degrade, as_key, as_partial
from colddiff.experiment.build import (
    Consistency,
    Experiment,
    check_sampler,
    consistency_steps,
    make_consistency,
    make_sampler,
)
from colddiff.images import before_truncation, check_images
from colddiff.inference.prior import load_prior
from colddiff.inference.severity import Estimate, load_severity
from colddiff.inference.spacing import load_change
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.devices import (
    create_mesh,
    place,
    replicated,
    split_axis,
)
from colddiff.runtime.errors import UserError
from colddiff.sampling.consistency import Measurement, consistent
from colddiff.sampling.priors import Prior
from colddiff.sampling.samplers import (
    BatchDegrade,
    Result,
    Sampler,
    Times,
    bind_params,
    check_times,
    draw_patterns,
    image_keys,
    times_between,
    times_by_change,
    visited,
    walk,
)

LARGEST_SEED = 2**32 - 1


class Restoration(NamedTuple):
    """Everything that restoring needs, except the images; a pytree, for `jit`.

    Attributes:
      sampler: a sampler of `sampling.samplers`, with its own arguments.
      restore: `R(params, xt, t) -> x0_hat` for a batch.
      degrade: `D(x0, t, key) -> xt` for one image.
      network_input: maps xT to the sampler's input, such as xT cut to 8 bits.
      params: the restorer's parameters.
      consistency: the settings of data consistency; None for a sampler without.
    """

    sampler: Partial
    restore: Partial
    degrade: Partial
    network_input: Partial
    params: Any
    consistency: Consistency | None = None


# Compiled once for each sampler, number of images and number of steps.
@functools.partial(network_jit, announce="the sampler")
def run_sampler(
    restoration: Restoration,
    xT: jax.Array,
    keys: jax.Array,
    times: jax.Array,
    iterates_at: jax.Array | None = None,
    patterns: Any = None,
    count: jax.Array | None = None,
) -> Result:
    """Return the result of `walk` from xT `[B, H, W, C]` with the patterns of `keys` `[B]`.

    With data consistency, xT is the measurement. Known `patterns`, one for each image, are used
    instead of those of the keys. `count` is as for `walk`.
    """
    sampler, restore, degrade, network_input, params, consistency = restoration
    R, D = bind_params(restore, params), BatchDegrade(degrade, patterns, keys)
    if patterns is None:
        D = draw_patterns(degrade, keys, xT.shape[1:])
    x = network_input(xT)
    times = visited(sampler, times)
    if consistency is not None:
        y = Measurement(before_truncation(xT, x), times[0], consistency.noise_std)
        sampler = consistent(sampler, y, consistency.steps)
    return walk(sampler, R, D, x, times, iterates_at, count)


def degrade_and_restore(
    restoration: Restoration,
    x0: jax.Array,
    keys: jax.Array,
    times: jax.Array,
    iterates_at: jax.Array | None = None,
    count: jax.Array | None = None,
) -> Result:
    """Degrade x0 `[B, H, W, C]` to the first of `times` and return the sampler's result."""
    xT = jax.vmap(restoration.degrade, (0, None, 0))(x0, times[0], keys)
    return run_sampler(restoration, xT, keys, times, iterates_at, None, count)


@dataclass(frozen=True)
class Run:
    """A restorer with its degradation, trained unless `params` is None.

    Attributes:
      experiment: the objects that are built from the config.
      params: the averaged (EMA) parameters.
      step: the training step of `params`.
      workdir: the run's folder; None for a run without one.
      ema: the decay of `params`, one of `train.ema_decays`; None for that of `train.ema_decay`.
    """

    experiment: Experiment
    params: Any = None
    step: int = 0
    workdir: Path | None = None
    ema: float | None = None

    @property
    def config(self) -> ConfigDict:
        """Return the config that the run was trained with."""
        return self.experiment.config

    @property
    def T(self) -> int:
        """Return the largest severity."""
        return self.experiment.T

    @property
    def degrade(self) -> Degrade:
        """Return `D(x0, t, key) -> xt` for one image `[H, W, C]`; `jax.vmap` it for a batch.

        D raises a UserError if x0, t or the key is something else (`degradations.checked`).
        """
        return self.experiment.degrade

    def restore(self, params: Any, xt: jax.Array, t: jax.Array | int) -> jax.Array:
        """Return x0_hat, the restorer's estimate of x0 from xt, both `[B, H, W, C]` on [-1, 1].

        Args:
          params: the restorer's parameters, such as `run.params`.
          xt: images degraded to severity t.
          t: the severity of each image, `[B]`, or of all; integers in 0..T.

        Raises:
          UserError: xt cannot be images of this run, or t severities of them.
        """
        self._check_batch(xt, "xt")
        traced = isinstance(t, jax.core.Tracer)
        times = t if traced else np.asarray(t)
        valid = times.shape in ((), (len(xt),)) and jnp.issubdtype(times.dtype, jnp.integer)
        if valid and not traced:
            valid = np.all((times >= 0) & (times <= self.T))
        if not valid:
            raise UserError(
                f"t={t} must be one severity in 0..T={self.T} for each of the {len(xt)} images, or "
                "one for all; integers"
            )
        times = jnp.broadcast_to(jnp.asarray(times, jnp.int32), len(xt))
        return self.experiment.restore(params, jnp.asarray(xt, jnp.float32), times)

    @functools.cached_property
    def other_sizes(self) -> dict[tuple[int, int], "Run"]:
        """Return a cache of this run at other image sizes, for `sizes.at_size`."""
        return {}

    @functools.cached_property
    def prior(self) -> Prior | None:
        """Return `prior(key) -> xT` for one image `[H, W, C]`; None for 'none'.

        Priors are described in `sampling.priors`.

        Raises:
          UserError: as for `load_prior`.
        """
        return load_prior(self.experiment, self.workdir)

    def severity(self, images: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the severity of degraded images; return (t, std) of each.

        Args:
          images: floats `[B, H, W, C]` on [-1, 1]; they are rounded to 8 bits, as files are.

        Returns:
          t, int32 `[B]`, the median of p(t | xt), and std, float32 `[B]`, its standard deviation.

        Raises:
          UserError: the run has no severity head (the message says how to train one), or `images`
            cannot be images of this run.
        """
        return self._severity(images)

    @functools.cached_property
    def _severity(self) -> Estimate:
        return load_severity(self)

    def sample(
        self,
        params: Any,
        xT: jax.Array,
        key: jax.Array | None = None,
        *,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        times: Times | None = None,
        iterates_at: Times | None = None,
        consistency: int | None = None,
    ) -> Result:
        """Return x0 from xT, both `[B, H, W, C]` with images on [-1, 1]; x0 is not clipped.

        More images than `config.eval.batch_size` are sampled in batches of that size by one
        program, which bounds memory. Each smaller number of images compiles its own program.

        Args:
          params: the restorer's parameters, such as `run.params`.
          xT: images degraded to severity T, or to the first of `times`. With
            `config.data.eight_bit`, the sampler gets xT cut to 8 bits, as in training.
          key: one key of the degradation's random patterns; image i uses `fold_in(key, i)`. Key 0
            if None. To make xT with the same patterns, degrade with `image_keys(key, 0, B)`.
          sampler: a name of `sampling.samplers.SAMPLERS`, or a sampler function such as
            `Partial(ddim, eta=0.5)` or your own; the config's if None.
          steps: number of sampler steps, spread over T (`times`); the config's if None.
          times: severities to visit instead of `steps`: decreasing integers down to 0.
          iterates_at: some of the times; if given, the result is `(x0, iterates)`, `iterates`
            `[len(iterates_at), B, H, W, C]`.
          consistency: conjugate-gradient steps of data consistency (`sampling.consistency`), which
            makes every estimate of x0, and x0 itself, agree with xT; 0 for none, the config's if
            None. The noise of xT is `config.sampler.noise_std`. The key must be the one that xT was
            degraded with. With blends (noise, animorphosis) it changes nothing.

        Raises:
          UserError: xT has another shape or type, or values that are not finite or far outside
            [-1, 1]; the key is no key; the sampler is unknown; steps or times are outside 0..T; or
            JAX cannot differentiate a degradation that consistency is used with.
        """
        self._check_batch(xT, "xT")
        restoration = self.restoration(params, sampler, consistency)
        times = self._times(restoration.sampler, steps, times, iterates_at)
        keys = image_keys(jax.random.key(0) if key is None else as_key(key), 0, len(xT))
        xT = jnp.asarray(xT, jnp.float32)
        # The batch is split over the devices if it divides evenly, and replicated otherwise.
        mesh = create_mesh()
        most = -(-self.config.eval.batch_size // mesh.size) * mesh.size
        size = min(len(xT), most)
        sharding = replicated(mesh) if size % mesh.size else split_axis(mesh, 0)
        parts = [(xT, keys)]
        if size < len(xT):
            # The last batch is padded with copies of the last image.
            places = np.pad(np.arange(len(xT)), (0, -len(xT) % size), mode="edge")
            parts = [(xT[part], keys[part]) for part in places.reshape(-1, size)]
        results = [run_sampler(restoration, *place(part, sharding), *times) for part in parts]
        return _taken(results, np.arange(len(xT)))

    def generate(
        self,
        params: Any,
        seeds: Sequence[int] | np.ndarray,
        *,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        times: Times | None = None,
        iterates_at: Times | None = None,
    ) -> Result:
        """Generate x0 `[B, H, W, C]` from the prior; image i depends on `seeds[i]` alone.

        The prior and the degradation of image i share the key `jax.random.key(seeds[i])`. xT is not
        cut to 8 bits, because that would erase the noise that breaks a constant image's symmetry.

        Sampling from a near-constant xT amplifies rounding, which depends on the batch size and, on
        some processors, on an image's place in the batch. So each device always takes
        `config.eval.chunk` images, and a seed always has the same index in its chunk (`_places`).

        With `config.sampler.consistency`, x0 agrees with the prior's xT, such as its mean colour or
        its blocks. With blends, D(x0, T) keeps nothing of x0, and consistency changes nothing.

        Args:
          params: as for `sample`.
          seeds: B integers, each in 0..2³²-1.
          sampler: as for `sample`.
          steps: as for `sample`.
          times: as for `sample`, but the first must be T.
          iterates_at: as for `sample`.

        Raises:
          UserError: the config has no prior, or an argument is invalid.
        """
        if self.prior is None:
            raise UserError(
                "config.prior.name is 'none': there is no xT to generate from. Use a config that "
                "has a prior, such as configs/generate_blur_digits.py"
            )
        seeds = _checked_seeds(seeds)
        restoration = self.restoration(params, sampler)._replace(network_input=Partial(_unchanged))
        times, marks = self._times(restoration.sampler, steps, times, iterates_at)
        if times[0] != self.T:
            raise UserError(f"to generate, times must begin at T={self.T}; got {times}")
        mesh, count = create_mesh(), self.config.eval.chunk
        places = _places(seeds, count)
        chunks = 1 + places.max() // count
        sharding = replicated(mesh)  # a single chunk is computed by every device
        if chunks > 1:
            sharding, chunks = split_axis(mesh, 0), -(-chunks // mesh.size) * mesh.size
            count *= mesh.size
        filled = np.zeros(chunks * self.config.eval.chunk, np.uint32)
        filled[places] = seeds
        parts = []
        for part in filled.reshape(-1, count):
            drawn = _draw(self.prior, place(part, sharding))
            parts.append(run_sampler(restoration, *place(drawn, sharding), times, marks))
        return _taken(parts, places)

    def restore_images(
        self,
        images: Any,
        t: Any = None,
        *,
        mask: Any = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        tile: int | None = None,
        key: jax.Array | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Return your own degraded images restored, uint8; `own_images.restore_images`.

        Args:
          images: uint8 or floats on [-1, 1], `[H, W, C]` or `[B, H, W, C]`; or a PIL image; or a
            list of these, whose sizes may differ. Nothing is rescaled.
          t: the severity, 0..T: an integer, or one for each image. 'auto' estimates each. None for
            T, or with a mask for the severity at which training's holes are as large.
          mask: the kept pixels of images with holes, `[H, W]`, one for all images or one for each:
            uint8, 255 kept and 0 lost, or floats in [0, 1]; or PIL images. Only for gaussian_mask.
          sampler: as for `sample`. None takes the config's; but 'direct' if the degradation draws a
            random pattern, which is unknown.
          steps: largest number of sampler steps; the config's if None.
          tile: side of the tiles that other sizes than the run's are cut into, in pixels; 0 for
            none; None to choose (`sizes.tile_of`).
          key: the key that the random patterns were drawn with, image i with `fold_in(key, i)`.

        Returns:
          uint8 `[H, W, C]` for one image, `[B, H, W, C]` for an array of images, or a list.

        Raises:
          UserError: an image, a severity, a mask or a choice is invalid; the message says what to
            do.
        """
        from colddiff.inference.own_images import restore_images  # it imports this module

        choices = dict(mask=mask, sampler=sampler, steps=steps, tile=tile, key=key)
        return restore_images(self, images, t, **choices)

    def restoration(
        self,
        params: Any,
        sampler: str | Sampler | None = None,
        consistency: int | None = None,
    ) -> Restoration:
        """Return the `Restoration` with this sampler and data consistency; None takes the config's.

        A name that ends with '+consistency' asks for `consistency_steps` of that name, unless
        `consistency` is given.

        Raises:
          UserError: there is no such sampler, or it does not support the degradation; or
            `consistency` is invalid (`make_consistency`).
        """
        named = sampler is None or isinstance(sampler, str)
        function = make_sampler(self.config, sampler) if named else as_partial(sampler)
        check_sampler(function, self.degrade)
        if consistency is None and named and sampler:
            consistency = consistency_steps(self.config, sampler) or None
        settings = make_consistency(self.config, self.degrade, consistency)
        parts = (self.experiment.restore, self.degrade, self.experiment.network_input)
        return Restoration(function, *map(as_partial, parts), params, settings)

    def times(self, steps: int | None = None) -> np.ndarray:
        """Return `steps + 1` severities from T down to 0, spaced as `config.sampler.spacing` says.

        Args:
          steps: number of sampler steps; the config's if None.

        Raises:
          UserError: `steps` is not in 1..T.
        """
        steps = self.experiment.steps if steps is None else steps
        if self.config.sampler.get("spacing", "even") == "change":
            return times_by_change(self._change, steps)
        return times_between(self.T, steps)

    @functools.cached_property
    def _change(self) -> np.ndarray:
        return load_change(self.experiment, self.workdir)

    def _check_batch(self, x: jax.Array, what: str) -> None:
        """Refuse what is not a batch of this run's images; `what` is its name, for the message."""
        check_images(x, what)
        high, wide, channels = shape = self.experiment.image_shape
        if x.ndim == 4 and x.shape[1:] == shape:
            return
        convert = "Convert it with jnp.asarray, resize or crop it"
        if channels in (1, 3):
            size = high if high == wide else (high, wide)
            convert = "Convert PIL images with colddiff.images.from_pil(images, "
            convert += f"size={size}, channels={channels})"
        if x.shape == shape:
            convert = f"Add the batch axis with {what}[None]"
        elif x.shape == (high, wide):
            convert = f"Add the batch and the channel axis with {what}[None, ..., None]"
        elif x.shape[1:] == (high, wide):
            convert = f"Add the channel axis with {what}[..., None]"
        elif x.shape[1:] == (channels, high, wide):
            convert = f"Put the channels last with jnp.moveaxis({what}, 1, -1)"
        raise UserError(f"{what} must be of shape {('B', *shape)}; got {x.shape}. {convert}")

    def _times(
        self,
        sampler: Sampler,
        steps: int | None,
        times: Times | None,
        iterates_at: Times | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Check and return the times that the sampler visits, and `iterates_at`; int32."""
        if not isinstance(steps, Integral | None):
            raise UserError(f"steps={steps} must be a whole number, 1..T={self.T}")
        if times is None:
            times = self.times(steps)
        elif steps is not None:
            raise UserError(f"give steps={steps} or times={times}, not both")
        check_times(times)
        if times[0] > self.T:
            raise UserError(f"times must begin at T={self.T} or below; got {times}")
        times = visited(sampler, np.asarray(times, np.int32))
        check_times(times, iterates_at)
        return times, None if iterates_at is None else np.asarray(iterates_at, np.int32)


def _unchanged(xT: jax.Array) -> jax.Array:
    return xT


def _checked_seeds(seeds: Any) -> np.ndarray:
    """Return the seeds as an array `[B]`.

    Raises:
      UserError: they are not integers in 0..2³²-1, or there is none.
    """
    is_key = jax.dtypes.issubdtype(getattr(seeds, "dtype", None), jax.dtypes.prng_key)
    array = np.zeros(0) if is_key else np.asarray(seeds)
    whole = array.ndim == 1 and np.issubdtype(array.dtype, np.integer)
    if not whole or not array.size or array.min() < 0 or array.max() > LARGEST_SEED:
        shown = "a key" if is_key else seeds
        raise UserError(
            f"seeds must be integers in 0..{LARGEST_SEED}; got {shown}. Give a list or a range, "
            "such as [0, 1, 2] or range(8)"
        )
    return array


def _places(seeds: np.ndarray, count: int) -> np.ndarray:
    """Return each seed's index in concatenated chunks of `count` images, int `[B]`.

    The index within the chunk is `seed % count`. Seeds with the same remainder go to chunks 0, 1,
    2, ... in turn, so contiguous seeds fill their chunks.
    """
    remainders = seeds.astype(np.int64) % count
    order = np.argsort(remainders, kind="stable")
    chunk = np.empty(len(seeds), np.int64)
    chunk[order] = np.arange(len(seeds)) - np.searchsorted(remainders[order], remainders[order])
    return chunk * count + remainders


def _taken(parts: Sequence[Result], places: np.ndarray) -> Result:
    """Return the images at `places` of the concatenated parts, and their iterates if any."""
    if not isinstance(parts[0], tuple):
        return jnp.concatenate(parts)[places]
    x0, iterates = zip(*parts, strict=True)
    return jnp.concatenate(x0)[places], jnp.concatenate(iterates, 1)[:, places]


@jax.jit
def _draw(prior: Prior, seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return xT `[B, H, W, C]` and the keys `[B]` of these seeds."""
    keys = jax.vmap(jax.random.key)(seeds)
    return jax.vmap(prior)(keys), keys
