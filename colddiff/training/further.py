"""Further terms of the loss, beyond the paper's |R(xt, t) - x0|; off by default.

Training degrades x0, but a sampler restores its own iterates, and the iterates of Algorithm 2
depend on R only through differences of D. So `config.train.unfold` also restores an iterate that
Algorithm 2 would visit, and `config.train.degraded_loss` compares degraded estimates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from colddiff.degradations import Degrade
from colddiff.experiment.build import Experiment
from colddiff.sampling.samplers import BatchDegrade, draw_patterns, tacos
from colddiff.training.examples import pattern_key

_SEVERITY = 1  # what a further severity's key is folded with


class Further(NamedTuple):
    """What the further terms need of a batch; a pytree.

    Attributes:
      x0: the images, `[B, H, W, C]`.
      xt: the network's input, `[B, H, W, C]`.
      t: the severities of xt, `[B]`.
      s: a severity below t for each image, uniform on 1..t-1; 0 where t = 1.
      D: the degradation of the batch, with the patterns of xt.
    """

    x0: jax.Array
    xt: jax.Array
    t: jax.Array
    s: jax.Array
    D: BatchDegrade


def make_further(
    experiment: Experiment,
    degrade: Degrade,
    keys: jax.Array,
    example: tuple[jax.Array, jax.Array, jax.Array],
) -> Further | None:
    """Return what the further terms need; None if the config has none.

    Args:
      experiment: the experiment.
      degrade: its degradation, as an argument of the jitted step.
      keys: the keys of the examples, `[B]`.
      example: (x0, xt, t) of the batch that `examples.make_example` made with these keys.
    """
    train = experiment.config.train
    if not (train.unfold.weight or train.degraded_loss):
        return None
    pattern_keys = jax.vmap(pattern_key)(keys)

    def draw(key: jax.Array, t: jax.Array) -> jax.Array:
        s = jax.random.randint(jax.random.fold_in(key, _SEVERITY), (), 1, jnp.maximum(t, 2))
        return jnp.where(t > 1, s, 0)

    D = draw_patterns(degrade, pattern_keys, experiment.image_shape)
    return Further(*example, jax.vmap(draw)(pattern_keys, example[2]), D)


def further_losses(
    config: ConfigDict,
    restore: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    further: Further,
    x0_hat: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Return the sum of the weighted terms, a scalar.

    With weight λ, `unfold` adds λ |R(x̃, s) - x0|, where x̃ is the iterate that a step of Algorithm
    2 makes from xt: x̃ = xt - D(x̂, t) + D(x̂, s). Images with t = 1, whose next iterate is x0, add
    0. Gradients pass through x̃ if `unfold.through`. With weight μ, `degraded_loss` adds
    μ |D(x̂, s) - D(x0, s)|.

    Args:
      config: the config.
      restore: `R(xt, t, key)` of the batch, with a dropout key.
      further: what `make_further` returned.
      x0_hat: x̂ = R(xt, t).
      key: the dropout key of `x0_hat`.
    """
    settings, (x0, xt, t, s, D), total = config.train, further, 0.0
    if settings.unfold.weight:
        estimate = x0_hat if settings.unfold.through else jax.lax.stop_gradient(x0_hat)
        iterate = tacos(lambda x, t: estimate, D, xt, t, s)
        again = restore(iterate, s, jax.random.fold_in(key, _SEVERITY))
        error = jnp.mean(jnp.abs(again - x0), axis=(1, 2, 3))
        total += settings.unfold.weight * jnp.mean(jnp.where(t > 1, error, 0.0))
    if settings.degraded_loss:
        total += settings.degraded_loss * jnp.mean(jnp.abs(D(x0_hat, s) - D(x0, s)))
    return total
