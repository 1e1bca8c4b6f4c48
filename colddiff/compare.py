"""Folders of generated images against the data and each other: `--mode=compare`.

One row for each folder that `colddiff.generate` wrote, with the data's own splits for comparison:
the Fréchet distance to both splits, on principal components of the pixels, and how much the images
differ among themselves. One picture shows the same seeds of all folders.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from colddiff import data, metrics
from colddiff.errors import UserError
from colddiff.files import read_json, whole, write_json
from colddiff.images import grid, save_png

_FEATURES = 32  # principal components of the training split
_LIMIT = 10_000  # images of each split, the first ones
_PAIRS_OF = 512  # images whose distances are averaged
_PICTURED = 8


class Row(NamedTuple):
    """The measures of one set of images; distances between pixels are on [0, 1].

    Attributes:
      frechet_train, frechet_test: Fréchet distance to the splits of the data.
      pairwise: mean RMSE between two of the images, of the first 512.
    """

    title: str
    num_images: int
    frechet_train: float
    frechet_test: float
    pairwise: float


class Comparison(NamedTuple):
    """The measures of all folders, with what they depend on.

    Attributes:
      settings: by title, what the images of a folder were generated with; None if it does not say.
      picture: of the same seeds in every folder, uint8 `[H, W, 3]`.
    """

    source: str
    num_features: int
    rows: list[Row]
    settings: dict[str, Any]
    picture: np.ndarray


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Titles and folders of texts 'TITLE=FOLDER'.

    Raises:
      UserError: a text is no such pair, or a title comes twice.
    """
    folders = {}
    for text in texts:
        title, equals, path = text.partition("=")
        own = title and title not in folders and not title.startswith("data")
        if not (own and equals and path):
            raise UserError(
                f"--folder={text!r} must be TITLE=FOLDER, with a title of its own that does not "
                "begin with 'data'"
            )
        folders[title] = Path(path).expanduser()
    if not folders:
        raise UserError("--mode=compare needs one or more --folder=TITLE=FOLDER")
    return folders


def compare(config: ConfigDict, folders: dict[str, Path]) -> Comparison:
    """Measures the images in `folders` against the data of `config`.

    Raises:
      UserError: a folder without generated images, with images of another size, or without a seed
        that all others have.
    """
    from sklearn.decomposition import PCA

    settings = config.data
    shape = (settings.image_size, settings.image_size, settings.channels)
    generated = {title: _read(path, shape) for title, path in folders.items()}
    if len({len(images) for images in generated.values()}) > 1:
        logging.warning("the folders hold different numbers of images: few images, larger distance")
    common = sorted(set.intersection(*(set(images) for images in generated.values())))
    if not common:
        raise UserError("the folders have no seed in common; generate the same --seeds in each")
    splits = {
        name: data.load(
            settings.source,
            split,
            size=settings.image_size,
            channels=settings.channels,
            limit=_LIMIT,
        )
        for name, split in (("train", settings.train_split), ("test", settings.test_split))
    }
    train = _flat(splits["train"])
    pca = PCA(min(_FEATURES, *train.shape), random_state=config.seed).fit(train)
    to_features = lambda images: pca.transform(_flat(images))  # noqa: E731
    truth = {name: metrics.gaussian(to_features(images)) for name, images in splits.items()}

    sets = {f"data, {name} split": images for name, images in splits.items()}
    sets |= {title: np.stack([*images.values()]) for title, images in generated.items()}
    rows = []
    for title, images in sets.items():
        found = metrics.gaussian(to_features(images))
        distances = [metrics.frechet_distance(found, truth[name]) for name in ("train", "test")]
        rows.append(Row(title, len(images), *distances, _pairwise(images[:_PAIRS_OF])))
    pictured = common[: min(_PICTURED, len(splits["test"]))]
    columns = {"data": splits["test"][: len(pictured)]}
    for title, images in generated.items():
        columns[title] = np.stack([images[seed] for seed in pictured])
    picture = grid(list(columns.values()), list(columns))
    made_with = {title: read_json(path / "settings.json") for title, path in folders.items()}
    return Comparison(settings.source, pca.n_components_, rows, made_with, picture)


def markdown(comparison: Comparison) -> str:
    """The rows as a Markdown table under a line that says what they are of."""
    head = (
        f"{comparison.source}; Fréchet distance on {comparison.num_features} principal components"
    )
    lines = [
        head,
        "",
        "| | n | Fréchet, train | Fréchet, test | pairwise RMSE |",
        "|---|---|---|---|---|",
    ]
    for row in comparison.rows:
        measures = f"{row.frechet_train:.2f} | {row.frechet_test:.2f} | {row.pairwise:.3f}"
        lines.append(f"| {row.title} | {row.num_images} | {measures} |")
    return "\n".join(lines) + "\n"


def write(comparison: Comparison, workdir: Path) -> Path:
    """Writes `comparison.json`, `comparison.md` and `comparison.png`; returns their folder."""
    fields = comparison._asdict() | {"rows": [row._asdict() for row in comparison.rows]}
    del fields["picture"]
    write_json(workdir / "comparison.json", fields)
    with whole(workdir / "comparison.md") as file:
        file.write(markdown(comparison).encode())
    save_png(workdir / "comparison.png", comparison.picture)
    return workdir


def _read(folder: Path, shape: tuple[int, int, int]) -> dict[int, np.ndarray]:
    """The images that were generated there, by seed; uint8 of this shape."""
    paths = sorted(
        (p for p in folder.glob("*.png") if p.stem.isdecimal()), key=lambda p: int(p.stem)
    )
    if len(paths) < 2:
        raise UserError(f"{folder} holds {len(paths)} generated images; at least 2 are needed")
    images = {}
    for path in paths:
        image = np.atleast_3d(np.asarray(Image.open(path)))
        if image.shape != shape:
            raise UserError(f"{path} is of shape {image.shape}; the config's data are {shape}")
        images[int(path.stem)] = image
    return images


def _flat(images: np.ndarray) -> np.ndarray:
    """float32 `[N, H W C]` on [0, 1]."""
    return np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)


def _pairwise(images: np.ndarray) -> float:
    """Mean RMSE between two different images."""
    x = _flat(images).astype(np.float64)
    squares = np.sum(x**2, axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * x @ x.T
    pairs = np.triu_indices(len(x), 1)
    return float(np.mean(np.sqrt(np.maximum(squared[pairs], 0)))) / math.sqrt(x.shape[1])
