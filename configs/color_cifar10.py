"""Colourisation of CIFAR-10 (paper, appendix A: colourisation, row CIFAR-10).

    python -m colddiff.main --config configs/color_cifar10.py --workdir runs/color_cifar10

Data: CIFAR-10 as prepared by TFDS, without augmentation. Cost: 700,000 steps of 2 × 32 images with
the 35.7 M parameter network of DDPM; not measured.

T = 50 is the default of the released script; its published command has T = 20. The linear schedule,
2 × 32 images a step and 700,000 steps come from the released command and code, which do not augment
the images either. The released command trains the ConvNeXt U-Net; the network here is that of
configs/blur_cifar10.py.

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
            name="desaturate",
            num_steps=50,
        )
    )
    config.paper = ConfigDict(
        dict(
            degraded=(None, 0.937, 0.078),
        )
    )
    return config
