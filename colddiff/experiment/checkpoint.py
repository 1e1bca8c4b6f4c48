"""Checkpoints of a workdir, by orbax: atomic writes in the background.

Each checkpoint holds the training state, the averaged parameters, the checksums of both, and the
config. The data position is the step (`colddiff.data.batches`). A run resumes only if its data,
their order and its state stay the same, and the source of a user's own degradation is unchanged.
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

import flax.struct
import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from colddiff.experiment.checksums import checksums
from colddiff.experiment.saved_config import config_from_json, config_json
from colddiff.experiment.state import TrainState, ema_name
from colddiff.runtime.devices import all_hosts, barrier, is_first_host
from colddiff.runtime.errors import StorageError, UserError, first_line
from colddiff.runtime.files import file_system_failed, patiently
from colddiff.sampling.consistency import EIGHT_BIT_STD

Manager = ocp.CheckpointManager

# Fields that must not change when trained parameters are loaded, or when a run resumes.
SAME_MODEL = ("degradation", "model", "data.image_size", "data.channels", "data.eight_bit")
_BATCH = "train.batch_size × train.accumulation"  # images per step; the data order depends on it
SAME_RUN = (
    *SAME_MODEL,
    "seed",
    "data",
    _BATCH,
    "train.optimizer",
    "train.clip_norm",
    "train.weight_decay",
    "train.ema_decay",
    "train.ema_every",
    "train.ema_start",
    "train.ema_decays",
)
_FREE = (
    *("data.test_split", "data.validation_split", "data.threads", "degradation.bank.sharded"),
    "model.remat",
)
# Data locations that may change when a run is loaded.
_PLACES = ("degradation.bank.source", "degradation.bank.split", "degradation.bank.limit")
_ADDED = {  # for saved configs without the field
    "data.background": [0, 0, 0],
    "data.value_range": [],
    "model.patch": 1,
    "train.ema_decays": [],
    "train.profile_steps": [],
    "train.sinks": [],
    "sampler.consistency": 0,
    "sampler.spacing": "even",
    "sampler.noise_std": EIGHT_BIT_STD,
}
_PART = re.compile(r"^degradation(\.parts\.\d+)+")  # a part has the fields of a degradation
_BESIDES = 2**22  # bytes, at most, of a checkpoint without its arrays: names, shapes, the config


@contextmanager
def open_manager(workdir: Path, *, keep: int | None = None, best: str = "") -> Iterator[Manager]:
    """Open the checkpoints of `workdir`; wait for saves when the block ends.

    Args:
      workdir: the run's folder.
      keep: the number of last checkpoints to keep. None opens for reading: nothing is created or
        deleted, and no host waits for another.
      best: a score. The best checkpoint by this score is kept too; `best_step()` is its step.

    Raises:
      UserError: a checkpoint could not be written; or `keep` or `best` is given, and some scores
        cannot be read.
    """
    writes = keep is not None
    if writes or best:
        for scores, error in _damaged_scores(workdir):
            raise UserError(
                f"{scores} cannot be read: {error}. Delete this folder, or resume the training, "
                "which moves it away; the checkpoint then has no scores"
            )
    hosts, here = ocp.options.MultiprocessingOptions(), jax.process_index()
    if not writes:
        hosts = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_kept(keep, best) if writes else None,
        best_fn=_goodness(best) if best else None,
        create=writes,
        cleanup_tmp_directories=writes,
        lightweight_initialize=not (writes or best),  # if True, no scores are read
        multiprocessing_options=hosts,
    )
    manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)
    try:
        yield manager
    except BaseException:  # raise it, and only log an error of the last save
        try:
            manager.close()
        except Exception as error:
            logging.warning("the last save to %s failed: %s", manager.directory, first_line(error))
        raise
    with _writing(manager):
        manager.close()


def _damaged_scores(workdir: Path) -> Iterator[tuple[Path, str]]:
    """Yield (folder of the scores, reason) for each checkpoint whose scores cannot be read."""
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
    """Raise UserError if a checkpoint cannot be written, for example because the disk is full."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write a checkpoint to {manager.directory}: {first_line(error)}\n"
            "Earlier checkpoints are kept. Fix the cause, then run the same command again to resume"
        ) from error


def _goodness(score: str) -> Callable[[dict[str, float]], float]:
    """Return a function that rates a checkpoint's scores by `score`; larger is better.

    SSIM and PSNR grow with quality; errors and distances fall. Checkpoints without this score rank
    last.
    """
    sign = 1 if score.endswith(("/ssim", "/psnr")) else -1
    return lambda scores: sign * scores[score] if score in scores else -math.inf


def _kept(keep: int, best: str) -> preservation_policy.PreservationPolicy:
    """Return the policy that keeps the last checkpoints, and the best one if `best` is given."""
    last = preservation_policy.LatestN(n=keep)
    if not best:
        return last
    first = preservation_policy.BestN(
        get_metric_fn=_goodness(best), n=1, keep_checkpoints_without_metrics=False
    )
    return preservation_policy.AnyPreservationPolicy([last, first])


def last_step(workdir: Path, config: ConfigDict) -> int | None:
    """Return the step of the run's last checkpoint with a readable config; None without any.

    Raises:
      UserError: the workdir holds another run (`check_same`), or no config in it can be read.
    """
    if not (workdir / "checkpoints").is_dir():
        return None
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
        return None


def save(
    manager: Manager,
    state: TrainState,
    config: ConfigDict,
    scores: dict[str, float] | None = None,
) -> None:
    """Save `state` and its scores in the background.

    It returns once the state is copied, so the next step can overwrite its buffers.

    Raises:
      UserError: this checkpoint or the one before cannot be written. Earlier checkpoints stay.
    """
    step = int(state.step)
    items = ocp.args.Composite(
        **{name: ocp.args.StandardSave(item) for name, item in _items(state).items()},
        config=ocp.args.JsonSave(config_json(config)),
        checksums=ocp.args.JsonSave(_checksums(state)),
    )
    with _writing(manager):
        manager.wait_until_finished()  # the previous save also takes space
        _check_space(manager, state)
        manager.save(step, args=items, metrics=scores)
    logging.info("saving checkpoint %d", step)


def _check_space(manager: Manager, state: TrainState) -> None:
    """Refuse a disk with too little space; orbax would fail halfway with a thousand-line error."""
    needed = _BESIDES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    disk = shutil.disk_usage(manager.directory)
    if not all_hosts(disk.free >= needed or not disk.total):  # mounted buckets report 0
        raise OSError(
            f"no space left: it needs {needed / 2**20:.0f} MiB, but {disk.free / 2**20:.0f} MiB "
            "are free"
        )


def restore_last(workdir: Path, like: TrainState) -> TrainState:
    """Return the last undamaged state; move damaged checkpoints after it to `WORKDIR/damaged`.

    Raises:
      UserError: all checkpoints are damaged, or the file system fails repeatedly. In both cases
        nothing is moved.
    """
    damaged: list[tuple[int, UserError]] = []
    with open_manager(workdir) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            _, error = _tried(lambda step=step: restore_config(manager, step))  # must be readable
            if error is None:
                state, error = _tried(lambda step=step: restore_state(manager, like, step))
            if error is None:  # all hosts compute checksums together, so all must have read it
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
    """Move scores that cannot be read to `WORKDIR/damaged`; their checkpoints stay."""
    for folder, error in list(_damaged_scores(workdir)):
        logging.warning("%s cannot be read: %s", folder, error)
        _set_aside(folder, workdir / "damaged" / f"{folder.parent.name}-scores")
    barrier()


def _tried(read: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """Return (value, None) if `read` works on all hosts, else (None, error) on all hosts.

    Raises:
      StorageError: the file system failed on a host, so the checkpoint may be undamaged.
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
        raise StorageError("another host cannot read the checkpoint; see its error message")
    return None, error or UserError(
        "another host cannot read the checkpoint; see its error message"
    )


def _set_aside(what: Path, place: Path) -> None:
    """Move a damaged folder to `place`, on the first host; append a number if `place` exists."""
    if is_first_host():
        others = (place.with_name(f"{place.name}-{number}") for number in itertools.count(1))
        free = next(p for p in itertools.chain([place], others) if not p.exists())
        free.parent.mkdir(exist_ok=True)
        what.rename(free)
        logging.warning("moved %s to %s", what, free)


def restore_state(manager: Manager, like: TrainState, step: int) -> TrainState:
    """Return the state saved at `step`, with the shapes and shardings of `like`.

    The caller compares the checksums (`restore_last`).
    """
    targets = _items(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    items = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    )
    restored = _restore(manager, step, items)
    more = {name: restored[_item_of(name)] for name in like.more_ema}
    rest = restored.state
    return TrainState(rest.step, rest.params, restored.ema_params, rest.opt_state, more)


def restore_ema(manager: Manager, like: Any, step: int, decay: float | None = None) -> Any:
    """Return the averaged parameters saved at `step`, with the shapes and shardings of `like`.

    They are those of `train.ema_decay` if `decay` is None, else of one of `train.ema_decays`.
    """
    name = "ema_params" if decay is None else _item_of(ema_name(decay))
    items = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
    params = _restore(manager, step, items)[name]
    _verify(manager, step, {name: checksums(params)})
    return params


@flax.struct.dataclass
class _Rest:
    """The item of a checkpoint with all of the state but its averages; `ema_params` is None."""

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any


def _items(state: TrainState) -> dict[str, Any]:
    """Return what a checkpoint holds of the state, by item: each average can be read alone."""
    rest = _Rest(state.step, state.params, None, state.opt_state)
    more = {_item_of(name): params for name, params in state.more_ema.items()}
    return {"state": rest, "ema_params": state.ema_params, **more}


def _item_of(name: str) -> str:
    """Return the item of a checkpoint that holds the further average of this `ema_name`."""
    return f"ema_params_{name}"


def restore_config(manager: Manager, step: int) -> ConfigDict:
    """Return the config saved at `step`, locked; JSON's lists become tuples again."""
    items = ocp.args.Composite(config=ocp.args.JsonRestore())
    return config_from_json(_restore(manager, step, items).config)


def _checksums(state: TrainState) -> dict[str, dict[str, int]]:
    """Return the checksums of a checkpoint's arrays, by item."""
    return {name: checksums(item) for name, item in _items(state).items()}


def _verify(manager: Manager, step: int, found: Mapping[str, Mapping[str, int]]) -> None:
    """Compare the checksums of restored arrays with the saved ones.

    Checkpoints of earlier versions have no checksums and are accepted.

    Raises:
      UserError: a checksum differs.
    """
    if not (manager.directory / str(step) / "checksums").is_dir():
        return
    items = ocp.args.Composite(checksums=ocp.args.JsonRestore())
    saved = _restore(manager, step, items).checksums
    for item, sums in found.items():
        if damaged := [name for name, n in sums.items() if saved.get(item, {}).get(name) != n]:
            raise UserError(
                f"the checkpoint {manager.directory}/{step} is damaged: {len(damaged)} of the "
                f"{len(sums)} arrays of its {item} differ from the saved ones, first {damaged[0]}\n"
                "Delete it to use an earlier checkpoint, or use another --workdir"
            )


def _restore(manager: Manager, step: int, items: ocp.args.Composite) -> Any:
    """Return items of the checkpoint of `step`.

    Raises:
      UserError: the checkpoint is damaged.
      StorageError: the file system failed repeatedly.
    """
    folder = f"{manager.directory}/{step}"
    try:
        return patiently(lambda: manager.restore(step, args=items), folder)
    except jax.errors.JaxRuntimeError:  # out of memory: the checkpoint is undamaged
        raise
    except Exception as error:  # orbax raises a bare Exception for damaged arrays
        if file_system_failed(error):
            raise StorageError(
                f"{folder} cannot be read: {first_line(error)}\nThe checkpoint itself may be "
                "undamaged: check the disk or the network, then run the same command again"
            ) from error
        raise UserError(
            f"the checkpoint {manager.directory}/{step} cannot be read: {first_line(error)}\n"
            "Delete it to use an earlier checkpoint, or use another --workdir"
        ) from error


def check_same(fields: Sequence[str], saved: ConfigDict, config: ConfigDict, workdir: Path) -> None:
    """Refuse a config that differs from the saved one in `fields`; log other differences.

    With `SAME_RUN` the other differences are logged as warnings.

    Args:
      fields: names of fields or sections, such as `SAME_RUN`.
      saved: the config of the run in `workdir`.
      config: the config to compare with it.
      workdir: the run's folder, for the message.

    Raises:
      UserError: a field differs; the message names every such field with both values.
    """
    refused, others = differences(fields, saved, config, moved=fields == SAME_MODEL)
    if refused:
        listed = "\n  ".join(refused)
        raise UserError(
            f"{workdir} holds a run with another config:\n  {listed}\n"
            "Use another --workdir, or that run's config"
        )
    level = logging.WARNING if fields == SAME_RUN else logging.INFO
    for difference in others:
        logging.log(level, "the config differs from the saved one in %s", difference)


def differences(
    fields: Sequence[str], saved: ConfigDict, config: ConfigDict, *, moved: bool
) -> tuple[list[str], list[str]]:
    """Return the differences of two configs in `fields`, and the others, as texts for messages.

    Fields that change nothing that is computed, such as `data.threads`, are among the others.

    Args:
      fields: names of fields or sections, such as `SAME_MODEL`.
      saved: the saved config.
      config: the config to compare with it.
      moved: whether the places of a degradation's data may differ.
    """
    old, new = _fields(saved), _fields(config)
    free = (*_FREE, *_PLACES) if moved else _FREE

    def may_change(k: str) -> bool:
        of_degradation = _PART.sub("degradation", k)
        if of_degradation == "degradation.name":  # `check_source` compares the source
            return _same_function(old.get(k), new.get(k))
        return of_degradation in free

    found = ([], [])
    for k in sorted(k for k in old | new if old.get(k) != new.get(k)):
        matters = not may_change(k) and any(f"{k}.".startswith(f"{f}.") for f in fields)
        found[not matters].append(f"{k}: {old.get(k)!r} saved, {new.get(k)!r} now")
    return found


def _same_function(old: Any, new: Any) -> bool:
    """Return whether both are FILE.py:FUNCTION with the same file name and function name."""
    return ":" in str(old) and Path(str(old)).name == Path(str(new)).name


def _fields(config: ConfigDict) -> dict[str, Any]:
    """Return the config's fields by full name, and the number of images per step."""
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
