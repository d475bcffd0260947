"""Backbones: what is loaded, from where, and everything that is refused, each with its exact words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
import torch

import tiny
from instructrec.errors import EnvironmentFault, InputError
from instructrec.models import backbone


@pytest.fixture
def copy(tiny_folder: Any, tmp_path: Path) -> Callable[..., Path]:
    """A private copy of a tiny folder; `config` is merged into its config.json, None removes a key."""

    def make(kind: str = "llama", **config: Any) -> Path:
        target = Path(shutil.copytree(tiny_folder(kind), tmp_path / "model"))
        values = json.loads((target / "config.json").read_text()) | config
        kept = {key: value for key, value in values.items() if value is not None}
        (target / "config.json").write_text(json.dumps(kept))
        return target

    return make


def load(name: Any, **options: Any) -> backbone.Backbone:
    return backbone.load(str(name), dtype=torch.float32, **options)


def refused(name: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(name)
    return str(caught.value)


def test_a_local_folder_gives_its_own_logits(kind: str, tiny_folder: Any) -> None:
    found = load(tiny_folder(kind))
    ids = torch.arange(5, 25)[None]
    assert torch.equal(found.model(ids).logits, tiny.model(kind)(ids).logits)
    assert not found.model.training
    assert found.max_positions == tiny.POSITIONS.get(kind, 256) == found.default_length
    assert found.pad_id == found.tokenizer.pad_token_id
    assert found.tokenizer.eos_token_id in found.stop_ids
    assert found.folder == str(tiny_folder(kind)) and found.notes == ()


def test_weights_come_in_the_type_asked_for(tiny_folder: Any) -> None:
    found = backbone.load(str(tiny_folder("llama")), dtype=torch.bfloat16)
    assert {weight.dtype for weight in found.model.parameters()} == {torch.bfloat16}


def test_generation_settings_of_a_folder_end_answers_but_do_not_sample(copy: Any) -> None:
    folder = copy()
    settings = {"do_sample": True, "temperature": 9.0, "eos_token_id": [2, 7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = load(folder)
    assert found.stop_ids == (2, 7)
    assert not found.model.generation_config.do_sample


def test_gguf_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    original = tiny_gguf.write(tmp_path / "tiny.gguf")
    found = load(tmp_path / "tiny.gguf")
    weights = found.model.state_dict()
    for name, weight in original.state_dict().items():
        assert torch.equal(weights[name], weight.bfloat16().float()), name
    assert found.tokenizer("parcel ", add_special_tokens=False) == tiny.tokenizer("llama3")(
        "parcel ", add_special_tokens=False
    )
    assert found.max_positions == 256
    assert not getattr(found.model.config, "quantization_config", None)
    found.model.save_pretrained(tmp_path / "saved")  # refused while the model is flagged as quantised
    monkeypatch.setattr(backbone, "convert_gguf", lambda *_: pytest.fail("converted a second time"))
    assert backbone.find(str(tmp_path / "tiny.gguf")) == found.folder


def test_a_file_that_is_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    assert refused(tmp_path / "broken.gguf").startswith("model: broken.gguf could not be read as GGUF: ")
    assert list((tmp_path / "cache" / "instructrec" / "models").iterdir()) == []
    missing = tmp_path / "none.gguf"
    assert refused(missing) == f"model: no such file: {missing}"


def test_bf16_is_taken_only_where_a_cuda_device_has_it_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    native = {"value": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    supported = lambda including_emulation=True: including_emulation or native["value"]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert backbone.compute_dtype("auto") == torch.float32
    native["value"] = True
    assert backbone.compute_dtype("auto") == torch.bfloat16


def test_a_hub_id_needs_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "model: 'someone/some-model' looks like a hub id, and the network is switched off"
    with pytest.raises(EnvironmentFault) as caught:
        load("someone/some-model")  # tests run with HF_HUB_OFFLINE=1
    assert str(caught.value) == message
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(EnvironmentFault) as caught:
        load("someone/some-model", offline=True)
    assert str(caught.value) == message


def test_an_unknown_name_offers_the_nearest() -> None:
    want = "model: 'smollm-135m' is no built-in model, folder or GGUF file (did you mean 'smollm2-135m'?)"
    assert refused("smollm-135m") == want
    want = "model: './nowhere' is no built-in model, folder or GGUF file (known: gemma-3-270m, smollm2-135m)"
    assert refused("./nowhere") == want


def test_folders_that_hold_no_model(copy: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == f"model: {tmp_path / 'empty'}: no config.json, this is not a model folder"
    folder = copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert refused(folder) == f"model: {folder}: no safetensors weights (found pytorch_model.bin, refused)"
    (folder / "pytorch_model.bin").unlink()
    assert refused(folder) == f"model: {folder}: no safetensors weights"
    config = folder / "config.json"
    config.write_text('{"model_type": ')
    assert refused(folder) == f"{config}: not JSON: Expecting value: line 1 column 16 (char 15)"
    for text in ("[]", "{}", '{"model_type": 3}', '{"model_type": ["llama"]}'):
        config.write_text(text)
        assert refused(folder) == f"{config}: model_type: missing, this is not a model's configuration"


def test_code_of_a_folder_is_never_run(copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    folder = copy(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    found = load(folder)  # Llama is built in: the folder's code is not needed
    assert found.notes == ("auto_map in config.json was ignored: the model type is built in",)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"evil"'))
    assert refused(folder) == f"{config}: auto_map: refused, this model needs code from its folder"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    config.write_text(config.read_text().replace('"evil"', '"llama"'))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert f"model: '{folder}' could not be loaded: The repository {folder} contains custom code" in refused(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation_internal", "eager"),
        ("_experts_implementation_internal", "eager"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", "someone/kernel@main:f"),
        ("text_config", {"model_type": "llama", "_attn_implementation_internal": "someone/kernel"}),
    ],
)
def test_keys_that_make_a_library_load_code(copy: Any, key: str, value: Any) -> None:
    folder = copy(**{key: value})
    named = "_attn_implementation_internal" if key == "text_config" else key
    want = f"{folder / 'config.json'}: {named}: refused, this key can make a library load code"
    assert refused(folder) == want
    with pytest.raises(InputError, match="refused, this key can make"):
        backbone.load_tokenizer(str(folder))


def test_an_implementation_of_the_library_is_no_code(copy: Any) -> None:
    assert load(copy(_attn_implementation="eager")).model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "whisper"}, "is an encoder-decoder (whisper) that is not from text to text; this version tunes no other"),
        ({"model_type": "fsmt"}, "is an encoder-decoder (fsmt) with a vocabulary for each side; this version tunes those with one for both"),
        ({"model_type": "marian", "share_encoder_decoder_embeddings": False}, "is an encoder-decoder (marian) with a vocabulary for each side; this version tunes those with one for both"),
        ({"model_type": "vit"}, "is no decoder (vit); this version tunes decoders, encoder-decoders and masked encoders"),
        ({"model_type": "mamba"}, "keeps no key/value cache (mamba); this version tunes decoders with one"),
        ({"model_type": "rwkv"}, "keeps no key/value cache (rwkv); this version tunes decoders with one"),
    ],
)  # fmt: skip
def test_only_what_can_be_tuned_is_taken(copy: Any, config: dict[str, Any], reason: str) -> None:
    folder = copy()
    (folder / "config.json").write_text(json.dumps(config))
    assert refused(folder) == f"model: '{folder}' {reason}"
    with pytest.raises(InputError) as caught:
        backbone.load_tokenizer(str(folder))
    assert str(caught.value) == f"model: '{folder}' {reason}"


def test_a_tokenizer_bigger_than_the_embedding(copy: Any) -> None:
    folder = copy("gpt2")
    tokenizer = tiny.tokenizer("gpt2")
    rows = len(tokenizer)
    tokenizer.add_tokens(["extra1", "extra2"])
    tokenizer.save_pretrained(folder)
    want = f"model: '{folder}': the tokenizer has {rows + 2} ids, the embedding only {rows} rows"
    assert refused(folder) == want


def test_a_missing_pad_token_is_replaced_by_the_end_token(copy: Any) -> None:
    folder = copy("gemma")
    tokenizer = tiny.tokenizer("gemma")
    assert load(folder).pad_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    found = load(folder)
    assert found.tokenizer.pad_token_id is None
    assert found.pad_id == found.tokenizer.eos_token_id


def test_missing_or_misshapen_weights_are_not_drawn_at_random(copy: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy()
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    shape = list(weights[name].shape)
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    want = f"(got [{shape[0] - 1}, {shape[1]}], want {shape})"
    assert refused(folder) == f"model: '{folder}': the weights do not fit config.json: {name} {want}"
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == f"model: '{folder}': the weights lack {name}"
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == f"model: '{folder}': the weights lack {name} and 1 more"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short, or not safetensors (got 0 bytes, want 8 for the header alone)"),
        (b"\xff" * 16, f"cut short, or not safetensors (got 16 bytes, want {2**64 + 7:,} for the header alone)"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer and not the weights (`git lfs pull` fetches them)",
        ),
    ],
)
def test_damaged_files_give_one_line(copy: Any, content: bytes, reason: str) -> None:
    folder = copy()
    (folder / "model.safetensors").write_bytes(content)
    assert refused(folder) == f"{folder / 'model.safetensors'}: {reason}"


def test_the_tokenizer_alone_brings_the_length_of_a_row(kind: str, tiny_folder: Any) -> None:
    tokenizer, length, found = backbone.load_tokenizer(str(tiny_folder(kind)))
    assert found.name == "decoder" and length == tiny.POSITIONS.get(kind, 256)
    assert tokenizer.get_vocab() == tiny.tokenizer(kind).get_vocab()


def test_a_long_window_is_cut_to_a_default(copy: Any) -> None:
    folder = copy(max_position_embeddings=100_000)
    assert backbone.load_tokenizer(str(folder))[1] == 2048
    found = load(folder)
    assert (found.max_positions, found.default_length) == (100_000, 2048)


def test_precision_names() -> None:
    assert backbone.compute_dtype("fp32") is torch.float32
    assert backbone.compute_dtype("bf16") is torch.bfloat16
    assert backbone.compute_dtype("auto") in (torch.bfloat16, torch.float32)
