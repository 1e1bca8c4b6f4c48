"""Deblurring of CIFAR-10: Table 1, row CIFAR-10 (paper, section 4.1; settings of appendix A.1).

    python -m colddiff.main --config configs/blur_cifar10.py --workdir runs/blur_cifar10

Data: CIFAR-10 as prepared by TFDS. Cost: 700,000 steps of 2 × 32 images with the 35.7 M parameter
network of DDPM; not measured.

T, the kernel, σ = .35 + .01 (t - 1) and the reflect padding come from the released command. The
augmentation (enlarge to 35², random crop, flip), 2 × 32 images a step and 700,000 steps come from
the released code.
"""

from ml_collections import ConfigDict

from colddiff.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:cifar10"
    config.data.channels = 3
    config.data.crop_margin = 3
    config.data.flip = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=50,
            kernel_size=11,
            std=dict(schedule="linear", start=0.35, step=0.01),
            padding="reflect",
            mean_at_end=False,
        )
    )
    config.model = ConfigDict(
        dict(
            name="resnet_unet",
            width=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=2,
            attention_sizes=(16,),
            dropout=0.1,
            patch=1,
            remat=False,
            dtype="float32",
        )
    )
    config.eval.features = ("classifier",)
    config.paper = ConfigDict(
        dict(
            degraded=(298.60, 0.315, 0.136),
            tacos=(80.08, 0.773, 0.075),
            direct=(83.69, 0.775, 0.071),
        )
    )
    return config
