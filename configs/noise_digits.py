"""Hot diffusion of scikit-learn's handwritten digits: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/noise_digits.py --workdir runs/noise_digits

No row of the paper: the network and the training of configs/blur_digits.py. About 5 minutes on two
CPU cores. Result on the 297 test digits: RMSE .640 degraded, .249 direct, .303 sampled: a sample is
a digit, but not the one that was drowned.
"""

from ml_collections import ConfigDict

from configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_noise",
            num_steps=50,
            schedule="cosine",
        )
    )
    return config
