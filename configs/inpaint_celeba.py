"""Inpainting of the centre of CelebA at 128²: Table 2, row CelebA (paper, section 4.2, A.2).

    python -m colddiff.main --config configs/inpaint_celeba.py --workdir runs/inpaint_celeba

Data: as for configs/blur_celeba.py, which says how to use a folder of your own. Cost: 60,000 steps
of 64 images with the 56.6 M parameter network; not measured.

T and σ come from section 4.2 and the released test script, not from appendix A.2. The released
training command begins at σ = 2.2. The 60,000 steps of 64 images come from A.2, which also
accumulates 2 batches. The released command takes 350,000 steps of 2 × 100 images. The augmentation
(enlarge to 143², random crop, flip) comes from the released code.

The released command for this row does not truncate to 8 bits: --config.data.eight_bit=False.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.data.eight_bit = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_mask",
            num_steps=100,
            std=dict(schedule="linear", start=0.2, step=0.2),
            center="image",
            fade_to=0.0,
            inward=False,
        )
    )
    config.train.num_steps = 60_000
    config.train.batch_size = 64
    config.train.accumulation = 1
    config.paper = ConfigDict(
        dict(
            degraded=(127.85, 0.663, 0.155),
            tacos=(5.73, 0.917, 0.043),
            direct=(7.74, 0.922, 0.039),
        )
    )
    return config
