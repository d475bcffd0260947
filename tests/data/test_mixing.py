"""Shares of sources, rows dealt out exactly, and which rows an epoch meets."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec.config import Source, TuneSettings
from instructrec.data.mixing import Mixture, counts, shares
from instructrec.errors import DataError, InputError
from instructrec.recipes.rows import mixture, name_of, read_rows, sources_of
from instructrec.settings import resolve
from instructrec.training.batching import plan_epoch


def test_shares_by_weight_and_by_temperature() -> None:
    assert shares([10, 90], [3, 1]) == [0.75, 0.25]
    assert shares([10, 90], [None, 3]) == [0.25, 0.75]  # a source without a weight beside one with it has 1
    assert shares([10, 90], [None, None]) == pytest.approx([0.1, 0.9])
    assert shares([16, 64], [None, None], 2.0) == pytest.approx([1 / 3, 2 / 3])  # 4 : 8
    assert shares([1, 10**6], [None, None], 1e6) == pytest.approx([0.5, 0.5], abs=1e-4)
    assert shares([1, 2], [None, None], 1e-4) == pytest.approx([0, 1])  # no overflow
    assert shares([0, 5], [None, None], 2.0) == [0.0, 1.0]
    with pytest.raises(
        InputError, match=r"^mix_temperature: weights are given already \(got 2 as well, want one of them\)$"
    ):
        shares([1, 2], [1, None], 2.0)


def test_rows_are_dealt_out_exactly() -> None:
    assert counts([0.5, 0.3, 0.2], 10) == [5, 3, 2]
    assert counts([1 / 3, 1 / 3, 1 / 3], 10) == [4, 3, 3]
    assert counts([0.999, 0.001], 10) == [9, 1]  # no source is left out
    assert counts([1.0, 0.0], 3) == [3, 0]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    epochs=st.integers(1, 6), seed=st.integers(0, 9),
)  # fmt: skip
def test_over_epochs_every_row_of_a_source_is_met_equally_often(
    sizes: list[int], weights: list[float], epochs: int, seed: int
) -> None:
    dealt = counts(shares(sizes, weights[: len(sizes)]), sum(sizes))
    assert sum(dealt) == sum(sizes) and min(dealt) >= 1
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    rows = tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))
    mix = Mixture(rows, tuple(dealt), seed)
    met: Counter[int] = Counter()
    for epoch in range(epochs):
        chosen = mix.epoch(epoch).tolist()
        assert chosen == mix.epoch(epoch).tolist() and len(chosen) == sum(sizes)
        met.update(chosen)
    for own, count in zip(rows, dealt, strict=True):
        times = [met[row] for row in own]
        assert sum(times) == count * epochs and max(times) - min(times) <= 1


def test_an_epoch_has_the_rows_that_were_chosen() -> None:
    batches = plan_epoch([5, 6, 7, 8], seed=0, epoch=0, tokens=20, rows=2, chosen=[0, 0, 0, 2])
    assert sorted(row for batch in batches for row in batch) == [0, 0, 0, 2]


def put(folder: Path, name: str, rows: int) -> str:
    path = folder / name
    path.write_text("instruction,output\n" + "".join(f"say {name} {row},{row}\n" for row in range(rows)))
    return str(path)


def test_a_path_with_its_weight(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv:2", 1)
    assert sources_of([path, "b.csv:0.5", "c:d.csv"]) == [
        Source(path=path), Source(path="b.csv", weight=0.5), Source(path="c:d.csv"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^b.csv: weight out of range \(got 0, want a number above 0\)$"):
        sources_of("b.csv:0")
    names = ["data/b.csv:2", "data/b.jsonl.gz", "data/*.csv", "owner/name", "x/"]
    assert [name_of(name) for name in names] == ["b", "b", "data", "name", "x"]


def test_what_is_said_of_a_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = put(tmp_path, "a.csv", 30), put(tmp_path, "b.csv", 10)
    plain, weighted = TuneSettings(), TuneSettings(mix_temperature=2)
    rows = read_rows([a, b], plain)
    assert mixture(rows, rows.records, plain, 0) is None
    assert capsys.readouterr().out == f"2 sources, 40 rows an epoch: {a} 30 rows (75.0%), {b} 10 rows (25.0%)\n"
    rows = read_rows([f"{a}:1", f"{b}:1"], plain)
    mix = mixture(rows, rows.records, plain, 0)
    assert mix is not None and mix.counts == (20, 20)
    assert capsys.readouterr().out == (
        f"2 sources, 40 rows an epoch: {a} 20 rows (50.0%, of 30: 0.67 times each), "
        f"{b} 20 rows (50.0%, of 10: 2.00 times each)\n"
    )
    with pytest.raises(InputError, match="^mix_temperature: weights are given already"):
        mixture(rows, rows.records, weighted, 0)
    with pytest.raises(InputError, match="^mix_temperature: there is nothing to mix"):
        mixture(read_rows(a, plain), [], weighted, 0)
    with pytest.raises(InputError) as error:
        mixture(rows, rows.records[:1], plain, 0)
    assert str(error.value) == f"{b}: no rows to train on are left of it, and it has a weight (got 1)"
    with pytest.raises(InputError) as error:
        read_rows([a, str(tmp_path / "*.csv")], plain)
    assert str(error.value) == f"{a}: named twice (by {a} and {tmp_path}/*.csv, want each file in one source)"


def test_sources_in_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data:\n- a.tsv\n- path: b.csv\n  weight: 2\n  columns: {instruction: q, answer: a}\n  labels:\n    0: no\n    1: yes\n"
    )
    resolved = resolve(TuneSettings, file, [])
    source = Source(path="b.csv", weight=2, columns={"instruction": "q", "answer": "a"}, labels={"0": "no", "1": "yes"})
    assert resolved.data == ("a.tsv", source)
    file.write_text("data: {path: b.csv, instruction: 'Mood? {text}'}\n")
    assert resolve(TuneSettings, file, []).data == (Source(path="b.csv", instruction="Mood? {text}"),)


def test_each_source_is_read_in_its_own_way(tmp_path: Path) -> None:
    a, b = put(tmp_path, "a.csv", 2), tmp_path / "b.csv"
    b.write_text("q,a\nfine,1\n")
    source = Source(path=str(b), columns={"answer": "a"}, instruction="Mood? {q}", labels={"1": "good"})
    rows = read_rows([a, source], TuneSettings())
    assert [(row.instruction, row.answer) for row in rows][1:] == [("say a.csv 1", "1"), ("Mood? fine", "good")]
    assert [(part.name, part.weight) for part in rows.sources] == [(a, None), (str(b), None)]
    with pytest.raises(DataError, match="instruction: missing"):
        read_rows([a, str(b)], TuneSettings())
