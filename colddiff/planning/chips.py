"""Figures of accelerators, and devices that XLA compiles for without having them.

The figures are peaks that the makers publish. Programs are compiled and read elsewhere.
"""

import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from colddiff.runtime.errors import UserError, first_line

_GIB = 2**30


class Chip(NamedTuple):
    """A chip and its published peaks, for each of its devices.

    Attributes:
      platform: 'tpu' or 'cuda'.
      bfloat16: FLOP/s of dense matrix products in bfloat16.
      float32: FLOP/s of matrix products of float32 arrays as XLA computes them by default: bfloat16
        products on TPUs, TF32 on GPUs.
      bandwidth: bytes a second of the device's memory.
      memory: bytes of the device's memory.
      source: where the figures are from.
    """

    platform: str
    name: str
    bfloat16: float
    float32: float
    bandwidth: float
    memory: int
    source: str


CHIPS = {
    "v4": Chip("tpu", "TPU v4", 275e12, 275e12, 1228e9, 32 * _GIB, "Google Cloud, TPU v4"),
    "v5e": Chip("tpu", "TPU v5e", 197e12, 197e12, 819e9, 16 * _GIB, "Google Cloud, TPU v5e"),
    "v5p": Chip("tpu", "TPU v5p", 459e12, 459e12, 2765e9, 95 * _GIB, "Google Cloud, TPU v5p"),
    "v6e": Chip("tpu", "TPU v6e", 918e12, 918e12, 1640e9, 32 * _GIB, "Google Cloud, TPU v6e"),
    "a100": Chip("cuda", "A100 SXM 80GB", 312e12, 156e12, 2039e9, 80 * 10**9, "NVIDIA, A100"),
    "h100": Chip("cuda", "H100 SXM", 989e12, 494e12, 3350e9, 80 * 10**9, "NVIDIA, H100"),
    "h200": Chip("cuda", "H200 SXM", 989e12, 494e12, 4800e9, 141 * 10**9, "NVIDIA, H200"),
}
_GPUS = {  # multiprocessors, shared memory of one, clock in GHz, L2 bytes, compute capability
    "a100": (108, 167936, 1.41, 40 * 2**20, "major: 8"),
    "h100": (132, 233472, 1.98, 50 * 2**20, "major: 9 feature_extension: ACCELERATED_FEATURES"),
    "h200": (132, 233472, 1.98, 50 * 2**20, "major: 9 feature_extension: ACCELERATED_FEATURES"),
}
_EXAMPLES = "v5e:4x4, v5p:2x2x1, h100:8 or here"


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      text: its name, such as 'v5e:4x4'.
      chip: the chip's figures; None for the devices that are here.
      devices: the devices.
    """

    text: str
    chip: Chip | None
    devices: list[jax.Device]


def find_topology(text: str) -> Topology:
    """Return the devices that `--topology` names.

    Args:
      text: CHIP:SHAPE with a TPU slice's shape, such as 'v5e:4x4'; CHIP:COUNT for the GPUs of one
        host, such as 'h100:8'; or 'here' for this machine's devices.

    Raises:
      UserError: there is no such chip or slice, or the platform's package is not installed.
    """
    if text == "here":
        return Topology(text, None, jax.devices())
    parts = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if parts is None or parts[1] not in CHIPS:
        raise UserError(
            f"--topology={text} must be CHIP:SHAPE, such as {_EXAMPLES}; the chips are "
            f"{', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[parts[1]], parts[2]
    if chip.platform == "cuda" and "x" in shape:
        raise UserError(f"--topology={text} must be CHIP:COUNT for GPUs, such as h100:8")
    try:
        return Topology(text, chip, _devices(parts[1], chip, shape))
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
        file = {"tpu": "requirements-tpu.txt", "cuda": "requirements-cuda12.txt"}[chip.platform]
        raise UserError(
            f"cannot compile for {text}: {first_line(error)}\nIt needs the packages of {file}, but "
            "no such device; and for TPUs a shape that the slices of this chip have"
        ) from error


def _devices(name: str, chip: Chip, shape: str) -> list[jax.Device]:
    if chip.platform == "tpu":
        # libtpu otherwise asks the cloud's metadata server where it is.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}")
    else:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=_description(name, chip), topology=f"1x1x{shape}"
        )
    return list(found.devices)


def _description(name: str, chip: Chip) -> str:
    """Return XLA's description of a GPU, a text protocol buffer, without an interconnect."""
    cores, shared, clock, l2, capability = _GPUS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if name == "a100" else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{ {capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  name: "{chip.name}"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{chip.name}"
"""
