"""Deblurring of CelebA at 128²: Table 1, row CelebA (paper, section 4.1; settings of appendix A.1).

    python -m colddiff.main --config configs/blur_celeba.py --workdir runs/blur_celeba

Data: CelebA as prepared by TFDS; for images of your own, such as CelebA-HQ, which the paper used,
add --config.data.source=folder:PATH. Cost: 700,000 steps of 2 × 32 images with the 56.6 M parameter
network; not measured. The decoded images take 10 GB of memory; --config.data.cache=False decodes
them at every use instead.

T, the kernel, σ = exp(.01 (t - 1)) and the reflect padding come from the released command. The
augmentation (enlarge to 143², random crop, flip), 2 × 32 images a step and 700,000 steps come from
the released code.
"""

from ml_collections import ConfigDict

from colddiff.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:celeb_a"
    config.data.image_size = 128
    config.data.channels = 3
    config.data.crop_margin = 15
    config.data.flip = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=200,
            kernel_size=15,
            std=dict(schedule="exponential", start=1.0, rate=0.01),
            padding="reflect",
            mean_at_end=False,
        )
    )
    config.eval.features = ("inception",)
    config.paper = ConfigDict(
        dict(
            degraded=(382.81, 0.254, 0.193),
            tacos=(26.14, 0.568, 0.093),
            direct=(36.37, 0.607, 0.083),
        )
    )
    return config
