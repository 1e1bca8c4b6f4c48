"""Super-resolution of CelebA from 2² to 128²: Table 3, row CelebA (paper, section 4.3, A.3).

    python -m colddiff.main --config configs/superres_celeba.py --workdir runs/superres_celeba

Data: as for configs/blur_celeba.py, which says how to use a folder of your own. Cost: 700,000 steps
of 2 × 32 images with the 56.6 M parameter network; not measured.

T = 6 ends at 2² pixels, as in the paper. The released command has T = 4 and ends at 8². The area
mean is used as in configs/superres_mnist.py; the released command resizes bicubically instead. The
augmentation (enlarge to 143², random crop, flip), 2 × 32 images a step and 700,000 steps come from
the released code.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.degradation = ConfigDict(
        dict(
            name="pixelate",
            num_steps=6,
            method="area",
        )
    )
    config.paper = ConfigDict(
        dict(
            degraded=(349.85, 0.335, 0.225),
            tacos=(96.92, 0.381, 0.201),
            direct=(112.84, 0.400, 0.196),
        )
    )
    return config
