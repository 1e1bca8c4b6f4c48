r"""Inpainting of MNIST, Table 2, with a small network, in 3 hours on two CPU cores.

    python -m colddiff.main \
      --config configs/inpaint_mnist_small.py --workdir runs/inpaint_mnist_small

The data and the degradation are as in configs/inpaint_mnist.py. The network, its training and its
input of 8 bits are as in configs/blur_mnist_small.py. See docs/results.md for scores.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_mnist_small, inpaint_mnist


def get_config() -> ConfigDict:
    return blur_mnist_small.made_small(inpaint_mnist.get_config())
