"""The command line: flags and modes.

    colddiff --config blur_digits --workdir runs/blur_digits

This command trains, or resumes from the last checkpoint in the workdir, and then evaluates.
`colddiff --help` lists the modes, the packaged configs and the flags. `python -m colddiff` is the
same command, and needs no installation in a checkout.
"""

import logging as python_logging
import os
import re
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from colddiff.experiment.config_files import (
    CONFIGS,
    change,
    describe,
    load_config,
    packaged_configs,
    split_arguments,
)
from colddiff.runtime.errors import UserError

_MODES = {
    "train_and_evaluate": "train, or resume, then score the test split (the default)",
    "train": "train, or resume from the last checkpoint",
    "evaluate": "score a trained run, or several into one table",
    "generate": "make new images with a trained run, one for each of --seeds",
    "restore": "restore your own image files: --input, --output, --t",
    "import": "make a workdir from weights in a file: --input, --config",
    "export": "write a trained run as files for others: --output",
    "compare": "measure folders of generated images and draw them side by side",
    "degrade": "draw test images at growing severities; needs no training",
    "benchmark": "time every part of a config on this machine",
    "plan": "compile a config for other hardware, and tell what it needs: --topology",
}
# Without --config these use the config that the run in --workdir was trained with.
_OF_A_RUN = ("evaluate", "generate", "restore", "export", "compare", "degrade")
_USES = {  # the flags that only some modes take
    "train_and_evaluate": (
        *("samplers", "steps", "step", "ema"),
        *("accept_source", "stop_after", "dry_run"),
    ),
    "train": ("accept_source", "stop_after", "dry_run"),
    "evaluate": ("samplers", "steps", "step", "ema", "output"),
    "generate": ("seeds", "step", "ema", "output"),
    "restore": ("input", "output", "t", "mask", "tile", "sampler", "steps", "step", "ema"),
    "import": ("input",),
    "export": ("output", "step", "ema"),
    "compare": ("folder",),
    "plan": ("topology", "batches"),
}
_NEEDS = {
    "plan": {"topology": "CHIP:SHAPE"},
    "restore": {"input": "FILE-or-FOLDER", "output": "FOLDER"},
    "import": {"input": "FILE"},
    "export": {"output": "FOLDER"},
}
_EXIT_BAD_INPUT = 2
_EXIT_BUG = 1
_SECONDS_TO_LEAVE = 30  # time for other hosts with the same error to end
_EXIT_INTERRUPTED = 130  # as a shell reports Ctrl-C

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The name of a packaged config, or the path of a config file. Without it, --mode=evaluate, "
    "generate, restore, export, compare and degrade use the config that the run in --workdir was "
    "trained with.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder, for checkpoints, logs and pictures. --mode=evaluate also takes several "
    "folders, A,B,C: it scores each run with its own config and writes one table of all.",
)
_MODE = flags.DEFINE_enum("mode", "train_and_evaluate", [*_MODES], "What to do.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Only build everything, compile the train step, read one batch and tell the numbers of "
    "parameters and bytes. Writes nothing; needs no --workdir.",
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config",
    False,
    "Only print the config, and mark what differs from default.py. Needs no --workdir.",
)
_SEEDS = flags.DEFINE_string(
    "seeds", "0-63", "Seeds of the images to generate, such as 0-9999 or 3,7,20-29."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Output folder. --mode=generate writes the images there; the default is a folder in "
    "WORKDIR/generated, one for each set of settings. --mode=restore writes the restored images "
    "there, and --mode=export the files; both need it. --mode=evaluate of several runs writes the "
    "table there; the default is the folder 'evaluation'.",
)
_INPUT = flags.DEFINE_string(
    "input",
    None,
    "The image to restore, or a folder: all PNG, JPEG, WebP and TIFF files in it. --mode=import "
    "takes a file with weights: .safetensors, .npz, or a .pt file of the paper's released code.",
)
_T = flags.DEFINE_string(
    "t",
    None,
    "Severity of the images to restore: a whole number in 0..T, such as 7; a share of T between 0 "
    "and 1, such as 0.35; or auto, to estimate it for each image. The default is T; with --mask, "
    "the severity at which training's holes are as large.",
)
_MASK = flags.DEFINE_string(
    "mask",
    None,
    "For runs of gaussian_mask: an image of the input's size, white where the input is kept and "
    "black where it is lost; or a folder of them, with the names of the input.",
)
_TILE = flags.DEFINE_integer(
    "tile",
    None,
    "Side in pixels of the tiles in which images of other sizes are restored; 0 restores them "
    "whole. The default is tiles of 256 above 512 × 512 pixels.",
)
_SAMPLER = flags.DEFINE_string(
    "sampler",
    None,
    "Sampler to restore with. The default is config.sampler.name; for random degradations, whose "
    "pattern is unknown, it is direct.",
)
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Step of the checkpoint to load: a number, or best for the best by config.train.best. The "
    "default is the last step.",
)
_EMA = flags.DEFINE_float(
    "ema",
    None,
    "Decay of the averaged parameters to load, one of config.train.ema_decays. The default is the "
    "average of config.train.ema_decay.",
)
_SAMPLERS = flags.DEFINE_list(
    "samplers",
    None,
    "Samplers to evaluate, such as direct,naive,tacos. The default is config.eval.samplers. "
    "tacos+consistency is tacos with data consistency.",
)
_STEPS = flags.DEFINE_list(
    "steps",
    None,
    "Numbers of sampler steps to evaluate each sampler with, such as 5,10,20. The report is then "
    "called study, and plots the scores against the steps. --mode=restore takes one number.",
)
_ACCEPT_SOURCE = flags.DEFINE_bool(
    "accept_source",
    False,
    "Resume training although the source of the degradation FILE.py:FUNCTION has changed.",
)
_STOP_AFTER = flags.DEFINE_string(
    "stop_after",
    None,
    "Time after which training saves a checkpoint and ends, such as 90s, 9m or 1.5h. The same "
    "command resumes. For queues that give a job a limited time.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "Devices to compile for, which need not be there: a TPU slice such as v5e:4x4, GPUs such as "
    "h100:8, or here for this machine.",
)
_BATCHES = flags.DEFINE_list(
    "batches",
    None,
    "Values of config.train.batch_size to plan for, such as 64,128,256. The default is the "
    "config's.",
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
    """Run the mode that `--mode` names; `argv[1:]` are the arguments `--config.FIELD=VALUE`."""
    changes = argv[1:]
    config = load_config(_CONFIG.value, changes) if _CONFIG.value else None
    if _PRINT_CONFIG.value and config is not None:
        sys.stdout.write(describe(config))
        return
    trains = _MODE.value == "train_and_evaluate" and config is not None
    if trains and _STEP.value == "best" and not config.train.best:
        raise UserError(
            "--step=best needs a score that ranks the checkpoints, but config.train.best is empty; "
            "set --config.train.best, such as tacos/rmse, and --config.train.scored"
        )
    _join_hosts()
    workdirs = [Path(text).expanduser().absolute() for text in _workdirs()]
    configs = _saved_configs(workdirs, changes) if config is None else [config]
    config, workdir = configs[0], workdirs[0] if workdirs else None
    steps = [_whole("--steps", text) for text in _STEPS.value or ()]
    if _PRINT_CONFIG.value:
        _say(describe(config))
        return

    # Imported here so that a mistake in the flags or the config is reported before these slow
    # imports.
    from colddiff import benchmark
    from colddiff.evaluation import compare
    from colddiff.evaluation.evaluate import check_ways, load_test_images
    from colddiff.experiment.build import build
    from colddiff.reporting.pictures import gallery
    from colddiff.runtime.files import save_png
    from colddiff.training.dry_run import dry_run
    from colddiff.training.loop import train

    for each in configs if "evaluate" in _MODE.value else ():
        check_ways(each, _SAMPLERS.value, steps)
    _check_averages(configs)
    if _DRY_RUN.value:
        _say(dry_run(config))
        return
    if "train" in _MODE.value:
        limits = dict(accept_source=_ACCEPT_SOURCE.value, stop_after=_seconds())
        if not train(config, workdir, **limits):
            return  # it was stopped
    if "evaluate" in _MODE.value:
        _evaluate(workdirs, configs, steps)
    if _MODE.value == "generate":
        _generate(workdir, config)
    if _MODE.value == "restore":
        _restore(workdir, config, steps)
    if _MODE.value == "import":
        _import(workdir, config)
    if _MODE.value == "export":
        _export(workdir, config)
    if _MODE.value == "compare":
        report = compare.compare(config, compare.parse_folders(_FOLDERS.value))
        folder = compare.write(report, workdir)
        _say(f"\n{compare.markdown(report)}\ntable and picture: {folder}\n")
    if _MODE.value == "degrade":
        images = load_test_images(config, config.eval.pictures)
        path = workdir / "degraded.png"
        save_png(path, gallery(build(config), images))
        _say(f"picture: {path}\n")
    if _MODE.value == "plan":
        _plan(workdir, config)
    if _MODE.value == "benchmark":
        found = benchmark.benchmark(config, arguments=[f"--config={_CONFIG.value}", *changes])
        path = benchmark.write(found, workdir)
        _say(f"\n{benchmark.markdown(found)}\ntable and JSON: {path.parent}\n")


def _check_averages(configs: list[ConfigDict]) -> None:
    """Refuse an --ema that one of the runs does not have, before any work."""
    for each in configs if _EMA.value is not None else ():
        if _EMA.value not in (each.train.ema_decay, *each.train.ema_decays):
            raise UserError(
                f"--ema={_EMA.value:g} must be train.ema_decay={each.train.ema_decay:g} or one of "
                f"train.ema_decays={each.train.ema_decays} of the run's config"
            )


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


def _saved_configs(workdirs: list[Path], changes: list[str]) -> list[ConfigDict]:
    """Return the changed config of each run; name every workdir that has none, before any work."""
    from colddiff.inference.load import saved_config

    configs, errors = [], []
    for workdir in workdirs:
        try:
            configs.append(change(saved_config(workdir, _step()), changes))
        except UserError as error:
            errors.append(str(error))
    if errors:
        if _MODE.value in ("compare", "degrade"):  # they need no checkpoint
            errors.append(f"--mode={_MODE.value} can also be given a --config")
        raise UserError("\n".join(errors))
    return configs


def _evaluate(workdirs: list[Path], configs: list[ConfigDict], steps: list[int]) -> None:
    """Score each run and write its report; for several runs, write one table as well."""
    from colddiff.evaluation.evaluate import evaluate, ways_of
    from colddiff.experiment.build import build
    from colddiff.inference.load import load, saved_config
    from colddiff.inference.run import Run
    from colddiff.reporting import report

    reports = {}
    for workdir, config in zip(workdirs, configs, strict=True):
        own_split = config.data.test_split
        if _CONFIG.value and not (_SAMPLERS.value or config.eval.samplers):
            run = Run(build(config), workdir=workdir)  # the Degraded row needs no training
        else:
            own_split = saved_config(workdir, _step()).data.test_split
            run = load(workdir, step=_step(), ema=_EMA.value, config=config)
        ways = ways_of(run.experiment, _SAMPLERS.value, steps)
        found = evaluate(run, ways=ways)
        # These choices are in the name, so that such reports do not overwrite each other.
        others = [] if _EMA.value is None else [f"ema-{_EMA.value:g}"]
        if config.sampler.get("spacing", "even") != "even":
            others.append(config.sampler.spacing)
        if config.data.test_split != own_split:
            others.append(report.file_name(config.data.test_split))
        name = "-".join(["study" if steps else "report", *(_SAMPLERS.value or ()), *others])
        name = name.replace("+", "-")  # tacos+consistency
        folder = report.write(found, run, name=name, pictured="-".join(["", *others]))
        title = workdir.name if workdir.name not in reports else str(workdir)
        reports[title] = found
        _say(f"\n{report.markdown({title: found})}\nreport and pictures: {folder}\n")
    if len(reports) > 1:
        folder = Path(_OUTPUT.value or "evaluation").expanduser().absolute()
        report.write_table(reports, folder)
        _say(f"\n{report.markdown(reports)}\ntable of all: {folder}\n")


def _plan(workdir: Path, config: ConfigDict) -> None:
    """Compile the config's programs for --topology."""
    from colddiff.planning import plan

    batches = [_whole("--batches", text) for text in _BATCHES.value or ()]
    found = plan.plan(config, _TOPOLOGY.value, batches)
    path = plan.write(found, workdir)
    _say(f"\n{plan.markdown(found)}\ntable and JSON: {path.parent}\n")


def _generate(workdir: Path, config: ConfigDict) -> None:
    """Generate the images of --seeds."""
    from colddiff.inference.generate import folder_of, generate, parse_seeds
    from colddiff.inference.load import load

    seeds = parse_seeds(_SEEDS.value)
    run = load(workdir, step=_step(), ema=_EMA.value, config=config)
    given = _OUTPUT.value
    folder = Path(given).expanduser().absolute() if given else folder_of(run)
    generate(run, seeds, folder)
    _say(f"{len(seeds)} images, grid.png and process.gif: {folder}\n")


def _restore(workdir: Path, config: ConfigDict, steps: list[int]) -> None:
    """Restore image files, and write their page."""
    from colddiff.inference.load import load
    from colddiff.inference.restore import Request, restore
    from colddiff.reporting import restored

    source, output, mask = (
        Path(text).expanduser().absolute() if text else None
        for text in (_INPUT.value, _OUTPUT.value, _MASK.value)
    )
    choices = (_T.value, mask, _SAMPLER.value, steps[0] if steps else None, _TILE.value)
    run = load(workdir, step=_step(), ema=_EMA.value, config=config)
    outcome = restore(run, Request(source, output, *choices))
    page = restored.write(outcome, run)
    _say(f"{len(outcome.pictures)} images: {outcome.folder}\npage: {page}\n")
    outcome.check()


def _import(workdir: Path, config: ConfigDict) -> None:
    """Make a workdir from a file with weights."""
    from colddiff.exchange.importing import import_weights

    step = import_weights(config, Path(_INPUT.value).expanduser().absolute(), workdir)
    _say(f"{workdir} holds a checkpoint of step {step}\n")


def _export(workdir: Path, config: ConfigDict) -> None:
    """Write a run as files for others."""
    from colddiff.exchange.exporting import export
    from colddiff.inference.load import load

    folder = Path(_OUTPUT.value).expanduser().absolute()
    export(load(workdir, step=_step(), ema=_EMA.value, config=config), folder)
    _say(f"weights, program and model card: {folder}\n")


def _workdirs() -> list[str]:
    """Return the folders that --workdir names; only --mode=evaluate takes several, as A,B,C.

    An existing folder is one workdir, even if its name contains a comma.
    """
    text = _WORKDIR.value
    if text is None:  # --dry_run writes nothing
        return []
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
    needs = "see python -m colddiff --help"
    if _WORKDIR.value is None and not (_CONFIG.value and (_DRY_RUN.value or _PRINT_CONFIG.value)):
        raise UserError(f"--workdir is needed; {needs}")
    if _CONFIG.value is None and mode not in _OF_A_RUN and not _PRINT_CONFIG.value:
        raise UserError(f"--config is needed; {needs}")
    if _CONFIG.value is not None and len(_workdirs()) > 1:
        raise UserError(
            "--config cannot be used with several workdirs, because each run has its own config; "
            "leave it out"
        )
    for name in sorted({name for names in _USES.values() for name in names}):
        if flags.FLAGS[name].present and name not in _USES.get(mode, ()):
            uses = " or ".join(f"--mode={m}" for m, names in _USES.items() if name in names)
            raise UserError(f"--{name} is not used by --mode={mode}, but by {uses}; leave it out")
    for text in _STEPS.value or ():
        _whole("--steps", text)
    _seconds()
    step = _step()
    if mode == "train_and_evaluate" and isinstance(step, int):
        raise UserError(
            f"--step={step} cannot be used with --mode=train_and_evaluate, which takes only "
            "--step=best. Leave it out to evaluate the last step, or use --mode=evaluate once the "
            "run is trained"
        )
    needed = _NEEDS.get(mode, {})
    if not all(flags.FLAGS[name].value for name in needed):
        given = " and ".join(f"--{name}={what}" for name, what in needed.items())
        raise UserError(f"--mode={mode} needs {given}")
    if mode == "restore" and len(_STEPS.value or ()) > 1:
        raise UserError(f"--steps={','.join(_STEPS.value)}: --mode=restore takes one number")
    if mode == "evaluate" and _OUTPUT.value is not None and len(_workdirs()) == 1:
        raise UserError(
            "--output is the folder of the table of several runs, but --workdir names one run; "
            "leave it out"
        )


def _seconds() -> float | None:
    """Return the seconds of --stop_after; refuse what is no time."""
    text = _STOP_AFTER.value
    if text is None:
        return None
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if parts is None:
        raise UserError(f"--stop_after={text} must be a number and s, m or h, such as 90s or 1.5h")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]]


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
    """Parse the flags; return the program's name and the arguments `--config.FIELD=VALUE`.

    Raises:
      UserError: a flag does not exist, has an invalid value, or does not fit the others.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        sys.stdout.write(_help())
        sys.exit()
    changes, others = split_arguments(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    try:
        rest = flags.FLAGS(others)
    except flags.Error as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options begin with --")
    _check_flags()
    return [argv[0], *changes]


def _help() -> str:
    """Return what the program does, the modes, the packaged configs and the flags."""
    module = flags.FLAGS.find_module_defining_flag("workdir")
    configs = packaged_configs()
    del configs["default"]  # explained below
    return f"""\
colddiff trains restorers of degraded images, scores them, and generates images with them
(Cold Diffusion, arXiv 2208.09392).

    colddiff --config blur_digits --workdir runs/blur_digits

MODES: --mode=
{_aligned(_MODES)}

CONFIGS: --config=NAME, or the path of a config file of your own
{_aligned(configs)}

FIELDS: --config.FIELD=VALUE sets a field of the config. {CONFIGS / "default.py"}
explains all fields, and --print_config shows their values.
  --config.train.batch_size=64
  --config.eval.samplers="('direct', 'tacos')"               a tuple; () is the empty one
  --config.degradation.std="{{'schedule': 'linear', 'start': 0.5, 'step': 0.1}}"  a schedule
  --config.prior.name=pattern --config.prior.noise_std=0.0   a prior

FLAGS: colddiff --helpfull lists more flags, of libraries
{flags.FLAGS.module_help(module).partition(":")[2].strip(chr(10))}
"""


def _aligned(table: dict[str, str]) -> str:
    """Return a line of at most 100 characters for each name and its text."""
    width = max(map(len, table))
    room = 100 - len(f"  {'':<{width}}  ")
    shorten = lambda text: textwrap.shorten(text, room, placeholder=" ...")  # noqa: E731
    return "\n".join(f"  {name:<{width}}  {shorten(text)}" for name, text in table.items())


def _is_ours_or_serious(record: python_logging.LogRecord) -> bool:
    """Return whether a log record is colddiff's, or a library's warning or error.

    Without this filter orbax alone logs dozens of lines per checkpoint.
    """
    ours = Path(record.pathname).is_relative_to(Path(__file__).parent)
    return ours or record.levelno >= python_logging.WARNING


if __name__ == "__main__":
    run()
