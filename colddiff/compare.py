"""Folders of generated images against the data and each other: `--mode=compare`.

One row for each folder that `colddiff.generate` wrote, with the data's own splits for comparison:
the Fréchet distance to both splits, on principal components of the pixels, and how much the images
differ among themselves. One picture shows the same seeds of all folders.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from colddiff import data, metrics
from colddiff.errors import UserError
from colddiff.images import grid, save_png

_FEATURES = 32  # principal components of the training split
_LIMIT = 10_000  # images of each split, the first ones
_PAIRS_OF = 512  # images whose distances are averaged
_PICTURED = 8


class Row(NamedTuple):
    """The measures of one set of images; distances between pixels are on [0, 1].

    Attributes:
      frechet_train, frechet_test: Fréchet distance to the splits of the data.
      pairwise: mean RMSE between two of the images.
    """

    title: str
    num_images: int
    frechet_train: float
    frechet_test: float
    pairwise: float


class Comparison(NamedTuple):
    """The measures of all folders, with what they depend on, and the picture (uint8)."""

    source: str
    num_features: int
    rows: list[Row]
    picture: np.ndarray


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Titles and folders of texts 'TITLE=FOLDER'.

    Raises:
      UserError: a text is no such pair, or a title comes twice.
    """
    folders = {}
    for text in texts:
        title, equals, path = text.partition("=")
        if not (title and equals and path) or title in folders:
            raise UserError(f"--folder={text!r} must be TITLE=FOLDER, with a title of its own")
        folders[title] = Path(path).expanduser()
    if not folders:
        raise UserError("--mode=compare needs one or more --folder=TITLE=FOLDER")
    return folders


def compare(config: ConfigDict, folders: dict[str, Path]) -> Comparison:
    """Measures the images in `folders` against the data of `config`.

    Raises:
      UserError: a folder without generated images, or with images of another size.
    """
    from sklearn.decomposition import PCA

    settings = config.data
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
    generated = {title: _read(path, splits["train"].shape[1:]) for title, path in folders.items()}
    rows = []
    for title, images in (sets | generated).items():
        found = metrics.gaussian(to_features(images))
        distances = [metrics.frechet_distance(found, truth[name]) for name in ("train", "test")]
        rows.append(Row(title, len(images), *distances, _pairwise(images[:_PAIRS_OF])))
    columns = {"data": splits["test"]} | generated
    pictured = min(_PICTURED, *map(len, columns.values()))
    picture = grid([images[:pictured] for images in columns.values()], list(columns))
    return Comparison(settings.source, pca.n_components_, rows, picture)


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
    workdir.mkdir(parents=True, exist_ok=True)
    fields = comparison._asdict() | {"rows": [row._asdict() for row in comparison.rows]}
    del fields["picture"]
    (workdir / "comparison.json").write_text(json.dumps(fields, indent=2) + "\n")
    (workdir / "comparison.md").write_text(markdown(comparison))
    save_png(workdir / "comparison.png", comparison.picture)
    return workdir


def _read(folder: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The images that were generated there, by seed; uint8 `[N, *shape]`."""
    paths = sorted(
        (p for p in folder.glob("*.png") if p.stem.isdecimal()), key=lambda p: int(p.stem)
    )
    if len(paths) < 2:
        raise UserError(f"{folder} holds {len(paths)} generated images; at least 2 are needed")
    images = []
    for path in paths:
        image = np.atleast_3d(np.asarray(Image.open(path)))
        if image.shape != shape:
            raise UserError(f"{path} is of shape {image.shape}; the config's data are {shape}")
        images.append(image)
    return np.stack(images)


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
