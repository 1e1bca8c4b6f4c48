"""One mesh over all devices of all hosts, the shardings on it, and communication between hosts.

The same code serves one device, many devices and many hosts. Every host runs the same program on
the same global arrays. A host's own values are either identical on all hosts (`replicate`) or its
part of a batch (`to_mesh`). Callers decide what is split and what is replicated.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from colddiff.runtime.errors import UserError, first_line

_AXES = ("data", "fsdp")


def join_hosts(
    coordinator: str | None = None, num_hosts: int | None = None, host: int | None = None
) -> None:
    """Join the other hosts through `jax.distributed`; call this before anything else uses JAX.

    Args:
      coordinator: ADDRESS:PORT where host 0 listens. None takes all three arguments from the
        environment of SLURM, Open MPI, GKE or a TPU pod.
      num_hosts: the number of processes.
      host: the index of this process, from 0.

    Raises:
      UserError: the other hosts do not answer, or the environment does not give their addresses.
    """
    # JAX's preemption service would catch SIGTERM, which `colddiff.runtime.stop` handles.
    jax.config.update("jax_enable_preemption_service", False)
    detection = None if coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(coordinator, num_hosts, host, cluster_detection_method=detection)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the other hosts: {first_line(error)}. Without SLURM, Open MPI, GKE or a "
            "TPU pod, give --coordinator=ADDRESS:PORT, --num_hosts and --host"
        ) from error
    if not is_first_host():
        logging.set_verbosity(logging.WARNING)
    logging.info("%d hosts, %d devices", jax.process_count(), jax.device_count())


def among_hosts() -> bool:
    """Return whether SLURM's srun or Open MPI's mpirun started this process as one of several."""
    counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdecimal() and int(count) > 1 for count in counts)


def is_first_host() -> bool:
    """Return whether this process writes the outputs: logs, pictures and tables."""
    return jax.process_index() == 0


def all_hosts(yes: bool) -> bool:
    """Return whether `yes` is true on all hosts; every host must call this."""
    if jax.process_count() == 1:
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def barrier() -> None:
    """Wait until all hosts have reached this call; every host must call this."""
    all_hosts(True)


def check_shared(folder: Path) -> None:
    """Refuse a folder that the hosts do not share; every host must call this.

    Raises:
      UserError: the path is not the same folder on all hosts.
    """
    if jax.process_count() == 1:
        return
    token = folder / f"hosts-{from_first_host(np.array(time.time_ns() % 2**31, np.int32))}"
    if is_first_host():
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    barrier()
    seen = all_hosts(token.exists())
    if is_first_host():
        token.unlink()
    if not seen:
        raise UserError(
            f"{folder} is not the same folder on all hosts; use one on a file system that all "
            "hosts share"
        )


def from_first_host(value: np.ndarray) -> np.ndarray:
    """Return the first host's value on every host.

    Every host must call this, with a value of the same shape.
    """
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def create_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of all devices, host by host, with axes 'data' × 'fsdp'.

    Each group of `fsdp` devices shares one copy of the training state.

    Args:
      fsdp: size of a group.
      devices: the devices, if they are not those that are here.

    Raises:
      UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fit = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(f"config.mesh.fsdp={fsdp} must divide the {count} devices: one of {fit}")
    # `host_rows` needs each host's rows of a batch to be contiguous, so devices are sorted by host.
    # jax.make_mesh may order the devices of a TPU differently.
    ordered = np.array(sorted(devices, key=lambda d: (d.process_index, d.id)))
    return Mesh(ordered.reshape(-1, fsdp), _AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_axis(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding that splits `axis` of an array over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _AXES))


def fsdp_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return, for each array of a state, its sharding over the 'fsdp' devices.

    The split axis is the largest whose length is divisible by the number of these devices. An array
    without such an axis is replicated.
    """
    count = mesh.shape["fsdp"]

    def sharding(leaf):
        sizes = {axis: size for axis, size in enumerate(leaf.shape) if size % count == 0}
        if count == 1 or not sizes:
            return replicated(mesh)
        largest = max(sizes, key=sizes.get)
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(sharding, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Return the tree with each leaf replicated on every device.

    A leaf that is already sharded over all devices of the mesh keeps its sharding.
    """
    copy, devices = replicated(mesh), set(mesh.devices.flat)

    def there(leaf):
        on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        return on_mesh and leaf.sharding.device_set == devices

    return jax.tree.map(lambda leaf: leaf if there(leaf) else place(leaf, copy), tree)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Return the tree with every leaf placed on the devices by `sharding`.

    Every host passes whole leaves, or arrays that are global already.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place_one(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # a global array
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place_one(jax.random.key_data(leaf)))
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place_one, tree)


def split_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Return all rows split over the devices, padded with zero rows to an even split.

    Every host passes all rows and keeps its part.
    """
    missing = -len(rows) % mesh.size
    if missing:
        rows = np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1)))
    return jax.make_array_from_callback(rows.shape, split_axis(mesh, 0), lambda index: rows[index])


def to_mesh(rows: np.ndarray, mesh: Mesh, axis: int) -> jax.Array:
    """Return the global batch, split over the devices along `axis`, from this host's `rows`."""
    return jax.make_array_from_process_local_data(split_axis(mesh, axis), rows)


def to_host(tree: Any) -> Any:
    """Return the tree's arrays whole, as NumPy arrays; every host must call this."""

    def fetch(leaf):
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        return np.asarray(leaf) if whole else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def host_rows(what: str, batch_size: int, mesh: Mesh) -> slice:
    """Return the rows of each batch that this host reads.

    Raises:
      UserError: the number of devices does not divide the batch size.
    """
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{what}={batch_size} cannot be shared by {devices} devices; use {nearest}")
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
