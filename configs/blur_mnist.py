"""Deblurring of MNIST at 32²: Table 1, row MNIST (paper, section 4.1; settings of appendix A.1).

    python -m colddiff.main --config configs/blur_mnist.py --workdir runs/blur_mnist

Data: MNIST as prepared by TFDS. Cost: 700,000 steps of 2 × 32 images with the 56.6 M parameter
network; not measured.

T, the kernel, σ and the circular padding come from the released command. The augmentation (enlarge
to 35², random crop, flip), 2 × 32 images a step and 700,000 steps come from the released code.

The paper's SSIM of the degraded images is a copy of its RMSE. With these settings the SSIM is .0145
and the RMSE .2866. T is 20 as in the paper's main text (its appendix says 40).
"""

from ml_collections import ConfigDict

from colddiff.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.crop_margin = 3
    config.data.flip = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=20,
            kernel_size=11,
            std=7.0,
            padding="circular",
            mean_at_end=False,
        )
    )
    config.eval.features = ("classifier",)
    config.paper = ConfigDict(
        dict(
            degraded=(438.59, 0.287, 0.287),
            tacos=(4.69, 0.718, 0.154),
            direct=(5.10, 0.757, 0.142),
        )
    )
    return config
