"""Where arrays lie: one mesh over all devices, and the shardings on it.

The same code serves one device and many. What is split and what is copied is decided by callers.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from colddiff.errors import UserError


def create_mesh() -> Mesh:
    """One axis, 'data', over all devices."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_axis(mesh: Mesh, axis: int) -> NamedSharding:
    """That axis of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree with a copy of each leaf on every device; one that is split over them stays so."""
    copy = replicated(mesh)

    def place(leaf):
        on_mesh = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        return leaf if on_mesh and leaf.sharding.mesh == mesh else jax.device_put(leaf, copy)

    return jax.tree.map(place, tree)


def split_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """All rows split over the devices, filled up with zeros until they can share them evenly.

    Every host gives all rows and keeps its own.
    """
    missing = -len(rows) % mesh.size
    if missing:
        rows = np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1)))
    return jax.make_array_from_callback(rows.shape, split_axis(mesh, 0), lambda index: rows[index])


def to_mesh(rows: np.ndarray, mesh: Mesh, axis: int) -> jax.Array:
    """This host's part of a batch, put onto the devices; split along `axis`."""
    return jax.make_array_from_process_local_data(split_axis(mesh, axis), rows)


def host_rows(what: str, batch_size: int, mesh: Mesh) -> slice:
    """The part of each batch that this host reads.

    Raises:
      UserError: the devices cannot share the batch evenly.
    """
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{what}={batch_size} cannot be shared by {devices} devices; use {nearest}")
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
