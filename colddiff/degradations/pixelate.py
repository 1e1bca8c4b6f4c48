"""Pixelation (paper: super-resolution, section 4.3 and appendix A.3; generation, section 5.3).

Every step halves the resolution of the previous result, then enlarges it to the original size by
nearest neighbours.
"""

import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.patterns import checks_input
from colddiff.degradations.separable import separable
from colddiff.images import height_width
from colddiff.runtime.errors import UserError, unknown_name

_HALF_WAY = (-0.09375, 0.59375, 0.59375, -0.09375)  # cubic convolution, a = -0.75, at distance 1/2


@checks_input
def pixelate(*, image_size: int | tuple[int, int], num_steps: int, method: str = "area") -> Partial:
    """Return `D(x0, t, key)`, which shows x0 in blocks of 2ᵗ × 2ᵗ equal pixels.

    It is deterministic; `key` is not used.

    Args:
      image_size: H = W, or (H, W), in pixels; multiples of 2ᵀ.
      num_steps: T; at T there are H / 2ᵀ × W / 2ᵀ blocks.
      method: how a step shrinks. 'area' takes the mean of each block. 'bicubic' is PyTorch's: four
        taps around the block's middle (a = -0.75), no antialiasing, borders repeated. Bicubic
        sharpens, so |xt| can exceed 1, up to 1.9.

    Raises:
      UserError: a setting is invalid.
    """
    if method not in ("area", "bicubic"):
        raise unknown_name("method", method, ("area", "bicubic"))
    high, wide = height_width(image_size)
    if num_steps < 1 or high % 2**num_steps or wide % 2**num_steps:
        raise UserError(
            f"image_size={image_size} cannot be halved num_steps={num_steps} times; height and "
            "width must be multiples of 2^num_steps, and num_steps 1 or more"
        )
    shrink = _block_means if method == "area" else _bicubic

    def matrices_of(n: int) -> list[np.ndarray]:
        A = [np.eye(n)]
        for t in range(1, num_steps + 1):
            enlarge = np.repeat(np.eye(n // 2**t), 2**t, axis=0)
            A.append(enlarge @ shrink(n, 2**t) @ A[-1])
        return A

    return separable(matrices_of(high), None if high == wide else matrices_of(wide))


def _block_means(n: int, block: int) -> np.ndarray:
    """Return the matrix from n pixels to the means of n / block blocks; `[n / block, n]`."""
    return np.repeat(np.eye(n // block), block, axis=1) / block


def _bicubic(n: int, block: int) -> np.ndarray:
    """Return the matrix from n pixels to cubic values at each block's middle; `[n / block, n]`."""
    matrix = np.zeros((n // block, n))
    for i in range(n // block):
        middle = i * block + block // 2  # the pixel just right of the block's middle
        for offset, weight in zip((-2, -1, 0, 1), _HALF_WAY, strict=True):
            matrix[i, np.clip(middle + offset, 0, n - 1)] += weight
    return matrix
