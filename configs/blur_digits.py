"""Deblurring of scikit-learn's handwritten digits: the demo, minutes on a laptop's CPU.

    python -m colddiff.main --config configs/blur_digits.py --workdir runs/blur_digits

This experiment is not in the paper. A small network, a high learning rate and few steps keep it
short. Cost: 400 steps of 32 images and the evaluation take 4 minutes on two CPU cores. Result on
the 297 test digits: RMSE .196 degraded, .027 direct, .026 sampled; SSIM .38, .97, .98.
"""

from ml_collections import ConfigDict

from colddiff.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=20,
            kernel_size=11,
            std=1.0,
            padding="reflect",
            mean_at_end=False,
        )
    )
    config.model = ConfigDict(
        dict(
            name="resnet_unet",
            width=32,
            multipliers=(1, 2, 2),
            num_blocks=1,
            attention_sizes=(8,),
            dropout=0.0,
            patch=1,
            remat=False,
            dtype="float32",
        )
    )
    config.train.num_steps = 400
    config.train.accumulation = 1
    config.train.learning_rate = 1e-3
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.95
    config.train.ema_every = 1
    config.train.ema_start = 20
    config.train.log_every = 20
    config.train.sample_every = 100
    config.train.checkpoint_every = 50
    return config
