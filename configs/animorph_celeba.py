"""Animorphosis: CelebA faces at 128² from AFHQ animals (paper, section 5.3).

    python -m colddiff.main --config configs/animorph_celeba.py --workdir runs/animorph_celeba

Data: as for configs/blur_celeba.py, which says how to use a folder of your own. The animals are
AFHQ in its released layout, in data/afhq; for another folder add
--config.degradation.bank.source=folder:PATH. They take 0.7 GB of memory on every device;
--config.degradation.bank.sharded=True splits them over the devices. Cost: 700,000 steps of 2 × 32
images with the 56.6 M parameter network; not measured.

T comes from the released command. The cosine schedule, the augmentation of the faces (enlarge to
143², random crop, flip), 2 × 32 images a step and 700,000 steps come from the released code. The
released code augments the animals in the same way; here they are not augmented.

Paper: FID 48.51. The released code scores 6,400 images; for as many, add --mode=generate
--seeds=0-6399. xT is an animal of the bank. As in the released code, the sampler estimates the
animal at every step; --config.sampler.name=tacos keeps it fixed.
--config.degradation.bank.split=test starts from animals that training does not use.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


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
