"""Trackers of experiments, by option and through accelerate's own: TensorBoard, Weights & Biases, MLflow.

Each writes below the run folder (`tensorboard`, `wandb`, `mlruns`); `WANDB_*` and `MLFLOW_*` variables lead elsewhere.
Nothing is reported to the makers of these packages unless their variables ask for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import console
from ..errors import EnvironmentFault, InputError

FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlruns"}
PROJECT = "instructrec"
# Reports about crashes and use. What the user has set stays.
SILENT = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
_LOCAL = ("", "offline", "disabled", "dryrun")


def chosen(trackers: str) -> list[str]:
    """The names in `trackers`, as the settings class has checked them."""
    return [] if trackers in ("", "none") else trackers.split(",")


def check_trackers(trackers: str, offline: bool) -> None:
    """Before anything is loaded: the packages are there, and nothing asks for a network that is switched off.

    Raises EnvironmentFault for a missing package, InputError for a server although `offline`.
    """
    names = chosen(trackers)
    for name in names:
        if find_spec(name) is None:
            extra = f"pip install 'instructrec[{name}]'" if name != "tensorboard" else "pip install tensorboard"
            raise EnvironmentFault(f"trackers: package '{name}' is missing ({extra})")
    mode, server = os.environ.get("WANDB_MODE", ""), os.environ.get("MLFLOW_TRACKING_URI", "")
    if offline and "wandb" in names and mode not in _LOCAL:
        raise InputError(f"trackers: wandb: WANDB_MODE is {mode}, and the network is switched off (want offline)")
    if offline and "mlflow" in names and "://" in server and not server.startswith(("file:", "sqlite:")):
        raise InputError(f"trackers: mlflow: MLFLOW_TRACKING_URI is {server}, and the network is switched off")


def make_trackers(trackers: str, folder: Path, offline: bool) -> list[Any]:
    """Accelerate's trackers, not started. offline: for W&B, whose own default is to send."""
    from accelerate import tracking

    names = chosen(trackers)
    made: list[Any] = []
    if "tensorboard" in names:
        made.append(tracking.TensorBoardTracker(FOLDERS["tensorboard"], str(folder)))
    if "wandb" in names:
        _silence()
        options = {"dir": str(folder), "name": folder.name} | ({"mode": "offline"} if offline else {})
        made.append(tracking.WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **options))
    if "mlflow" in names:
        _silence()
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            import mlflow

            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database
            mlflow.set_tracking_uri((folder.resolve() / FOLDERS["mlflow"]).as_uri())
        made.append(tracking.MLflowTracker(PROJECT, run_name=folder.name))
    return made


def start_trackers(accelerator: Any, trackers: list[Any], settings: Mapping[str, Any]) -> None:
    """Begin to track; what can't begin (no key, no server) is an EnvironmentFault."""
    accelerator.log_with = trackers
    try:
        accelerator.init_trackers(PROJECT)
        for tracker in trackers:
            if tracker.name != "tensorboard":  # it would make a folder of its own for them
                tracker.store_init_configuration(_flat(settings))
    except Exception as error:  # whatever a package of others comes to: no key, no server, a variable it can't read
        first = (str(error).splitlines() or [""])[0]
        raise EnvironmentFault(f"trackers: could not begin: {type(error).__name__}: {first}") from error
    if where := [FOLDERS[tracker.name] for tracker in trackers if tracker.name != "tensorboard"]:
        console.note(f"Tracked in {', '.join(where)} of the run folder, unless variables of theirs lead elsewhere")


def _silence() -> None:
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


__all__ = ["check_trackers", "make_trackers", "start_trackers"]
