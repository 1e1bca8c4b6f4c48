"""Super-resolution of MNIST from 4² to 32²: Table 3, row MNIST (paper, section 4.3; appendix A.3).

    python -m colddiff.main --config configs/superres_mnist.py --workdir runs/superres_mnist

Data: MNIST as prepared by TFDS; for training enlarged to 35² and cut to its centre. Cost: 700,000
steps of 2 × 32 images with the 56.6 M parameter network; not measured.

    paper     FID     SSIM   RMSE
    Degraded  368.56  .178   .231
    Sampled   4.33    .820   .115
    Direct    4.05    .823   .114

Measured here: Degraded SSIM .1781, RMSE .2305.
"""

from ml_collections import ConfigDict

from configs import blur_mnist


def get_config() -> ConfigDict:
    config = blur_mnist.get_config()
    config.data.crop = "center"
    config.data.flip = False
    config.degradation = ConfigDict(
        dict(
            name="pixelate",
            num_steps=3,
            method="area",
        )
    )
    return config
