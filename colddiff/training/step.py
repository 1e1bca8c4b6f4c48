"""The train step (paper, equation 1 of section 3.1).

Loss: E ‖R(D(x0, t), t) - x0‖₁ for t uniform on 1..T. All keys of step k are folded from (seed, k)
and, for an image, from its index in the step. A resumed run therefore repeats the same draws, on
any number of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from colddiff.degradations import Degrade
from colddiff.experiment.build import Experiment
from colddiff.experiment.state import TrainState, state_shardings, update_ema, update_more_ema
from colddiff.runtime.compiler import network_jit
from colddiff.runtime.devices import (
    fsdp_shardings,
    replicated,
    split_axis,
)
from colddiff.sampling.samplers import image_keys
from colddiff.training.examples import make_example
from colddiff.training.further import further_losses, make_further

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, jax.Array, Degrade], tuple[TrainState, Metrics]]


def make_train_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainStep:
    """Return `train_step(state, images, degrade) -> (state, metrics)`, jitted; it donates `state`.

    It has the method `prepare` of `network_jit`.

    `images` is `[accumulation, batch_size, ., ., C]`, uint8 or float32 on [-1, 1]; `degrade` is the
    experiment's.
    The metrics are scalars: `loss` (l1 on [-1, 1], plus the terms of `training.further` if any),
    `grad_norm`, and `param_norm` after the update.
    """
    config = experiment.config

    def loss_fn(params, x0, xt, t, key, further):
        def restore(xt, t, key):
            rngs = {"dropout": key}
            return experiment.model.apply({"params": params}, xt, t, train=True, rngs=rngs)

        x0_hat = restore(xt, t, key)
        loss = jnp.mean(jnp.abs(x0_hat - x0))
        if further is not None:
            loss += further_losses(config, restore, further, x0_hat, key)
        return loss

    if mesh.shape["fsdp"] > 1:
        loss_fn = _gathering(loss_fn, mesh)

    def train_step(state, images, degrade):
        accumulation, batch_size = images.shape[:2]
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        pattern_key, dropout_key = jax.random.split(step_key)

        def loss_and_grads(number, params):
            keys = image_keys(pattern_key, number * batch_size, batch_size)
            x0, xt, t = jax.vmap(make_example(experiment, degrade))(images[number], keys)
            key = jax.random.fold_in(dropout_key, number)
            further = make_further(experiment, degrade, keys, (x0, xt, t))
            return jax.value_and_grad(loss_fn)(params, x0, xt, t, key, further)

        params, total = state.params, loss_and_grads(0, state.params)
        # Not lax.scan: XLA's CPU backend runs convolution gradients ten times slower inside a loop.
        for number in range(1, accumulation):
            # The barrier runs one batch after the other, so memory holds one batch's activations.
            params, total = jax.lax.optimization_barrier((params, total))
            total = jax.tree.map(jnp.add, total, loss_and_grads(number, params))
        loss, grads = jax.tree.map(lambda x: x / accumulation, total)
        grads = jax.lax.with_sharding_constraint(grads, fsdp_shardings(grads, mesh))
        grads = jax.lax.platform_dependent(grads, cuda=_row_major, default=lambda grads: grads)

        updates, opt_state = experiment.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema_params = update_ema(state.ema_params, params, step, config.train)
        more_ema = update_more_ema(state.more_ema, params, step, config.train)
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        metrics = {"loss": loss, **norms}
        return TrainState(step, params, ema_params, opt_state, more_ema), metrics

    state = state_shardings(experiment, mesh)
    return network_jit(
        train_step,
        announce="the training step",
        in_shardings=(state, split_axis(mesh, 1), None),  # None: degrade keeps its sharding
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


def _row_major(grads: Any) -> Any:
    """Give the gradients the layout of the parameters.

    cuDNN's own layout would spread through the optimiser, with a copy of every array.
    """

    def of_one(grad: jax.Array) -> jax.Array:
        return with_layout_constraint(grad, Layout(major_to_minor=tuple(range(grad.ndim))))

    return jax.tree.map(of_one, grads)


def _gathering(loss_fn: Callable[..., jax.Array], mesh: jax.sharding.Mesh) -> Callable:
    """Return `loss_fn(params, ...)` that gathers sharded parameters before it uses them.

    The backward pass gathers them again, so that no device stores them all in between.
    """

    def gathered(params, *args):
        params = jax.lax.with_sharding_constraint(params, replicated(mesh))
        return loss_fn(checkpoint_name(params, "whole"), *args)

    policy = jax.checkpoint_policies.save_anything_except_these_names("whole")
    return jax.checkpoint(gathered, policy=policy)
