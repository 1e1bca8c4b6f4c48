"""Schedules of a per-step parameter, such as the blur's σ, and of a blend's ᾱ.

A parameter is a list of T floats for t = 1..T, or one number for all t. Each degradation defines
what its parameter does to an image.
"""

import itertools
import math
from collections.abc import Callable, Sequence

from colddiff.runtime.errors import UserError


def linear(num_steps: int, *, start: float, step: float) -> list[float]:
    """Return `start + step (t - 1)` for t = 1..T."""
    return [start + step * i for i in range(num_steps)]


def exponential(num_steps: int, *, start: float, rate: float) -> list[float]:
    """Return `start exp(rate (t - 1))` for t = 1..T.

    Raises:
      UserError: a value is too large for a float.
    """
    try:
        return [start * math.exp(rate * i) for i in range(num_steps)]
    except OverflowError as error:
        raise UserError(
            f"start={start}, rate={rate} of an exponential schedule give values too large for a "
            f"float within num_steps={num_steps}; use a smaller rate"
        ) from error


SCHEDULES: dict[str, Callable[..., list[float]]] = {
    "linear": linear,
    "exponential": exponential,
}


def per_step(name: str, value: float | Sequence[float], num_steps: int) -> list[float]:
    """Return one positive value for each of the T steps, from one number or a list of T.

    Raises:
      UserError: the list has another length, or a value is not a positive finite number.
    """
    if not isinstance(value, int | float | Sequence) or isinstance(value, str):
        raise UserError(
            f"{name}={value!r} must be a number or a list of num_steps={num_steps} numbers"
        )
    values = [value] * num_steps if isinstance(value, int | float) else list(value)
    if len(values) != num_steps:
        raise UserError(f"{name} has {len(values)} values; give 1 or num_steps={num_steps}")
    positive = lambda v: isinstance(v, int | float) and math.isfinite(v) and v > 0  # noqa: E731
    wrong = [v for v in values if not positive(v)]
    if wrong:
        raise UserError(f"{name} must be positive and finite at every step; got {wrong[0]!r}")
    return [float(v) for v in values]


def cosine_alpha_bar(num_steps: int) -> list[float]:
    """Return the cosine schedule: ᾱ_t for t = 0..T, from 1 down to nearly 0; T + 1 floats.

    It is equation 17 of Nichol and Dhariwal 2021 with s = .008. Every β_t = 1 - ᾱ_t / ᾱ_(t-1) is at
    most .999.
    """
    f = [math.cos((t / num_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(num_steps + 1)]
    alphas = [max(after / before, 1 - 0.999) for before, after in itertools.pairwise(f)]
    return list(itertools.accumulate(alphas, lambda x, y: x * y, initial=1.0))
