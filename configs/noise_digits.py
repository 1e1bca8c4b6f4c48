"""Hot diffusion of scikit-learn's handwritten digits: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/noise_digits.py --workdir runs/noise_digits

No row of the paper: the network and the training of configs/blur_digits.py. RESULT
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
