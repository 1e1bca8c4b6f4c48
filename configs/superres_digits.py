"""Super-resolution of scikit-learn's handwritten digits, from 4² to 32²: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/superres_digits.py --workdir runs/superres_digits

No row of the paper: the network and the training of configs/blur_digits.py. RESULT
"""

from ml_collections import ConfigDict

from configs import blur_digits


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
