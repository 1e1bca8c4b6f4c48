"""The common parts of both networks: layers over images, initial parameters, time embedding.

Layers have the same parameters as Flax's layers of the same name, and are faster on the CPU
(docs/performance.md). They compute in `dtype`; parameters and sums are float32. `convolution` and
`pixels` implement convolutions and sums over pixels.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.networks.convolution import Padding, convolve, upsample
from colddiff.networks.pixels import add, pixel_sum, spread
from colddiff.runtime.errors import UserError

_KERNEL = nn.initializers.lecun_normal()  # `init_params` replaces its values
_ZEROS, _ONES = nn.initializers.zeros_init(), nn.initializers.ones_init()


class Conv(nn.Module):
    """`nn.Conv` with a `size`×`size` kernel over images.

    Attributes:
      features: channels of the output.
      size: kernel size, in pixels.
      dtype: dtype of the computation.
      strides: 2 halves the image.
      padding: ((top, bottom), (left, right)); with None only `strides` changes the image's size.
      groups: 1, or as many as the input has channels.
      use_bias: whether to add a bias.
      double: whether to double the image first, each pixel becoming 2×2; for 3×3 kernels.
    """

    features: int
    size: int
    dtype: jnp.dtype
    strides: int = 1
    padding: Padding | None = None
    groups: int = 1
    use_bias: bool = True
    double: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, H', W', features]` for images `[B, H, W, C]`."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", _KERNEL, shape)
        x = x.astype(self.dtype)
        if self.double:
            y = upsample(x, _of_doubled(kernel).astype(self.dtype))
        else:
            same = ((self.size - 1) // 2,) * 2
            padding = self.padding or (same, same)
            y = convolve(x, kernel.astype(self.dtype), self.strides, padding)
        if not self.use_bias:
            return y
        return add(y, self.param("bias", _ZEROS, (self.features,)).astype(self.dtype))


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` with a 4×4 kernel, which doubles an image's size."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, 2H, 2W, features]` for images `[B, H, W, C]`."""
        kernel = self.param("kernel", _KERNEL, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        y = upsample(x.astype(self.dtype), kernel.astype(self.dtype))
        return add(y, bias.astype(self.dtype))


class Dense(nn.Module):
    """`nn.Dense` over the pixels of images."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `[B, ..., features]` for `[B, ..., C]`."""
        kernel = self.param("kernel", _KERNEL, (x.shape[-1], self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel.astype(self.dtype)
        return add(flat.reshape(*x.shape[:-1], self.features), bias.astype(self.dtype))


class GroupNorm(nn.Module):
    """`nn.GroupNorm` with gcd(32, C) groups of the C channels."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the normalised input, `[B, ..., C]`."""
        B, C = x.shape[0], x.shape[-1]
        flat = x.reshape(B, -1, C).astype(jnp.float32)
        N, groups = flat.shape[1], math.gcd(32, C)

        def mean(values):
            """Return the mean over the pixels and channels of each group, `[B, 1, C]`."""
            of_group = pixel_sum(values).reshape(B, groups, -1).mean(-1, keepdims=True) / N
            return jnp.broadcast_to(of_group, (B, groups, C // groups)).reshape(B, 1, C)

        centred = flat - spread(mean(flat), N)
        scale = jax.lax.rsqrt(mean(centred**2) + 1e-6)
        scale *= self.param("scale", _ONES, (C,))[None, None]
        bias = self.param("bias", _ZEROS, (C,))
        return add(centred * spread(scale, N), bias).reshape(x.shape).astype(self.dtype)


class LayerNorm(nn.Module):
    """`nn.LayerNorm` over the channels of each pixel."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the normalised input, `[B, ..., C]`."""
        B, C = x.shape[0], x.shape[-1]
        flat = x.reshape(B, -1, C).astype(jnp.float32)
        centred = flat - flat.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        scale = jnp.broadcast_to(self.param("scale", _ONES, (C,)), (B, 1, C))
        bias = self.param("bias", _ZEROS, (C,))
        return add(normal * spread(scale, flat.shape[1]), bias).reshape(x.shape).astype(self.dtype)


def _of_doubled(kernel: jax.Array) -> jax.Array:
    """Return the 4×4 kernel whose transposed convolution is a 3×3 one on the doubled image.

    Doubling repeats each pixel. Neighbours in the doubled image are copies of one input pixel, so
    the entries of the 3×3 kernel that multiply these copies are added.
    """
    for axis in (0, 1):
        before, after = [(0, 0)] * 4, [(0, 0)] * 4
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
    return kernel


def init_params(model: nn.Module, key: jax.Array, *inputs: jax.Array) -> Any:
    """Return the initial parameters of a module for inputs of these shapes; to be jitted.

    Kernels are uniform on ±1/√fan_in, as in the paper's PyTorch networks. Biases are 0 and
    scales 1, as the modules initialise them.
    """
    params = model.init(key, *inputs)["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    # One draw for all kernels, since XLA:CPU takes a tenth of a second to compile each draw. jit
    # removes Flax's own draws, which nothing uses.
    draws = jax.random.uniform(key, (sum(sizes),), minval=-1, maxval=1)
    draws = jnp.split(draws, list(itertools.accumulate(sizes))[:-1])
    return tree.unflatten(
        draw.reshape(leaf.shape) / math.sqrt(size // leaf.shape[-1]) if size else leaf
        for draw, size, (_, leaf) in zip(draws, sizes, leaves, strict=True)
    )


def sinusoidal_embedding(t: jax.Array, width: int) -> jax.Array:
    """Return sines, then cosines, of t at `width // 2` frequencies from 1 to 1/10000; `[B, width]`.

    The last feature of an odd width is 0. The embedding is that of Vaswani et al. 2017, in the form
    of Ho et al. 2020.
    """
    angles = jnp.outer(t.astype(jnp.float32), frequencies(width))
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


def frequencies(width: int) -> jax.Array:
    """Return the frequencies of `sinusoidal_embedding`, float32 `[width // 2]`."""
    half = width // 2
    return jnp.exp(-math.log(10000) / max(half - 1, 1) * jnp.arange(half, dtype=jnp.float32))


def recomputed(block: type[nn.Module], **settings: Any) -> type[nn.Module]:
    """Return the module, recomputed in the backward pass (`nn.remat`), with the same parameters.

    Flax names parameters after the class, so the class keeps its name.
    """
    lifted = nn.remat(block, **settings)
    lifted.__name__ = block.__name__
    return lifted


def to_patches(x: jax.Array, patch: int) -> jax.Array:
    """Return images `[B, H / patch, W / patch, patch² C]` of images `[B, H, W, C]`."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // patch, patch, W // patch, patch, C).swapaxes(2, 3)
    return x.reshape(B, H // patch, W // patch, patch * patch * C)


def from_patches(x: jax.Array, patch: int) -> jax.Array:
    """Invert `to_patches`."""
    B, H, W, C = x.shape
    x = x.reshape(B, H, W, patch, patch, C // patch**2).swapaxes(2, 3)
    return x.reshape(B, H * patch, W * patch, C // patch**2)


def check_input(shape: tuple[int, ...], multipliers: Sequence[int], patch: int = 1) -> None:
    """Refuse images that cannot be divided by `patch` and halved for each later multiplier.

    Raises:
      UserError: `shape` is not a batch of images whose sides can be divided so often, or `patch`
        or a multiplier is not a positive integer.
    """
    levels = len(multipliers)
    if not levels or any(not isinstance(m, int) or m < 1 for m in multipliers):
        raise UserError(f"multipliers={multipliers} must be one or more positive integers")
    if not isinstance(patch, int) or patch < 1:
        raise UserError(f"patch={patch} must be a positive integer")
    if len(shape) != 4:
        raise UserError(f"the network takes images [B, H, W, C]; got shape {shape}")
    unit = patch * 2 ** (levels - 1)
    if wrong := [side for side in shape[1:3] if side % unit]:
        below, above = wrong[0] // unit * unit, -(-wrong[0] // unit) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        size = wrong[0] if shape[1] == shape[2] else shape[1:3]
        side = "" if shape[1] == shape[2] else f" for {wrong[0]}"
        parts = f"divided into patches of {patch} and " if patch > 1 else ""
        raise UserError(
            f"image_size={size} cannot be {parts}halved {levels - 1} times, as a network of "
            f"{levels} multipliers does; it takes multiples of {unit}: use {nearest}{side}, or "
            "fewer multipliers"
        )
