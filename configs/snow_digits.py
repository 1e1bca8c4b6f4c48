"""Removing snow from scikit-learn's handwritten digits: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/snow_digits.py --workdir runs/snow_digits

No row of the paper: the network and the training of configs/blur_digits.py. RESULT
"""

from ml_collections import ConfigDict

from configs import blur_digits


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
