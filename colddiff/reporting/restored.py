"""The page of restored images, `OUTPUT/index.html`: input and restoration of each file."""

from pathlib import Path

from colddiff.inference.restore import Outcome
from colddiff.inference.run import Run
from colddiff.reporting.page import Gallery, Section, Table, render
from colddiff.runtime.devices import is_first_host
from colddiff.runtime.files import write_text


def write(outcome: Outcome, run: Run) -> Path:
    """Write the page beside the images it shows, and return its path."""
    sections: list[Section] = []
    if outcome.failed:
        note = "These files were left out."
        rows = list(outcome.failed.items())
        sections.append(Table("Files without a restoration", ("file", "reason"), rows, note))
    files = [
        (entry["compared"], entry["restored"], f"{name}, {_severity(entry)}")
        for name, entry in outcome.pictures.items()
    ]
    note = "Left: the input. Right: restored. A click opens the restored file."
    sections.append(Gallery("Images", files, note))
    subtitle = f"{len(files)} images, restored by {run.workdir}, step {run.step}"
    path = outcome.folder / "index.html"
    if is_first_host():
        write_text(path, render("Restored images", sections, subtitle=subtitle))
    return path


def _severity(entry: dict) -> str:
    estimated = f" ± {entry['std']:.2g}, estimated" if "std" in entry else ""
    return f"t = {entry['t']}{estimated}"
