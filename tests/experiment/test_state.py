"""The moving average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.experiment.state import update_ema


def test_ema_is_the_paper_s(config):
    """Check for a copy before step 2000, then decay .995 every 10 steps."""
    config.train.update({"ema_decay": 0.995, "ema_every": 10, "ema_start": 2000})
    average = expected = -1.0
    update = jax.jit(lambda ema, value, step: update_ema(ema, value, step, config.train))
    for step in [*range(1, 41), *range(1981, 2041)]:
        value = np.sin(step)
        average = update(jnp.float32(average), jnp.float32(value), step)
        if step < 2000:
            expected = value
        elif step % 10 == 0:
            expected = 0.995 * expected + 0.005 * value
        np.testing.assert_allclose(average, expected, atol=1e-6)
