"""Hot diffusion of AFHQ at 128², the paper's baseline: Gaussian noise (paper, section 5.1).

    python -m colddiff.main --config configs/noise_afhq.py --workdir runs/noise_afhq

Data: AFHQ in its released layout, a folder with `train` and `val` in it, in data/afhq; for another
folder add --config.data.source=folder:PATH. Cost: 700,000 steps of 2 × 32 images with the 56.6 M
parameter network; not measured.

configs/noise_celeba.py names the sources of T, the schedule, the augmentation, the batch and the
steps. The released code treats both data sets alike.

    paper              FID of generated images
    fixed noise        25.62   --config.sampler.name=tacos
    estimated noise    20.59

The released code scores 6,400 images. For as many, add --mode=generate --seeds=0-6399 and the row's
flag, if any (docs/generation.md).
"""

from ml_collections import ConfigDict

from colddiff.configs import noise_celeba


def get_config() -> ConfigDict:
    config = noise_celeba.get_config()
    config.data.source = "folder:data/afhq"
    return config
