"""Checkpoints of a workdir, by orbax: written in the background, whole or not at all.

Each holds the training state, the averaged parameters and the config. The data position is the
step (`colddiff.data.batches`). A run goes on only with the config that it was started with.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from colddiff.devices import all_hosts, is_first_host
from colddiff.errors import UserError, first_line
from colddiff.state import TrainState

# The fields that trained parameters belong to, and those that a run's going on depends on.
SAME_MODEL = ("degradation", "model", "data.image_size", "data.channels", "data.eight_bit")
SAME_RUN = (*SAME_MODEL, "seed", "data")
_FREE = ("data.test_split", "data.threads", "degradation.bank.sharded")
# Where a trained model's degradation now finds what it is made of.
_PLACES = ("degradation.bank.source", "degradation.bank.split", "degradation.bank.limit")
_BESIDES = 2**22  # bytes a checkpoint takes besides its arrays, at most: names, shapes, the config


@contextmanager
def open_manager(
    workdir: Path, *, keep: int | None = None, best: str = ""
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of `workdir`; waits for saves at the end.

    Args:
      keep: how many of the last ones to keep; None is for reading: nothing is made or deleted, and
        no host waits for another.
      best: a score; the checkpoint that is best by it is kept as well, and is `best_step()`.

    Raises:
      UserError: a checkpoint could not be written; or, where scores matter, some cannot be read.
    """
    writes = keep is not None
    if writes or best:
        for scores, error in _damaged_scores(workdir):
            raise UserError(
                f"{scores} cannot be read: {error}. Without that folder the checkpoint has no "
                "scores; training moves it away"
            )
    hosts, here = ocp.options.MultiprocessingOptions(), jax.process_index()
    if not writes:
        hosts = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_kept(keep, best) if writes else None,
        best_fn=_goodness(best) if best else None,
        create=writes,
        cleanup_tmp_directories=writes,
        lightweight_initialize=not (writes or best),  # without scores
        multiprocessing_options=hosts,
    )
    manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)
    try:
        yield manager
    except BaseException:  # it matters more than how the last save ended
        try:
            manager.close()
        except Exception as error:
            logging.warning("%s: %s", manager.directory, first_line(error))
        raise
    with _writing(manager):
        manager.close()


def _damaged_scores(workdir: Path) -> Iterator[tuple[Path, str]]:
    """Folders of checkpoints' scores that orbax cannot read, with the reason."""
    for path in sorted(workdir.glob("checkpoints/*/metrics/metrics")):
        if path.parent.parent.name.isdecimal():
            try:
                dict(json.loads(path.read_text()))
            except (OSError, TypeError, ValueError) as error:
                yield path.parent, first_line(error)


@contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """A checkpoint that cannot be written, a full disk above all, is the user's error."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write a checkpoint to {manager.directory}: {first_line(error)}\n"
            "The earlier ones stay: mend it, and give the same command again"
        ) from error


def _goodness(score: str) -> Callable[[dict[str, float]], float]:
    """Larger is better: SSIM and PSNR grow with quality, errors and distances fall.

    A checkpoint without that score, of a time when another one was wanted, is the worst.
    """
    sign = 1 if score.endswith(("/ssim", "/psnr")) else -1
    return lambda scores: sign * scores[score] if score in scores else -math.inf


def _kept(keep: int, best: str) -> preservation_policy.PreservationPolicy:
    """The last checkpoints, and the best one if there is a score to tell."""
    last = preservation_policy.LatestN(n=keep)
    if not best:
        return last
    first = preservation_policy.BestN(
        get_metric_fn=_goodness(best), n=1, keep_checkpoints_without_metrics=False
    )
    return preservation_policy.AnyPreservationPolicy([last, first])


def last_step(workdir: Path, config: ConfigDict) -> int:
    """The step of the last checkpoint of this run with a readable config; 0 if there is none yet.

    Raises:
      UserError: the workdir holds another run (`check_same`), or nothing that can be read.
    """
    if not (workdir / "checkpoints").is_dir():
        return 0
    with open_manager(workdir) as manager:
        steps, unreadable = sorted(manager.all_steps(), reverse=True), None
        for step in steps:
            saved, error = _tried(lambda step=step: restore_config(manager, step))
            if error is not None:
                unreadable = unreadable or error
                continue
            check_same(SAME_RUN, saved, config, workdir)
            return step
        if unreadable is not None:
            raise unreadable
        return 0


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    config: ConfigDict,
    scores: dict[str, float] | None = None,
) -> None:
    """Starts to save `state`, with its scores; returns as soon as the devices may change it.

    Raises:
      UserError: this one or the one before cannot be written; those before stay.
    """
    step = int(state.step)
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state.replace(ema_params=None)),
        ema_params=ocp.args.StandardSave(state.ema_params),
        config=ocp.args.JsonSave(as_json(config)),
    )
    with _writing(manager):
        manager.wait_until_finished()  # for the one before, which takes its space
        _check_space(manager, state)
        manager.save(step, args=items, metrics=scores)
    logging.info("saving checkpoint %d", step)


def _check_space(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Refuses a disk that is too full: failing halfway, orbax would tell it in a thousand lines."""
    needed = _BESIDES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    disk = shutil.disk_usage(manager.directory)
    if not all_hosts(disk.free >= needed or not disk.total):  # mounted buckets do not say
        raise OSError(
            f"no space left: it takes {needed / 2**20:.0f} MiB, {disk.free / 2**20:.0f} are free"
        )


def restore_last(workdir: Path, like: TrainState) -> TrainState:
    """The last state that can be read. Those after it are moved to `WORKDIR/damaged`.

    Raises:
      UserError: none can be read; nothing is moved then.
    """
    damaged: list[tuple[int, UserError]] = []
    with open_manager(workdir) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            _, error = _tried(lambda step=step: restore_config(manager, step))  # it must be whole
            if error is None:
                state, error = _tried(lambda step=step: restore_state(manager, like, step))
            if error is None:
                break
            damaged.append((step, error))
        else:
            raise damaged[0][1]
    for step, error in damaged:
        logging.warning("%s", error)
        _set_aside(workdir / "checkpoints" / str(step), workdir / "damaged" / str(step))
    all_hosts(True)  # wait for it
    return state


def set_scores_aside(workdir: Path) -> None:
    """Moves scores that cannot be read to `WORKDIR/damaged`: their checkpoint goes on without."""
    for folder, error in list(_damaged_scores(workdir)):
        logging.warning("%s cannot be read: %s", folder, error)
        _set_aside(folder, workdir / "damaged" / f"{folder.parent.name}-scores")
    all_hosts(True)  # wait for it


def _tried(read: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """What it reads, or why it cannot; all hosts get the one or the other."""
    found, error = None, None
    try:
        found = read()
    except UserError as wrong:
        error = wrong
    if not all_hosts(error is None) and error is None:
        error = UserError("another host cannot read the checkpoint; see what it says")
    return found, error


def _set_aside(what: Path, place: Path) -> None:
    """On the first host, moves a damaged folder to `place`, which is numbered if it is taken."""
    if is_first_host():
        others = (place.with_name(f"{place.name}-{number}") for number in itertools.count(1))
        free = next(p for p in itertools.chain([place], others) if not p.exists())
        free.parent.mkdir(exist_ok=True)
        what.rename(free)
        logging.warning("moved %s to %s", what, free)


def restore_state(manager: ocp.CheckpointManager, like: TrainState, step: int) -> TrainState:
    """The state saved at `step`, with the shapes and shardings of `like`."""
    targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(targets.replace(ema_params=None)),
        ema_params=ocp.args.StandardRestore(targets.ema_params),
    )
    found = _restore(manager, step, items)
    return found.state.replace(ema_params=found.ema_params)


def restore_ema(manager: ocp.CheckpointManager, like: Any, step: int) -> Any:
    """The averaged parameters saved at `step`, with the shapes and shardings of `like`."""
    items = ocp.args.Composite(ema_params=ocp.args.StandardRestore(like))
    return _restore(manager, step, items).ema_params


def restore_config(manager: ocp.CheckpointManager, step: int) -> ConfigDict:
    """The config saved at `step`, locked."""
    items = ocp.args.Composite(config=ocp.args.JsonRestore())
    return ConfigDict(_restore(manager, step, items).config).lock()


def _restore(manager: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> Any:
    """Items of the checkpoint of `step`; one that cannot be read is the user's error."""
    try:
        return manager.restore(step, args=items)
    except jax.errors.JaxRuntimeError:  # out of memory: not the checkpoint's fault
        raise
    except Exception as error:  # of arrays that are damaged it is an Exception and no more
        raise UserError(
            f"the checkpoint {manager.directory}/{step} cannot be read: {first_line(error)}\n"
            "Delete it to go on from an earlier one, or use another --workdir"
        ) from error


def check_same(fields: Sequence[str], saved: ConfigDict, config: ConfigDict, workdir: Path) -> None:
    """Refuses a config that differs from the saved one in `fields`; logs what else differs.

    Args:
      fields: fields or sections, such as `SAME_RUN`.

    Raises:
      UserError: names every such field with both values.
    """
    old, new = _flat(as_json(saved)), _flat(as_json(config))
    changed = sorted(k for k in old | new if old.get(k) != new.get(k))
    free = set(_FREE)
    if fields == SAME_MODEL:
        free |= set(_PLACES)
        if _same_function(old["degradation.name"], new["degradation.name"]):
            free.add("degradation.name")
    matters = lambda k: k not in free and any(f"{k}.".startswith(f"{f}.") for f in fields)  # noqa: E731
    tell = lambda k: f"{k}: {old.get(k)!r} there, {new.get(k)!r} here"  # noqa: E731
    refused = [tell(k) for k in changed if matters(k)]
    if refused:
        differences = "\n  ".join(refused)
        raise UserError(
            f"{workdir} holds a run of another config:\n  {differences}\n"
            "Use another --workdir, or that run's config"
        )
    for k in changed:
        logging.info("going on with another %s", tell(k))


def _same_function(old: str, new: str) -> bool:
    """Whether both are FILE.py:FUNCTION of one name, in whatever folder."""
    return ":" in old and Path(old).name == Path(new).name


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The config in JSON's types: tuples are lists there."""
    return json.loads(config.to_json())


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{'a.b': 1}` for `{'a': {'b': 1}}`."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }
