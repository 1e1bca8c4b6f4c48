r"""Generation of digits from a colour mask, minutes on a CPU (paper, section 5.3).

    python -m colddiff.main \
      --config configs/generate_inpaint_digits.py --workdir runs/generate_inpaint_digits

This command trains; the same command with --mode=generate then generates images. This experiment is
not in the paper. It uses the network and training of configs/generate_noise_digits.py.

Result of launch/hot_and_cold.sh, 512 images: the Fréchet distance to the test split on 32 principal
components is 5.3. It is 12.0 with perfect symmetry, as in the paper (--config.prior.noise_std=0.0),
because two xT then differ in one gray level only. The train split's distance is 0.8.
"""

from ml_collections import ConfigDict

from colddiff.configs import generate_noise_digits


def get_config() -> ConfigDict:
    config = generate_noise_digits.get_config()
    config.degradation = ConfigDict(
        dict(
            name="gaussian_mask",
            num_steps=50,
            std=dict(schedule="linear", start=0.2, step=0.2),
            center="image",
            fade_to="random",
            inward=True,
        )
    )
    config.sampler.name = "tacos"
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.002))
    config.eval.samplers = ("direct", "naive", "tacos")
    return config
