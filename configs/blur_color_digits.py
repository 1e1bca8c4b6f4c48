"""Two composed degradations: coloured digits are blurred, then turned gray; on a laptop's CPU.

    python -m colddiff.main --config configs/blur_color_digits.py --workdir runs/blur_color_digits

This experiment is not in the paper. It uses the network and the training of
configs/color_digits.py. Cost: about 3 minutes on two CPU cores. Result on the 297 test digits: RMSE
.239 degraded, .108 direct, .118 sampled; SSIM .19, .83, .81.
"""

from ml_collections import ConfigDict

from colddiff.configs import color_digits


def get_config() -> ConfigDict:
    config = color_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="compose",
            num_steps=20,
            parts=(
                dict(
                    name="gaussian_blur",
                    kernel_size=11,
                    std=1.0,
                    padding="reflect",
                    mean_at_end=False,
                ),
                dict(name="desaturate"),
            ),
        )
    )
    return config
