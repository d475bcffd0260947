"""Datasets of the Hugging Face hub: their files of rows, read by our own readers. Code of a dataset is never run.

`owner/name`, also `hf://datasets/owner/name`; behind it `@revision` and `#split` or `#config/split` (default: train).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import EnvironmentFault, InputError, did_you_mean

_ID = re.compile(
    r"(?P<scheme>hf://datasets/)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^#]+))?(#(?P<part>.+))?"
)
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class HubId:
    """A dataset, or one split of it."""

    name: str
    revision: str | None
    config: str
    split: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.name}"


def hub_id(path: str) -> HubId | None:
    """The dataset that a path names, if it may be one: there is no such file, nor a folder of the owner's name."""
    match = _ID.fullmatch(path)
    if match is None or os.path.lexists(path):
        return None
    local = os.path.isdir(match["name"].partition("/")[0]) or Path(match["name"]).suffix in (".tsv", ".csv", ".txt")
    if not match["scheme"] and (local or re.search(r"\.(jsonl?|ndjson|parquet|pq|tab|gz|zst|bz2|xz)$", match["name"])):
        return None
    config, _, split = (match["part"] or "").rpartition("/")
    return HubId(match["name"], match["revision"], config, split)


def fetch(wanted: HubId, offline: bool = False) -> list[tuple[str, str]]:
    """Name and local path of each file of the split, out of the hub library's cache or fetched into it.

    Raises `EnvironmentFault` without a network, `InputError` for a dataset that is not there or has no such split.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The parents of the hub's own errors; its HTTP client goes by another name in each major version.
    parents = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    network: tuple[type[Exception], ...] = (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *parents)
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE
    where: dict[str, Any] = {"repo_id": wanted.name, "repo_type": "dataset", "revision": wanted.revision}
    try:
        if offline:
            folder = Path(snapshot_download(**where, local_files_only=True))
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        else:
            about = HfApi().dataset_info(wanted.name, revision=wanted.revision)  # asks once, unlike a list of the files
            names = sorted(file.rfilename for file in about.siblings or ())
            folder = Path(snapshot_download(**where, allow_patterns=["README.md"]))
        chosen = choose(wanted, names, _configs(folder / "README.md"))
        if not offline:
            folder = Path(snapshot_download(**where, allow_patterns=[*map(_literal, chosen), "README.md"]))
    except HFValidationError as error:
        raise InputError(f"{wanted}: no hub id: {_first(error)}") from None
    except RevisionNotFoundError:
        raise InputError(f"{wanted}: has no revision '{wanted.revision}'") from None
    except (GatedRepoError, RepositoryNotFoundError):
        raise InputError(f"{wanted}: not on the hub, or not open to you, and no file here") from None
    except network as error:
        if offline:
            raise EnvironmentFault(f"{wanted}: not in the hub's cache, and the network is switched off") from None
        raise EnvironmentFault(f"{wanted}: no file here, and not to be had from the hub: {_first(error)}") from None
    return [(f"{wanted}/{name}", str(folder / name)) for name in chosen]


def choose(wanted: HubId, names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files of the split that is wanted: by the dataset's card, else by their names. Raises `InputError`."""
    from .places import is_rows_file

    rows = [name for name in names if is_rows_file(PurePosixPath(name).name)]
    if not rows:
        code = any(name.endswith(".py") for name in names)
        reason = "is read by its own code, which is never run" if code else "has no files of rows"
        raise InputError(f"{wanted}: {reason} (its revision 'refs/convert/parquet' may have some)")
    splits = _by_card(wanted, rows, configs) or _by_name(rows)
    split = wanted.split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else "train")
    if split not in splits:
        raise InputError(f"{wanted}: no split '{split}', {did_you_mean(split, splits)}")
    return splits[split]


def _by_card(wanted: HubId, rows: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Split -> files of the configuration wanted, as the card lists them; {} where it lists none."""
    known = {str(config.get("config_name", "default")): config for config in configs if config.get("data_files")}
    if not known and not wanted.config:
        return {}
    usual = [name for name, config in known.items() if config.get("default")]
    usual += ["default"] if "default" in known else list(known)[:1] if len(known) == 1 else []
    name = wanted.config or next(iter(usual), "")
    if name not in known:
        got = f"no configuration '{name}'" if name else "several configurations"
        raise InputError(f"{wanted}: {got} (want #NAME/{wanted.split or 'train'} with one of: {', '.join(known)})")
    listed = known[name]["data_files"]
    if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
        listed = [{"split": "train", "path": listed}]
    found: dict[str, list[str]] = {}
    for item in listed:
        paths = item.get("path", ())
        patterns = [paths] if isinstance(paths, str) else [str(path) for path in paths]
        fits = [row for row in rows if any(fnmatch.fnmatch(row, pattern.removeprefix("./")) for pattern in patterns)]
        if fits:
            found.setdefault(str(item.get("split", "train")), []).extend(fits)
    return found


def _by_name(rows: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        words = re.split(r"[/._-]", row.lower())
        split = next((split for split, signs in SPLITS.items() if any(sign in words for sign in signs)), "")
        found.setdefault(split, []).append(row)
    unnamed = found.pop("", [])
    return found or {"train": unnamed}


def _configs(card: Path) -> list[Mapping[str, Any]]:
    """`configs` of a dataset card's YAML; [] where there is none that can be read."""
    import yaml

    try:
        text = card.read_text(encoding="utf-8")
        match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        found = (yaml.safe_load(match[1]) or {}).get("configs") if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
