"""Animorphosis: coloured digits out of white ones, minutes on a laptop's CPU.

    python -m colddiff.main --config configs/animorph_digits.py --workdir runs/animorph_digits

No row of the paper: the network and the training of configs/color_digits.py. About 3 minutes on two
CPU cores. Result on the 297 test digits: RMSE .343 degraded, .228 direct, .245 sampled: nothing in
a white digit tells which coloured one it hides. Samples have one hue each, few are digits yet.
"""

from ml_collections import ConfigDict

from configs import color_digits


def get_config() -> ConfigDict:
    config = color_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="animorph",
            num_steps=50,
            bank=dict(source="digits", split="train", limit=0, sharded=False),
            schedule="cosine",
        )
    )
    return config
