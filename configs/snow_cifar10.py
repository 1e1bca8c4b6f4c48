"""Removing light snow from CIFAR-10 (paper, section 4, appendix A: snow, row CIFAR-10).

    python -m colddiff.main --config configs/snow_cifar10.py --workdir runs/snow_cifar10

Data: CIFAR-10 as prepared by TFDS, without augmentation. Cost: 700,000 steps of 2 × 32 images with
the 35.7 M parameter network of DDPM; not measured.

T, the two schedules (snow level 3), 2 × 32 images a step and 700,000 steps come from the released
command and code, which do not augment the images either. The released command trains the ConvNeXt
U-Net; the network here is that of configs/blur_cifar10.py.

The paper uses one snow pattern for a whole batch, so its figures depend on the draw. Here every
image has its own pattern.

`config.paper` holds only the paper's SSIM and RMSE of the degraded images.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_cifar10


def get_config() -> ConfigDict:
    config = blur_cifar10.get_config()
    config.data.crop_margin = 0
    config.data.flip = False
    config.degradation = ConfigDict(
        dict(
            name="snow",
            num_steps=200,
            threshold=(1.15, 0.7),
            motion_std=(0.05, 16.0),
        )
    )
    config.paper = ConfigDict(
        dict(
            degraded=(None, 0.419, 0.327),
        )
    )
    return config
