"""Sharding: split batches and banks, replicated tables."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from colddiff.degradations import split as halves
from colddiff.experiment.build import build
from colddiff.experiment.state import init_state
from colddiff.runtime import devices
from colddiff.runtime.devices import create_mesh, host_rows, replicate, split_rows, to_mesh
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import image_keys
from colddiff.training.step import make_train_step


def test_a_batch_is_split_over_all_devices():
    mesh = create_mesh()
    assert mesh.size == jax.device_count() == 4
    batch = to_mesh(np.arange(16).reshape(2, 8), mesh, 1)
    assert [s.data.tolist() for s in batch.addressable_shards][1] == [[2, 3], [10, 11]]
    assert host_rows("b", 8, mesh) == slice(0, 8)


def test_a_host_s_devices_lie_together(monkeypatch):
    """Use an order of devices in which two hosts alternate, as on a TPU."""
    made = [types.SimpleNamespace(process_index=i % 2, id=7 - i) for i in range(8)]
    monkeypatch.setattr(devices.jax, "devices", lambda: made)
    monkeypatch.setattr(devices.jax, "device_count", lambda: 8)
    monkeypatch.setattr(devices, "Mesh", lambda array, axes, axis_types: array)
    for fsdp in (1, 4):
        hosts = [device.process_index for device in create_mesh(fsdp).flat]
        assert hosts == [0] * 4 + [1] * 4
    assert [device.id for device in create_mesh().flat] == [1, 3, 5, 7, 0, 2, 4, 6]


@pytest.mark.parametrize(("size", "nearest"), [(6, "use 4 or 8"), (3, "use 4$")])
def test_a_batch_that_cannot_be_shared_is_refused(size, nearest):
    with pytest.raises(UserError, match=f"batch={size} cannot be shared by 4 devices; {nearest}"):
        host_rows("batch", size, create_mesh())


def test_what_is_split_stays_split_and_the_rest_is_copied():
    mesh = create_mesh()
    rows = np.arange(20, dtype=np.uint8).reshape(10, 2)
    bank = split_rows(rows, mesh)
    assert bank.shape == (12, 2) and np.array_equal(bank[:10], rows) and not bank[10:].any()
    assert [shard.data.shape for shard in bank.addressable_shards] == [(3, 2)] * 4
    half = Mesh(mesh.devices[:2], mesh.axis_names)
    elsewhere = split_rows(rows, half)
    tree = {"bank": bank, "table": rows, "array": jnp.ones(3), "elsewhere": elsewhere}
    placed = replicate(tree, mesh)
    assert placed["bank"] is bank
    for name, shape in (("table", (10, 2)), ("array", (3,)), ("elsewhere", (10, 2))):
        assert [shard.data.shape for shard in placed[name].addressable_shards] == [shape] * 4


def animorph(config, sharded):
    with config.unlocked():
        config.degradation = {
            "name": "animorph",
            "num_steps": 6,
            "schedule": "cosine",
            "bank": {"source": "digits", "split": "train", "limit": 10, "sharded": sharded},
        }
    return build(config)


@pytest.mark.slow
def test_a_split_bank_gives_the_same_images_and_the_same_training(config):
    """Use 10 images on 4 devices; the two rows of padding are never picked."""
    whole, split = (animorph(config, sharded) for sharded in (False, True))
    bank = halves(split.degrade)[0].args[0]
    assert bank.dtype == np.uint8 and [s.data.shape[0] for s in bank.addressable_shards] == [3] * 4
    x0, keys = jnp.zeros((64, 16, 16, 1)), image_keys(jax.random.key(0), 0, 64)
    at_T = jax.jit(lambda degrade: jax.vmap(degrade, (0, None, 0))(x0, 6, keys))
    np.testing.assert_allclose(at_T(split.degrade), at_T(whole.degrade), atol=1e-6)

    mesh, losses = create_mesh(), []
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 16, 1), np.uint8)
    for experiment in (whole, split):
        step = make_train_step(experiment, mesh)
        degrade = replicate(experiment.degrade, mesh)
        _, metrics = step(init_state(experiment, mesh), images, degrade)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
