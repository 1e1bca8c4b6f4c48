r"""Generation of CelebA at 128² from blur (paper, section 5.2; appendix A.7).

    python -m colddiff.main \
      --config configs/generate_blur_celeba.py --workdir runs/generate_blur_celeba

xT is a constant image plus noise. Its colour is drawn from a Gaussian fitted to the images' channel
means. The noise breaks the symmetry and is finer than 8-bit levels. Data: as for
configs/blur_celeba.py, which says how to use a folder of your own. Cost: 700,000 steps of 2 × 32
images with the 56.6 M parameter network; not measured.

T, the kernel, σ = exp(.01 (t - 1)), the circular padding, the mean at T, the truncation to 8 bits,
the single Gaussian and the noise of .002 come from the released commands. The augmentation (enlarge
to 143², random crop, flip), 2 × 32 images a step and 700,000 steps come from the released code.

    paper                     FID of generated images
    perfect symmetry          97.00   --config.prior.noise_std=0.0
    broken symmetry           49.45
    broken symmetry, direct   257.69  --config.sampler.name=direct

The released code scores 6,400 images. For as many, add --mode=generate --seeds=0-6399 and the row's
flag, if any (docs/generation.md).
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_celeba


def get_config() -> ConfigDict:
    config = blur_celeba.get_config()
    config.data.eight_bit = True
    config.degradation = ConfigDict(
        dict(
            name="gaussian_blur",
            num_steps=300,
            kernel_size=27,
            std=dict(schedule="exponential", start=1.0, rate=0.01),
            padding="circular",
            mean_at_end=True,
        )
    )
    config.prior = ConfigDict(dict(name="gaussian_mixture", size=1, components=1, noise_std=0.002))
    config.paper = ConfigDict()
    return config
