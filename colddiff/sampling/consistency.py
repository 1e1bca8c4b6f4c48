"""Data consistency: a restoration agrees with the image that it was made from.

That image is a measurement of x0, y = D(x0, s) + noise. `project` replaces an estimate x̂ of x0 by
the nearest image that agrees with y, the minimiser over z of

    ‖D(z, s) - y‖² + λ ‖z - x̂‖²,   λ = noise variance / prior variance.

The prior variance, of x0 around x̂, is that of a typical restorer, so λ depends only on the noise
of the measurement. What D loses stays as it is in x̂.

`consistent` makes such a rule of any sampler's rule, and changes nothing about the sampler itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from colddiff.degradations import split
from colddiff.sampling.samplers import BatchDegrade, BoundRestore, Sampler, init_of

EIGHT_BIT_STD = 2 / 255 / 12**0.5  # of rounding [-1, 1] to 256 levels: uniform within a level
# Standard deviation of x0 around x̂: an RMSE of .1 on [0, 1], near that of the paper's restorers.
# With 1, the range of images, z would follow the noise of y where D is weak: inpainting of 8-bit
# training digits was then worse than without consistency.
PRIOR_STD = 0.2
# CG stops at a residual of float32's precision. More steps would add rounding divided by λ to what
# D loses, and residuals whose squares underflow would be divided by 0.
_CONVERGED = dict(tol=1e-6, atol=1e-12)


class Measurement(NamedTuple):
    """What restorations must agree with.

    Attributes:
      y: the measured images, `[B, H, W, C]` on [-1, 1].
      s: their severity, int32: one for all images, or `[B]`.
      noise_std: standard deviation of y's noise, above 0, on [-1, 1].
    """

    y: jax.Array
    s: jax.Array
    noise_std: float | jax.Array = EIGHT_BIT_STD


def consistent(sampler: Sampler, measurement: Measurement, steps: int | jax.Array) -> Sampler:
    """Return the sampler's rule with `project`ed estimates of R and a `project`ed x0.

    Args:
      sampler: a rule for one step.
      measurement: what all estimates and x0 must agree with.
      steps: number of conjugate-gradient steps of each projection.
    """

    def rule(
        R: BoundRestore,
        D: BatchDegrade,
        x: jax.Array,
        s: jax.Array,
        s_next: jax.Array,
        *memory: Any,
    ) -> Any:
        def agree(x0_hat: jax.Array) -> jax.Array:
            return project(D, x0_hat, measurement, steps)

        x = sampler(lambda x, s: agree(R(x, s)), D, x, s, s_next, *memory)
        if memory:
            x, *memory = x
        is_x0 = jnp.reshape(s_next == 0, (-1, 1, 1, 1))
        x0 = jax.lax.cond(jnp.any(is_x0), agree, lambda x: x, x)
        x = jnp.where(is_x0, x0, x)
        return (x, *memory) if memory else x

    rule.init = init_of(sampler)
    return rule


def project(
    D: BatchDegrade, x0_hat: jax.Array, measurement: Measurement, steps: int | jax.Array
) -> jax.Array:
    """Return the images nearest to x̂ that agree with the measurement, `[B, H, W, C]`.

    It linearises D at x̂ and solves for the change of x̂ by conjugate gradients. This is the
    minimiser if D is linear in x0. Otherwise, as for clipped values, it is one Gauss-Newton step,
    and the next projection of a sampler takes another. Where D's derivative is 0 at x̂, as in
    saturated pixels, x̂ stays.

    Args:
      D: the degradation of the batch, differentiable in x0.
      x0_hat: x̂, estimates of x0, `[B, H, W, C]` on [-1, 1]. An image's result depends on itself
        only.
      measurement: y, its severity and its noise.
      steps: number of conjugate-gradient steps, 0 or more.
    """
    _, apply = split(D.degrade)
    y, s, noise_std = measurement
    penalty = jnp.square(jnp.float32(noise_std / PRIOR_STD))  # λ

    def one(x0_hat, y, s, pattern):
        degraded, J = jax.linearize(lambda x0: apply(x0, s, pattern), x0_hat)
        transposed = jax.linear_transpose(J, x0_hat)

        def JT(r):
            return transposed(r)[0]

        def normal(d):
            return JT(J(d)) + penalty * d

        # The preconditioner divides by the row sums of JᵀJ + λ. A mask's JᵀJ is diagonal and badly
        # conditioned; with its row sums, which are its diagonal, CG converges in one step.
        row_sums = jnp.abs(JT(J(jnp.ones_like(x0_hat)))) + penalty
        change, _ = cg(
            normal,
            JT(y - degraded),
            **_CONVERGED,
            maxiter=steps,
            M=lambda r: r / row_sums,
        )
        return x0_hat + change

    return jax.vmap(one, (0, 0, 0 if jnp.ndim(s) else None, 0))(x0_hat, y, s, D.patterns)
