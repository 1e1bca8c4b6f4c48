"""The Inception network of the Fréchet Inception distance, and its weights.

The network is Inception-v3 (Szegedy et al. 2015) with the weights of 2015-12-05 that FID (Heusel et
al. 2017) uses, from pytorch-fid's PyTorch file. It differs from the paper: it has 1008 outputs, its
average pools leave the padding out, and the pool branch of its last block takes a maximum. All sums
are in float32, because FIDs are compared to the third digit.

`colddiff.evaluation.metrics` computes distances from the features.
"""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import atomic_write, cached_npz
from colddiff.runtime.pth import read_pth

NAME = "inception-2015-12-05"
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIZE = 95_628_359  # bytes
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
IDENTITY = {"network": NAME, "sha256": SHA256, "resize": "bilinear to 299, not antialiased"}

_SIDE = 299  # pixels
_EPSILON = 1e-3  # ε of the batch normalisation
_TIMEOUT = 30  # seconds to wait for an answer
_PIECE = 2**20  # bytes per read
_CONVERSION = 1  # the version of `convert`
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_HIGHEST = jax.lax.Precision.HIGHEST

Params = dict[str, Any]


def features(params: Params, images: jax.Array) -> jax.Array:
    """Return the output of the network's last average pool; float32 `[B, 2048]`.

    Args:
      params: parameters from `convert` or `load`.
      images: uint8 `[B, H, W, C]` of any size, C = 1 (repeated to three channels) or 3.

    Raises:
      UserError: the images have another dtype or shape.
    """
    return InceptionV3().apply({"params": params}, _prepare(images))[0]


def logits(params: Params, images: jax.Array) -> jax.Array:
    """Return the 1008 outputs before any softmax; float32 `[B, 1008]`.

    The arguments are those of `features`.
    """
    return InceptionV3().apply({"params": params}, _prepare(images))[1]


def load(folder: Path) -> Params:
    """Return the weights in a folder; the first call downloads and converts them.

    Raises:
      UserError: the download fails, and the message says which file to put where; or a file in the
        folder is damaged or not the expected one.
    """
    identity = {"sha256": SHA256, "conversion": _CONVERSION}

    def make() -> dict[str, np.ndarray]:
        return flatten_dict(convert(read_pth(_original(folder / FILE))), sep=".")

    flat = cached_npz(folder, NAME, identity, make)
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="."))


def convert(state: dict[str, np.ndarray]) -> Params:
    """Return the parameters of `InceptionV3` from a state dict with torchvision's names.

    Each batch normalisation is folded into its convolution, because its scale and shift are
    constant at inference. Batch counters and the auxiliary classifier are left out.

    Args:
      state: float32 arrays; kernels are `[out, in, H, W]`.

    Returns:
      Float32 arrays; kernels are `[H, W, in, out]`.

    Raises:
      UserError: a tensor is missing, unknown, of another shape or not float32; the message names
        it.
    """
    layers = _kernel_shapes()
    _check(state, layers)
    params = {}
    for layer in layers:
        if layer == "fc":
            kernel, bias = state["fc.weight"].T, state["fc.bias"]
        else:
            bn = {k: state[f"{layer}.bn.{k}"].astype(np.float64) for k in _BATCH_NORM}
            scale = bn["weight"] / np.sqrt(bn["running_var"] + _EPSILON)
            kernel = state[f"{layer}.conv.weight"].transpose(2, 3, 1, 0) * scale
            bias = bn["bias"] - bn["running_mean"] * scale
        params[f"{layer}.kernel"] = np.ascontiguousarray(kernel, np.float32)
        params[f"{layer}.bias"] = np.ascontiguousarray(bias, np.float32)
    return unflatten_dict(params, sep=".")


class InceptionV3(nn.Module):
    """The network; its layers and blocks have torchvision's names."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return features `[B, 2048]` and logits `[B, 1008]`.

        The images x are float32 `[B, 299, 299, 3]` on [-1, 1].
        """
        x = _conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = _conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        x = _BlockA(32, name="Mixed_5b")(x)
        x = _BlockA(64, name="Mixed_5c")(x)
        x = _BlockA(64, name="Mixed_5d")(x)
        x = _BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
        x = _BlockC(128, name="Mixed_6b")(x)
        x = _BlockC(160, name="Mixed_6c")(x)
        x = _BlockC(160, name="Mixed_6d")(x)
        x = _BlockC(192, name="Mixed_6e")(x)
        x = _BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
        x = _BlockE(_average_pool, name="Mixed_7b")(x)
        x = _BlockE(_max_pool, name="Mixed_7c")(x)
        x = jnp.mean(x, axis=(1, 2))
        return x, nn.Dense(1008, precision=_HIGHEST, name="fc")(x)


class _BlockA(nn.Module):
    """Four branches: 1×1, 5×5, two 3×3, and an average pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = _conv(x, "branch1x1", 64)
        five = _conv(x, "branch5x5_1", 48)
        five = _conv(five, "branch5x5_2", 64, 5)
        three = _conv(x, "branch3x3dbl_1", 64)
        three = _conv(three, "branch3x3dbl_2", 96, 3)
        three = _conv(three, "branch3x3dbl_3", 96, 3)
        pool = _conv(_average_pool(x), "branch_pool", self.pool_features)
        return jnp.concatenate([one, five, three, pool], axis=-1)


class _BlockB(nn.Module):
    """Three branches that halve the size: 3×3, two 3×3, and a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _conv(x, "branch3x3", 384, 3, stride=2)
        double = _conv(x, "branch3x3dbl_1", 64)
        double = _conv(double, "branch3x3dbl_2", 96, 3)
        double = _conv(double, "branch3x3dbl_3", 96, 3, stride=2)
        return jnp.concatenate([three, double, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class _BlockC(nn.Module):
    """Four branches: 1×1, one 7×7, two 7×7, and an average pool; 7×7 is split into 1×7 and 7×1."""

    width: int  # channels of the inner convolutions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = _conv(x, "branch1x1", 192)
        seven = _conv(x, "branch7x7_1", self.width)
        seven = _conv(seven, "branch7x7_2", self.width, (1, 7))
        seven = _conv(seven, "branch7x7_3", 192, (7, 1))
        double = _conv(x, "branch7x7dbl_1", self.width)
        double = _conv(double, "branch7x7dbl_2", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_3", self.width, (1, 7))
        double = _conv(double, "branch7x7dbl_4", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_5", 192, (1, 7))
        pool = _conv(_average_pool(x), "branch_pool", 192)
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class _BlockD(nn.Module):
    """Three branches that halve the size: 3×3, 7×7 before a 3×3, and a max pool."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _conv(x, "branch3x3_1", 192)
        three = _conv(three, "branch3x3_2", 320, 3, stride=2)
        seven = _conv(x, "branch7x7x3_1", 192)
        seven = _conv(seven, "branch7x7x3_2", 192, (1, 7))
        seven = _conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = _conv(seven, "branch7x7x3_4", 192, 3, stride=2)
        return jnp.concatenate([three, seven, nn.max_pool(x, (3, 3), (2, 2))], axis=-1)


class _BlockE(nn.Module):
    """Four branches: 1×1, 1×3 beside 3×1, 3×3 followed by 1×3 beside 3×1, and `pool`."""

    pool: Callable[[jax.Array], jax.Array]  # the last two blocks use different pools

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = _conv(x, "branch1x1", 320)
        three = _conv(x, "branch3x3_1", 384)
        double = _conv(x, "branch3x3dbl_1", 448)
        double = _conv(double, "branch3x3dbl_2", 384, 3)
        branches = [
            one,
            _conv(three, "branch3x3_2a", 384, (1, 3)),
            _conv(three, "branch3x3_2b", 384, (3, 1)),
            _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            _conv(self.pool(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


def _conv(
    x: jax.Array,
    name: str,
    features: int,
    size: int | tuple[int, int] = 1,
    *,
    stride: int = 1,
    padding: str = "SAME",
) -> jax.Array:
    """Apply a convolution, which includes the batch normalisation (`convert`), and ReLU.

    With a stride of 2 there is no padding.
    """
    size = (size, size) if isinstance(size, int) else size
    padding = padding if stride == 1 else "VALID"
    conv = nn.Conv(features, size, stride, padding, precision=_HIGHEST, name=name)
    return nn.relu(conv(x))


def _average_pool(x: jax.Array) -> jax.Array:
    """Average the 3×3 window around each pixel, leaving out pixels outside the image."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _prepare(images: jax.Array) -> jax.Array:
    """Resize uint8 `[B, H, W, C]` to float32 `[B, 299, 299, 3]` on [-1, 1]."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype != jnp.uint8:
        given = f"{images.dtype} {images.shape}"
        raise UserError(f"{NAME} takes uint8 images [B, H, W, 1 or 3]; got {given}")
    rows, columns = _resize_matrix(images.shape[1]), _resize_matrix(images.shape[2])
    x = images.astype(jnp.float32) / 255
    x = jnp.einsum("hi,wj,bijc->bhwc", rows, columns, x, precision=_HIGHEST)
    return jnp.broadcast_to(2 * x - 1, (*x.shape[:3], 3))


def _resize_matrix(n: int) -> np.ndarray:
    """Return the matrix that resizes n pixels to 299, float32 `[299, n]`.

    Row i mixes the two input pixels nearest to the centre of output pixel i, even if n is
    large (no antialiasing). This is PyTorch's bilinear mode with align_corners=False.
    """
    place = np.maximum((np.arange(_SIDE) + 0.5) * n / _SIDE - 0.5, 0)
    below = np.minimum(place.astype(int), n - 1)
    above = np.minimum(below + 1, n - 1)
    matrix = np.zeros((_SIDE, n))
    np.add.at(matrix, (np.arange(_SIDE), below), 1 - (place - below))
    np.add.at(matrix, (np.arange(_SIDE), above), place - below)
    return matrix.astype(np.float32)


def _kernel_shapes() -> dict[str, tuple[int, ...]]:
    """Return each layer's kernel shape, by the layer's name in the file."""
    x = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
    params = jax.eval_shape(InceptionV3().init, jax.random.key(0), x)["params"]
    flat = flatten_dict(params, sep=".")
    return {k.removesuffix(".kernel"): v.shape for k, v in flat.items() if k.endswith(".kernel")}


def _check(state: dict[str, np.ndarray], layers: dict[str, tuple[int, ...]]) -> None:
    """Refuse a state dict that does not match these layers."""
    expected = {"fc.weight": layers["fc"][::-1], "fc.bias": layers["fc"][-1:]}
    for layer, (*size, inputs, outputs) in layers.items():
        if layer != "fc":
            expected[f"{layer}.conv.weight"] = (outputs, inputs, *size)
            expected |= {f"{layer}.bn.{k}": (outputs,) for k in _BATCH_NORM}
    unused = {k for k in state if k.endswith(".num_batches_tracked") or k.startswith("AuxLogits.")}
    if missing := sorted(expected.keys() - state.keys()):
        raise UserError(f"weights of {NAME}: {_some(missing)} is missing")
    if unknown := sorted(state.keys() - expected.keys() - unused):
        raise UserError(f"weights of {NAME}: {_some(unknown)} is not known")
    for name, shape in expected.items():
        if state[name].shape != shape or state[name].dtype != np.float32:
            given = f"{state[name].dtype} {state[name].shape}"
            raise UserError(f"weights of {NAME}: {name} is {given}, expected float32 {shape}")


def _some(names: list[str]) -> str:
    """Return the first name and the number of further names."""
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _original(path: Path) -> Path:
    """Return the path of the published file; download it if missing, and verify it."""
    if not path.exists():
        _download(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (size := path.stat().st_size) != SIZE or digest != SHA256:
        raise UserError(
            f"{path} is not {URL}: it has {size} bytes and SHA-256 {digest}, expected {SIZE} bytes "
            f"and {SHA256}; delete it to download it again, or put the right file there"
        )
    return path


def _download(path: Path) -> None:
    logging.info("downloading %s, %d MB, to %s", URL, SIZE // 10**6, path)
    done = 0
    try:
        with atomic_write(path) as file, urllib.request.urlopen(URL, timeout=_TIMEOUT) as answer:
            while piece := answer.read(_PIECE):
                file.write(piece)
                done += len(piece)
                if done // _PIECE % 16 == 0:
                    logging.info("downloaded %d of %d MB", done // 10**6, SIZE // 10**6)
                if done > SIZE:
                    raise OSError(f"the server sent more than the expected {SIZE} bytes")
            if done < SIZE:
                raise OSError(f"the server sent {done} bytes, not {SIZE}")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{URL} cannot be downloaded: {first_line(error)}. Download this file of {SIZE} bytes "
            f"on a machine with a network, and put it at {path}"
        ) from error
