r"""Inpainting of MNIST with a small network, within an hour on a CPU (paper, Table 2, row MNIST).

    python -m colddiff.main \
      --config configs/inpaint_mnist_small.py --workdir runs/inpaint_mnist_small

The data and the degradation are as in configs/inpaint_mnist.py, the network and the training as in
configs/blur_digits.py: 1.1 M parameters instead of 56.6 M, and 1,000 steps of 32 images instead of
60,000 of 64. The run is scored on 500 images.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits, inpaint_mnist


def get_config() -> ConfigDict:
    config = inpaint_mnist.get_config()
    small = blur_digits.get_config()
    config.model = small.model
    config.train = small.train
    config.train.num_steps = 1000
    config.train.sample_every = 250
    config.train.checkpoint_every = 100
    config.train.scored = 64
    config.train.best = "tacos/rmse"
    config.eval.num_images = 500  # scoring all 10,000 would take longer than the training
    return config
