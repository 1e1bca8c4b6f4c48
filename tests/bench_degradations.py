"""Times of every degradation at t = 1 and at t = T, on 32 images of 128² × 3.

    python -m tests.bench_degradations

Both severities are timed in turn, by one compiled program. Their ratio is the median over the
rounds, with its quartiles. This is not a test: nothing is asserted.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.degradations import (
    animorph,
    compose,
    desaturate,
    exponential,
    gaussian_blur,
    gaussian_mask,
    gaussian_noise,
    linear,
    pixelate,
    snow,
)
from colddiff.sampling.samplers import image_keys

SIZE, BATCH, ROUNDS, CALLS = 128, 32, 40, 5


def degradations():
    """Yield (name, T, degradation) at the paper's settings for 128²."""
    std = exponential(200, start=1.0, rate=0.01)
    blur = gaussian_blur(image_size=SIZE, num_steps=200, kernel_size=15, std=std, padding="reflect")
    yield "gaussian_blur", 200, blur
    yield "pixelate", 6, pixelate(image_size=SIZE, num_steps=6)
    centred = linear(100, start=0.2, step=0.2)
    mask = gaussian_mask(image_size=SIZE, num_steps=100, std=centred, center="image")
    yield "gaussian_mask, centred", 100, mask
    mask = gaussian_mask(image_size=SIZE, num_steps=100, std=centred, center=(1, 127))
    yield "gaussian_mask, random", 100, mask
    falling = dict(threshold=(1.15, 0.55), motion_std=(0.05, 20.0))
    yield "snow", 200, snow(image_size=SIZE, num_steps=200, **falling)
    yield "desaturate", 20, desaturate(num_steps=20)
    yield "gaussian_noise", 200, gaussian_noise(num_steps=200)
    bank = np.random.default_rng(0).integers(0, 256, (1000, SIZE, SIZE, 3), np.uint8)
    yield "animorph", 200, animorph(num_steps=200, bank=bank)
    yield "compose(blur, desaturate)", 200, compose(blur, desaturate(num_steps=200))


def main() -> None:
    x0 = jax.random.uniform(jax.random.key(0), (BATCH, SIZE, SIZE, 3), minval=-1, maxval=1)
    keys = image_keys(jax.random.key(1), 0, BATCH)
    run = jax.jit(lambda degrade, x0, t: jax.vmap(degrade, (0, None, 0))(x0, t, keys))
    device = jax.devices()[0]
    sys.stdout.write(f"{BATCH} images {SIZE}² × 3, {device.platform} {device.device_kind}\n")
    sys.stdout.write(
        "| | T | ms at t=1 | ms at t=T | ratio T/1 (quartiles) |\n|---|---|---|---|---|\n"
    )
    for name, T, degrade in degradations():
        degrade = jax.device_put(degrade, device)
        times = {t: [] for t in (1, T)}
        for _ in range(ROUNDS + 2):
            for t, found in times.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    run(degrade, x0, jnp.int32(t)).block_until_ready()
                found.append((time.perf_counter() - start) / CALLS)
        first, last = (np.array(found[2:]) for found in times.values())
        low, ratio, high = np.quantile(last / first, [0.25, 0.5, 0.75])
        ms = [1e3 * np.median(found) for found in (first, last)]
        sys.stdout.write(
            f"| {name} | {T} | {ms[0]:.2f} | {ms[1]:.2f} | {ratio:.2f} ({low:.2f}–{high:.2f}) |\n"
        )


if __name__ == "__main__":
    main()
