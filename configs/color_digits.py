"""Colourisation of digits, each class in its own hue: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/color_digits.py --workdir runs/color_digits

This experiment is not in the paper. The restorer has to recognise a digit to colour it. The network
and the training are those of configs/blur_digits.py, but with images of 16², twice the steps, and
attention at 4² too. Cost: 2.5 minutes on two CPU cores. Result on the 297 test digits: RMSE .156
degraded, .066 direct, .071 sampled; SSIM .70, .94, .95.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.data.source = "color_digits"
    config.data.channels = 3
    config.data.image_size = 16
    config.model.attention_sizes = (8, 4)
    config.train.num_steps = 800
    config.degradation = ConfigDict(
        dict(
            name="desaturate",
            num_steps=20,
        )
    )
    return config
