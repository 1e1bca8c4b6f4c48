"""Construction of the functions that a config names: degradation, restorer, optimiser, sampler.

It also checks that a config can work. It does not train or write files. It reads only what a
degradation needs: a bank of images, or the file with the user's function.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.tree_util import Partial
from ml_collections import ConfigDict

from colddiff import networks
from colddiff.data import sources
from colddiff.degradations import (
    DEGRADATIONS,
    SCHEDULES,
    Degrade,
    checked,
    compose,
    is_blend,
)
from colddiff.experiment.checks import (
    check_degradation,
    check_differentiable,
    check_nothing_is_left,
    check_numbers,
    check_own_degradation,
    check_sampler,
    check_values,
    named,
    warn_of_other_ends,
)
from colddiff.experiment.user_code import Own, first_own, make_own
from colddiff.images import height_width, truncate_to_8_bit
from colddiff.runtime.devices import create_mesh, replicate, split_rows
from colddiff.runtime.errors import UserError
from colddiff.sampling.consistency import EIGHT_BIT_STD
from colddiff.sampling.priors import (
    Mixture,
    Prior,
    check_size,
    gaussian_mixture,
    pattern,
)
from colddiff.sampling.samplers import SAMPLERS, Restore, Sampler, times_between

CONSISTENT = "+consistency"  # ends the name of a sampler to use with data consistency
_CONSISTENCY_STEPS = 32  # with such a name, if the config has none

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Consistency(NamedTuple):
    """The settings of data consistency (`sampling.consistency`); a pytree, for `jit`.

    Attributes:
      steps: number of conjugate-gradient steps of each projection.
      noise_std: standard deviation of the measurement's noise, on [-1, 1].
    """

    steps: np.int32
    noise_std: np.float32


class Experiment(NamedTuple):
    """The functions and the largest severity that a config describes.

    Attributes:
      config: the config itself.
      degrade: `D(x0, t, key) -> xt` for one image; a Partial, to be passed through `jit`.
      model: the restorer's Linen module.
      restore: `R(params, xt, t) -> x0_hat` for a batch.
      network_input: converts degraded images to the network's input: with `data.eight_bit` it
        truncates them to 8 bits. Apply it to results of D and to xT, never to later iterates of a
        sampler.
      optimizer: the optax transformation.
      T: the largest severity.
    """

    config: ConfigDict
    degrade: Degrade
    model: nn.Module
    restore: Restore
    network_input: Callable[[jax.Array], jax.Array]
    optimizer: optax.GradientTransformation
    T: int

    @property
    def steps(self) -> int:
        """Return the config's number of sampler steps; 0 in the config means T."""
        return self.config.sampler.steps or self.T

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return _image_shape(self.config.data)


def build(config: ConfigDict) -> Experiment:
    """Build the experiment of a config.

    Raises:
      UserError: a name does not exist, or settings cannot work together.
    """
    check_numbers(config)
    sources.check_channels(config.data.source, config.data.channels)
    shape = dict(channels=config.data.channels, image_size=config.data.image_size)
    model = _make("model", config.model, networks.NETWORKS, shape)
    experiment = Experiment(
        config=config,
        degrade=_unchanged,
        model=model,
        restore=lambda params, xt, t: model.apply({"params": params}, xt, t),
        network_input=truncate_to_8_bit if config.data.eight_bit else _unchanged,
        optimizer=_optimizer(config.train),
        T=config.degradation.num_steps,
    )
    chosen = [make_sampler(config, name) for name in (config.sampler.name, *config.eval.samplers)]
    times_between(experiment.T, experiment.steps)  # refuses wrong sampler steps
    jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))  # refuses wrong sizes
    make_prior(experiment, _no_mixture)  # refuses wrong prior settings
    # The degradation comes last, because reading a bank of images may take minutes.
    degrade = _degradation(config.degradation.to_dict(), config.data)
    for way in chosen:
        check_sampler(way, degrade)
    for steps in (None, *(consistency_steps(config, name) for name in config.eval.samplers)):
        make_consistency(config, degrade, steps)  # refuses wrong settings
    # Replicate the degradation's tables once, so that later calls need no transfer to the devices.
    experiment = experiment._replace(degrade=replicate(degrade, create_mesh()))
    at_T = (config.degradation.name, degrade, experiment.T, experiment.image_shape)
    if config.prior.name == "pattern":
        check_nothing_is_left(*at_T)
    if config.prior.name == "gaussian_mixture":
        warn_of_other_ends(*at_T, config.prior.size)
    return experiment


def at_size(experiment: Experiment, image_size: tuple[int, int]) -> Experiment:
    """Return the experiment for images of another size: the same network, D made for that size.

    The network's parameters serve both sizes. The network refuses sizes that it cannot halve when
    it is called. There is no prior, whose blocks would not fit.

    Args:
      experiment: the experiment that `build` made.
      image_size: (H, W), in pixels.

    Raises:
      UserError: the degradation does not take images of that size.
    """
    config = ConfigDict(experiment.config.to_dict())
    with config.ignore_type():
        config.data.image_size = image_size
    config.prior = ConfigDict(dict(name="none"))
    degrade = _degradation(config.degradation.to_dict(), config.data)
    return experiment._replace(config=config.lock(), degrade=replicate(degrade, create_mesh()))


def init_params(experiment: Experiment, key: jax.Array) -> Any:
    """Return the restorer's initial parameters."""
    return _init_params(experiment.model, experiment.image_shape, key)


@functools.partial(jax.jit, static_argnums=(0, 1))  # jit traces it once for all callers
def _init_params(model: nn.Module, image_shape: tuple[int, int, int], key: jax.Array) -> Any:
    images = jnp.zeros((1, *image_shape))
    return networks.init_params(model, key, images, jnp.zeros(1, jnp.int32))


def make_sampler(config: ConfigDict, name: str | None = None) -> Sampler:
    """Return the sampler called `name`, or the config's own sampler if `name` is None.

    The config's own sampler takes its other arguments from `config.sampler`. `name` may end with
    '+consistency', which `consistency_steps` reads.

    Raises:
      UserError: there is no such sampler, or it does not take one of the arguments.
    """
    settings = config.sampler.to_dict()
    own, _ = settings.pop("name"), settings.pop("steps")
    for field in ("consistency", "noise_std", "spacing"):  # of every sampler (`make_consistency`)
        settings.pop(field, None)
    name = name and name.removesuffix(CONSISTENT)
    function = named(SAMPLERS, "sampler", own if name is None else name)
    if name is not None and name != own:
        return Partial(function)
    known = inspect.signature(function).parameters.values()
    takes = [p.name for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if unknown := set(settings) - set(takes):
        raise UserError(
            f"config.sampler has {', '.join(sorted(unknown))}; besides name and steps, {own} takes "
            f"{', '.join(takes) or 'nothing'}"
        )
    return Partial(function, **settings)


def consistency_steps(config: ConfigDict, name: str) -> int:
    """Return the number of conjugate-gradient steps that a sampler's name asks for.

    It is 0 unless the name ends with '+consistency', as in 'tacos+consistency'. Then it is
    `config.sampler.consistency`, or 32 if that is 0.
    """
    if not name.endswith(CONSISTENT):
        return 0
    return config.sampler.get("consistency", 0) or _CONSISTENCY_STEPS


def full_name(config: ConfigDict, name: str) -> str:
    """Return a sampler's name, with '+consistency' if the config uses data consistency."""
    return name + CONSISTENT * bool(config.sampler.get("consistency", 0))


def make_consistency(
    config: ConfigDict, degrade: Degrade, steps: int | None = None
) -> Consistency | None:
    """Return the settings of data consistency, or None if it is not used.

    It is not used with blends. Their noise, or other image, is unknown in practice, and D(x0, T)
    keeps nothing of x0.

    Args:
      config: the config, whose `sampler.noise_std` is the noise of the image to restore.
      degrade: the degradation.
      steps: number of conjugate-gradient steps, 0 for none; the config's if None.

    Raises:
      UserError: the number of steps is not a whole number, or JAX cannot differentiate D.
    """
    if steps is None:
        steps = config.sampler.get("consistency", 0)
    if not isinstance(steps, Integral) or steps < 0:
        raise UserError(f"consistency={steps} must be a whole number of steps, or 0 for none")
    if steps == 0 or is_blend(degrade):
        return None
    check_differentiable(config.degradation.name, degrade, _image_shape(config.data))
    noise_std = config.sampler.get("noise_std", EIGHT_BIT_STD)
    return Consistency(np.int32(steps), np.float32(noise_std))


def make_prior(experiment: Experiment, mixture_of: Callable[..., Mixture]) -> Prior | None:
    """Return the prior that `config.prior` names, or None for 'none'.

    Args:
      experiment: the experiment whose xT the prior draws.
      mixture_of: `mixture_of(size=..., components=...)` returns a mixture fitted to the training
        images.

    Raises:
      UserError: there is no such prior, or its settings cannot work.
    """

    def of_pattern(*, noise_std: float) -> Prior:
        T, shape = experiment.T, experiment.image_shape
        return pattern(experiment.degrade, T=T, shape=shape, noise_std=noise_std)

    def of_mixture(*, size: int | tuple[int, int], components: int, noise_std: float) -> Prior:
        image_size = experiment.config.data.image_size
        check_size(size, image_size)
        if components < 1:
            raise UserError(f"config.prior.components={components} must be 1 or more")
        mixture = mixture_of(size=size, components=components)
        return gaussian_mixture(mixture, image_size=image_size, noise_std=noise_std)

    priors = {"none": lambda: None, "pattern": of_pattern, "gaussian_mixture": of_mixture}
    return _make("prior", experiment.config.prior, priors)


def _no_mixture(*, size: int | tuple[int, int], components: int) -> Mixture:
    """Return an unfitted mixture of one channel, to check settings before fitting one."""
    h, w = height_width(size)
    return Mixture(
        np.ones(components), np.zeros((components, h, w, 1)), np.zeros((components, h * w, h * w))
    )


def _image_shape(data_settings: ConfigDict) -> tuple[int, int, int]:
    return *height_width(data_settings.image_size), data_settings.channels


def _unchanged(xt: jax.Array) -> jax.Array:
    return xt


def _degradation(settings: Mapping[str, Any], data_settings: ConfigDict) -> Degrade:
    """Build the degradation that a config's `degradation` describes, for images as in `data`."""
    settings = dict(settings)
    name, num_steps = settings.pop("name", None), settings["num_steps"]
    own = isinstance(name, str) and ":" in name
    factory = None if own else named(DEGRADATIONS, "degradation", name)
    if factory is compose:
        return _call("degradation", _composed, data_settings, **settings)
    if "image_size" in settings:
        raise UserError(
            "config.degradation.image_size cannot be set, because data.image_size is used; leave "
            "it out"
        )
    for field, value in settings.items():
        if isinstance(value, dict) and "schedule" in value:
            settings[field] = _schedule(field, value, num_steps)
    if "bank" in settings:
        bank = _mapping("degradation.bank", settings["bank"])
        settings |= _call("degradation.bank", _load_bank, data_settings, **bank)
    shape = _image_shape(data_settings)
    if own:
        settings["image_size"] = shape[0] if shape[0] == shape[1] else shape[:2]
        logging.info("degradation: the user's own %s", name)
        found, again = (make_own(name, settings) for _ in range(2))
        check_own_degradation(found, again, num_steps, shape)
        return checked(found.degrade, num_steps)
    if "image_size" in inspect.signature(factory).parameters:
        settings["image_size"] = shape[:2]
    degrade = _call("degradation", factory, **settings)
    check_degradation(name, degrade, shape)
    return checked(degrade, num_steps)


def _composed(data_settings: ConfigDict, *, num_steps: int, parts: Sequence[Any]) -> Degrade:
    """Build the composition of `parts`, each a degradation's settings without `num_steps`."""
    degradations = []
    for part in parts:
        part = _mapping("degradation.parts' members", part)
        if "num_steps" in part:
            raise UserError(
                f"the part {part} of compose sets num_steps, but all parts take compose's "
                f"num_steps={num_steps}; leave it out"
            )
        degradations.append(_degradation({**part, "num_steps": num_steps}, data_settings))
    composed = compose(*degradations)
    if name := first_own({"parts": parts}):
        # An own part may fail on what the parts before it return.
        check_values(Own(name, None, composed), num_steps, _image_shape(data_settings))
    return composed


def _load_bank(
    data_settings: ConfigDict, *, source: str, split: str, limit: int, sharded: bool
) -> dict[str, Any]:
    """Return the arguments `bank` and `bank_size` of `animorph`."""
    bank = sources.load(source, split, limit=limit, **sources.shape_of(data_settings))
    return {"bank": split_rows(bank, create_mesh()) if sharded else bank, "bank_size": len(bank)}


def _schedule(name: str, settings: Mapping[str, Any], num_steps: int) -> list[float]:
    """Return the list of T numbers that `dict(schedule=NAME, ...)` describes."""
    settings = dict(settings)
    function = named(SCHEDULES, f"schedule of degradation.{name}", settings.pop("schedule"))
    return _call(f"degradation.{name}", function, num_steps, **settings)


def learning_rates(train: ConfigDict) -> optax.Schedule:
    """Return the learning rate of each step, counted from 0, as a config's `train` sets it."""
    schedules = {
        "constant": lambda: optax.constant_schedule(train.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(train.learning_rate, train.num_steps),
    }
    schedule = named(schedules, "train.lr_schedule", train.lr_schedule)()
    if not train.warmup_steps:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / train.warmup_steps)


def _optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """Return Adam with the config's learning rates, weight decay and limit of the gradient."""
    named({"adam": optax.adam}, "train.optimizer", train.optimizer)
    rates, decay = learning_rates(train), train.weight_decay
    optimizer = optax.adamw(rates, weight_decay=decay) if decay else optax.adam(rates)
    if not train.clip_norm:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), optimizer)


def _make(
    what: str,
    settings: Any,
    table: Mapping[str, Callable],
    shape: Mapping[str, Any] | None = None,
) -> Any:
    """Return `table[settings.name]` of the other settings, and what it takes of `shape`."""
    settings = dict(settings)
    factory = named(table, what, settings.pop("name"))
    takes = inspect.signature(factory).parameters
    settings |= {k: v for k, v in (shape or {}).items() if k in takes}
    # A saved config has lists in place of tuples, but modules must be hashable.
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    if "dtype" in settings:
        settings["dtype"] = named(_DTYPES, f"{what}.dtype", settings["dtype"])
    return _call(what, factory, **settings)


def _call(what: str, function: Callable, *args: Any, **settings: Any) -> Any:
    """Return `function(*args, **settings)`; refuse settings that it does not take."""
    try:
        inspect.signature(function).bind(*args, **settings)
    except TypeError as error:
        takes = list(inspect.signature(function).parameters)[len(args) :]
        raise UserError(f"config.{what}: {error}; it takes {', '.join(takes)}") from error
    return function(*args, **settings)


def _mapping(what: str, value: Any) -> dict[str, Any]:
    """Return `value` as a dict; refuse anything but a mapping."""
    if not isinstance(value, Mapping | ConfigDict):
        raise UserError(f"config.{what} must be dict(...); got {value!r}")
    return dict(value)
