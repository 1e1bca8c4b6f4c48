r"""Deblurring of CIFAR-10, Table 1, with a small network, in 3 hours on two CPU cores.

    python -m colddiff.main \
      --config configs/blur_cifar10_small.py --workdir runs/blur_cifar10_small

The data and the degradation are as in configs/blur_cifar10.py. The network, its training and its
input of 8 bits are as in configs/blur_mnist_small.py. See docs/results.md for scores.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_cifar10, blur_mnist_small


def get_config() -> ConfigDict:
    return blur_mnist_small.made_small(blur_cifar10.get_config())
