r"""Hot diffusion: generation of digits from noise, minutes on a CPU (paper, section 5.1).

    python -m colddiff.main \
      --config configs/generate_noise_digits.py --workdir runs/generate_noise_digits

This command trains; the same command with --mode=generate then generates images. This experiment is
not in the paper. It uses the network of configs/blur_digits.py on images of 16² that are shifted by
up to a pixel. Cost: 1,200 steps of 64 images take 6 minutes on two CPU cores; generating 512 images
takes half a minute.

Result of launch/hot_and_cold.sh, 512 images: the Fréchet distance to the test split on 32 principal
components is 1.6 (ddim), 1.9 (ddpm) and 2.4 (tacos, fixed noise). The train
split's distance is 0.8.
"""

from ml_collections import ConfigDict

from colddiff.configs import blur_digits


def get_config() -> ConfigDict:
    config = blur_digits.get_config()
    config.data.image_size = 16
    config.data.pad = 1
    config.degradation = ConfigDict(
        dict(
            name="gaussian_noise",
            num_steps=50,
            schedule="cosine",
        )
    )
    config.model.attention_sizes = (8, 4)
    config.train.num_steps = 1200
    config.train.batch_size = 64
    config.train.ema_decay = 0.99
    config.train.sample_every = 400
    config.train.checkpoint_every = 200
    config.sampler.name = "ddim"
    config.prior = ConfigDict(dict(name="pattern", noise_std=0.0))
    config.eval.samplers = ("direct", "tacos", "ddim")
    return config
