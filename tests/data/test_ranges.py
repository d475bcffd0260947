"""Large files of lines read by several processes: cut at lines only, and all that is left is what one leaves."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from instructrec.data import Rows, ranges, readers
from instructrec.data.index import COLUMNS, Stored
from instructrec.data.ranges import ranges as cut
from instructrec.errors import DataError, EnvironmentFault

HEAD = "instruction\toutput\ttask\n"


def content(form: str, seed: int, bad: float = 0.2) -> bytes:
    """Good rows, bad ones, blank lines, a row of several columns more, ends of both kinds, long lines."""
    draw, lines = random.Random(seed), []
    for number in range(draw.randrange(1, 90)):
        task, text = f"t{draw.randrange(6)}", draw.choice(["x", "字", "y " * 300]) + str(number)
        row = {"instruction": text, "output": draw.choice(["yes", "no"]), "task": task}
        if form == "jsonl":
            row |= {f"more{draw.randrange(3)}": "z"} if draw.random() < 0.2 else {}
            row |= {"image": "a.png"} if draw.random() < 0.1 else {}
            line = json.dumps(row, ensure_ascii=False)
        else:
            line = "\t".join(row.values())
        if draw.random() < bad:
            line = draw.choice(["", "  ", "{", "[1]", "a\tb", '{"instruction": "a"}', "\x00"])
        lines.append(line + draw.choice(["\n", "\r\n"]))
    text = ("" if form == "jsonl" else HEAD) + "".join(lines)
    return (b"\xef\xbb\xbf" * (seed % 2) + text.encode())[: None if seed % 3 else -1]


def read(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, processes: int, skip: bool) -> Rows | list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(readers, "processes", lambda: processes)
    how = readers.How.of("auto", {}, "", {}, "skip" if skip else "stop")
    try:
        return readers.read_as(path, how, rejected=path.with_suffix(".bad"), on_disk=True)
    except DataError as error:
        return [str(error), *map(str, error.problems), str(error.total)]


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
@pytest.mark.parametrize("skip", [True, False])
def test_several_processes_leave_what_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, skip: bool
) -> None:
    monkeypatch.setattr(readers, "WORTH", 0)
    monkeypatch.setattr(ranges, "FIRST", 64)
    monkeypatch.setattr(ranges, "_BLOCK", 100)
    several = 0
    for seed in range(24):
        path = tmp_path / f"{seed}.{form}"
        path.write_bytes(content(form, seed, 0 if seed % 4 == 3 else 0.2))
        caches = tmp_path / f"one-{seed}", tmp_path / f"many-{seed}"
        found, rejected = [], []
        for at, processes in zip(caches, (1, 3), strict=True):
            bad = path.with_suffix(".bad")
            bad.unlink(missing_ok=True)
            found.append(read(path, at, monkeypatch, processes, skip))
            rejected.append(bad.read_bytes() if bad.exists() else b"")
        assert rejected[0] == rejected[1]
        one, many = found
        if isinstance(one, list) or isinstance(many, list):
            assert one == many
            continue
        several += len(one) > 20
        assert (one.files, one.read, one.rejected, one.notes) == (many.files, many.read, many.rejected, many.notes)
        assert one.files[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert isinstance(one.records, Stored) and isinstance(many.records, Stored)
        homes = [rows.records.indexes[0].home for rows in (one, many)]
        for name in (*COLUMNS, "index.json"):
            assert (homes[0] / name).read_bytes() == (homes[1] / name).read_bytes(), (seed, name)
        assert list(one) == list(many)
        assert sorted(os.listdir(homes[1].parent)) == [homes[1].name]  # nothing else is left
    assert several > 2


def test_ranges_begin_where_lines_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for _ in range(300):
        monkeypatch.setattr(ranges, "FIRST", draw.randrange(1, 40))
        monkeypatch.setattr(ranges, "_BLOCK", draw.randrange(1, 50))
        text = "".join(draw.choice(["\n", "a" * draw.randrange(30) + "\n"]) for _ in range(draw.randrange(1, 30)))
        raw = (text + "end" * draw.randrange(2)).encode()
        path = tmp_path / "rows"
        path.write_bytes(raw)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            found = cut(file.fileno(), len(raw), draw.randrange(1, 5), digest)
            pieces = [piece for one in found for piece in one.pieces(file.fileno())]
        assert digest.hexdigest() == hashlib.sha256(raw).hexdigest()
        assert [piece.raw for piece in pieces] == raw.removesuffix(b"\n").split(b"\n")
        assert [piece.line for piece in pieces] == list(range(1, len(pieces) + 1))
        assert all(raw[piece.start :].startswith(piece.raw) for piece in pieces)
        assert [one.end for one in found][:-1] == [one.start for one in found][1:] and found[-1].end == len(raw)


def test_a_process_that_dies_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "WORTH", 0)
    monkeypatch.setattr(ranges, "FIRST", 64)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": str(number), "output": "x"}) + "\n" for number in range(99)))
    here, real = os.getpid(), readers._read_part

    def part(*given: object) -> None:
        if os.getpid() != here:
            os._exit(9)
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(readers, "_read_part", part)
    with pytest.raises(EnvironmentFault, match=r"rows.jsonl: reading rows: a process ended early \(it was killed\)"):
        read(path, tmp_path / "cache", monkeypatch, 3, True)
    assert os.listdir(tmp_path / "cache" / "instructrec" / "rows") == []
