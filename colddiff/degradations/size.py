"""The size of image that a degradation's tables were made for."""

from dataclasses import dataclass

import jax

from colddiff.runtime.errors import UserError


@jax.tree_util.register_static
@dataclass(frozen=True)
class ImageSize:
    """(H, W) in pixels, as a static argument of a Partial; `jit` would trace plain numbers."""

    height: int
    width: int

    def check(self, x0: jax.Array) -> None:
        """Refuse an x0 that is not one image of this size.

        Raises:
          UserError: `x0` is not `[height, width, C]`.
        """
        if x0.ndim != 3 or x0.shape[:2] != (self.height, self.width):
            raise UserError(
                f"this degradation takes one image of shape {(self.height, self.width, 'C')}; got "
                f"{x0.shape}. For a batch use jax.vmap; for another size make it with another "
                "image_size"
            )
