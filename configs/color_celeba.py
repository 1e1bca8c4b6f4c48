"""Colourisation of CelebA at 128² (paper, appendix A: colourisation, row CelebA).

    python -m colddiff.main --config configs/color_celeba.py --workdir runs/color_celeba

Data: as for configs/blur_celeba.py, but without augmentation. Cost: 700,000 steps of 2 × 32 images
with the 56.6 M parameter network; not measured.

T, the linear schedule and 700,000 steps come from the released command and code, which do not
augment the images either. The released code takes 2 × 16 images a step; 2 × 32 is the batch of
configs/blur_celeba.py.

`config.paper` holds only the paper's SSIM and RMSE of the degraded images.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.data.crop_margin = 0
    config.data.flip = False
    config.degradation = ConfigDict(
        dict(
            name="desaturate",
            num_steps=20,
        )
    )
    config.paper = ConfigDict(
        dict(
            degraded=(None, 0.942, 0.089),
        )
    )
    return config
