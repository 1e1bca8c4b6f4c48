"""Generation of AFHQ at 128² from blur (paper, section 5.2; appendix A.7).

    python -m colddiff.main --config configs/generate_blur_afhq.py --workdir runs/generate_blur_afhq

xT is as in configs/generate_blur_celeba.py. Data: AFHQ in its released layout, a folder with
`train` and `val` in it, in data/afhq; for another folder add --config.data.source=folder:PATH.
Cost: 700,000 steps of 2 × 32 images with the 56.6 M parameter network; not measured.

configs/generate_blur_celeba.py names the sources of T, the kernel, σ, the augmentation, the batch
and the steps. The released code treats both data sets alike.

    paper                     FID of generated images
    perfect symmetry          93.05   --config.prior.noise_std=0.0
    broken symmetry           54.68
    broken symmetry, direct   214.24  --config.sampler.name=direct

The released code scores 6,400 images. For as many, add --mode=generate --seeds=0-6399 and the row's
flag, if any (docs/generation.md).
"""

from ml_collections import ConfigDict

from colddiff.configs import generate_blur_celeba


def get_config() -> ConfigDict:
    config = generate_blur_celeba.get_config()
    config.data.source = "folder:data/afhq"
    return config
