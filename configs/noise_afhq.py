"""Hot diffusion of AFHQ at 128², the paper's baseline: Gaussian noise (paper, section 5.1).

    python -m colddiff.main --config configs/noise_afhq.py --workdir runs/noise_afhq

Data: AFHQ in its released layout, a folder with `train` and `val` in it, here data/afhq; for
another place add --config.data.source=folder:PATH. Cost: 700,000 steps of 2 × 32 images with the
56.6 M parameter network; not measured.

T, the schedule, the augmentation, the batch and the steps have the sources that
configs/noise_celeba.py names: the released code treats both data sets alike.

    paper              FID of generated images
    fixed noise        25.62   --config.sampler.name=tacos
    estimated noise    20.59

The released code scores 6,400 images: --mode=generate --seeds=0-6399, with that flag or without;
docs/generation.md says how.
"""

from ml_collections import ConfigDict

from configs import noise_celeba


def get_config() -> ConfigDict:
    config = noise_celeba.get_config()
    config.data.source = "folder:data/afhq"
    return config
