"""Restore image files: `--mode=restore --input=FILE-or-FOLDER --output=FOLDER`.

    OUTPUT/restored/a/b.png    the restored a/b.png of the input; of a/b.jpg it is a/b.jpg.png
    OUTPUT/compared/a/b.png    input and restored image, side by side
    OUTPUT/restored.json       the severity of each image, and the files that were left out
    OUTPUT/settings.json       everything the images depend on, besides the input files

Files that are restored already are skipped. If a command is interrupted, rerun it to restore the
others. `colddiff.reporting.restored` writes the HTML page.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from colddiff.data.decoding import open_image
from colddiff.experiment.saved_config import config_json
from colddiff.images import grid, to_uint8
from colddiff.inference.image_files import Picture, examine, find, load_mask, png_name
from colddiff.inference.outputs import claim, digest, run_settings
from colddiff.inference.own_images import (
    as_floats,
    check_steps,
    lost_shares,
    matching_severity,
    method_of,
    pixels_from,
    with_holes,
)
from colddiff.inference.run import Run
from colddiff.inference.severity import FILE
from colddiff.inference.sizes import Batch, Method, prepare
from colddiff.inference.sizes import restore as restore_batch
from colddiff.runtime.devices import create_mesh, from_first_host, is_first_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_json, save_png, write_json
from colddiff.runtime.progress import Meter


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
      source: an image file, or a folder of them.
      output: the output folder.
      t: a severity, a share of T, 'auto', or None (`parse_severity`).
      mask: an image of the kept pixels, or a folder of them with the names of the images; or None.
      sampler: the sampler's name; None for the config's, or direct (`own_images.method_of`).
      steps: largest number of sampler steps; None for the config's.
      tile: side of the tiles; None to choose (`sizes.tile_of`).
    """

    source: Path
    output: Path
    t: str | None = None
    mask: Path | None = None
    sampler: str | None = None
    steps: int | None = None
    tile: int | None = None


class Outcome(NamedTuple):
    """What was done.

    Attributes:
      folder: the output folder.
      pictures: an entry for each restored image, by its name: the relative paths `restored` and
        `compared`, `size` [H, W], the severity `t`, its `std` if it was estimated, and the input's
        `sha256`.
      failed: the reason for each file that was left out, by its name.
    """

    folder: Path
    pictures: dict[str, dict[str, Any]]
    failed: dict[str, str]

    def check(self) -> None:
        """Raise an error if files were left out.

        Raises:
          UserError: the message lists the files and the reasons.
        """
        if self.failed:
            reasons = "\n  ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            raise UserError(
                f"{len(self.failed)} of {len(self.failed) + len(self.pictures)} files could not be "
                f"restored:\n  {reasons}"
            )


def parse_severity(text: str | None, T: int) -> int | str | None:
    """Return the severity that --t names: an integer in 0..T, 'auto', or None for None.

    Raises:
      UserError: the text is neither a severity, a share of T between 0 and 1, nor 'auto'.
    """
    if text is None or text == "auto":
        return text
    if text.isdecimal() and int(text) <= T:
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = np.nan
    if not 0 < share < 1:
        raise UserError(
            f"--t={text} must be a severity, a whole number in 0..T={T}; or a share of T such as "
            "0.35, between 0 and 1; or auto, to estimate it"
        )
    return max(1, round(share * T))


def restore(run: Run, request: Request) -> Outcome:
    """Write the restored images that are missing in the output folder.

    A file that cannot be restored is left out, with a warning.

    Raises:
      UserError: the request does not fit the run, no file can be read, the output folder holds
        other files, or a restored image is not finite. Nothing is overwritten.
    """
    _check_folders(request)
    t = parse_severity(request.t, run.T)
    found = find(request.source, request.mask)
    most = t if isinstance(t, int) else run.T
    check_steps(request.steps, max(most, 1))
    method = method_of(
        *(run, request.sampler, request.steps, request.tile),
        most=most,
        known="mask" if request.mask else "",
    )
    if t == "auto":
        _estimate_nothing(run, run.experiment.image_shape[:2])
    pictures, failed = examine(run, found)
    claim(request.output, _settings(run, request, method))
    return _Job(run, method, t, request.output, failed).restore(pictures)


def _check_folders(request: Request) -> None:
    source, output = request.source.resolve(), request.output.resolve()
    if not source.exists():
        raise UserError(f"no file or folder {request.source} (--input)")
    if request.mask and not request.mask.exists():
        raise UserError(f"no file or folder {request.mask} (--mask)")
    if output.is_file():
        raise UserError(f"--output={request.output} is a file; give a folder")
    if source.is_dir() and output.is_relative_to(source):
        raise UserError(
            f"--output={request.output} lies in the folder of --input, so the next command would "
            "restore its images again; give another folder"
        )


def _settings(run: Run, request: Request, method: Method) -> dict[str, Any]:
    """Return everything a restored image depends on besides its file; JSON types."""
    config, restoration = config_json(run.config), method.adapt(run)
    consistency = int(restoration.consistency.steps) if restoration.consistency else 0
    sampler = {"name": restoration.sampler.func.__name__, "consistency": consistency}
    sampler |= {name: float(value) for name, value in restoration.sampler.keywords.items()}
    if consistency:
        sampler["noise_std"] = float(restoration.consistency.noise_std)
    data = ("channels", "background", "eight_bit")
    return run_settings(run) | {
        "data": {name: config["data"].get(name) for name in data},
        "sampler": sampler | {"steps": method.steps},
        "t": request.t,
        "severity": _digest_of_head(run) if request.t == "auto" else None,
        "tile": request.tile,
        "masks": request.mask is not None,
        "tables": {"degradation": digest(run.degrade)},
    }


def _digest_of_head(run: Run) -> str:
    return hashlib.sha256((run.workdir / FILE).read_bytes()).hexdigest()


def _estimate_nothing(run: Run, size: tuple[int, int]) -> None:
    """Raise the errors of estimating the severity of images of this size, (H, W)."""
    run.severity(np.zeros((1, *size, run.experiment.image_shape[2]), np.float32))


class _Job:
    """The restoration of files into one folder."""

    def __init__(
        self, run: Run, method: Method, t: int | str | None, folder: Path, failed: dict[str, str]
    ):
        self._run, self._method, self._t, self._folder = run, method, t, folder
        self._entries: dict[str, dict[str, Any]] = {}
        self._failed = failed
        self._key = jax.random.key(run.config.seed)

    def restore(self, pictures: Sequence[Picture]) -> Outcome:
        """Restore the pictures that the folder does not hold yet."""
        known = (read_json(self._folder / "restored.json") or {}).get("pictures", {})
        done = [self._is_done(p, known.get(p.name)) for p in pictures]
        done = from_first_host(np.array(done))
        there = {p.name for p, is_done in zip(pictures, done, strict=True) if is_done}
        self._entries = {name: known[name] for name in known if name in there}
        if there:
            logging.info("%d of %d images are restored already", len(there), len(pictures))
        rounds = self._rounds(pictures, there)
        shares = lost_shares(self._run) if pictures[0].mask and self._t is None else None
        with (
            Meter("restore", total=sum(map(len, rounds)), images_per_step=1) as meter,
            ThreadPoolExecutor() as pool,
        ):
            for members in rounds:
                self._restore_round(members, shares, pool)
                for _ in members:
                    meter.advance()
                meter.note()
        self._write_record()
        return Outcome(self._folder, dict(sorted(self._entries.items())), self._failed)

    def _is_done(self, picture: Picture, entry: dict[str, Any] | None) -> bool:
        if entry is None or entry["sha256"] != picture.sha256:
            return False
        return all((self._folder / entry[name]).is_file() for name in ("restored", "compared"))

    def _rounds(self, pictures: Sequence[Picture], there: set[str]) -> list[list[Picture]]:
        """Return the pictures to restore, in rounds of one size and one chunk for each device.

        A picture's index among those of its size decides its chunk and its place there. So a chunk
        with a missing picture is computed whole, and the result is the same to the bit.
        """
        rounds = []
        for size in sorted({picture.size for picture in pictures}):
            group = [picture for picture in pictures if picture.size == size]
            try:
                if self._t == "auto":
                    _estimate_nothing(self._run, size)
                count = prepare(self._run, size, self._method.tile)
            except UserError as error:
                for picture in group:
                    logging.warning("left out %s: %s", picture.path, error)
                    self._failed[picture.name] = str(error)
                continue
            chunks = [group[i : i + count] for i in range(0, len(group), count)]
            missing = [c for c in chunks if not there.issuperset(p.name for p in c)]
            devices = create_mesh().size
            for i in range(0, len(missing), devices):
                rounds.append([p for chunk in missing[i : i + devices] for p in chunk])
        return rounds

    def _restore_round(
        self, members: Sequence[Picture], shares: np.ndarray | None, pool: ThreadPoolExecutor
    ) -> None:
        """Restore pictures of one size, and write their files."""
        read = lambda p: pixels_from(self._run, open_image(p.path))  # noqa: E731
        pixels = list(pool.map(read, members))
        images = np.stack([as_floats(self._run, each) for each in pixels])
        masks = [load_mask(p.mask) for p in members] if members[0].mask else None
        times, stds = self._severities(images, masks, shares)
        # The key depends on the name alone, so that other files do not change an image.
        names = [hashlib.sha256(p.name.encode()).digest()[:4] for p in members]
        numbers = np.array([int.from_bytes(name, "big") for name in names], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self._key, numbers)
        batch = Batch(images, times, keys)
        if masks is not None:
            batch = with_holes(self._run, batch, np.stack(masks))
        x0 = restore_batch(self._run, self._method, batch)
        bad = [p.name for p, image in zip(members, x0, strict=True) if not np.isfinite(image).all()]
        if bad:
            raise UserError(
                f"the restored images of {bad} are not finite, so they were not written; try "
                "another checkpoint or sampler"
            )
        if not is_first_host():
            return
        entries = [
            self._entry(picture, int(t), std)
            for picture, t, std in zip(members, times, stds, strict=True)
        ]
        list(pool.map(self._save, entries, pixels, to_uint8(x0)))
        self._entries |= {p.name: entry for p, entry in zip(members, entries, strict=True)}
        self._write_record()

    def _severities(
        self, images: np.ndarray, masks: Sequence[np.ndarray] | None, shares: np.ndarray | None
    ) -> tuple[np.ndarray, list[float | None]]:
        """Return each image's severity, and its standard deviation if it is estimated."""
        stds: list[float | None] = [None] * len(images)
        times: list[int] = [self._run.T if self._t is None else self._t] * len(images)
        if self._t == "auto":
            times, stds = zip(*(self._run.severity(image[None]) for image in images), strict=True)
            times, stds = np.concatenate(times).tolist(), np.concatenate(stds).tolist()
        elif shares is not None:
            times = [matching_severity(shares, mask) for mask in masks]
        return np.array(times, np.int32), list(stds)

    def _entry(self, picture: Picture, t: int, std: float | None) -> dict[str, Any]:
        name = png_name(picture.name)
        paths = {"restored": f"restored/{name}", "compared": f"compared/{name}"}
        more = {} if std is None else {"std": round(std, 3)}
        return {**paths, "size": list(picture.size), "t": t, **more, "sha256": picture.sha256}

    def _save(self, entry: dict[str, Any], pixels: np.ndarray, restored: np.ndarray) -> None:
        titles = [f"input, t = {entry['t']}", "restored"]
        save_png(self._folder / entry["compared"], grid([pixels[None], restored[None]], titles))
        save_png(self._folder / entry["restored"], restored)

    def _write_record(self) -> None:
        """Write `restored.json`; a file without an entry there counts as missing."""
        if is_first_host():
            pictures = dict(sorted(self._entries.items()))
            record = {"pictures": pictures, "failed": self._failed}
            write_json(self._folder / "restored.json", record)
