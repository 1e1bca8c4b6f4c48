r"""Generation of digits from 2² pixels, minutes on a CPU (paper, section 5.3).

    python -m colddiff.main \
      --config configs/generate_superres_digits.py --workdir runs/generate_superres_digits

This command trains; the same command with --mode=generate then generates images. This experiment is
not in the paper. It uses the network and training of configs/generate_noise_digits.py.

Result of launch/hot_and_cold.sh, 512 images: the Fréchet distance to the test split on 32 principal
components is 2.9. The train split's distance is 0.8.
"""

from ml_collections import ConfigDict

from colddiff.configs import generate_noise_digits


def get_config() -> ConfigDict:
    config = generate_noise_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="pixelate",
            num_steps=3,
            method="area",
        )
    )
    config.sampler.name = "tacos"
    config.prior = ConfigDict(dict(name="gaussian_mixture", size=2, components=1, noise_std=0.0))
    config.eval.samplers = ("direct", "naive", "tacos")
    return config
