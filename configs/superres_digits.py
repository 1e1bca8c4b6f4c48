"""Super-resolution of scikit-learn's handwritten digits, from 4² to 32²: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/superres_digits.py --workdir runs/superres_digits

This experiment is not in the paper. It uses the network and the training of configs/blur_digits.py.
Cost: about 5 minutes on two CPU cores. Result on the 297 test digits: RMSE .202 degraded, .081
direct, .078 sampled; SSIM .38, .87, .88.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="pixelate",
            num_steps=3,
            method="area",
        )
    )
    return config
