"""Cold diffusion: invert any image degradation, with or without noise (arXiv 2208.09392).

`colddiff.load(workdir)` opens a trained run. The maths (degradations, samplers, networks, metrics,
images) can be imported without the packages that read data sets and checkpoints.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colddiff.inference.load import load
    from colddiff.inference.run import Run

__version__ = "0.1.0"
__all__ = ["Run", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` and `Run` at their first use."""
    if name in __all__:
        from colddiff.inference import load, run

        return {"Run": run.Run, "load": load.load}[name]
    raise AttributeError(f"module 'colddiff' has no attribute {name!r}")
