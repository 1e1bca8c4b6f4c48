r"""Deblurring of MNIST, Table 1, with a small network, in 3 hours on two CPU cores.

    python -m colddiff.main --config configs/blur_mnist_small.py --workdir runs/blur_mnist_small

The data and the degradation are as in configs/blur_mnist.py, but the network gets images of 8 bits
(`data.eight_bit`), as files are, and the last 2,000 training images are kept back. It is the ResNet
U-Net over squares of 2 × 2 pixels, with 6.5 M parameters instead of 56.6 M. It trains for 14,000
steps of 32 images instead of 700,000 of 2 × 32. The run is scored on 1,000 images.
docs/results.md says what is known of the scores of all *_small configs.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_mnist


def get_config() -> ConfigDict:
    return made_small(blur_mnist.get_config())


def made_small(config: ConfigDict) -> ConfigDict:
    """Give a config of 32² images the small network and its training."""
    config.model = ConfigDict(
        dict(
            name="resnet_unet",
            width=64,
            multipliers=(1, 2, 2),
            num_blocks=2,
            attention_sizes=(8,),
            dropout=0.0,
            patch=2,
            remat=False,
            dtype="float32",
        )
    )
    config.data.eight_bit = True
    config.data.train_split = "train[:-2000]"
    config.data.validation_split = "train[-2000:]"  # to choose samplers and settings on
    config.eval.num_images = 1000  # scoring all 10,000 takes longer than the training
    config.train.num_steps = 14_000
    config.train.batch_size = 32
    config.train.accumulation = 1
    config.train.learning_rate = 1e-3
    config.train.lr_schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.clip_norm = 1.0
    config.train.ema_decay = 0.999
    config.train.ema_every = 1
    config.train.ema_start = 200
    config.train.sample_every = 2000
    config.train.checkpoint_every = 1000
    return config
