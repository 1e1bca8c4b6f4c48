r"""Generation of CelebA at 128² from a colour mask (paper, section 5.3).

    python -m colddiff.main \
      --config configs/generate_inpaint_celeba.py --workdir runs/generate_inpaint_celeba

The mask closes from the edges to the centre, so that one random colour is left at T. Data: as for
configs/blur_celeba.py, which says how to use a folder of your own. Cost: 700,000 steps of 2 × 32
images with the 56.6 M parameter network; not measured.

T, σ = .05 i and the closing from the edges come from the released command. The colours, uniform on
[-.5, .5], come from the released code. The augmentation (enlarge to 143², random crop, flip),
2 × 32 images a step and 700,000 steps also come from the released code.

Paper: FID 90.14. The released code scores 6,400 images; for as many, add --mode=generate
--seeds=0-6399 (docs/generation.md).
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_mask",
            num_steps=750,
            std=dict(schedule="linear", start=0.05, step=0.05),
            center="image",
            fade_to="random",
            inward=True,
        )
    )
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))  # xT is the colour
    config.paper = ConfigDict()
    return config
