"""The model card of an exported run: README.md in the form of the Hugging Face hub.

The card says what the weights are, how they were trained, their scores as measured, and how to use
them. It names no license, which is for the owner of the weights to choose.
"""

import json
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

import colddiff
from colddiff.experiment.build import make_sampler
from colddiff.experiment.saved_config import config_json
from colddiff.inference.run import Run
from colddiff.runtime.files import read_json
from colddiff.sampling.samplers import visited

_SCORES = {"rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM"}


def evaluation_of(run: Run) -> Path | None:
    """Return the folder with the scores of these parameters; None if they were not evaluated."""
    if run.workdir is None or run.ema is not None:  # the report is of the default average
        return None
    folder = run.workdir / "evaluation" / f"{run.step:07d}"
    return folder if (folder / "report.json").exists() else None


def render(run: Run, name: str, evaluation: Path | None) -> str:
    """Return the card of a run.

    Args:
      run: the run.
      name: the model's name.
      evaluation: the folder of its report; None if it was not evaluated.
    """
    config, (high, wide, channels) = run.config, run.experiment.image_shape
    shape = f"[B, {high}, {wide}, {channels}]"
    degradation, source = (
        _without_folder(n) for n in (config.degradation.name, config.data.source)
    )
    lines = [
        "---",
        *_front_matter(run, name, evaluation),
        "---",
        f"# {name}",
        "",
        f"This network restores images of {source} that {degradation} degraded: cold diffusion "
        "(Bansal et al., [arXiv 2208.09392](https://arxiv.org/abs/2208.09392)). It was exported "
        f"with colddiff {colddiff.__version__}, for JAX and Flax.",
        "",
    ]
    if evaluation is not None and (evaluation / "samples.png").exists():
        lines += ["![Test images, degraded and restored](samples.png)", ""]
    lines += [
        *_facts(run, degradation, source),
        "",
        "All settings are in `config.json`. This command trains the same network again:",
        "",
        "```bash",
        "python -m colddiff --config=config.json --workdir=again",
        "```",
        "",
        "## Scores",
        "",
        *_scores(evaluation),
        "",
        "## Use",
        "",
        "With colddiff, from the folder of this file:",
        "",
        "```python",
        "import colddiff",
        "",
        'run = colddiff.load(".")',
        f"x0 = run.sample(run.params, xT)  # float32 {shape} on [-1, 1]",
        "```",
        "",
        "With JAX alone (`pip install jax flatbuffers`):",
        "",
        "```python",
        "import jax",
        "import numpy as np",
        "",
        'sampler = jax.export.deserialize(open("sampler.jax", "rb").read())',
        "x0 = sampler.call(xT, np.uint32(0))  # the same; 0 is the seed of random degradations",
        "```",
        "",
        f"`sampler.jax` was exported with jax {jax.__version__} for CPUs, NVIDIA GPUs and TPUs. "
        "JAX promises that its exported programs run for six months of later versions; "
        "`model.safetensors` does not age.",
        "",
        "## Share",
        "",
        "Choose a license, and add a line such as `license: mit` at the top. Then:",
        "",
        "```bash",
        f"hf upload YOUR-NAME/{name} .",
        "```",
        "",
    ]
    return "\n".join(lines)


def _facts(run: Run, degradation: str, source: str) -> list[str]:
    """Return the lines of the table of the run's images, degradation, network and training."""
    config, (high, wide, channels) = run.config, run.experiment.image_shape
    count = parameter_overview.count_parameters(run.params)
    decay = config.train.ema_decay if run.ema is None else run.ema
    times = visited(make_sampler(config), run.times())
    return [
        "| | |",
        "|---|---|",
        f"| images | {source}, {high}×{wide}, {_counted(channels, 'channel')} |",
        f"| degradation | {degradation}, T = {run.T}: {_listed(config.degradation)} |",
        f"| network | {config.model.name}, {count:,} parameters: {_listed(config.model)} |",
        f"| training | {_counted(run.step, 'step') if run.step else 'unknown steps'} of "
        f"{config.train.accumulation} × {config.train.batch_size} images, "
        f"{config.train.optimizer}, learning rate {config.train.learning_rate:g} "
        f"({config.train.lr_schedule}), EMA of {decay:g} every "
        f"{_counted(config.train.ema_every, 'step')} |",
        f"| sampler | {config.sampler.name}, {_counted(len(times) - 1, 'step')} |",
    ]


def _front_matter(run: Run, name: str, evaluation: Path | None) -> list[str]:
    """Return the lines of metadata, YAML whose values are JSON."""
    metadata: dict[str, Any] = {
        "library_name": "colddiff",
        "pipeline_tag": "image-to-image",
        "tags": ["cold-diffusion", "image-restoration", "jax", "flax"],
    }
    report = None if evaluation is None else read_json(evaluation / "report.json")
    if report is not None:
        source = _without_folder(report["source"])
        data = {"name": source, "type": source, "split": report["split"]}
        results = [
            {
                "task": {
                    "type": "image-to-image",
                    "name": f"{row['name']}, {_counted(row['steps'], 'step')}",
                },
                "dataset": data,
                "metrics": [
                    {"type": kind, "name": title, "value": row[kind]}
                    for kind, title in _SCORES.items()
                    if row.get(kind) is not None
                ],
            }
            for row in report["rows"]
        ]
        metadata["model-index"] = [{"name": name, "results": results}]
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]


def _scores(evaluation: Path | None) -> list[str]:
    """Return the lines of the report."""
    if evaluation is None:
        return ["There is no report of this step."]
    return (evaluation / "report.md").read_text().strip().splitlines()


def _listed(settings: Any) -> str:
    """Return all settings but the name and T, on one line."""
    shown = {k: v for k, v in config_json(settings).items() if k not in ("name", "num_steps")}
    return ", ".join(f"{k} {json.dumps(v)}" for k, v in shown.items())


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _without_folder(name: str) -> str:
    """Return 'folder:PATH' or 'PATH/FILE.py:FUNCTION' without the folders of the path."""
    kind, colon, rest = name.partition(":")
    return f"{Path(kind).name}{colon}{Path(rest).name if rest else ''}"
