"""Inpainting of MNIST at 32²: Table 2, row MNIST (paper, section 4.2; settings of appendix A.2).

    python -m colddiff.main --config configs/inpaint_mnist.py --workdir runs/inpaint_mnist

Data: MNIST as prepared by TFDS, without augmentation. Cost: 60,000 steps of 64 images with the
56.6 M parameter network; not measured.

T, σ and 60,000 steps of 64 images come from appendix A.2, which also accumulates 2 batches. Here
accumulation is 1, so that a step has as many images as in the released code (2 × 32, for 700,000
steps). The truncation to 8 bits comes from the released code, which does not augment the images
either. The hole's centre has a range with which the scores of degraded images match the paper.

Measured here, degraded images: SSIM .490, RMSE .2625. The released code draws the hole's centre
from (0, 32) instead, and begins at σ = 1.1.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_mnist


def get_config() -> ConfigDict:
    config = blur_mnist.get_config()
    config.data.crop_margin = 0
    config.data.flip = False
    config.data.eight_bit = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_mask",
            num_steps=50,
            std=dict(schedule="linear", start=1.0, step=0.1),
            center=(1, 31),
            fade_to=0.0,
            inward=False,
        )
    )
    config.train.num_steps = 60_000
    config.train.batch_size = 64
    config.train.accumulation = 1
    config.paper = ConfigDict(
        dict(
            degraded=(108.48, 0.490, 0.262),
            tacos=(1.61, 0.941, 0.068),
            direct=(2.24, 0.948, 0.060),
        )
    )
    return config
