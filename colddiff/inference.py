"""A trained run, for notebooks: `run = colddiff.load(workdir)`, `run.sample(run.params, xT)`."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from colddiff import checkpoint
from colddiff.build import Experiment, build, init_params, named
from colddiff.degradations import Degrade
from colddiff.devices import create_mesh, replicate, replicated, split_axis
from colddiff.errors import UserError
from colddiff.samplers import SAMPLERS, Restore, image_keys, times_between


@dataclass(frozen=True)
class Run:
    """A trained restorer with its degradation.

    Attributes:
      experiment: what its config stands for.
      params: the averaged (EMA) parameters.
      step: the training step that they are of.
    """

    experiment: Experiment
    params: Any
    step: int

    @property
    def config(self) -> ConfigDict:
        """The config it was trained with."""
        return self.experiment.config

    @property
    def T(self) -> int:
        """The largest severity."""
        return self.experiment.T

    @property
    def degrade(self) -> Degrade:
        """`D(x0, t, key) -> xt` for one image `[H, W, C]`; `jax.vmap` it for a batch."""
        return self.experiment.degrade

    @property
    def restore(self) -> Restore:
        """`R(params, xt, t) -> x0_hat` for a batch."""
        return self.experiment.restore

    def sample(
        self,
        params: Any,
        xT: jax.Array,
        key: jax.Array | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
    ) -> jax.Array:
        """x0 from xT, both `[B, H, W, C]` with images on [-1, 1]; x0 is not clipped.

        Args:
          params: of the restorer, such as `run.params`.
          xT: images degraded with severity T. With `config.data.eight_bit`, the sampler is shown
            them cut to 8 bits, as in training.
          key: of the degradation's random patterns, image i's is `fold_in(key, i)`; key 0 if None.
            For patterns that xT was made with, degrade with `image_keys(key, 0, B)`.
          sampler: 'direct', 'naive' or 'tacos'; None for the config's.
          steps: evenly spread over T; None for the config's.

        Raises:
          UserError: another shape, an unknown sampler, or steps outside 1..T.
        """
        if xT.ndim != 4 or xT.shape[1:] != self.experiment.image_shape:
            shape = ("B", *self.experiment.image_shape)
            raise UserError(f"xT must be of shape {shape}; got {xT.shape}")
        function = named(SAMPLERS, "sampler", sampler or self.config.sampler.name)
        times = times_between(self.T, self.experiment.steps if steps is None else steps)
        keys = image_keys(jax.random.key(0) if key is None else key, 0, len(xT))
        # All devices share the work where they can share it evenly.
        mesh = create_mesh()
        sharding = replicated(mesh) if len(xT) % mesh.size else split_axis(mesh, 0)
        xT = self.experiment.network_input(jnp.asarray(xT, jnp.float32))
        xT, keys = jax.device_put((xT, keys), sharding)
        return run_sampler(function, self.restore, self.degrade, params, xT, keys, times)


# The loop compiles once for each sampler, number of images and number of steps.
@functools.partial(jax.jit, static_argnums=(0, 1))
def run_sampler(sampler, restore, degrade, params, xT, keys, times, iterates_at=None):
    """`sampler(restore, ...)`, jitted; for arguments and result see `colddiff.samplers`."""
    return sampler(restore, degrade, params, xT, keys, times, iterates_at)


def load(workdir: str | Path, *, step: int | None = None, config: ConfigDict | None = None) -> Run:
    """The run in `workdir`.

    Args:
      step: of which checkpoint; None for the last.
      config: to use instead of the saved one; model and degradation must be the same.

    Raises:
      UserError: `workdir` holds no such checkpoint, or one of another run. Nothing ever goes on
        with untrained weights.
    """
    workdir = Path(workdir)
    nothing = UserError(
        f"{workdir} holds no checkpoint; train there first, or name another workdir"
    )
    if not (workdir / "checkpoints").is_dir():
        raise nothing
    with checkpoint.open_manager(workdir) as manager:
        steps = manager.all_steps()
        if not steps:
            raise nothing
        if step is not None and step not in steps:
            raise UserError(
                f"{workdir} has no checkpoint of step {step}; there are {sorted(steps)}"
            )
        step = max(steps) if step is None else step
        saved = checkpoint.restore_config(manager, step)
        if config is not None:
            checkpoint.check_same(checkpoint.SAME_MODEL, saved, config, workdir)
        experiment = build(saved if config is None else config)
        shapes = jax.eval_shape(lambda: init_params(experiment, jax.random.key(0)))
        mesh = create_mesh()
        experiment = experiment._replace(degrade=replicate(experiment.degrade, mesh))
        sharding = replicated(mesh)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )
        return Run(experiment, checkpoint.restore_ema(manager, like, step), step)
