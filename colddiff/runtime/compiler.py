"""Compilation of programs that contain a network: `network_jit` instead of `jax.jit`.

On the CPU, jaxlib 0.10 and 0.11 pass convolutions to the YNNPACK library, which runs them at a
sixth to three quarters of the speed of XLA's own kernels (docs/performance.md). One compiler option
makes XLA use its own kernels. This module contains no network and no loop.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

_FIELD = "xla_cpu_experimental_ynn_fusion_type"
_OPTIONS = {_FIELD: ""}  # the kinds of operation that YNNPACK runs: none


def network_jit(function: Callable, *, announce: str = "", **settings: Any) -> Callable:
    """Return `jax.jit(function, **settings)`, compiled with `cpu_options` where they apply.

    JAX takes compiler options for the outermost `jit` only, so inside another transformation this
    is a plain `jax.jit`. The result has a `lower` method, like that of `jax.jit`.

    Args:
      function: the function to compile.
      announce: the program's name in the log, such as "the sampler". If given, the log says when
        the program is compiled and how long that took. The result then has a method
        `prepare(*args)`, which compiles the program for arguments like `args` and returns the
        compiled function; on later calls it only returns the function.
      **settings: of `jax.jit`.
    """
    plain = jax.jit(function, **settings)
    compiled_for = set()

    @functools.cache
    def tuned() -> Callable:
        return jax.jit(function, compiler_options=cpu_options(), **settings)

    def jitted(*arguments: Any) -> Callable:
        # While JAX traces, the constant is a tracer too, even if no argument is one.
        leaves = jax.tree.leaves((arguments, jnp.zeros(())))
        return plain if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else tuned()

    def prepare(*args: Any, **kwargs: Any) -> Callable:
        leaves, tree = jax.tree.flatten((args, kwargs))
        kind = (tree, *map(jax.typeof, leaves))
        if kind not in compiled_for:
            logging.info("compiling %s ...", announce)
            began = time.monotonic()
            tuned().lower(*args, **kwargs).compile()  # a call then finds the program in JAX's cache
            logging.info("compiled %s in %.1f s", announce, time.monotonic() - began)
            compiled_for.add(kind)
        return tuned()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        chosen = jitted(args, kwargs)
        if announce and chosen is not plain:
            prepare(*args, **kwargs)
        return chosen(*args, **kwargs)

    call.lower = lambda *args, **kwargs: jitted(args, kwargs).lower(*args, **kwargs)
    call.prepare = prepare
    return call


@functools.cache
def cpu_options() -> dict[str, str] | None:
    """Return the compiler options for programs with a network, or None for XLA's defaults.

    The result is None on GPUs and TPUs, for a jaxlib that does not know the option, if the
    environment has `COLDDIFF_CPU_TUNING=0`, or if its `XLA_FLAGS` already set the option.
    """
    switched_off = os.environ.get("COLDDIFF_CPU_TUNING") == "0"
    if switched_off or _FIELD in os.environ.get("XLA_FLAGS", "") or jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: unknown option or value
        return None
    return _OPTIONS


def program_bytes(program: Any) -> int:
    """Return the memory that a compiled program needs on a device, in bytes; 0 if unknown.

    It includes the arguments and the outputs, and counts donated arguments once.
    """
    memory = program.memory_analysis()
    if memory is None:
        return 0
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes
