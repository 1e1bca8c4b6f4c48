r"""Generation of digits from blur, minutes on a CPU (paper, section 5.2).

    python -m colddiff.main \
      --config configs/generate_blur_digits.py --workdir runs/generate_blur_digits

This command trains; the same command with --mode=generate then generates images. This experiment is
not in the paper. It uses the network and training of configs/generate_noise_digits.py.

Result of launch/hot_and_cold.sh, 512 images: the Fréchet distance to the test split on 32 principal
components is 2.3. It is 20.0 with perfect symmetry (--config.prior.noise_std=0.0), 19.9 with
Algorithm 1 (--config.sampler.name=naive) and 5.0 with direct. The train split's distance is 0.8.
"""

from ml_collections import ConfigDict

from colddiff.configs import generate_noise_digits


def get_config() -> ConfigDict:
    config = generate_noise_digits.get_config()
    config.data.eight_bit = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=40,
            kernel_size=15,
            std=dict(schedule="exponential", start=0.5, rate=0.055),
            padding="circular",
            mean_at_end=True,
        )
    )
    config.sampler.name = "tacos"
    config.prior = ConfigDict(dict(name="gaussian_mixture", size=1, components=1, noise_std=0.002))
    config.eval.samplers = ("direct", "naive", "tacos")
    return config
