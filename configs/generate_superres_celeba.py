"""Generation of CelebA at 128² from 2² pixels: the restorer (paper, section 5.3).

    python -m colddiff.main --config configs/generate_superres_celeba.py --workdir runs/from_pixels

The restorer is that of configs/superres_celeba.py; generation begins at other xT. Data: as for
configs/blur_celeba.py, which says how to use a folder of your own. Cost: 700,000 steps of 2 × 32
images with the 56.6 M parameter network; not measured. Paper: FID 92.91 of generated images.
"""

from ml_collections import ConfigDict

from configs import superres_celeba


def get_config() -> ConfigDict:
    return superres_celeba.get_config()
