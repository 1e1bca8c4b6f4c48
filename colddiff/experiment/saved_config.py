"""Configs as JSON: in checkpoints, and in the `config.json` of a workdir.

This module imports no JAX, because `--config WORKDIR/config.json` is read before anything else.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from colddiff.runtime.errors import UserError, first_line

# Fields that configs saved by earlier versions lack, with the values of configs/default.py.
_ADDED = {
    "severity": dict(num_steps=0, batch_size=64, learning_rate=1e-3, width=32),
    "data": dict(validation_split=""),
    "train": dict(
        warmup_steps=0,
        clip_norm=0.0,
        weight_decay=0.0,
        unfold=dict(weight=0.0, through=False),
        degraded_loss=0.0,
        ema_decays=(),
        profile_steps=(),
    ),
    "eval": dict(bootstrap=0),
}


def config_json(config: ConfigDict) -> dict[str, Any]:
    """Return the config in JSON's types; tuples become lists."""
    return json.loads(config.to_json())


def config_from_json(saved: Mapping[str, Any]) -> ConfigDict:
    """Return the config, locked, that `config_json` saved; lists become tuples again.

    Fields that did not exist when it was saved are added.

    Raises:
      ValueError: `saved` is no config.
    """
    sections = ("data", "degradation", "model", "train")
    if not isinstance(saved, Mapping) or not all(
        isinstance(saved.get(s), Mapping) for s in sections
    ):
        raise ValueError(f"it must have the sections {', '.join(sections)}")
    added = {name: {**fields, **saved.get(name, {})} for name, fields in _ADDED.items()}
    return ConfigDict(_with_tuples({**saved, **added})).lock()


def _with_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_tuples(member) for name, member in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def read_config(path: str | Path) -> ConfigDict:
    """Return the config in a run's `config.json`, locked.

    Raises:
      UserError: there is no such file, or it does not hold a config.
    """
    path = Path(path).expanduser()
    try:
        return config_from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} holds no config: {first_line(error)}; give the config.json of a run's workdir"
        ) from error
