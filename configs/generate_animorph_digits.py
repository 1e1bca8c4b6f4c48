r"""Animorphosis: coloured digits from white ones, minutes on a CPU (paper, section 5.3).

    python -m colddiff.main \
      --config configs/generate_animorph_digits.py --workdir runs/generate_animorph_digits

This command trains; the same command with --mode=generate then generates images. This experiment is
not in the paper. It uses the network and training of configs/generate_noise_digits.py.

Result, 256 images: the Fréchet distance to the test split on 32 principal components is 17.2 (22.3
with tacos). The train split's distance is 1.3. Most images have one hue, but not all are digits: a
white digit does not determine which coloured digit it becomes.
"""

from ml_collections import ConfigDict

from colddiff.configs import generate_noise_digits


def get_config() -> ConfigDict:
    config = generate_noise_digits.get_config()
    config.data.source = "color_digits"
    config.data.channels = 3
    config.degradation = ConfigDict(
        dict(
            name="animorph",
            num_steps=50,
            bank=dict(source="digits", split="train", limit=0, sharded=False),
            schedule="cosine",
        )
    )
    config.sampler.name = "ddim"
    return config
