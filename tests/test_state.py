"""The moving average and the sharing of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colddiff.devices import create_mesh, host_rows, to_mesh
from colddiff.errors import UserError
from colddiff.state import update_ema


def test_ema_is_the_paper_s(config):
    """A copy before step 2000, then decay .995 every 10 steps."""
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


def test_a_batch_is_split_over_all_devices():
    mesh = create_mesh()
    assert mesh.size == jax.device_count() == 4
    batch = to_mesh(np.arange(16).reshape(2, 8), mesh, 1)
    assert [s.data.tolist() for s in batch.addressable_shards][1] == [[2, 3], [10, 11]]
    assert host_rows("b", 8, mesh) == slice(0, 8)


@pytest.mark.parametrize(("size", "nearest"), [(6, "use 4 or 8"), (3, "use 4$")])
def test_a_batch_that_cannot_be_shared_is_refused(size, nearest):
    with pytest.raises(UserError, match=f"batch={size} cannot be shared by 4 devices; {nearest}"):
        host_rows("batch", size, create_mesh())
