"""The maths can be imported without the packages for data sets and checkpoints."""

import subprocess
import sys

from conftest import ROOT

MATHS = (
    "degradations",
    "evaluation.metrics",
    "images",
    "networks",
    "sampling.priors",
    "sampling.samplers",
)


def test_the_maths_imports_without_data_sets_and_checkpoints():
    blocked = ("tensorflow_datasets", "clu", "orbax", "grain", "tensorboardX", "sklearn")
    code = "import sys\n"
    code += "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code += "".join(f"import colddiff.{name}\n" for name in MATHS)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
