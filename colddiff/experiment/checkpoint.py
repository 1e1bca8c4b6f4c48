"""Checkpoints of a workdir, by orbax: written in the background, whole or not at all.

Each holds the training state, the averaged parameters, the checksums of both, and the config. The
data position is the step (`colddiff.data.batches`). A run goes on only with a config that means the
same data, order and state, and with the source of its own degradation.
"""

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from colddiff.experiment.checksums import checksums
from colddiff.experiment.state import TrainState
from colddiff.experiment.user_code import source_hashes
from colddiff.runtime.devices import all_hosts, barrier, is_first_host
from colddiff.runtime.errors import StorageError, UserError, first_line
from colddiff.runtime.files import file_system_failed, patiently, read_json, write_json

Manager = ocp.CheckpointManager

# The fields that trained parameters belong to, and those that a run's going on depends on.
SAME_MODEL = ("degradation", "model", "data.image_size", "data.channels", "data.eight_bit")
_BATCH = "train.batch_size × train.accumulation"  # images a step, which the data's order depends on
SAME_RUN = (
    *SAME_MODEL,
    "seed",
    "data",
    _BATCH,
    "train.optimizer",
    "train.ema_decay",
    "train.ema_every",
    "train.ema_start",
)
_FREE = ("data.test_split", "data.threads", "degradation.bank.sharded")
# Data locations that may change when a run is loaded.
_PLACES = ("degradation.bank.source", "degradation.bank.split", "degradation.bank.limit")
_ADDED = {"data.background": [0, 0, 0]}  # what configs of earlier versions, without the field, mean
_PART = re.compile(r"^degradation(\.parts\.\d+)+")  # whose fields are those of a degradation
_BESIDES = 2**22  # bytes a checkpoint takes besides its arrays, at most: names, shapes, the config


@contextmanager
def open_manager(workdir: Path, *, keep: int | None = None, best: str = "") -> Iterator[Manager]:
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
                dict(json.loads(patiently(path.read_text, str(path))))
            except (OSError, TypeError, ValueError) as error:
                if file_system_failed(error):
                    raise
                yield path.parent, first_line(error)


@contextmanager
def _writing(manager: Manager) -> Iterator[None]:
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
    manager: Manager,
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
        config=ocp.args.JsonSave(config_json(config)),
        checksums=ocp.args.JsonSave(_checksums(state)),
    )
    with _writing(manager):
        manager.wait_until_finished()  # for the one before, which takes its space
        _check_space(manager, state)
        manager.save(step, args=items, metrics=scores)
    logging.info("saving checkpoint %d", step)


def _check_space(manager: Manager, state: TrainState) -> None:
    """Refuses a disk that is too full: failing halfway, orbax would tell it in a thousand lines."""
    needed = _BESIDES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    disk = shutil.disk_usage(manager.directory)
    if not all_hosts(disk.free >= needed or not disk.total):  # mounted buckets do not say
        raise OSError(
            f"no space left: it takes {needed / 2**20:.0f} MiB, {disk.free / 2**20:.0f} are free"
        )


def restore_last(workdir: Path, like: TrainState) -> TrainState:
    """Return the last undamaged state. Damaged ones after it are moved to `WORKDIR/damaged`.

    Raises:
      UserError: all are damaged, or the file system fails, again and again; nothing is moved then.
    """
    damaged: list[tuple[int, UserError]] = []
    with open_manager(workdir) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            _, error = _tried(lambda step=step: restore_config(manager, step))  # it must be whole
            if error is None:
                state, error = _tried(lambda step=step: restore_state(manager, like, step))
            if error is None:  # computed together, so all hosts must have read it
                _, error = _tried(
                    lambda step=step, state=state: _verify(manager, step, _checksums(state))
                )
            if error is None:
                break
            damaged.append((step, error))
        else:
            raise damaged[0][1]
    for step, error in damaged:
        logging.warning("%s", error)
        _set_aside(workdir / "checkpoints" / str(step), workdir / "damaged" / str(step))
    barrier()
    return state


def set_scores_aside(workdir: Path) -> None:
    """Moves scores that cannot be read to `WORKDIR/damaged`: their checkpoint goes on without."""
    for folder, error in list(_damaged_scores(workdir)):
        logging.warning("%s cannot be read: %s", folder, error)
        _set_aside(folder, workdir / "damaged" / f"{folder.parent.name}-scores")
    barrier()


def _tried(read: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """Return (value, None), or (None, error) of damage; the same on all hosts.

    Raises:
      StorageError: the file system of any host failed, so that nothing is known of the checkpoint.
    """
    value, error = None, None
    try:
        value = read()
    except UserError as wrong:
        error = wrong
    if all_hosts(error is None):
        return value, None
    if not all_hosts(not isinstance(error, StorageError)):
        if isinstance(error, StorageError):
            raise error
        raise StorageError("another host cannot read the checkpoint; see what it says")
    return None, error or UserError("another host cannot read the checkpoint; see what it says")


def _set_aside(what: Path, place: Path) -> None:
    """On the first host, move a damaged folder to `place`, which is numbered if it is taken."""
    if is_first_host():
        others = (place.with_name(f"{place.name}-{number}") for number in itertools.count(1))
        free = next(p for p in itertools.chain([place], others) if not p.exists())
        free.parent.mkdir(exist_ok=True)
        what.rename(free)
        logging.warning("moved %s to %s", what, free)


def restore_state(manager: Manager, like: TrainState, step: int) -> TrainState:
    """Return the state saved at `step`, with the shapes and shardings of `like`.

    Its checksums are for the caller to compare (`restore_last`).
    """
    targets = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(
        state=ocp.args.StandardRestore(targets.replace(ema_params=None)),
        ema_params=ocp.args.StandardRestore(targets.ema_params),
    )
    restored = _restore(manager, step, items)
    return restored.state.replace(ema_params=restored.ema_params)


def restore_ema(manager: Manager, like: Any, step: int) -> Any:
    """The averaged parameters saved at `step`, with the shapes and shardings of `like`."""
    items = ocp.args.Composite(ema_params=ocp.args.StandardRestore(like))
    ema_params = _restore(manager, step, items).ema_params
    _verify(manager, step, {"ema_params": checksums(ema_params)})
    return ema_params


def restore_config(manager: Manager, step: int) -> ConfigDict:
    """The config saved at `step`, locked."""
    items = ocp.args.Composite(config=ocp.args.JsonRestore())
    return ConfigDict(_restore(manager, step, items).config).lock()


def _checksums(state: TrainState) -> dict[str, dict[str, int]]:
    """Return the checksums of a checkpoint's arrays, by item."""
    return {
        "state": checksums(state.replace(ema_params=None)),
        "ema_params": checksums(state.ema_params),
    }


def _verify(manager: Manager, step: int, found: Mapping[str, Mapping[str, int]]) -> None:
    """Compare the checksums of restored arrays with those that were saved.

    Raises:
      UserError: they differ. Checkpoints of earlier versions have none, and pass.
    """
    if not (manager.directory / str(step) / "checksums").is_dir():
        return
    items = ocp.args.Composite(checksums=ocp.args.JsonRestore())
    saved = _restore(manager, step, items).checksums
    for item, sums in found.items():
        if damaged := [name for name, n in sums.items() if saved.get(item, {}).get(name) != n]:
            raise UserError(
                f"the checkpoint {manager.directory}/{step} is damaged: {len(damaged)} of the "
                f"{len(sums)} arrays of its {item} differ from what was saved, first {damaged[0]}\n"
                "Delete it to go on from an earlier one, or use another --workdir"
            )


def _restore(manager: Manager, step: int, items: ocp.args.Composite) -> Any:
    """Return items of the checkpoint of `step`.

    Raises:
      UserError: it is damaged.
      StorageError: the file system failed, again and again.
    """
    folder = f"{manager.directory}/{step}"
    try:
        return patiently(lambda: manager.restore(step, args=items), folder)
    except jax.errors.JaxRuntimeError:  # out of memory: not the checkpoint's fault
        raise
    except Exception as error:  # orbax raises a bare Exception for damaged arrays
        if file_system_failed(error):
            raise StorageError(
                f"{folder} cannot be read: {first_line(error)}\nThe checkpoint itself may be "
                "whole: check the disk or the network, then run the same command again"
            ) from error
        raise UserError(
            f"the checkpoint {manager.directory}/{step} cannot be read: {first_line(error)}\n"
            "Delete it to go on from an earlier one, or use another --workdir"
        ) from error


def check_same(fields: Sequence[str], saved: ConfigDict, config: ConfigDict, workdir: Path) -> None:
    """Refuse a config that differs from the saved one in `fields`; log what else differs.

    In a run that goes on, that is a warning.

    Args:
      fields: fields or sections, such as `SAME_RUN`.

    Raises:
      UserError: names every such field with both values.
    """
    old, new = _fields(saved), _fields(config)
    changed = sorted(k for k in old | new if old.get(k) != new.get(k))

    def may_change(k: str) -> bool:
        of_degradation = _PART.sub("degradation", k)
        if fields == SAME_MODEL and of_degradation == "degradation.name":
            return _same_function(old.get(k), new.get(k))
        free = (*_FREE, *_PLACES) if fields == SAME_MODEL else _FREE
        return of_degradation in free

    matters = lambda k: not may_change(k) and any(f"{k}.".startswith(f"{f}.") for f in fields)  # noqa: E731
    tell = lambda k: f"{k}: {old.get(k)!r} there, {new.get(k)!r} here"  # noqa: E731
    refused = [tell(k) for k in changed if matters(k)]
    if refused:
        differences = "\n  ".join(refused)
        raise UserError(
            f"{workdir} holds a run of another config:\n  {differences}\n"
            "Use another --workdir, or that run's config"
        )
    level = logging.WARNING if fields == SAME_RUN else logging.INFO
    for k in changed:
        logging.log(level, "going on with another %s", tell(k))


def _same_function(old: Any, new: Any) -> bool:
    """Return whether both are FILE.py:FUNCTION of one name, in whatever folder."""
    return ":" in str(old) and Path(str(old)).name == Path(str(new)).name


def check_source(workdir: Path, config: ConfigDict, *, accept: bool, new: bool) -> None:
    """Note in the workdir what the source of the degradation's own functions is.

    Args:
      accept: go on with another source than the run began with.
      new: the run has no checkpoint yet, so that whatever is noted there is of another one.

    Raises:
      UserError: a run is to go on with another source, which is not accepted.
    """
    changes = [] if new else source_changes(workdir, config)
    if not all_hosts(not changes or accept):
        differences = "\n  ".join(changes) or "see what the other hosts say"
        raise UserError(
            f"the source of the degradation is not the one that {workdir} began with:\n  "
            f"{differences}\nBring it back, use another --workdir, or give --accept_source to go "
            "on with this one"
        )
    for change in changes:
        logging.warning("going on with another source of the degradation: %s", change)
    if is_first_host():
        path, hashes = workdir / "source.json", source_hashes(config.degradation)
        if hashes:
            write_json(path, hashes)
        elif path.exists():
            path.unlink()
    barrier()


def source_changes(workdir: Path, config: ConfigDict) -> list[str]:
    """Return in what the source of the degradation differs from what the workdir notes."""
    then, now = read_json(workdir / "source.json"), source_hashes(config.degradation)
    if then is None:
        return []
    names = sorted(k for k in then | now if then.get(k) != now.get(k))
    return [f"{k}: sha256 {then.get(k)} then, {now.get(k)} now" for k in names]


def config_json(config: ConfigDict) -> dict[str, Any]:
    """The config in JSON's types: tuples are lists there."""
    return json.loads(config.to_json())


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Return the config's fields by their whole names, with the images a step as one more."""
    fields = _ADDED | _flat(config_json(config))
    return fields | {_BATCH: config.train.batch_size * config.train.accumulation}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{'a.b': 1, 'c.0.d': 2}` for `{'a': {'b': 1}, 'c': [{'d': 2}]}`."""
    if isinstance(tree, list) and any(isinstance(leaf, dict) for leaf in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{prefix}.{key}".lstrip(".")).items()
    }
