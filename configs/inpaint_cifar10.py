"""Inpainting of CIFAR-10: Table 2, row CIFAR-10 (paper, section 4.2; settings of appendix A.2).

    python -m colddiff.main --config configs/inpaint_cifar10.py --workdir runs/inpaint_cifar10

Data: CIFAR-10 as prepared by TFDS. Cost: 60,000 steps of 64 images with the 35.7 M parameter
network of DDPM; not measured.

T, σ and 60,000 steps of 64 images come from appendix A.2, which also accumulates 2 batches. Here
accumulation is 1, so that a step has as many images as in the released code (2 × 32, for 700,000
steps). The augmentation (pad by 4, random crop, flip) and the truncation to 8 bits come from the
released code. The hole's centre is drawn as in configs/inpaint_mnist.py, for the same reason.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_cifar10


def get_config() -> ConfigDict:
    config = blur_cifar10.get_config()
    config.data.crop_margin = 0
    config.data.pad = 4
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
            degraded=(40.83, 0.615, 0.143),
            tacos=(8.92, 0.859, 0.068),
            direct=(9.97, 0.869, 0.063),
        )
    )
    return config
