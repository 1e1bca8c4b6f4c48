"""Animorphosis: CelebA faces at 128² out of AFHQ animals (paper, section 5.3).

    python -m colddiff.main --config configs/animorph_celeba.py --workdir runs/animorph_celeba

Data: as for configs/blur_celeba.py, which says how to use a folder of your own. The animals: AFHQ
in its released layout in data/afhq; for another place add
--config.degradation.bank.source=folder:PATH. They take 0.7 GB of memory on every device;
--config.degradation.bank.sharded=True splits them over the devices. Cost: 700,000 steps of 2 × 32
images with the 56.6 M parameter network; not measured.

T is that of the released command. The cosine schedule is that of the released code, and so are the
augmentation of the faces (enlarge to 143², random crop, flip), 2 × 32 images a step and 700,000
steps. The released code augments the animals in the same way; here they are not augmented.

Paper: FID 48.51. The released code scores 6,400 images: --mode=generate --seeds=0-6399. xT is an
animal of the bank. As in the released code, the sampler estimates it at every step;
--config.sampler.name=tacos keeps it, and --config.degradation.bank.split=test begins with animals
that were not trained on.
"""

from ml_collections import ConfigDict

from configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.degradation = ConfigDict(
        dict(
            name="animorph",
            num_steps=200,
            bank=dict(source="folder:data/afhq", split="train", limit=0, sharded=False),
            schedule="cosine",
        )
    )
    config.sampler.name = "ddim"
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))  # xT is the animal
    config.paper = ConfigDict()
    return config
