"""Flags and dispatch.

    python -m colddiff.main --config configs/blur_digits.py --workdir runs/blur_digits

trains, or goes on where that workdir stopped, then evaluates. `--mode=generate` makes new images
with a trained run, `--mode=compare` measures them, and `--mode=degrade`, which needs no training,
draws test images at growing severities.
"""

import logging as python_logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from colddiff.errors import UserError

_MODES = ("train_and_evaluate", "train", "evaluate", "generate", "compare", "degrade")
_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130  # as a shell reports Ctrl-C

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives: checkpoints, logs, pictures.")
_MODE = flags.DEFINE_enum("mode", _MODES[0], _MODES, "What to do.")
_SEEDS = flags.DEFINE_string("seeds", "0-63", "Of the images to generate: 0-9999 or 3,7,20-29.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of generated images; one of its own in WORKDIR/generated if not given."
)
_FOLDERS = flags.DEFINE_multi_string(
    "folder", [], "TITLE=FOLDER of images to compare with the config's data; give one or more."
)


def main(argv: Sequence[str]) -> None:
    """Does what `--mode` says with `--config` in `--workdir`."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options begin with --")
    config, workdir = _CONFIG.value, Path(_WORKDIR.value).expanduser().absolute()

    # Imported here so that a mistake in the flags is answered at once.
    from colddiff import compare
    from colddiff.build import build
    from colddiff.evaluate import evaluate, gallery, load_test_images, markdown, write
    from colddiff.generate import folder_of, generate, parse_seeds
    from colddiff.images import save_png
    from colddiff.inference import load
    from colddiff.train import train

    if "train" in _MODE.value:
        train(config, workdir)
    if "evaluate" in _MODE.value:
        if config.eval.samplers:
            run = load(workdir, config=config)
            experiment, params, step = run.experiment, run.params, run.step
        else:  # the Degraded row needs no training
            experiment, params, step = build(config), None, 0
        report = evaluate(experiment, params, step)
        folder = write(report, experiment, params, workdir)
        sys.stdout.write(f"\n{markdown(report)}\nreport and pictures: {folder}\n")
    if _MODE.value == "generate":
        seeds = parse_seeds(_SEEDS.value)
        run = load(workdir, config=config)
        given = _OUTPUT.value
        folder = Path(given).expanduser().absolute() if given else folder_of(run)
        generate(run, seeds, folder)
        sys.stdout.write(f"{len(seeds)} images, grid.png and process.gif: {folder}\n")
    if _MODE.value == "compare":
        report = compare.compare(config, compare.parse_folders(_FOLDERS.value))
        folder = compare.write(report, workdir)
        sys.stdout.write(f"\n{compare.markdown(report)}\ntable and picture: {folder}\n")
    if _MODE.value == "degrade":
        images = load_test_images(config, config.eval.pictures)
        path = workdir / "degraded.png"
        save_png(path, gallery(build(config), images))
        sys.stdout.write(f"picture: {path}\n")


def run() -> None:
    """The command line: bad input ends with its message alone, on stderr, and exit code 2."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours_or_serious)
    try:
        app.run(main, flags_parser=_parse_flags)
    except (UserError, OSError) as error:  # OSError: no permission, no space
        sys.stderr.write(f"colddiff: {error}\n")
        sys.exit(_EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("colddiff: interrupted; run again to go on from the last checkpoint\n")
        sys.exit(_EXIT_INTERRUPTED)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's flags; whatever it or the config file's reader cannot take is the user's error."""
    try:
        rest = flags.FLAGS(argv)
        for flag in (_CONFIG, _WORKDIR):
            if flag.value is None:
                raise UserError(f"--{flag.name} is needed; see python -m colddiff.main --help")
        _CONFIG.value.lock()  # reading it shows whether the file could be loaded
    except (flags.Error, UserError) as error:
        raise UserError(str(error)) from error
    except Exception as error:  # of the config file's own code, or of a --config.FIELD
        raise UserError(_config_error(error, argv)) from error
    return rest


def _config_error(error: Exception, argv: list[str]) -> str:
    """What is wrong with the config, with the line of its file that says so if there is one."""
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.name in ("get_config", "<module>")]
    if own:
        return f"{own[-1].filename}:{own[-1].lineno}: {reason}"
    if isinstance(error, AttributeError | KeyError) and any("--config." in arg for arg in argv):
        return f"no such field for a --config.FIELD flag: {error}"
    return f"cannot use --config: {reason}"


def _is_ours_or_serious(record: python_logging.LogRecord) -> bool:
    """Drops what libraries report in passing: orbax alone writes dozens of lines a checkpoint."""
    ours = Path(record.pathname).is_relative_to(Path(__file__).parent)
    return ours or record.levelno >= python_logging.WARNING


if __name__ == "__main__":
    run()
