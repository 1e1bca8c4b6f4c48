"""The whole sampler, xT to x0, as one program that runs with JAX alone (`jax.export`)."""

from collections.abc import Sequence

import jax
import jax.export
import jax.numpy as jnp

from colddiff.inference.run import Run, run_sampler
from colddiff.runtime.devices import to_host
from colddiff.runtime.errors import UserError, first_line
from colddiff.sampling.samplers import image_keys

PLATFORMS = ("cpu", "cuda", "tpu")
FILE = "sampler.jax"


def export_sampler(run: Run, platforms: Sequence[str] = PLATFORMS) -> jax.export.Exported:
    """Return the program `(xT, seed) -> x0`, for any number of images, with the parameters inside.

    It computes `run.sample(run.params, xT, jax.random.key(seed))` with the config's sampler:
    xT and x0 are float32 `[B, H, W, C]`, seed is a uint32 scalar. The seed matters only where the
    degradation or the sampler is random. Write it with `serialize()`; `jax.export.deserialize`
    reads it, and `call` runs it.

    Raises:
      UserError: JAX cannot export the sampler for a number of images that is not known yet, such
        as with a user's degradation that uses the number of images.
    """
    times = run.times()
    restoration = to_host(run.restoration(run.params))

    def sample(xT: jax.Array, seed: jax.Array) -> jax.Array:
        keys = image_keys(jax.random.key(seed), 0, xT.shape[0])
        return run_sampler(jax.tree.map(jnp.asarray, restoration), xT, keys, times)

    xT = jax.ShapeDtypeStruct(
        (*jax.export.symbolic_shape("B"), *run.experiment.image_shape), jnp.float32
    )
    try:
        make = jax.export.export(jax.jit(sample), platforms=platforms)
        return make(xT, jax.ShapeDtypeStruct((), jnp.uint32))
    except Exception as error:  # JAX raises many types
        raise UserError(f"the sampler cannot be exported: {first_line(error)}") from error
