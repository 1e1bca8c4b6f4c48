"""What the ConvNeXt U-Net's convolutions cost by XLA and by `colddiff.networks.convolution`.

    python -m tests.bench_convolution            the whole network too: minutes, 8 GB
    python -m tests.bench_convolution --parts

32 images at the paper's first level, 32² × 64; then its network, forward and train step, with plain
Linen convolutions and with ours. Both take turns, in one run; medians and quartiles of all rounds,
and how far the results are apart, relative to the largest. Not a test: times are to be read.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from colddiff.networks import ConvNeXtUNet, convnext_unet, convolution, init_params

BATCH, ROUNDS = 32, 7
LAYOUT = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))


def parts() -> Iterator[tuple[str, Callable, Callable, tuple, tuple]]:
    """(name, XLA's, ours, shape of x, shape of the kernel)."""
    around = lambda pad: ((pad, pad), (pad, pad))  # noqa: E731

    def pair(strides, pad, groups):
        settings = dict(feature_group_count=groups, **LAYOUT)
        return (
            lambda x, k: lax.conv_general_dilated(x, k, strides, around(pad), **settings),
            lambda x, k: convolution.convolve(x, k, strides, around(pad), **settings),
        )

    image = (BATCH, 32, 32, 64)
    yield "depthwise 7×7", *pair((1, 1), 3, 64), image, (7, 7, 1, 64)
    yield "1×1, 64 → 384", *pair((1, 1), 0, 1), image, (1, 1, 64, 384)
    yield "3×3, 64 → 128", *pair((1, 1), 1, 1), image, (3, 3, 64, 128)
    yield "4×4, stride 2", *pair((2, 2), 1, 1), image, (4, 4, 64, 64)
    up = lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")  # noqa: E731
    yield "4×4 transposed", up, convolution._upsample, (BATCH, 16, 16, 64), (4, 4, 64, 64)


def gradient(function: Callable, index: int) -> Callable:
    """To input `index` alone, of a function of x and a kernel."""

    def found(x, kernel, dy):
        arguments = [x, kernel]

        def of_one(value):
            arguments[index] = value
            return function(*arguments)

        return jax.vjp(of_one, arguments[index])[1](dy)[0]

    return found


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """The network as Linen alone would have it."""

    class ConvTranspose(nn.ConvTranspose):
        kernel_size: tuple[int, int] = (4, 4)
        strides: tuple[int, int] = (2, 2)

    with (
        mock.patch.object(convnext_unet, "convolve", None),
        mock.patch.object(convnext_unet, "ConvTranspose", ConvTranspose),
    ):
        yield


def compare(name: str, theirs: Callable, ours: Callable, *arguments: jax.Array) -> None:
    """One row of the table; the functions are compiled, and give trees of arrays."""
    a, b = (jax.tree.leaves(jax.device_get(f(*arguments))) for f in (theirs, ours))
    apart = np.max([np.abs(x - y).max() / np.abs(x).max() for x, y in zip(a, b, strict=True)])
    times = [[], []]
    for _ in range(ROUNDS):
        for function, found in zip((theirs, ours), times, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            found.append(1e3 * (time.perf_counter() - begin))
    quartiles = [np.quantile(found, (0.25, 0.5, 0.75)) for found in times]
    cells = [f"{q[1]:.3g} ({q[0]:.3g} – {q[2]:.3g})" for q in quartiles]
    ratio = quartiles[0][1] / quartiles[1][1]
    sys.stdout.write(f"| {name} | {' | '.join(cells)} | {ratio:.2g} | {apart:.1e} |\n")
    sys.stdout.flush()


def compiled(function: Callable, *arguments: jax.Array) -> Callable:
    return jax.jit(function).lower(*arguments).compile()


def main() -> None:
    device = jax.devices()[0]
    sys.stdout.write(f"{BATCH} images, {device.platform} {device.device_kind}, ms\n\n")
    sys.stdout.write("| | XLA | here | ratio | apart |\n|---|---|---|---|---|\n")
    for name, theirs, ours, *shapes in parts():
        x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
        dy = jax.random.normal(jax.random.key(2), jax.eval_shape(theirs, x, kernel).shape)
        pair = (theirs, ours)
        compare(f"{name}, forward", *(compiled(f, x, kernel) for f in pair), x, kernel)
        for index, what in enumerate(("input", "kernel")):
            both = (compiled(gradient(f, index), x, kernel, dy) for f in pair)
            compare(f"{name}, gradient to the {what}", *both, x, kernel, dy)
    if "--parts" in sys.argv:
        return

    model, optimizer = ConvNeXtUNet(channels=3), optax.adam(2e-5)
    x = jax.random.uniform(jax.random.key(0), (BATCH, 32, 32, 3), minval=-1.0, maxval=1.0)
    t = jnp.arange(BATCH)
    params = jax.jit(lambda key: init_params(model, key, x[:1], t[:1]))(jax.random.key(1))
    state = optimizer.init(params)

    def forward(params, x, t):
        return model.apply({"params": params}, x, t)

    def gradients(params, x, t):
        loss = lambda params: jnp.mean(jnp.abs(forward(params, x, t) - x))  # noqa: E731
        return jax.value_and_grad(loss)(params)

    def train_step(params, state, x, t):
        value, grads = gradients(params, x, t)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    rows = (
        ("forward", forward, (params, x, t)),
        ("gradients", gradients, (params, x, t)),
        # Adam's first step divides each gradient by its size: the rounding of the least shows.
        ("train step", train_step, (params, state, x, t)),
    )
    for name, function, arguments in rows:
        with plain():
            # A function of its own, or jit would give what it has already.
            theirs = compiled(lambda *a, f=function: f(*a), *arguments)
        compare(f"network, {name}", theirs, compiled(function, *arguments), *arguments)


if __name__ == "__main__":
    main()
