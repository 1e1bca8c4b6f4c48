"""A restorer that compiles in a second, and the command line with it among the networks.

`python -m small FLAGS` is `python -m colddiff.main FLAGS` with `--config.model.name=small` allowed.
The tests of runs use it, because they do not depend on the network.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from colddiff.main import run
from colddiff.networks import NETWORKS
from colddiff.networks.layers import check_input, sinusoidal_embedding


class Small(nn.Module):
    """A 3×3 convolution to `width` features, + time, GELU, dropout, a 3×3 convolution back.

    It takes the settings of `ResNetUNet` and ignores `num_blocks`, `attention_sizes`, `patch` and
    `remat`.
    """

    channels: int
    width: int = 8
    multipliers: Sequence[int] = (1, 2)
    num_blocks: int = 1
    attention_sizes: Sequence[int] = ()
    dropout: float = 0.0
    patch: int = 1
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, xt: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        check_input(xt.shape, self.multipliers)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype)(xt)
        time = nn.Dense(self.width, dtype=self.dtype)(sinusoidal_embedding(t, self.width))
        h = nn.gelu(h + time[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Conv(self.channels, (3, 3), dtype=self.dtype)(h).astype(jnp.float32)


NETWORKS["small"] = Small

if __name__ == "__main__":
    run()
