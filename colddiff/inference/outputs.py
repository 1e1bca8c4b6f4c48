"""Output folders of images: `settings.json` keeps images made with other settings apart."""

import hashlib
from pathlib import Path
from typing import Any

import jax

from colddiff.experiment.config_files import rename_own
from colddiff.experiment.saved_config import config_json
from colddiff.experiment.user_code import source_hashes
from colddiff.inference.run import Run
from colddiff.runtime.devices import is_first_host, to_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_json, write_json


def run_settings(run: Run) -> dict[str, Any]:
    """Return what all images of a run depend on: weights, degradation, chunk; JSON types."""
    settings = {
        "degradation": config_json(run.config)["degradation"],
        "chunk": run.config.eval.chunk,
        "weights": {"step": run.step, "sha256": digest(run.params)},
    }
    if source := source_hashes(run.config.degradation):
        settings["source"] = source
        # The images depend on the source, not on its place.
        settings["degradation"] = rename_own(settings["degradation"], lambda name: Path(name).name)
    return settings


def sampler_settings(run: Run) -> dict[str, Any]:
    """Return the config's `sampler`, without even spacing or consistency's unused noise."""
    settings = config_json(run.config)["sampler"]
    if settings.get("spacing") == "even":
        del settings["spacing"]
    if run.config.sampler.get("consistency", 0):
        return settings
    return {k: v for k, v in settings.items() if k not in ("consistency", "noise_std")}


def digest(tree: Any) -> str:
    """Return the SHA-256 of all arrays of a pytree."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha256.update(to_host(leaf).tobytes())
    return sha256.hexdigest()


def claim(folder: Path, settings: dict[str, Any], others: str = "*") -> None:
    """Write the settings to the folder; refuse a folder whose images have other settings.

    Args:
      folder: the output folder; it is created.
      settings: everything the images depend on, in JSON types.
      others: a folder with such files, but without settings, is refused.

    Raises:
      UserError: the folder holds other files; the message names them.
    """
    path = folder / "settings.json"
    found = read_json(path)
    if found is not None:
        names = sorted(n for n in found | settings if found.get(n) != settings.get(n))
        if names:
            tell = [f"{n}: {found.get(n)} saved, {settings.get(n)} now" for n in names]
            differences = "\n  ".join(tell)
            raise UserError(
                f"{folder} holds images made with other settings:\n  {differences}\n"
                "Give another folder with --output, or delete this one"
            )
        return
    # Another host may be writing the settings.
    if other := next((p for p in folder.glob(others) if not p.name.startswith(path.name)), None):
        kind = "images," if others == "*.png" else f"files, such as {other.name},"
        raise UserError(
            f"{folder} holds {kind} but no settings.json that says how they were made; give "
            "another folder with --output"
        )
    if is_first_host():
        write_json(path, settings)
