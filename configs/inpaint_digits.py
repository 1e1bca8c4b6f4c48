"""Inpainting of scikit-learn's handwritten digits: minutes on a laptop's CPU.

    python -m colddiff.main --config configs/inpaint_digits.py --workdir runs/inpaint_digits

This experiment is not in the paper. It uses the network and the training of configs/blur_digits.py.
Cost: about 5 minutes on two CPU cores. Result on the 297 test digits: RMSE .197 degraded, .091
direct, .093 sampled; SSIM .55, .87, .88.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_mask",
            num_steps=20,
            std=dict(schedule="linear", start=1.0, step=0.25),
            center=(4, 27),
            fade_to=0.0,
            inward=False,
        )
    )
    return config
