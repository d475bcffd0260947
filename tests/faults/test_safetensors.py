"""FAULTS, input 18: safetensors files that are not what they say. All end as one line that names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from watch import watched

import tiny
from instructrec.errors import InputError
from instructrec.models import backbone
from instructrec.models.loading import read_tensors
from instructrec.models.methods import METHODS

MANY, FEWER = 10_000, 300
GROWTH = 50 << 20  # bytes of memory
SIZES = (0, 1, 2, 4, 32, 128, 2**31, 2**32, 2**62, 2**63, 2**64, -1)


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_entry(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with its first tensor's entry changed."""
    header, data = parts(raw)
    change(header[first(raw)])
    return joined(header, data)


def first(raw: bytes) -> str:
    return next(name for name in sorted(parts(raw)[0]) if name != "__metadata__")


def doubled(raw: bytes) -> bytes:
    header, data = parts(raw)
    name = first(raw)
    text = json.dumps(header)
    return joined(f'{text[:-1]}, "{name}": {json.dumps(header[name])}}}'.encode(), data)


def overlapping(raw: bytes) -> bytes:
    header, data = parts(raw)
    one, other = sorted(name for name in header if name != "__metadata__")[:2]
    header[other]["data_offsets"] = [start + 4 for start in header[one]["data_offsets"]]
    return joined(header, data)


TOO_SHORT = "cut short, or not safetensors (got {size} bytes, want {want} for the header alone)"
INVALID = "not safetensors: Error while deserializing header: "
CASES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "length 2^63": (lambda raw: (2**63).to_bytes(8, "little") + raw[8:], TOO_SHORT.replace("{want}", f"{2**63 + 8:,}")),
    "length past the end": (
        lambda raw: (len(raw) - 7).to_bytes(8, "little") + raw[8:],
        "cut short, or not safetensors (got {size} bytes, want {size_plus_1} for the header alone)",
    ),
    "no JSON": (
        lambda raw: raw[:8] + b"x" * (len(raw) - 8),
        "not safetensors: Expecting value: line 1 column 1 (char 0)",
    ),
    "a list": (lambda raw: joined(b"[]", b""), INVALID),
    "nested": (lambda raw: joined(b"[" * 4000, b""), "not safetensors: "),
    "overlap": (overlapping, INVALID),
    "offset past the end": (
        lambda raw: with_entry(raw, lambda entry: entry.update(data_offsets=[0, 2**40])),
        INVALID,
    ),
    "shape not of these bytes": (lambda raw: with_entry(raw, lambda entry: entry.update(shape=[4, 31])), INVALID),
    "shape overflows": (lambda raw: with_entry(raw, lambda entry: entry.update(shape=[2**63, 2**63])), INVALID),
    "shape negative": (lambda raw: with_entry(raw, lambda entry: entry.update(shape=[-4, -32])), INVALID),
    "unknown type": (lambda raw: with_entry(raw, lambda entry: entry.update(dtype="F31")), INVALID),
    "whole numbers": (
        lambda raw: with_entry(raw, lambda entry: entry.update(dtype="I32")),
        "{name}: not a weight (got numbers of type I32, want floating-point)",
    ),
    "a name twice": (doubled, "not safetensors: '{name}' stands there twice"),
    "last byte missing": (lambda raw: raw[:-1], INVALID),
    "one byte more": (lambda raw: raw + b"\0", INVALID),
    "pointer": (
        lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4096\n",
        "a Git LFS pointer and not the weights (`git lfs pull` fetches them)",
    ),
    "empty": (lambda raw: b"", TOO_SHORT.replace("{want}", "8")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_named_with_its_reason(case: str, adapter: Path) -> None:
    change, reason = CASES[case]
    file = adapter / "adapter_model.safetensors"
    name = first(file.read_bytes())
    file.write_bytes(change(file.read_bytes()))
    size = file.stat().st_size
    model = tiny.model("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as caught:
        METHODS["lora"].load(model, adapter)
    want = reason.format(size=f"{size:,}", size_plus_1=f"{size + 1:,}", name=name)
    got = str(caught.value)
    assert got.startswith(f"{file}: {want}") and "\n" not in got
    assert got == f"{file}: {want}" or want in (INVALID, "not safetensors: ")
    assert len(got) < len(f"{file}: {want}") + 200
    assert [name for name, _ in model.named_modules()] == before


def test_a_file_that_is_not_there(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError) as caught:
        METHODS["lora"].load(tiny.model("llama"), adapter)
    assert str(caught.value) == f"{file}: no such file (found adapter_model.bin, refused)"


def test_a_header_as_long_as_the_file_is_not_read_into_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with open(file, "wb") as handle:
        handle.write((2**40).to_bytes(8, "little"))
        handle.truncate(2**40 + 8)  # a hole: no disk is used
    with pytest.raises(InputError) as caught:
        read_tensors(file)
    want = f"the header is too long (got {2**40:,} bytes, want at most {16 << 20:,})"
    assert str(caught.value) == f"{file}: {want}"


def mutants(raw: bytes, number: int, seed: int) -> Iterator[bytes]:
    """Files made from `raw`: broken on purpose, cut, and with bytes of the header replaced at random."""
    draw = random.Random(seed)
    changes = [change for change, _ in CASES.values()]
    length = int.from_bytes(raw[:8], "little")
    for _ in range(number):
        kind = draw.randrange(16)
        if kind == 0:
            yield draw.choice(changes)(raw)
        elif kind == 1:
            yield (
                draw.choice([draw.randrange(2**64), draw.randrange(2 * length), length - 1, length + 1]).to_bytes(
                    8, "little"
                )
                + raw[8:]
            )
        elif kind == 2:
            yield raw[: draw.randrange(len(raw))]
        elif kind == 3:
            yield with_entry(raw, lambda entry: entry.update(data_offsets=draw.choices(range(-1, len(raw)), k=2)))
        elif kind == 4:
            yield with_entry(raw, lambda entry: entry.update(shape=draw.choices(SIZES, k=draw.randrange(5))))
        elif kind == 5:  # the same, written otherwise
            header, data = parts(raw)
            names = draw.sample(sorted(header), len(header))
            text = json.dumps({name: header[name] for name in names}, indent=draw.choice([None, 1, 4]))
            yield joined(text.encode() + b" " * draw.randrange(9), data)
        else:
            damaged = bytearray(raw)
            for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
                damaged[draw.randrange(8 + length)] = draw.choice(
                    [draw.randrange(256), draw.choice(b'0123456789"[]{},:-eFI')]
                )
            yield bytes(damaged)


def memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fuzz(file: Path, number: int, load: Callable[[], dict[str, torch.Tensor]]) -> dict[str, int]:
    """Load mutants of `file`: each is refused by name with a reason, or gives the tensors of the whole file."""
    raw, want, counts, start = file.read_bytes(), load(), {"refused": 0, "equal": 0}, 0
    for turn, mutant in enumerate(mutants(raw, number, seed=18)):
        if turn == number // 10:
            start = memory()
        file.write_bytes(mutant)
        try:
            got = load()
        except InputError as error:
            counts["refused"] += 1
            text = str(error)
            assert str(file.parent) in text and "\n" not in text and len(text) > len(str(file.parent)) + 10, text
            continue
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want), mutant[:2000]
        counts["equal"] += 1
    return counts | {"growth": memory() - start}


def test_ten_thousand_mutated_headers_of_an_adapter(adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    assert 3_000 < file.stat().st_size < 6_000
    model = tiny.model("llama")

    def load() -> dict[str, torch.Tensor]:
        tuned = METHODS["lora"].load(model, adapter)
        weights = {name: weight.detach().clone() for name, weight in tuned.state_dict().items() if "lora_" in name}
        tuned.unload()
        return weights

    seen = watched(lambda: fuzz(file, MANY, load), tmp_path / "none", tmp_path, seconds=300)
    assert (seen.signal, seen.events) == (0, []) and seen.code != -1, seen.err
    assert seen.code["refused"] + seen.code["equal"] == MANY
    assert seen.code["refused"] > 0.8 * MANY and seen.code["equal"] > 0.03 * MANY
    assert seen.code["growth"] < GROWTH
    print(seen.code, seen.seconds)


def test_mutated_headers_of_a_model(tiny_folder: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))

    def load() -> dict[str, torch.Tensor]:
        weights = backbone.load(str(folder), dtype=torch.float32).model.state_dict()
        return {name: weight.clone() for name, weight in weights.items()}  # else a view of the file that is changed

    load()
    seen = watched(lambda: fuzz(folder / "model.safetensors", FEWER, load), tmp_path / "none", tmp_path, seconds=300)
    assert (seen.signal, seen.events) == (0, []) and seen.code != -1, seen.err
    assert seen.code["refused"] + seen.code["equal"] == FEWER and seen.code["equal"] > 0.03 * FEWER
    assert seen.code["growth"] < GROWTH
    print(seen.code, seen.seconds)
