"""The endless order in which training sees its images.

The order depends on the seed and the step alone, so the step is the data position. The images come
from `colddiff.data.sources`.
"""

from collections.abc import Iterator

import grain
import numpy as np

from colddiff.data.sources import Images


def batches(
    images: Images,
    batch_size: int,
    *,
    accumulation: int = 1,
    seed: int,
    start: int,
    stop: int,
    rows: slice = slice(None),
    threads: int = 4,
) -> Iterator[np.ndarray]:
    """Yield `[accumulation, batch_size, H, W, C]` for each step `start` .. `stop - 1`.

    All images are seen once, shuffled by `seed`, before the next shuffle begins.

    Args:
      images: the training images.
      batch_size: the number of images in a batch, over all hosts.
      accumulation: the number of batches in a step.
      seed: the seed of all shuffles.
      start: the first step.
      stop: the step after the last.
      rows: the part of each batch that this host reads; all hosts share one order.
      threads: the number of threads that prepare batches ahead of time.
    """
    order = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat()
    places = np.arange(accumulation * batch_size).reshape(accumulation, batch_size)[:, rows]

    def read(step: int) -> np.ndarray:
        first = step * accumulation * batch_size
        flat = np.stack([images[order[int(first + place)]] for place in places.flat])
        return flat.reshape(*places.shape, *flat.shape[1:])

    steps = grain.MapDataset.range(start, stop).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return iter(steps.to_iter_dataset(options))
