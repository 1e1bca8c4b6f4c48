"""ConvNeXt U-Net: the paper's restorer for MNIST, CelebA and AFHQ (appendix A.1).

It has 56.6 M parameters at width 64, multipliers 1-2-4-8 and 3 channels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.networks.layers import (
    Conv,
    ConvTranspose,
    LayerNorm,
    check_input,
    recomputed,
    sinusoidal_embedding,
)
from colddiff.networks.pixels import add

_HEADS, _HEAD_WIDTH = 4, 32


class ConvNeXtUNet(nn.Module):
    """U-Net of ConvNeXt blocks with linear attention at every level.

    Attributes:
      channels: channels of the image, in and out.
      width: features at the first level.
      multipliers: features of each level in units of `width`; each level is half as large as the
        one before.
      time_embedding: whether t is an input of the network.
      residual: whether the layers predict x0 - xt instead of x0.
      remat: recompute each block in the backward pass, which saves memory and costs time.
      dtype: dtype of the computation; parameters are float32.
    """

    channels: int
    width: int = 64
    multipliers: Sequence[int] = (1, 2, 4, 8)
    time_embedding: bool = True
    residual: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, xt: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        """Return `x0_hat` `[B, H, W, C]`, float32; `train` has no effect without dropout."""
        del train
        check_input(xt.shape, self.multipliers)
        features = [self.width * m for m in self.multipliers]
        time = self._embed(t) if self.time_embedding else None
        Block = recomputed(_Block) if self.remat else _Block

        def level(x, features, *, first_norm=True):
            x = Block(features, norm=first_norm, dtype=self.dtype)(x, time)
            x = Block(features, dtype=self.dtype)(x, time)
            return _LinearAttention(dtype=self.dtype)(x)

        x = xt.astype(self.dtype)
        skips = []
        for i, f in enumerate(features):
            x = level(x, f, first_norm=i > 0)
            skips.append(x)
            if i < len(features) - 1:
                x = Conv(f, 4, self.dtype, strides=2)(x)

        x = Block(features[-1], dtype=self.dtype)(x, time)
        x = _LinearAttention(dtype=self.dtype)(x)
        x = Block(features[-1], dtype=self.dtype)(x, time)

        # The first level's skip stays unused, as in the paper's code.
        for f, skip in zip(features[-2::-1], skips[:0:-1], strict=True):
            x = level(jnp.concatenate([x, skip], axis=-1), f)
            x = ConvTranspose(f, dtype=self.dtype)(x)

        x = Block(self.width, dtype=self.dtype)(x, None)
        x0_hat = Conv(self.channels, 1, self.dtype)(x).astype(jnp.float32)
        return xt + x0_hat if self.residual else x0_hat

    def _embed(self, t: jax.Array) -> jax.Array:
        """Return time features `[B, width]`."""
        dense = lambda f: nn.Dense(f, dtype=self.dtype)  # noqa: E731
        time = dense(4 * self.width)(sinusoidal_embedding(t, self.width))
        return dense(self.width)(nn.gelu(time, approximate=False))


class _Block(nn.Module):
    """7×7 depthwise convolution, + time, LayerNorm, 3×3, GELU, 3×3, + shortcut."""

    features: int
    norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None) -> jax.Array:
        width = x.shape[-1]
        h = Conv(width, 7, self.dtype, groups=width)(x)
        if time is not None:
            time = nn.gelu(time, approximate=False)
            h = add(h, nn.Dense(width, dtype=self.dtype)(time))
        if self.norm:
            h = LayerNorm(self.dtype)(h)
        h = Conv(2 * self.features, 3, self.dtype)(h)
        h = Conv(self.features, 3, self.dtype)(nn.gelu(h, approximate=False))
        return h + (x if width == self.features else Conv(self.features, 1, self.dtype)(x))


class _LinearAttention(nn.Module):
    """x + attention(LayerNorm(x)), with a softmax of k over pixels; cost linear in H W."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, features = x.shape
        inner = _HEADS * _HEAD_WIDTH
        qkv = Conv(3 * inner, 1, self.dtype, use_bias=False)(LayerNorm(self.dtype)(x))
        by_head = (B, H * W, _HEADS, _HEAD_WIDTH)
        q, k, v = (part.reshape(by_head) for part in jnp.split(qkv, 3, axis=-1))
        k = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        context = jnp.einsum("bnhd,bnhe->bhde", k, v)
        out = jnp.einsum("bhde,bnhd->bnhe", context, q * _HEAD_WIDTH**-0.5)
        return x + Conv(features, 1, self.dtype)(out.reshape(B, H, W, inner))
