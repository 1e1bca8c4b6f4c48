"""Generation of digits from a colour mask, minutes on a CPU (paper, section 5.3).

    python -m colddiff.main --config configs/generate_inpaint_digits.py --workdir runs/inpaint

trains; with --mode=generate it then makes images. No row of the paper: the network and training of
configs/generate_noise_digits.py.

RESULT_inpaint
"""

from ml_collections import ConfigDict

from configs import generate_noise_digits


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
