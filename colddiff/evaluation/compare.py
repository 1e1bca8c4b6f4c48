"""Compare folders of generated images with the data and with each other: `--mode=compare`.

The table has one row for each folder that `colddiff.inference.generate` wrote and for each split of
the data. A row holds the Fréchet distances to both splits, in the feature spaces of
`config.eval.features`, and the mean RMSE between two images of the set. One picture shows the same
seeds of all folders.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from colddiff.evaluation import metrics
from colddiff.evaluation.features import (
    FEW,
    FEW_NOTE,
    Collected,
    Features,
    collect,
    load_split,
    make_features,
    of_split,
)
from colddiff.images import grid, height_width, to_unit_data
from colddiff.runtime.devices import is_first_host
from colddiff.runtime.errors import UserError, first_line
from colddiff.runtime.files import (
    as_json,
    markdown_table,
    read_json,
    save_png,
    write_json,
    write_text,
)

_PAIRS_OF = 512  # images whose pairwise distances are averaged
_PICTURED = 8


class Gap(NamedTuple):
    """Fréchet distances of a set of images to both splits of the data, in one feature space.

    Attributes:
      features: the space's full name.
      few_train: whether `train` compares fewer images than there are features, and so is too large.
      few_test: the same for `test`.
    """

    features: str
    train: float
    test: float
    few_train: bool
    few_test: bool


class SetRow(NamedTuple):
    """The measures of one set of images.

    Attributes:
      gaps: distances to the data, one `Gap` for each of the config's feature spaces.
      pairwise: mean RMSE between two images on [0, 1], over all pairs of up to 512 images.
    """

    title: str
    num_images: int
    gaps: list[Gap]
    pairwise: float


class Comparison(NamedTuple):
    """The measures of all folders and the settings of their images.

    Attributes:
      settings: each folder's `settings.json` by title; None if the folder has none.
      picture: test images beside the images of the same seeds in every folder, uint8 `[H, W, 3]`.
    """

    source: str
    rows: list[SetRow]
    settings: dict[str, Any]
    picture: np.ndarray


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Return folders by title from texts 'TITLE=FOLDER'.

    Raises:
      UserError: a text is not such a pair, a title is repeated or begins with 'data', or there are
        no texts.
    """
    folders = {}
    for text in texts:
        title, equals, path = text.partition("=")
        own = title and title not in folders and not title.startswith("data")
        if not (own and equals and path):
            raise UserError(
                f"--folder={text!r} must be TITLE=FOLDER, with a title that no other folder has "
                "and that does not begin with 'data'"
            )
        folders[title] = Path(path).expanduser()
    if not folders:
        raise UserError("--mode=compare needs one or more --folder=TITLE=FOLDER")
    return folders


def compare(config: ConfigDict, folders: dict[str, Path]) -> Comparison:
    """Measure the images in `folders` against the data of `config`.

    Raises:
      UserError: a folder holds fewer than 2 generated images or images of another size, the
        folders have no seed in common, or a feature space is not available.
    """
    settings = config.data
    if settings.channels not in (1, 3):
        raise UserError(
            f"config.data.channels={settings.channels}, but --mode=compare reads PNG files, which "
            "hold 1 or 3 channels"
        )
    shape = (*height_width(settings.image_size), settings.channels)
    generated = {title: _read(path, shape) for title, path in folders.items()}
    if len({len(images) for images in generated.values()}) > 1:
        logging.warning(
            "the folders hold different numbers of images, and fewer images give larger distances; "
            "generate the same number in each"
        )
    common = sorted(set.intersection(*(set(images) for images in generated.values())))
    if not common:
        raise UserError("the folders have no seed in common; generate the same --seeds in each")
    spaces = [make_features(name, config) for name in config.eval.features]
    splits = (settings.train_split, settings.test_split)
    truth = [[of_split(space, config, split) for split in splits] for space in spaces]
    rows = []
    for place, name in enumerate(("train", "test")):
        own = [kept[place] for kept in truth]
        images = load_split(config, splits[place], limit=_PAIRS_OF).images
        count = own[0].count if own else len(load_split(config, splits[place]).images)
        rows.append(_row(f"data, {name} split", count, images, spaces, own, truth))
    for title, images in generated.items():
        array = np.stack([*images.values()])
        own = [collect(space, [array], total=len(array)) for space in spaces]
        rows.append(_row(title, len(array), array, spaces, own, truth))
    test = load_split(config, settings.test_split, limit=_PICTURED).images
    pictured = common[: min(_PICTURED, len(test))]
    columns = {"data": test[: len(pictured)]}
    for title, images in generated.items():
        columns[title] = np.stack([images[seed] for seed in pictured])
    picture = grid(list(columns.values()), list(columns))
    made_with = {title: read_json(path / "settings.json") for title, path in folders.items()}
    return Comparison(settings.source, rows, made_with, picture)


def _row(
    title: str,
    count: int,
    images: np.ndarray,
    spaces: Sequence[Features],
    own: Sequence[Collected],
    truth: Sequence[Sequence[Collected]],
) -> SetRow:
    """Return the measures of a set.

    `own` holds the set's feature statistics in each space; `truth` holds, in each space, the
    feature statistics of the data's splits.
    """
    gaps = []
    for space, found, splits in zip(spaces, own, truth, strict=True):
        distances = [metrics.frechet_distance(found.gaussian, split.gaussian) for split in splits]
        few = [min(found.count, split.count) < found.dimension for split in splits]
        gaps.append(Gap(space.name, *distances, *few))
    return SetRow(title, count, gaps, _pairwise(images[:_PAIRS_OF]))


def markdown(comparison: Comparison) -> str:
    """Return the rows as a Markdown table under a line that names the source."""
    names = [gap.features for gap in comparison.rows[0].gaps]
    header = [f"FD to {split}, {name}" for name in names for split in ("train", "test")]
    cells = [["", "n", *header, "pairwise RMSE"]]
    for row in comparison.rows:
        measures = []
        for gap in row.gaps:
            measures.append(f"{gap.train:.2f}" + FEW * gap.few_train)
            measures.append(f"{gap.test:.2f}" + FEW * gap.few_test)
        cells.append([row.title, str(row.num_images), *measures, f"{row.pairwise:.3f}"])
    lines = [f"{comparison.source}; FD: Fréchet distance", "", *markdown_table(cells)]
    if any(cell.endswith(FEW) for row in cells for cell in row):
        lines += ["", FEW_NOTE]
    return "\n".join(lines) + "\n"


def write(comparison: Comparison, workdir: Path) -> Path:
    """Write `comparison.json`, `comparison.md` and `comparison.png`; return their folder."""
    if not is_first_host():
        return workdir
    fields = comparison._asdict()
    del fields["picture"]
    write_json(workdir / "comparison.json", as_json(fields))
    write_text(workdir / "comparison.md", markdown(comparison))
    save_png(workdir / "comparison.png", comparison.picture)
    return workdir


def _read(folder: Path, shape: tuple[int, int, int]) -> dict[int, np.ndarray]:
    """Read the generated images of a folder, by seed; uint8 of this shape."""
    paths = sorted(
        (p for p in folder.glob("*.png") if p.stem.isdecimal()), key=lambda p: int(p.stem)
    )
    if len(paths) < 2:
        raise UserError(f"{folder} holds {len(paths)} generated images; at least 2 are needed")
    expected = (*shape[:2], "L" if shape[2] == 1 else "RGB")
    images = {}
    for path in paths:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                found = (image.height, image.width, image.mode)
                if found == expected:  # an image of another size may be too large to decode
                    images[int(path.stem)] = np.asarray(image).reshape(shape)
        except Exception as error:  # damaged files raise many types of exception
            raise UserError(
                f"{path} cannot be read: {first_line(error)}; delete it, and generate it again"
            ) from error
        if found != expected:
            raise UserError(
                f"{path} has height, width and mode {found}, but the config's images have "
                f"{expected}; use the config that generated it"
            )
    return images


def _flat(images: np.ndarray) -> np.ndarray:
    """Return images of a data source as float32 rows `[N, H W C]` on [0, 1]."""
    return to_unit_data(images.reshape(len(images), -1))


def _pairwise(images: np.ndarray) -> float:
    """Return the mean RMSE over all pairs of different images."""
    x = _flat(images).astype(np.float64)
    squares = np.sum(x**2, axis=1)
    squared = squares[:, None] + squares[None, :] - 2 * x @ x.T
    pairs = np.triu_indices(len(x), 1)
    return float(np.mean(np.sqrt(np.maximum(squared[pairs], 0)))) / math.sqrt(x.shape[1])
