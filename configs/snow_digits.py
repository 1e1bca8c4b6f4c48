"""Removing snow from scikit-learn's handwritten digits: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/snow_digits.py --workdir runs/snow_digits

This experiment is not in the paper. It uses the network and the training of configs/blur_digits.py.
Cost: about 5 minutes on two CPU cores. Result on the 297 test digits: RMSE .342 degraded, .092
direct, .058 sampled; SSIM .49, .85, .95.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="snow",
            num_steps=20,
            threshold=(1.15, 0.7),
            motion_std=(0.05, 16.0),
        )
    )
    return config
