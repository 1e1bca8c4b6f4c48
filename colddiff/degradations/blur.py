"""Repeated Gaussian blur (paper: sections 4.1 and 5.2, appendix A.1), in closed form.

Every step blurs the previous result. The kernels are separable, so t steps are one linear map on
the rows and the same one on the columns.
"""

import numpy as np
from jax.tree_util import Partial

from colddiff.degradations.patterns import checks_input
from colddiff.degradations.schedules import per_step
from colddiff.degradations.separable import separable
from colddiff.images import height_width
from colddiff.runtime.errors import UserError, unknown_name

_NUMPY_PADDING = {"circular": "wrap", "reflect": "reflect"}


@checks_input
def gaussian_blur(
    *,
    image_size: int | tuple[int, int],
    num_steps: int,
    kernel_size: int,
    std: float | list[float],
    padding: str,
    mean_at_end: bool = False,
) -> Partial:
    """Return `D(x0, t, key)`, which blurs x0 t times; deterministic, `key` is not used.

    Args:
      image_size: H = W, or (H, W), in pixels.
      num_steps: T.
      kernel_size: side of every step's kernel, odd, in pixels. The Gaussian is cut off there
        and scaled to sum 1.
      std: σ in pixels, one number or a list of T (`colddiff.degradations.schedules`).
      padding: 'circular' or 'reflect' (the edge pixel is not repeated).
      mean_at_end: make D(x0, T) exactly constant: the mean of each channel (section 5.2).

    Raises:
      UserError: a setting is invalid.
    """
    high, wide = height_width(image_size)
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} must be 1 or more")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size={kernel_size} must be odd and positive")
    if padding not in _NUMPY_PADDING:
        raise unknown_name("padding", padding, _NUMPY_PADDING)
    if padding == "reflect" and kernel_size // 2 >= min(high, wide):
        raise UserError(
            f"kernel_size={kernel_size} reaches beyond the reflection of image_size={image_size}; "
            f"use a kernel_size below {2 * min(high, wide)}"
        )
    kernels = [gaussian_kernel(kernel_size, sigma) for sigma in per_step("std", std, num_steps)]

    def matrices_of(n: int) -> list[np.ndarray]:
        A = [np.eye(n)]
        for kernel in kernels:
            A.append(_blur_matrix(n, kernel, padding) @ A[-1])
        if mean_at_end:
            A[-1] = np.full((n, n), 1 / n)
        return A

    return separable(matrices_of(high), None if high == wide else matrices_of(wide))


def gaussian_kernel(size: int, sigma: float) -> np.ndarray:
    """Return exp(-x²/2σ²) at the `size` integers around 0, scaled to sum 1; `[size]`."""
    x = np.arange(size) - size // 2
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def _blur_matrix(n: int, kernel: np.ndarray, padding: str) -> np.ndarray:
    """Return the matrix `[n, n]` that pads n pixels and convolves them with `kernel`."""
    source = np.pad(np.arange(n), len(kernel) // 2, mode=_NUMPY_PADDING[padding])
    matrix = np.zeros((n, n))
    for tap, weight in enumerate(kernel):
        matrix[np.arange(n), source[tap : tap + n]] += weight
    return matrix
