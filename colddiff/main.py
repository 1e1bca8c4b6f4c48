"""The command line: flags and modes.

    python -m colddiff.main --config configs/blur_digits.py --workdir runs/blur_digits

This command trains, or resumes from the last checkpoint in the workdir, and then evaluates.
`--mode=generate` makes new images with a trained run, and `--mode=compare` measures them.
`--mode=degrade` draws test images at growing severities, and needs no training.
"""

import logging as python_logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from colddiff.runtime.errors import UserError

_MODES = ("train_and_evaluate", "train", "evaluate", "generate", "compare", "degrade", "benchmark")
_OF_A_RUN = ("evaluate", "generate")  # without --config they use the run's saved config
_USES = {  # the flags that only some modes take
    "train_and_evaluate": ("samplers", "steps", "step", "accept_source"),
    "train": ("accept_source",),
    "evaluate": ("samplers", "steps", "step", "output"),
    "generate": ("seeds", "step", "output"),
    "compare": ("folder",),
}
_EXIT_BAD_INPUT = 2
_EXIT_BUG = 1
_SECONDS_TO_LEAVE = 30  # time for other hosts with the same error to end
_EXIT_INTERRUPTED = 130  # as a shell reports Ctrl-C

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder, for checkpoints, logs and pictures. --mode=evaluate also takes several "
    "folders, A,B,C: it scores each run with its own config and writes one table of all.",
)
_MODE = flags.DEFINE_enum("mode", _MODES[0], _MODES, "What to do.")
_SEEDS = flags.DEFINE_string(
    "seeds", "0-63", "Seeds of the images to generate, such as 0-9999 or 3,7,20-29."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Output folder. --mode=generate writes the images there; the default is a folder in "
    "WORKDIR/generated, one for each set of settings. --mode=evaluate of several runs writes the "
    "table there; the default is the folder 'evaluation'.",
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Step of the checkpoint to load: a number, or best for the best by config.train.best. The "
    "default is the last step.",
)
_SAMPLERS = flags.DEFINE_list(
    "samplers",
    None,
    "Samplers to evaluate, such as direct,naive,tacos. The default is config.eval.samplers.",
)
_STEPS = flags.DEFINE_list(
    "steps",
    None,
    "Numbers of sampler steps to evaluate each sampler with, such as 5,10,20. The report is then "
    "called study, and plots the scores against the steps.",
)
_ACCEPT_SOURCE = flags.DEFINE_bool(
    "accept_source",
    False,
    "Resume training although the source of the degradation FILE.py:FUNCTION has changed.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "ADDRESS:PORT of host 0, with --num_hosts and --host, for several hosts that neither SLURM nor "
    "Open MPI started. On TPU pods and GKE give auto: the environment has the other values.",
)
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "Number of hosts, one process each.")
_HOST = flags.DEFINE_integer("host", None, "Index of this host, from 0.")
_FOLDERS = flags.DEFINE_multi_string(
    "folder",
    [],
    "TITLE=FOLDER of generated images to compare with the config's data. Repeat the flag for more "
    "folders.",
)


def main(argv: Sequence[str]) -> None:
    """Run the mode that `--mode` names, with `--config` in `--workdir`."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options begin with --")
    _join_hosts()
    config = _CONFIG.value
    workdir, *others = (Path(text).expanduser().absolute() for text in _workdirs())
    steps = [_whole("--steps", text) for text in _STEPS.value or ()]

    # Imported here so that a mistake in the flags is reported before these slow imports.
    from colddiff import benchmark
    from colddiff.evaluation import compare
    from colddiff.evaluation.evaluate import check_ways, load_test_images
    from colddiff.experiment.build import build
    from colddiff.inference.generate import folder_of, generate, parse_seeds
    from colddiff.inference.run import load
    from colddiff.reporting.pictures import gallery
    from colddiff.runtime.files import save_png
    from colddiff.training.loop import train

    if _MODE.value == "train_and_evaluate":
        check_ways(config, _SAMPLERS.value, steps)
    if "train" in _MODE.value and not train(config, workdir, accept_source=_ACCEPT_SOURCE.value):
        return  # a signal stopped the training
    if "evaluate" in _MODE.value:
        _evaluate(config, [workdir, *others], steps)
    if _MODE.value == "generate":
        seeds = parse_seeds(_SEEDS.value)
        run = load(workdir, step=_step(), config=config)
        given = _OUTPUT.value
        folder = Path(given).expanduser().absolute() if given else folder_of(run)
        generate(run, seeds, folder)
        _say(f"{len(seeds)} images, grid.png and process.gif: {folder}\n")
    if _MODE.value == "compare":
        report = compare.compare(config, compare.parse_folders(_FOLDERS.value))
        folder = compare.write(report, workdir)
        _say(f"\n{compare.markdown(report)}\ntable and picture: {folder}\n")
    if _MODE.value == "degrade":
        images = load_test_images(config, config.eval.pictures)
        path = workdir / "degraded.png"
        save_png(path, gallery(build(config), images))
        _say(f"picture: {path}\n")
    if _MODE.value == "benchmark":
        found = benchmark.benchmark(config, arguments=_config_arguments())
        path = benchmark.write(found, workdir)
        _say(f"\n{benchmark.markdown(found)}\ntable and JSON: {path.parent}\n")


def _join_hosts() -> None:
    """Join the other hosts if the flags, SLURM or Open MPI say that there are any."""
    coordinator, others = _COORDINATOR.value, (_NUM_HOSTS.value, _HOST.value)
    if coordinator is None and others != (None, None):
        raise UserError("--num_hosts and --host need --coordinator=ADDRESS:PORT")
    from colddiff.runtime.devices import among_hosts, join_hosts

    if coordinator == "auto" or (coordinator is None and among_hosts()):
        join_hosts()
    elif coordinator is not None:
        if None in others or not 0 <= others[1] < others[0]:
            raise UserError(
                f"--coordinator={coordinator} needs --num_hosts=N and --host in 0..N-1; got "
                f"--num_hosts={others[0]}, --host={others[1]}"
            )
        join_hosts(coordinator, *others)


def _say(text: str) -> None:
    """Print a result to stdout, on the first host only."""
    from colddiff.runtime.devices import is_first_host

    if is_first_host():
        sys.stdout.write(text)


def _config_arguments() -> list[str]:
    """Return the part of the command line that makes the config."""
    found, given = [], iter(sys.argv[1:])
    for argument in given:
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and (name == "config" or name.startswith("config.")):
            found.append(argument)
            if not equals:
                found.append(next(given))
    if not found:
        raise UserError(
            "--mode=benchmark found no --config on the command line, but passes it on to the "
            "commands that it times; give --config there"
        )
    return found


def _evaluate(config: ConfigDict | None, workdirs: list[Path], steps: list[int]) -> None:
    """Score each run and write its report; for several runs, write one table as well."""
    from colddiff.evaluation.evaluate import evaluate, ways_of
    from colddiff.experiment.build import build
    from colddiff.inference.run import Run, load
    from colddiff.reporting import report

    reports = {}
    for workdir in workdirs:
        if config is not None and not (_SAMPLERS.value or config.eval.samplers):
            run = Run(build(config), workdir=workdir)  # the Degraded row needs no training
        else:
            run = load(workdir, step=_step(), config=config)
        ways = ways_of(run.experiment, _SAMPLERS.value, steps)
        found = evaluate(run, ways=ways)
        # The samplers in the name keep the report of all samplers from being overwritten.
        name = "-".join(["study" if steps else "report", *(_SAMPLERS.value or ())])
        folder = report.write(found, run, name=name)
        title = workdir.name if workdir.name not in reports else str(workdir)
        reports[title] = found
        _say(f"\n{report.markdown({title: found})}\nreport and pictures: {folder}\n")
    if len(reports) > 1:
        folder = Path(_OUTPUT.value or "evaluation").expanduser().absolute()
        report.write_table(reports, folder)
        _say(f"\n{report.markdown(reports)}\ntable of all: {folder}\n")


def _workdirs() -> list[str]:
    """Return the folders that --workdir names; only --mode=evaluate takes several, as A,B,C.

    An existing folder is one workdir, even if its name contains a comma.
    """
    text = _WORKDIR.value
    if "://" in text:
        raise UserError(
            f"--workdir={text} must be a folder, not a URL; mount the bucket, and give the folder "
            "where it is mounted"
        )
    several = _MODE.value == "evaluate" and not Path(text).expanduser().is_dir()
    return text.split(",") if several else [text]


def _check_flags() -> None:
    """Refuse flags that the mode does not use, and invalid values, before any work."""
    mode = _MODE.value
    for name in sorted({name for names in _USES.values() for name in names}):
        if flags.FLAGS[name].present and name not in _USES.get(mode, ()):
            uses = " or ".join(f"--mode={m}" for m, names in _USES.items() if name in names)
            raise UserError(f"--{name} is not used by --mode={mode}, but by {uses}; leave it out")
    for text in _STEPS.value or ():
        _whole("--steps", text)
    step = _step()
    if mode == "train_and_evaluate" and isinstance(step, int):
        raise UserError(
            f"--step={step} cannot be used with --mode=train_and_evaluate, which takes only "
            "--step=best. Leave it out to evaluate the last step, or use --mode=evaluate once the "
            "run is trained"
        )
    if mode == "train_and_evaluate" and step == "best" and not _CONFIG.value.train.best:
        raise UserError(
            "--step=best needs a score that ranks the checkpoints, but config.train.best is empty; "
            "set --config.train.best, such as tacos/rmse, and --config.train.scored"
        )
    if mode == "evaluate" and _OUTPUT.value is not None and len(_workdirs()) == 1:
        raise UserError(
            "--output is the folder of the table of several runs, but --workdir names one run; "
            "leave it out"
        )


def _step() -> int | str | None:
    """Return the checkpoint that --step names.

    Raises:
      UserError: --step is neither a number nor 'best'.
    """
    given = _STEP.value
    return given if given in (None, "best") else _whole("--step", given)


def _whole(flag: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"{flag}: {text!r} must be a whole number")
    return int(text)


def run() -> None:
    """Run the command line; for bad input, print only the message to stderr and exit with 2."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours_or_serious)
    try:
        app.run(main, flags_parser=_parse_flags)
    except (UserError, OSError) as error:  # OSError: no permission, no space
        sys.stderr.write(f"colddiff: {error}\n")
        _leave_hosts(_EXIT_BAD_INPUT)
        sys.exit(_EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("colddiff: interrupted; run again to resume from the last checkpoint\n")
        _leave_hosts(_EXIT_INTERRUPTED)
        sys.exit(_EXIT_INTERRUPTED)
    except Exception:
        _leave_hosts(_EXIT_BUG)
        raise


def _leave_hosts(code: int) -> None:
    """Make this process exit in 30 seconds if there are other hosts.

    The other hosts might have no error. Then JAX's exit would wait for them while they wait for
    this host, until all abort after five minutes.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        timer = threading.Timer(_SECONDS_TO_LEAVE, os._exit, [code])
        timer.daemon = True
        timer.start()


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags; raise UserError for invalid flags and errors in the config file."""
    from colddiff.experiment import saved_config

    # ml_collections loads Python files only, so one of them reads a run's config.json.
    reader = rf"\1{saved_config.__file__}:"
    argv = [re.sub(r"^(--?config=|(?!-))(?=.*\.json$)", reader, argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
        if _WORKDIR.value is None:
            raise UserError("--workdir is needed; see python -m colddiff.main --help")
        if _CONFIG.value is None:
            if _MODE.value not in _OF_A_RUN:
                raise UserError("--config is needed; see python -m colddiff.main --help")
        elif len(_workdirs()) > 1:
            raise UserError(
                "--config cannot be used with several workdirs, because each run has its own "
                "config; leave it out"
            )
        else:
            _CONFIG.value.lock()  # reading the value raises an error if the file cannot be loaded
        _check_flags()
    except (flags.Error, UserError) as error:
        raise UserError(str(error)) from error
    except Exception as error:  # from the config file's own code, or a --config.FIELD
        raise UserError(_config_error(error, argv)) from error
    return rest


def _config_error(error: Exception, argv: list[str]) -> str:
    """Return what is wrong with the config, and where in its file if the error is there."""
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
    """Return whether a log record is colddiff's, or a library's warning or error.

    Without this filter orbax alone logs dozens of lines per checkpoint.
    """
    ours = Path(record.pathname).is_relative_to(Path(__file__).parent)
    return ours or record.levelno >= python_logging.WARNING


if __name__ == "__main__":
    run()
