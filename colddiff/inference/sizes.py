"""Restoration of images of any size with one run: whole, or in overlapping tiles.

The restorer pads an image by reflection to sides that its network can halve, and crops its result.
So the degradation has the image's own size. A tile is restored as an image of its own, and the
results are blended with smooth weights. This is right only where the degradation acts on a pixel's
neighbourhood in the same way all over the image (`check_tiles`).

Images are computed in chunks of a fixed number, and an image has a fixed place in its chunk. So a
result does not depend on the batch or on the number of devices, to the bit.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colddiff.experiment import build
from colddiff.inference.run import Restoration, Run, run_sampler
from colddiff.runtime.devices import create_mesh, place, replicated, split_axis, to_host
from colddiff.runtime.errors import UserError
from colddiff.sampling.samplers import times_of_each, visited

_MOST_WHOLE = 2**18  # pixels of an image that is restored whole by default: 512 × 512
_TILE = 256  # pixels a side
_REMEMBERED = 4  # other sizes whose degradations are kept in memory


class Batch(NamedTuple):
    """N images of one size.

    Attributes:
      images: float32 `[N, H, W, C]` on [-1, 1].
      t: the severity of each, int32 `[N]`; an image at 0 stays as it is.
      keys: PRNG keys `[N]` of their random patterns.
      patterns: known patterns, used instead of those of the keys; arrays `[N, ...]`, or None.
    """

    images: np.ndarray
    t: np.ndarray
    keys: jax.Array
    patterns: Any = None


class Method(NamedTuple):
    """How images are restored.

    Attributes:
      adapt: returns the `Restoration` of a run at the images' size.
      steps: the number of sampler steps that the program has; images at a lower t take t steps.
      tile: side of the tiles in pixels, 0 to restore whole; None to choose by `tile_of`.
    """

    adapt: Callable[[Run], Restoration]
    steps: int
    tile: int | None = None


def restore(run: Run, method: Method, batch: Batch) -> np.ndarray:
    """Return the restored images, float32 `[N, H, W, C]`, not clipped.

    Raises:
      UserError: the degradation or the network cannot work at this size.
    """
    size = batch.images.shape[1:3]
    own = size == run.experiment.image_shape[:2]
    tile = 0 if own else tile_of(run, size, method.tile)
    if not tile:
        padded = batch._replace(images=_pad_to_blocks(batch.images, run))
        return _in_chunks(run, method, padded)[:, : size[0], : size[1]]
    return np.stack([_in_tiles(run, method, _only(batch, i), tile) for i in range(len(batch.t))])


def prepare(run: Run, size: tuple[int, int], tile: int | None) -> int:
    """Return the number of images of this size that are restored together, if the run can do it.

    Raises:
      UserError: as for `restore`.
    """
    own = size == run.experiment.image_shape[:2]
    side = 0 if own else tile_of(run, size, tile)
    block = block_of(run.config.degradation)
    blocks = tuple(-(-n // block) * block for n in size)
    at_size(run, (side, side) if side else blocks)
    return 1 if side else _at_once(run, blocks)


def at_size(run: Run, size: tuple[int, int]) -> Run:
    """Return the run for images of another size (H, W), with the same parameters.

    Raises:
      UserError: the degradation cannot work at this size.
    """
    known = run.other_sizes
    if size == run.experiment.image_shape[:2]:
        return run
    if size not in known:
        other = build.at_size(run.experiment, size)
        other = other._replace(restore=_padded(other.restore, _halvings(run)))
        while len(known) >= _REMEMBERED:
            known.pop(next(iter(known)))
        known[size] = dataclasses.replace(run, experiment=other)
    return known[size]


def tile_of(run: Run, size: tuple[int, int], tile: int | None) -> int:
    """Return the side of the tiles for images of this size (H, W); 0 to restore them whole.

    By default images of up to 512 × 512 pixels are whole, and others in tiles of 256 × 256. A
    network with attention at high resolutions (`model.attention_sizes`) always takes tiles of its
    own size, since the memory of attention grows with the square of the number of pixels.

    Raises:
      UserError: the image would be cut into tiles, but the degradation does not act locally.
    """
    if tile is None:
        attends = bool(run.config.model.get("attention_sizes", ()))
        if not attends and math.prod(size) <= _MOST_WHOLE:
            return 0
        least = _least_tile(run)
        tile = min(run.experiment.image_shape[:2]) if attends else max(_TILE // least, 2) * least
    if tile:
        check_tiles(run.config.degradation, size)
    return tile


def check_tile(run: Run, tile: int | None) -> None:
    """Refuse a side of tiles that the network or the degradation cannot take.

    Raises:
      UserError: `tile` is neither None, 0, nor a valid multiple.
    """
    least = _least_tile(run)
    if tile is None or tile == 0:
        return
    if not isinstance(tile, Integral) or tile % least or tile < least:
        raise UserError(
            f"tile={tile} must be a multiple of {least} pixels, as this network and degradation "
            "need; or 0 to restore images whole"
        )


def _least_tile(run: Run) -> int:
    """Return the side of the smallest tile, four blocks of the degradation, in pixels."""
    return math.lcm(4 * block_of(run.config.degradation), _halvings(run))


def _halvings(run: Run) -> int:
    """Return the number that the network's sides are multiples of, in pixels."""
    return run.config.model.get("patch", 1) * 2 ** (len(run.config.model.multipliers) - 1)


def check_tiles(degradation: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Refuse to cut images into tiles if the degradation does not act locally.

    Raises:
      UserError: the message gives the reason.
    """
    parts = degradation["parts"] if degradation["name"] == "compose" else (degradation,)
    reasons = [reason for part in parts if (reason := _not_local(part))]
    if reasons:
        raise UserError(
            f"images of {size[0]} × {size[1]} pixels would be cut into tiles, but {reasons[0]}. "
            "Resize the images to the run's size, or restore them whole with --tile=0 (tile=0 in a "
            "notebook) if memory allows"
        )


def _not_local(part: Mapping[str, Any]) -> str:
    """Return why a degradation does not act locally; '' if it does."""
    name = part["name"]
    if name == "gaussian_blur" and part["padding"] == "circular":
        return "circular blur mixes the opposite edges of an image"
    if name == "gaussian_blur" and part.get("mean_at_end", False):
        return "this blur ends with the mean of the whole image"
    reasons = {
        "gaussian_mask": "the hole of gaussian_mask has one place in the whole image",
        "snow": "snow is one layer over the whole image",
        "animorph": "animorph blends with an image of the whole size",
    }
    if ":" in name:
        return f"the degradation {name} of your own may not act locally"
    return reasons.get(name, "")


def block_of(degradation: Mapping[str, Any]) -> int:
    """Return the side in pixels of the blocks that a degradation makes of an image; 1 for none."""
    parts = degradation["parts"] if degradation["name"] == "compose" else (degradation,)
    pixelated = any(part["name"] == "pixelate" for part in parts)
    return 2 ** degradation["num_steps"] if pixelated else 1


def _padded(restore: Callable, unit: int) -> Callable:
    """Return `R(params, xt, t)` that pads xt at the bottom and right to multiples of `unit`."""

    def padded(params, xt, t):
        high, wide = xt.shape[1:3]
        missing = ((0, 0), (0, -high % unit), (0, -wide % unit), (0, 0))
        x = jnp.pad(xt, missing, "reflect" if min(high, wide) > unit else "edge")
        return restore(params, x, t)[:, :high, :wide]

    return padded


def _pad_to_blocks(images: np.ndarray, run: Run, least: int = 1) -> np.ndarray:
    """Return images `[N, H, W, C]` padded at the bottom and right to whole blocks.

    Blocks that the edge cuts are completed with their own colour.

    Args:
      images: the images to pad.
      run: the run whose degradation makes the blocks.
      least: smallest side of the result, a multiple of the block; reached by reflection.
    """
    block = block_of(run.config.degradation)
    sides = images.shape[1:3]
    blocks = np.pad(images, ((0, 0), *((0, -n % block) for n in sides), (0, 0)), "edge")
    more = ((0, max(0, least - n)) for n in blocks.shape[1:3])
    return np.pad(blocks, ((0, 0), *more, (0, 0)), "symmetric")


def _at_once(run: Run, size: tuple[int, int]) -> int:
    """Return the images of a chunk, as many pixels as `config.eval.chunk` images of the run."""
    high, wide, _ = run.experiment.image_shape
    return max(1, run.config.eval.chunk * high * wide // math.prod(size))


def _in_chunks(run: Run, method: Method, batch: Batch) -> np.ndarray:
    """Return the restored images; image i is number i % count of a chunk.

    Each device computes one chunk at a time. A single chunk is computed by every device.
    """
    size = batch.images.shape[1:3]
    restoration = method.adapt(at_size(run, size))
    count, N = _at_once(run, size), len(batch.t)
    chunks, mesh = -(-N // count), create_mesh()
    rows_on = times_on = replicated(mesh)
    if chunks > 1:
        rows_on, times_on, count = split_axis(mesh, 0), split_axis(mesh, 1), count * mesh.size
    times = times_of_each(batch.t, method.steps)
    times = np.pad(times, ((0, method.steps + 1 - len(times)), (0, 0)))
    times = visited(restoration.sampler, times)
    restored = []
    for first in range(0, N, count):
        rows = np.minimum(np.arange(first, first + count), N - 1)  # the last image fills the rest
        part = jax.tree.map(lambda a: a[rows], (batch.images, batch.keys, batch.patterns))  # noqa: B023
        images, keys, patterns = place(part, rows_on)
        at = place(times[:, rows], times_on)
        x0 = run_sampler(restoration, images, keys, at, patterns=patterns)
        restored.append(to_host(x0))
    return np.concatenate(restored)[:N]


def _in_tiles(run: Run, method: Method, batch: Batch, tile: int) -> np.ndarray:
    """Return one restored image `[H, W, C]`, blended from its tiles."""
    high, wide = batch.images.shape[1:3]
    block = block_of(run.config.degradation)
    image = _pad_to_blocks(batch.images, run, least=tile)[0]
    overlap = max(tile // 4, 3 * block if block > 1 else 0)
    margin = max(overlap // 4, block if block > 1 else 0)
    rows, columns = (_origins(n, tile, overlap, block) for n in image.shape[:2])
    corners = [(i, j) for i in rows for j in columns]
    tiles = np.stack([image[i : i + tile, j : j + tile] for i, j in corners])
    same = np.zeros(len(tiles), int)  # every tile has the image's severity and key
    restored = _in_chunks(run, method, Batch(tiles, batch.t[same], batch.keys[same]))
    total, weight = np.zeros(image.shape), np.zeros((*image.shape[:2], 1))
    for (i, j), part in zip(corners, restored, strict=True):
        vertical = _weights(i, tile, overlap, margin, image.shape[0])
        horizontal = _weights(j, tile, overlap, margin, image.shape[1])
        w = (vertical[:, None] * horizontal)[..., None]
        total[i : i + tile, j : j + tile] += w * part
        weight[i : i + tile, j : j + tile] += w
    return (total / weight).astype(np.float32)[:high, :wide]


def _origins(length: int, tile: int, overlap: int, unit: int) -> np.ndarray:
    """Return the first pixels of the tiles along one side, multiples of `unit`, evenly spread."""
    count = 1 + -(-(length - tile) // (tile - overlap - unit + 1)) if length > tile else 1
    return (np.linspace(0, length - tile, count) // unit * unit).astype(int)


def _weights(first: int, tile: int, overlap: int, margin: int, length: int) -> np.ndarray:
    """Return the weights `[tile]` of a tile's pixels along one side of an image.

    In the overlap they are 0 over the margin, where the tile lacks its neighbourhood, and 1 over
    the inner margin; between they rise as a raised cosine. At the image's edge the weights are 1.
    """
    place = (np.arange(tile) + 0.5 - margin) / (overlap - 2 * margin)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.clip(place, 0, 1))
    left = ramp if first > 0 else np.ones(tile)
    right = ramp[::-1] if first + tile < length else np.ones(tile)
    return left * right


def _only(batch: Batch, i: int) -> Batch:
    """Return the batch of image i alone."""
    return jax.tree.map(lambda a: a[i : i + 1], batch)
