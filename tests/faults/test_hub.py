"""A model of a hub, from a cache built here: what is fetched, what is refused, and what happens without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from instructrec.errors import EnvironmentFault, InputError
from instructrec.inference.loading import fingerprint
from instructrec.models import backbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub library; folders for models are put into it by `cached`."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return cache


def cached(hub: Path, kind: Path, name: str = "someone/tiny", **config: Any) -> Path:
    """The model folder `kind` laid out as the hub library keeps it: blobs, and links to them in a snapshot."""
    place = hub / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (snapshot, place / "blobs", place / "refs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(kind.iterdir())):
        blob = place / "blobs" / f"{number:040d}"
        shutil.copyfile(file, blob)
        if file.name == "config.json":
            blob.write_text(json.dumps(json.loads(blob.read_text()) | config))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


def load(name: str = "someone/tiny") -> backbone.Backbone:
    return backbone.load(name, dtype=torch.float32, offline=True)


def test_what_is_in_the_cache_needs_no_network(hub: Path, tiny_folder: Any) -> None:
    snapshot = cached(hub, tiny_folder("llama"))
    found = load()
    ids = torch.arange(5, 25)[None]
    assert torch.equal(found.model(ids).logits, tiny.model("llama")(ids).logits)
    assert (found.name, found.folder) == ("someone/tiny", str(snapshot))
    assert len(fingerprint(found.folder)) == 16  # so a run knows when the hub's model is another
    assert backbone.load_tokenizer("someone/tiny", offline=True)[1] == 256


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"_attn_implementation_internal": "x/y"}, "_attn_implementation_internal: refused, this key can make"),
        ({"attn_implementation": "x/y"}, "attn_implementation: refused, this key can make a library load code"),
        ({"transformers_weights": "a.bin"}, "transformers_weights: refused, this key can make a library load code"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config: refused, the weights have to be"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "a.B"}}, "auto_map: refused, this model needs code from"),
    ],
)
def test_a_configuration_is_checked_before_the_library_sees_it(
    hub: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], reason: str
) -> None:
    import transformers

    snapshot = cached(hub, tiny_folder("llama"), **config)
    seen = lambda *_, **__: pytest.fail("the library was given the folder")  # noqa: E731
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", seen)
    with pytest.raises(InputError) as caught:
        load()
    assert str(caught.value).startswith(f"{snapshot / 'config.json'}: {reason}")


def test_an_adapter_in_a_model_of_a_hub_is_refused(hub: Path, tiny_folder: Any) -> None:
    snapshot = cached(hub, tiny_folder("llama"))
    (snapshot / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        load()
    want = f"model: {snapshot}: holds an adapter beside the model (adapter_config.json); take one or the other"
    assert str(caught.value) == want


def test_only_what_can_not_run_is_fetched(hub: Path, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fnmatch import fnmatch

    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_folder("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    backbone.load("someone/tiny", dtype=torch.float32)
    assert (asked["name"], asked["local_files_only"]) == ("someone/tiny", False)

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert all(wanted(path.name) for path in tiny_folder("llama").iterdir()) and wanted(
        "model-00001-of-00002.safetensors"
    )
    never = (
        "modeling_x.py tokenization.py pytorch_model.bin adapter_config.json adapter_model.safetensors rust_model.ot"
    )
    assert not any(wanted(name) for name in (*never.split(), "custom_generate/generate.py", "original/model.pth"))


def test_what_a_hub_says_becomes_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2  # the hub library's own client
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    answer = httpx2.Response(404, request=httpx2.Request("GET", "http://nowhere"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    away, broken = "is not on the hub, or not open to you", "could not be fetched: some words"
    for error, kind, reason in (
        (RepositoryNotFoundError("some words", response=answer), InputError, away),
        (GatedRepoError("some words", response=answer), InputError, away),
        (HfHubHTTPError("some words", response=answer), EnvironmentFault, broken),
        (LocalEntryNotFoundError("some words"), EnvironmentFault, broken),
        (httpx2.ReadTimeout("some words"), EnvironmentFault, broken),
        (
            OSError(28, "No space left on device"),
            EnvironmentFault,
            "could not be fetched: [Errno 28] No space left on device",
        ),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        with pytest.raises(kind) as caught:
            backbone.load("someone/tiny", dtype=torch.float32)
        assert str(caught.value) == f"model: 'someone/tiny' {reason}"
