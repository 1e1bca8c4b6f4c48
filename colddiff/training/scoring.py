"""Scores of checkpoints while a run trains, and their curves.

`colddiff.evaluation.evaluate` computes the scores.
"""

from ml_collections import ConfigDict

from colddiff.evaluation import evaluate
from colddiff.evaluation.metrics import SSIM_WINDOW
from colddiff.images import height_width, size_text
from colddiff.inference.run import Run
from colddiff.reporting import report
from colddiff.runtime.devices import is_first_host
from colddiff.runtime.errors import UserError
from colddiff.runtime.files import read_json, save_png, write_json
from colddiff.runtime.stop import Stop


def load_truth(config: ConfigDict) -> evaluate.Truth | None:
    """Return the data that checkpoints are scored against; None if they are not scored.

    It is the validation split if the config names one, and else the test split.

    Raises:
      UserError: `train.best` names a score that is not measured, or `train.scored` images are too
        few or too small for a score.
    """
    count, best = config.train.scored, config.train.best
    if not count:
        if best:
            raise UserError(
                f"config.train.best={best!r} needs scores, but config.train.scored is 0; set it to "
                "the number of images to score"
            )
        return None
    sampler, _, score = best.partition("/")
    known = ["rmse", "psnr", "ssim"]
    known += [f"{kind}/{space}" for space in config.eval.features for kind in ("fd", "kd")]
    if best and (sampler not in config.eval.samplers or score not in known):
        raise UserError(
            f"config.train.best={best!r} must be SAMPLER/SCORE, with a sampler of "
            f"{config.eval.samplers} and a score of {', '.join(known)}"
        )
    features = config.eval.features
    small = min(height_width(config.data.image_size)) < SSIM_WINDOW
    fewest = 4 if score.startswith("kd/") else 2 if features else 1
    if count < fewest or (small and score == "ssim"):
        raise UserError(
            f"config.train.scored={count} images of {size_text(config.data.image_size)} pixels are "
            f"too few or too small for config.train.best={best!r} and config.eval.features="
            f"{features}; FD needs 2 images, KD 4 images, SSIM {SSIM_WINDOW} pixels a side"
        )
    return evaluate.load_truth(config, count, split=config.data.validation_split)


def score(run: Run, truth: evaluate.Truth, stop: Stop) -> dict[str, float]:
    """Score a checkpoint, add the scores to evolution.json and its plots, and return them.

    Raises:
      StoppedError: a host was told to stop before all images were scored.
    """
    measured = evaluate.evaluate(run, truth=truth, counts=(), resamples=0, between=stop.check)
    scores = report.scores_of(measured)
    path = run.workdir / "evolution.json"
    before = read_json(path) or {}
    # A run that resumes from an earlier checkpoint scores the later steps again, so their old
    # scores are dropped. Scores of other images cannot share a curve.
    images = {"num_images": len(truth.images), "split": run.config.data.validation_split or "test"}
    same = {"split": "test", **before}.items() >= images.items()
    earlier = {k: v for k, v in before.get("scores", {}).items() if same and int(k) < run.step}
    evolution = {**images, "scores": earlier | {str(run.step): scores}}
    if not is_first_host():
        return scores
    write_json(path, evolution)
    for kind, picture in report.evolution_plots(evolution).items():
        save_png(run.workdir / "evolution" / f"{report.file_name(kind)}.png", picture)
    return scores
