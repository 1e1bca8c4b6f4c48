"""Times of the networks' convolutions and sums, XLA's and ours, compiler option off and on.

    python -m tests.bench_convolution            the whole networks too: minutes, 8 GB
    python -m tests.bench_convolution --parts

Inputs are 32 images at the first level of the ConvNeXt U-Net, 32² × 64. The forward pass, the
gradients and the train step of the paper's two networks follow. XLA's forms are those that
`lax.platform_dependent` selects on GPUs and TPUs. The option is that of
`colddiff.runtime.compiler`. All four variants take turns in one run; the table gives medians and
quartiles of all rounds. *Apart* is the difference of ours with the option on from XLA's with it
off, relative to the largest entry.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from colddiff.networks import ConvNeXtUNet, ResNetUNet, init_params
from colddiff.networks.convolution import convolve, upsample
from colddiff.networks.pixels import pixel_sum
from colddiff.runtime.compiler import cpu_options

BATCH, ROUNDS = 32, 7


def parts() -> Iterator[tuple[str, Callable, tuple[int, ...], tuple[int, ...]]]:
    """Yield (name, function of x and a kernel, shape of x, shape of the kernel)."""

    def conv(stride, pad):
        return lambda x, k: convolve(x, k, stride, ((pad, pad), (pad, pad)))

    def pointwise(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        product = lambda x, k: convolve(x, k, 1, ((0, 0), (0, 0)))  # noqa: E731
        xla = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=layout)  # noqa: E731
        return lax.platform_dependent(x, k, cpu=product, default=xla)

    image = (BATCH, 32, 32, 64)
    yield "depthwise 7×7", conv(1, 3), image, (7, 7, 1, 64)
    yield "1×1, 64 → 384", pointwise, image, (1, 1, 64, 384)
    yield "3×3, 64 → 128", conv(1, 1), image, (3, 3, 64, 128)
    yield "4×4, stride 2", conv(2, 1), image, (4, 4, 64, 64)
    yield "4×4 transposed", upsample, (BATCH, 16, 16, 64), (4, 4, 64, 64)
    yield "sum over pixels", lambda x, k: pixel_sum(x * k), (BATCH, 1024, 64), (1, 1, 64)


def gradient(function: Callable, index: int) -> Callable:
    """Return the gradient of a function of x and a kernel to input `index`."""

    def found(x, kernel, dy):
        arguments = [x, kernel]

        def of_one(value):
            arguments[index] = value
            return function(*arguments)

        return jax.vjp(of_one, arguments[index])[1](dy)[0]

    return found


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Use the forms for GPUs and TPUs within this block."""
    with mock.patch.object(lax, "platform_dependent", lambda *a, cpu, default: default(*a)):
        yield


def variants(function: Callable, *arguments: jax.Array) -> list[Callable]:
    """Return four compiled functions: XLA's and ours, each with the option off and on."""
    found = []
    for context in (elsewhere, contextlib.nullcontext):
        for options in (None, cpu_options()):
            with context():
                # A new function for each option, because jit would reuse the program of an old one.
                own = jax.jit(lambda *a: function(*a), compiler_options=options)
                found.append(own.lower(*arguments).compile())
    return found


def compare(name: str, function: Callable, *arguments: jax.Array) -> None:
    """Print one row of the table."""
    programs = variants(function, *arguments)
    results = [jax.tree.leaves(jax.device_get(program(*arguments))) for program in programs]
    pairs = zip(results[0], results[-1], strict=True)
    apart = np.max([np.abs(x - y).max() / np.abs(x).max() for x, y in pairs])
    times = [[] for _ in programs]
    for _ in range(ROUNDS):
        for program, found in zip(programs, times, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            found.append(1e3 * (time.perf_counter() - begin))
    quartiles = [np.quantile(found, (0.25, 0.5, 0.75)) for found in times]
    cells = [f"{q[1]:.3g} ({q[0]:.3g} – {q[2]:.3g})" for q in quartiles]
    sys.stdout.write(f"| {name} | {' | '.join(cells)} | {apart:.1e} |\n")
    sys.stdout.flush()


def main() -> None:
    device = jax.devices()[0]
    sys.stdout.write(f"{BATCH} images, {device.platform} {device.device_kind}, ms\n\n")
    sys.stdout.write(
        "| | XLA, off | XLA, on | here, off | here, on | apart |\n" + "|---" * 6 + "|\n"
    )
    for name, function, *shapes in parts():
        x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
        dy = jax.random.normal(jax.random.key(2), jax.eval_shape(function, x, kernel).shape)
        compare(f"{name}, forward", function, x, kernel)
        for index, what in enumerate(("input", "kernel")):
            compare(f"{name}, gradient to the {what}", gradient(function, index), x, kernel, dy)
    if "--parts" in sys.argv:
        return

    x = jax.random.uniform(jax.random.key(0), (BATCH, 32, 32, 3), minval=-1.0, maxval=1.0)
    t, optimizer = jnp.arange(BATCH), optax.adam(2e-5)
    for model in (ConvNeXtUNet(channels=3), ResNetUNet(channels=3)):
        params = jax.jit(lambda key, m=model: init_params(m, key, x[:1], t[:1]))(jax.random.key(1))

        def restore(params, train, model=model):
            rngs = {"dropout": jax.random.key(2)}
            return model.apply({"params": params}, x, t, train=train, rngs=rngs)

        def gradients(params, restore=restore):
            loss = lambda params: jnp.mean(jnp.abs(restore(params, True) - x))  # noqa: E731
            return jax.value_and_grad(loss)(params)

        def train_step(params, state, gradients=gradients):
            value, grads = gradients(params)
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state, value

        name = type(model).__name__
        compare(f"{name}, forward", lambda params, restore=restore: restore(params, False), params)
        compare(f"{name}, gradients", gradients, params)
        compare(f"{name}, train step", train_step, params, optimizer.init(params))


if __name__ == "__main__":
    main()
