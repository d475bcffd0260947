"""`dataset: a,b` of LLaMA-Factory: names that a `dataset_info.json` leads to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import did_you_mean
from .given import Given, Outcome, word

INFO = "dataset_info.json"
ROLES = {  # their roles -> ours
    "prompt": "instruction",
    "query": "input",
    "response": "answer",
    "system": "system",
    "history": "history",
    "messages": "messages",
}
MEDIA = ("images", "videos", "audios")
# Two ways of writing a turn, as (role, content, user, assistant).
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag")
_KNOWN_TAGS = (("from", "value", "human", "gpt"), ("role", "content", "user", "assistant"))


class Refused(Exception):
    """Why a name can't be looked up."""


def datasets(item: Given, others: Mapping[str, Given]) -> Outcome:
    """Files of the names, and their columns where `dataset_info.json` gives any."""
    try:
        files, columns = _found(item, others)
    except Refused as error:
        return Outcome(refused=str(error))
    return Outcome({"data": files} | ({"columns": columns} if columns else {}))


def watched(item: Given, others: Mapping[str, Given]) -> Outcome:
    """`eval_dataset`: one file of rows to watch."""
    if not word(item.value):
        return Outcome(left="nothing is named")
    try:
        files, _ = _found(item, others)
    except Refused as error:
        return Outcome(refused=str(error))
    if len(files) > 1:
        return Outcome(refused=f"one file is watched (got {len(files)})")
    return Outcome({"validation": files[0]})


def _found(item: Given, others: Mapping[str, Given]) -> tuple[list[str], dict[str, str]]:
    value = item.value
    if isinstance(value, dict):
        raise Refused("want names of data sets, or files")
    texts = value if isinstance(value, list) else value.split(",")
    names = [text.strip() for text in texts if text.strip()]
    folder, info = _info(item, others.get("dataset_dir"))
    files: list[str] = []
    columns: list[dict[str, str]] = []
    for name in names:
        if name in info:
            file, ours = _entry(name, info[name], folder)
            files.append(file)
            columns.append(ours)
        elif Path(name).exists() or (folder / name).is_file():
            files.append(name if Path(name).exists() else str(folder / name))
            columns.append({})
        elif info:
            raise Refused(f"'{name}' is not in {folder / INFO}, {did_you_mean(name, info)}")
        else:
            raise Refused(f"'{name}' is no file, and there is no {folder / INFO} to say which one it means")
    if any(one != columns[0] for one in columns):
        raise Refused("the data sets have different columns; tune on one, or give the files one set of names")
    return files, columns[0] if columns else {}


def _info(item: Given, given: Given | None) -> tuple[Path, dict[str, Any]]:
    """The folder of the data sets, looked for from here and from beside the settings file, and what its list says."""
    folder = Path(given.value if given and isinstance(given.value, str) and given.value else "data")
    beside = Path(item.file).parent / folder if item.line else folder
    place = next((one for one in (folder, beside) if (one / INFO).is_file()), None)
    if place is None:
        return folder, {}
    try:
        info = json.loads((place / INFO).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise Refused(f"{place / INFO}: not JSON: {error}") from error
    if not isinstance(info, dict):
        raise Refused(f"{place / INFO}: not an object with one entry for each data set")
    return place, info


def _entry(name: str, entry: Any, folder: Path) -> tuple[str, dict[str, str]]:
    """File (or hub id) and columns of one data set."""
    where = f"{folder / INFO}: {name}"
    if not isinstance(entry, dict):
        raise Refused(f"{where}: not an object")
    if entry.get("ranking"):
        raise Refused(f"{where}: pairs of answers to rank are for stages other than sft")
    for key in ("script_url", "cloud_file_name", "subset", "folder", "num_samples"):
        if entry.get(key) not in (None, "", False):
            raise Refused(f"{where}: {key} can't be honoured (want a file_name)")
    if entry.get("split") not in (None, "", "train"):
        raise Refused(f"{where}: split: only train (got {entry['split']!r})")
    source = entry.get("file_name") or entry.get("hf_hub_url") or entry.get("ms_hub_url")
    if not isinstance(source, str):
        raise Refused(f"{where}: names no file")
    file = str(folder / source) if entry.get("file_name") else source
    given = entry.get("columns") or {}
    tags = entry.get("tags") or {}
    if not isinstance(given, dict) or not isinstance(tags, dict):
        raise Refused(f"{where}: columns and tags: want objects")
    unknown = [role for role in given if role not in (*ROLES, *MEDIA, "tools")]
    if unknown:
        raise Refused(f"{where}: columns: {unknown[0]} can't be honoured (want some of {', '.join(ROLES)})")
    if tags and not any(
        all(tags.get(tag, usual) == usual for tag, usual in zip(_TAGS, known, strict=True)) for known in _KNOWN_TAGS
    ):
        raise Refused(f"{where}: tags: want from, value, human, gpt or role, content, user, assistant")
    ours = {ROLES[role]: str(column) for role, column in given.items() if role in ROLES}
    if ours.get("messages") in ("conversations", "messages"):  # found without being told
        del ours["messages"]
    return file, ours
