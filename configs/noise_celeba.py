"""Hot diffusion of CelebA at 128², the paper's baseline: Gaussian noise (paper, section 5.1).

    python -m colddiff.main --config configs/noise_celeba.py --workdir runs/noise_celeba

Data: as for configs/blur_celeba.py, which says how to use a folder of your own. Cost: 700,000 steps
of 2 × 32 images with the 56.6 M parameter network; not measured.

T comes from the released command. The cosine schedule, the augmentation (enlarge to 143², random
crop, flip), 2 × 32 images a step and 700,000 steps come from the released code.

    paper              FID of generated images
    fixed noise        59.91   --config.sampler.name=tacos
    estimated noise    23.11   (DDIM; --config.sampler.name=ddpm draws new noise at every step)

The released code scores 6,400 images. For as many, add --mode=generate --seeds=0-6399 and the row's
flag, if any (docs/generation.md).
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_noise",
            num_steps=200,
            schedule="cosine",
        )
    )
    config.sampler.name = "ddim"
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))  # xT is the noise
    config.eval.samplers = ("direct", "tacos", "ddim")
    config.paper = ConfigDict()
    return config
