"""Datasets of a hub, from a cache built here: which files are taken, what is refused, and that no code is run."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instructrec.data import read
from instructrec.data.hub import HubId, choose, hub_id
from instructrec.errors import DataError, EnvironmentFault, InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: easy
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: [data/test.jsonl]}
- config_name: hard
  data_files: hard/*
---
"""


def row(text: str) -> str:
    return f'{{"instruction": "{text}", "output": "x"}}\n'


FILES = {
    "README.md": CARD, "load.py": "raise SystemExit", "data/train-0.jsonl": row("a"), "data/train-1.jsonl": row("b"),
    "data/test.jsonl": row("c"), "hard/rows.csv": "instruction,output\nd,x\n",
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    snapshot = cache / "datasets--some--one" / "snapshots" / COMMIT
    for name, text in FILES.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(text)
    (cache / "datasets--some--one" / "refs").mkdir()
    (cache / "datasets--some--one" / "refs" / "main").write_text(COMMIT)
    return cache


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("some/one#easy/train", ["a", "b"]),
        ("hf://datasets/some/one#easy/test", ["c"]),
        ("some/one@main#hard/train", ["d"]),
    ],
)
def test_a_split_is_its_files_read_by_our_readers(hub: Path, path: str, texts: list[str]) -> None:
    rows = read(path, offline=True)
    assert [found.instruction for found in rows] == texts
    assert all(name.startswith("hf://datasets/some/one/") for name in rows.files)
    assert str(rows[0].origin) in (
        "hf://datasets/some/one/data/train-0.jsonl:1", "hf://datasets/some/one/data/test.jsonl:1",
        "hf://datasets/some/one/hard/rows.csv:2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("some/one", InputError, "several configurations (want #NAME/train with one of: easy, hard)"),
        ("some/one#esay/train", InputError, "no configuration 'esay' (want #NAME/train with one of: easy, hard)"),
        ("some/one#easy/tset", InputError, "no split 'tset', did you mean 'test'?"),
    ],
)
def test_what_a_dataset_does_not_have(hub: Path, path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        read(path, offline=True)
    assert str(error.value) == f"hf://datasets/some/one: {message}"


def test_without_a_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault) as error:
        read("some/two", offline=True)
    assert str(error.value) == "hf://datasets/some/two: not in the hub's cache, and the network is switched off"

    def unreachable(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(
        EnvironmentFault, match="^hf://datasets/some/two: no file here, and not to be had from the hub: "
    ):
        read("some/two")


def test_with_a_network_only_the_files_of_the_split_are_fetched(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def fetched(**options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(hub / "datasets--some--one" / "snapshots" / COMMIT)

    files = [SimpleNamespace(rfilename=name) for name in FILES]
    about = SimpleNamespace(siblings=files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert len(read("some/one#easy/train")) == 2
    assert asked == [["README.md"], ["data/train-0.jsonl", "data/train-1.jsonl", "README.md"]]


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["data/train-00000.parquet", "data/test-00000.parquet"], "", ["data/train-00000.parquet"]),
        (["a_dev.jsonl", "a_train.jsonl"], "validation", ["a_dev.jsonl"]),
        (["a.jsonl", "b.csv", "LICENSE"], "", ["a.jsonl", "b.csv"]),
        (["test.csv"], "", ["test.csv"]),
    ],
)
def test_splits_by_the_names_of_files(names: list[str], split: str, chosen: list[str]) -> None:
    assert choose(HubId("a/b", None, "", split), names, []) == chosen


def test_a_dataset_that_is_code_is_refused() -> None:
    with pytest.raises(InputError) as error:
        choose(HubId("a/b", None, "", ""), ["b.py", "README.md"], [])
    assert str(error.value) == (
        "hf://datasets/a/b: is read by its own code, which is never run (its revision 'refs/convert/parquet' may have some)"
    )


def test_what_may_be_a_dataset_and_what_is_a_slip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert [hub_id(path) for path in ("data/rows", "no/rows.jsonl", "rows", "a/b/c", "no/rows.csv.gz")] == [None] * 5
    assert hub_id("a/b@refs/convert/parquet#c/test") == HubId("a/b", "refs/convert/parquet", "c", "test")
    with pytest.raises(DataError, match=r"^data/rows: no such file$"):
        read("data/rows")
