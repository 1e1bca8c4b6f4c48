"""Colourisation of digits whose hue follows from their shape: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/color_digits.py --workdir runs/color_digits

No row of the paper: the network and the training of configs/blur_digits.py. RESULT
"""

from ml_collections import ConfigDict

from configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.data.source = "color_digits"
    config.data.channels = 3
    config.degradation = ConfigDict(
        dict(
            name="desaturate",
            num_steps=20,
        )
    )
    return config
