"""Animorphosis: coloured digits out of white ones, minutes on a CPU (paper, section 5.3).

    python -m colddiff.main --config configs/generate_animorph_digits.py --workdir runs/animorph

trains; with --mode=generate it then makes images. No row of the paper: the network and training of
configs/generate_noise_digits.py.

Result, 256 images: Fréchet distance to the test split on 32 principal components 17.2, with tacos
22.3; the train split's is 1.3. Most images have one hue, not all are digits: nothing in a white
digit tells which coloured one it hides.
"""

from ml_collections import ConfigDict

from configs import generate_noise_digits


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
