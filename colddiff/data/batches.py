"""The endless order in which training sees its images.

It is a function of the seed and the step alone, so the step is the data position. Where the images
come from is said in `colddiff.data.sources`.
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
    """What steps `start` .. `stop - 1` train on: uint8 `[accumulation, batch_size, H, W, C]`.

    All images are seen once, shuffled by `seed`, before the next shuffle begins. `threads` threads
    prepare batches ahead of time.

    Args:
      rows: the part of each batch that this host reads; all hosts share one order.
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
