r"""Colourisation of CIFAR-10, appendix A, with a small network, in 3 hours on a CPU.

    python -m colddiff.main \
      --config configs/color_cifar10_small.py --workdir runs/color_cifar10_small

The data and the degradation are as in configs/color_cifar10.py. The network, its training and its
input of 8 bits are as in configs/blur_mnist_small.py. See docs/results.md for scores.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_mnist_small, color_cifar10


def get_config() -> ConfigDict:
    return blur_mnist_small.made_small(color_cifar10.get_config())
