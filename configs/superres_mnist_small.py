r"""Super-resolution of MNIST with a small network, within an hour on a CPU (Table 3, row MNIST).

    python -m colddiff.main \
      --config configs/superres_mnist_small.py --workdir runs/superres_mnist_small

The data and the degradation are as in configs/superres_mnist.py, the network and the training as in
configs/inpaint_mnist_small.py: 1.1 M parameters instead of 56.6 M, and 2,000 steps of 32 images
instead of 700,000 of 2 × 32.
"""

from ml_collections import ConfigDict

from colddiff.configs import inpaint_mnist_small, superres_mnist


def get_config() -> ConfigDict:
    config = superres_mnist.get_config()
    small = inpaint_mnist_small.get_config()
    config.model = small.model
    config.train = small.train
    config.train.num_steps = 2000
    config.train.checkpoint_every = 200
    return config
