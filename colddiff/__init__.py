"""Cold diffusion: invert any image degradation, with or without noise (arXiv 2208.09392).

`colddiff.load(workdir)` opens a trained run, and `colddiff.load_pretrained("blur_digits")` one that
comes with the package. The maths (degradations, samplers, networks, metrics,
images) can be imported without the packages that read data sets and checkpoints.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colddiff.inference.load import load, load_pretrained
    from colddiff.inference.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "load", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Import `load`, `load_pretrained` and `Run` at their first use."""
    if name in __all__:
        from colddiff.inference import load, run

        return getattr(run if name == "Run" else load, name)
    raise AttributeError(f"module 'colddiff' has no attribute {name!r}")
