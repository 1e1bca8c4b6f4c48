"""ResNet U-Net of DDPM (Ho et al. 2020, appendix B): the paper's restorer for CIFAR-10.

It has 35.7 M parameters at width 128, multipliers 1-2-2-2 and 3 channels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.images import height_width
from colddiff.networks.layers import (
    Conv,
    Dense,
    GroupNorm,
    check_input,
    from_patches,
    recomputed,
    sinusoidal_embedding,
    to_patches,
)
from colddiff.networks.pixels import add

_MOST_SCORES = 2**24  # of one image in memory; with more than 4096 pixels, attention is in parts


class ResNetUNet(nn.Module):
    """U-Net of residual blocks, with attention at chosen resolutions.

    Attributes:
      channels: channels of the image, in and out.
      width: features at the first level.
      multipliers: features of each level in units of `width`; each level is half as large as the
        one before.
      num_blocks: residual blocks per level on the way down; there is one more on the way up.
      attention_sizes: a level has attention after each block if the longer side of its features,
        for images of `image_size`, is one of these; the middle always has attention.
      dropout: dropout rate inside the blocks, in training only.
      patch: side of the squares of pixels that become the channels of one pixel, at the input and
        back at the output; the first level then costs `patch`² times less.
      remat: recompute each block in the backward pass, which saves memory and costs time.
      dtype: dtype of the computation; parameters are float32.
      image_size: H = W, or (H, W), in pixels, for `attention_sizes`: inputs of another size have
        attention at the same levels, so they take the same parameters. None takes the input's size.
    """

    channels: int
    width: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_sizes: Sequence[int] = (16,)
    dropout: float = 0.1
    patch: int = 1
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    image_size: int | tuple[int, int] | None = None

    @nn.compact
    def __call__(self, xt: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        """Return `x0_hat` `[B, H, W, C]`, float32. `train` needs a 'dropout' PRNG key."""
        check_input(xt.shape, self.multipliers, self.patch)
        features = [self.width * m for m in self.multipliers]
        time = self._embed(t)

        longer = max(height_width(self.image_size or xt.shape[1:3])) // self.patch
        Block = recomputed(_Block, static_argnums=(3,)) if self.remat else _Block

        def block(x, level):
            x = Block(features[level], self.dropout, self.dtype)(x, time, train)
            return _Attention(self.dtype)(x) if longer >> level in self.attention_sizes else x

        x = Conv(self.width, 3, self.dtype)(to_patches(xt, self.patch))
        skips = [x]
        for i, f in enumerate(features):
            for _ in range(self.num_blocks):
                x = block(x, i)
                skips.append(x)
            if i < len(features) - 1:
                # Padding at the bottom and right only, as in TensorFlow's 'SAME'.
                x = Conv(f, 3, self.dtype, strides=2, padding=((0, 1), (0, 1)))(x)
                skips.append(x)

        x = Block(features[-1], self.dropout, self.dtype)(x, time, train)
        x = _Attention(self.dtype)(x)
        x = Block(features[-1], self.dropout, self.dtype)(x, time, train)

        for i, f in reversed(list(enumerate(features))):
            for _ in range(self.num_blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), i)
            if i > 0:
                x = Conv(f, 3, self.dtype, double=True)(x)

        x = nn.swish(GroupNorm(self.dtype)(x))
        x = Conv(self.channels * self.patch**2, 3, self.dtype)(x).astype(jnp.float32)
        return from_patches(x, self.patch)

    def _embed(self, t: jax.Array) -> jax.Array:
        """Return time features `[B, 4 width]`."""
        dense = lambda f: nn.Dense(f, dtype=self.dtype)  # noqa: E731
        time = dense(4 * self.width)(sinusoidal_embedding(t, self.width))
        return dense(4 * self.width)(nn.swish(time))


class _Block(nn.Module):
    """GroupNorm, swish, 3×3, + time, GroupNorm, swish, dropout, 3×3, + shortcut."""

    features: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
        h = nn.swish(GroupNorm(self.dtype)(x))
        h = Conv(self.features, 3, self.dtype)(h)
        h = add(h, nn.Dense(self.features, dtype=self.dtype)(nn.swish(time)))
        h = nn.swish(GroupNorm(self.dtype)(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, 3, self.dtype)(h)
        return h + (x if x.shape[-1] == self.features else Dense(self.features, self.dtype)(x))


class _Attention(nn.Module):
    """x + softmax attention between all pixels of GroupNorm(x), one head.

    In images of more than 4096 pixels some pixels attend at a time, so memory does not grow with
    the square of the number of pixels.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, features = x.shape
        dense = lambda: Dense(features, self.dtype)  # noqa: E731
        h = GroupNorm(self.dtype)(x).reshape(B, H * W, features)
        q, k, v = dense()(h), dense()(h), dense()(h)

        def attend(q):
            scores = jnp.einsum("bic,bjc->bij", q, k).astype(jnp.float32) * features**-0.5
            return jnp.einsum("bij,bjc->bic", jax.nn.softmax(scores).astype(self.dtype), v)

        at_once = _MOST_SCORES // (H * W)  # queries
        if at_once >= H * W:
            h = attend(q)
        else:
            one = lambda q: attend(q[:, None])[:, 0]  # noqa: E731
            h = jax.lax.map(one, jnp.moveaxis(q, 1, 0), batch_size=max(1, at_once))
            h = jnp.moveaxis(h, 0, 1)
        return x + dense()(h).reshape(x.shape)
