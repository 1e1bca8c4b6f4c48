"""Super-resolution of CIFAR-10 from 4² to 32²: Table 3, row CIFAR-10 (paper, section 4.3, A.3).

    python -m colddiff.main --config configs/superres_cifar10.py --workdir runs/superres_cifar10

Data: CIFAR-10 as prepared by TFDS. Cost: 700,000 steps of 2 × 32 images with the 35.7 M parameter
network of DDPM; not measured.

T = 3 ends at 4² pixels, as in section 4.3, appendix A.3 and the released command. The area mean
comes close to the paper's scores of degraded images; the released command resizes bicubically. The
augmentation (enlarge to 35², random crop, flip), 2 × 32 images a step and 700,000 steps come from
the released code.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_cifar10


def get_config() -> ConfigDict:
    config = blur_cifar10.get_config()
    config.degradation = ConfigDict(
        dict(
            name="pixelate",
            num_steps=3,
            method="area",
        )
    )
    config.paper = ConfigDict(
        dict(
            degraded=(358.99, 0.279, 0.146),
            tacos=(152.76, 0.411, 0.155),
            direct=(169.94, 0.420, 0.152),
        )
    )
    return config
