"""`instructrec compare`: from settings files to verdicts, killed in the middle, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import ended, start, wait_for
from run_files import TASKS, WORDS, load

from instructrec import cli
from instructrec.config import TuneSettings
from instructrec.data.readers import read
from instructrec.data.records import Record, Rows
from instructrec.errors import InputError
from instructrec.recipes import contestants, testrows
from instructrec.recipes.compare import Comparison, compare, seeds_of
from instructrec.recipes.contestants import Contestant
from instructrec.recipes.trial import Trial, hash_of

STEPS = ["precision=fp32", "threads=1", "batch_rows=4", "held_out=none"]


@pytest.fixture
def shop(tmp_path: Path, base: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A folder with settings files a.yaml and b.yaml and eight test rows; gives the words of a command."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("method: lora\nlearning_rate: 0.01\nseed: 7\n")
    Path("b.yaml").write_text("method: ia3\nlearning_rate: 0.02\n")
    lines = [f"Do {task} it\t{word}\t{make(word)}\t{task}" for task, make in TASKS.items() for word in WORDS[:2]]
    Path("test.tsv").write_text("instruction\tinput\toutput\ttask\n" + "\n".join(lines) + "\n")

    def words(*more: str) -> list[str]:
        given = ["a.yaml", "b.yaml", "rows.tsv", "--test", "test.tsv", "--out", "cmp", f"model={base}", *STEPS]
        return ["compare", *given, *(more or ("max_steps=2", "--seeds", "2"))]

    return words


def stamps() -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(Path("cmp/results").glob("*.json"))}


def test_from_settings_files_to_verdicts(
    shop: Any, undrawn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(shop()) == 0
    shown = capsys.readouterr()
    assert "a.yaml:3: seed: left aside, a comparison has seeds of its own (--seeds)" in shown.err
    assert "[4/4] b, seed 1" in shown.out and shown.out.splitlines()[-1] == "Comparison: cmp/comparison.html"
    made = stamps()
    assert list(made) == ["a-s0.json", "a-s1.json", "b-s0.json", "b-s1.json"]
    one = load(Path("cmp/results/b-s1.json"))
    assert (one["name"], one["seed"], one["method"], one["steps"], one["rows"]) == ("b", 1, "ia3", 2, 40)
    assert one["command"].startswith("instructrec compare a.yaml b.yaml rows.tsv --test test.tsv")
    assert one["identity"]["settings"]["learning_rate"] == 0.02 and one["identity"]["settings"]["seed"] == 1
    assert {"torch", "peft"} <= set(one["surroundings"]["packages"]) and len(one["hash"]) == 16
    suite = one["suites"]["test"]
    rows = list(read("test.tsv"))
    assert suite["rows"] == [record.key for record in rows] and len(suite["answers"]) == len(suite["nats"]) == 8
    first = [(text.strip().splitlines() or [""])[0].strip() for text in suite["answers"]]  # right answers are one line
    right = [100.0 * (text == record.answer) for text, record in zip(first, rows, strict=True)]
    assert suite["scores"]["exact_match"] == right
    runs = [load(Path(f"cmp/runs/{name}-s0/run.json")) for name in "ab"]
    assert runs[0]["settings"]["seed"] == 0 and runs[0]["data"]["files"] == runs[1]["data"]["files"]

    report = load(Path("cmp/comparison.json"))
    (entry,) = report["suites"]
    (pair,) = entry["pairs"]
    assert (entry["rows"], entry["units"], entry["unit"], entry["seeds"], entry["tasks"]) == (16, 8, "rows", [0, 1], 4)
    results = {
        name: [load(Path(f"cmp/results/{name}-s{seed}.json"))["suites"]["test"] for seed in (0, 1)] for name in "ab"
    }
    means = {
        name: sum(sum(part["nats"]) for part in parts) / sum(sum(part["tokens"]) for part in parts)
        for name, parts in results.items()
    }
    assert pair["metrics"]["loss"]["value"] == pytest.approx(means["a"] - means["b"])
    assert pair["metrics"]["loss"]["verdict"] in ("better", "hint", "none") and pair["metrics"]["loss"]["sentence"]
    assert report["differs"] == {
        "method": {"a": "lora", "b": "ia3"}, "learning_rate": {"a": "0.01", "b": "0.02"}
    }  # fmt: skip

    # The same command makes nothing; a setting that has changed is told, and its runs alone are made anew.
    assert cli.main(shop()) == 0 and stamps() == made
    assert "4 of 4 runs are there already" in capsys.readouterr().out
    Path("b.yaml").write_text("method: ia3\nlearning_rate: 0.03\n")
    assert cli.main(shop()) == 0
    told = capsys.readouterr()
    assert "b, seed 0: made anew, it was another run:\n  settings.learning_rate: was 0.02, is 0.03" in told.err
    now = stamps()
    assert [name for name in made if now[name] != made[name]] == ["b-s0.json", "b-s1.json"]
    assert load(Path("cmp/runs/b-s0/run.json"))["settings"]["learning_rate"] == 0.03


def test_a_kill_in_the_middle_costs_nothing_that_was_done(
    shop: Any, tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shop("max_steps=10", "--seeds", "4,", "save_steps=2")
    child = start(words, tmp_path / "printed", slow=0.4)
    first, second = Path("cmp/results/a-s4.json"), Path("cmp/runs/b-s4/checkpoints")
    wait_for(lambda: first.is_file() and any(second.glob("step-*")), child)
    os.kill(child.pid or 0, signal.SIGKILL)
    assert ended(child) == -9 and not Path("cmp/results/b-s4.json").exists()
    made, step = first.stat().st_mtime_ns, max(int(path.name[5:]) for path in second.glob("step-*"))
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 runs are there already" in shown and f"Going on after step {step} of 10" in shown
    assert first.stat().st_mtime_ns == made and load(Path("cmp/results/b-s4.json"))["steps"] == 10
    assert Path("cmp/comparison.html").is_file()


def test_from_python_with_rows_set_aside(base: Path, table: Path, tmp_path: Path, undrawn: None) -> None:
    given: dict[str, Any] = {"model": str(base), "precision": "fp32", "threads": 1, "held_out": "none", "max_steps": 1}
    found = compare(
        table,
        {"low": {"learning_rate": 1e-4}, "high": {"learning_rate": 1e-2}},
        seeds=[3],
        out=tmp_path / "cmp",
        **given,
    )
    assert isinstance(found, Comparison) and found.page == tmp_path / "cmp" / "comparison.html"
    assert found.report["differs"] == {"learning_rate": {"low": "0.0001", "high": "0.01"}}
    trained = load(tmp_path / "cmp" / "runs" / "low-s3" / "split.json")["train"]
    for suite in load(tmp_path / "cmp" / "results" / "low-s3.json")["suites"].values():
        assert suite["rows"]
    rows = list(read(table))
    tested = {rows[place].prompt_key for places in testrows.part(rows, 0.2, 3)[1].values() for place in places}
    assert not tested & set(trained) and len(tested) + len(trained) == 40
    verdict = found.verdict("low", "high", metric="loss")
    assert verdict["verdict"] in ("better", "hint", "none") and verdict["by_seed"] == [verdict["value"]]
    with pytest.raises(KeyError, match=r"no pair high, low: \(low, high\)"):
        found.verdict("high", "low")


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_set_aside_as_far_as_they_have_tasks_and_wordings() -> None:
    asks = ("Please", "Now", "Do", "Kindly")
    rows = [
        Record.of(f"{ask} {task} it", make(word), input=word, task=task)
        for task, make in TASKS.items() for word in WORDS for ask in asks
    ]  # fmt: skip
    parts = testrows.set_aside(Rows(tuple(rows)), 0.2)(1)
    train, suites = list(parts.train), parts.suites
    assert list(suites) == ["unseen_tasks", "unseen_wordings", "seen_wordings"]
    left = {record.instruction for record in train}
    assert not {record.task for record in suites["unseen_tasks"]} & {record.task for record in train}
    assert not {record.instruction for record in suites["unseen_wordings"]} & left
    assert {record.instruction for record in suites["seen_wordings"]} <= left
    assert len(train) + sum(map(len, suites.values())) == len(rows)
    keys = [{record.key for record in part} for part in (train, *suites.values())]
    assert sum(map(len, keys)) == len(set.union(*keys))
    assert "unseen tasks, " in parts.told and parts.told.endswith(f"; {len(train)} to tune on.")
    other, same = (testrows.set_aside(Rows(tuple(rows)), 0.2)(seed) for seed in (2, 1))
    assert other.suites["unseen_wordings"] != suites["unseen_wordings"] and same.suites == suites
    assert same.digests == parts.digests != other.digests and len(set(parts.digests.values())) == 4
    plain = [Record.of(f"question {number}?", f"answer {number}") for number in range(40)]
    assert list(testrows.part(plain, 0.25, 0)[1]) == ["unseen_rows"]
    fixed = [Record.of("Upper case.", word.upper(), input=word) for word in WORDS * 4]
    assert list(testrows.part([*fixed], 0.2, 0)[1]) == ["seen_wordings"]


def test_units_are_tasks_only_where_there_are_several() -> None:
    rows = [Record.of(str(number), "x", task=str(number % 5)) for number in range(20)]
    assert testrows.units(rows, 5) == ("tasks", [str(number % 5) for number in range(20)])
    assert testrows.units(rows, 6)[0] == "rows"
    grouped = [Record.of("a", "x", group="g"), Record.of("b", "x", group="g"), Record.of("c", "x")]
    assert testrows.units(grouped, 5)[1] == ["g", "g", grouped[2].key]


# -- settings ---------------------------------------------------------------------------------------------------------


def refusal(*words: str, capsys: Any) -> str:
    assert cli.main(["compare", *words]) == 2
    return str(capsys.readouterr().err.strip())


def test_what_is_refused(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*words: str) -> str:
        return refusal(*words, capsys=capsys)

    assert text("a.yaml", "rows.tsv") == (
        "a.yaml:3: seed: left aside, a comparison has seeds of its own (--seeds)\n"
        "compare: want two settings or more (got 1: name two files, or --vary KEY=A,B)"
    )
    Path("c.yaml").write_text("data: other.tsv\nmethod: ia3\n")
    Path("d.yaml").write_text("data: rows.tsv\nmethod: ia3\ncolumns: instruction=text\n")
    assert text("b.yaml", "c.yaml") == (
        "c: data: other rows than b (got other.tsv, want none: a comparison is over the same rows; name them on the "
        "command line)"
    )
    assert text("c.yaml", "d.yaml") == (
        "d: columns: rows are read otherwise than for c (got instruction=text, want none: a comparison is over the same "
        "rows)"
    )
    assert text("b.yaml", "b.yaml", "rows.tsv") == "b-2: the same settings as b (want settings that differ)"
    assert text("rows.tsv", "--vary", "method=lora,ia3", "--against", "lorra").startswith(
        "against: no setting of this name (got 'lorra', "
    )
    assert text("--vary", "method=lora,ia3").startswith("compare: no rows were named")
    assert text("rows.tsv", "--vary", "method") == (
        "vary: want a setting and its values (got 'method', want method=lora,prefix_tuning)"
    )
    assert text("rows.tsv", "--vary", "method=lora,ia3", "method=full") == (
        "vary: 'method' is given for all settings too (want one of the two)"
    )
    assert text("rows.tsv", "--vary", "metod=lora,ia3").startswith("command line: metod: unknown setting")
    assert text("rows.tsv", "--vary", "method=lora,ia3", "--seed", "5") == (
        "seed: a comparison has several (got 5, want --seeds 3 for 0, 1, 2 or --seeds 5,)"
    )
    assert text("rows.tsv", "--vary", "method=lora,ia3", "--seeds", "x") == (
        "seeds: want how many, or which (got 'x', want 3, or 0,5,7)"
    )
    assert text("rows.tsv", "--vary", "epochs=1,2", "--vary", "epochs=3,4").endswith(
        "'epochs' is varied twice (want all its values in one --vary)"
    )


def test_seeds() -> None:
    assert seeds_of("3") == [0, 1, 2] and seeds_of("5,7") == [5, 7] and seeds_of("5,") == [5]
    for wrong in ("0", "1,1", "101", "-1", "²"):
        with pytest.raises(InputError, match="^seeds: want"):
            seeds_of(wrong)


def test_a_grid_leaves_out_what_comes_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    axes = contestants.axes_of(["method=lora,ia3", "lora.rank=4,16"])
    found = contestants.from_files([], [], axes)
    assert [one.name for one in found] == ["method=lora, rank=4", "method=lora, rank=16", "method=ia3, rank=4"]
    assert [one.slug for one in found][0] == "method=lora-rank=4"
    assert "method=ia3, rank=16: left out, it comes to the same as method=ia3, rank=4" in capsys.readouterr().err
    assert contestants.axes_of(["strokes=1;1,2"]) == {"strokes": ["1", "1,2"]}
    python = contestants.from_python({"x": {"lora": {"rank": 2}}}, {"lora.dropout": [0.0, 0.1]}, {"lora": {"alpha": 8}})
    assert [(one.name, one.settings.lora.rank, one.settings.lora.alpha, one.settings.lora.dropout) for one in python] == [
        ("x, dropout=0.0", 2, 8.0, 0.0), ("x, dropout=0.1", 2, 8.0, 0.1),
    ]  # fmt: skip


def test_settings_files_from_python(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"epochs: {ord(name)}\n")
    found = contestants.from_python(
        [tmp_path / "a.yaml", tmp_path / "b.yaml"], {"strokes": [1, 2]}, {"lora": {"rank": 3}}
    )
    assert [(one.name, one.settings.epochs, one.settings.strokes, one.settings.lora.rank) for one in found] == [
        ("a, strokes=1", 97.0, "1", 3), ("a, strokes=2", 97.0, "2", 3),
        ("b, strokes=1", 98.0, "1", 3), ("b, strokes=2", 98.0, "2", 3),
    ]  # fmt: skip
    with pytest.raises(InputError, match="too few settings"):
        contestants.from_python(None, {"method": []}, {})


def test_another_model_under_the_same_name_is_another_run(base: Path, table: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    one = Contestant("x", TuneSettings(model=str(tmp_path / "model")))
    rows = testrows.set_aside(read(table), 0.2)(0)
    before = Trial(one, 0, rows, tmp_path, None).identity()
    file = tmp_path / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = Trial(one, 0, rows, tmp_path, None).identity()
    assert [key for key in before if before[key] != after[key]] == ["files"] and list(after["files"]) == ["model"]
    assert hash_of(before) != hash_of(after)
    assert Trial(one, 0, testrows.set_aside(read(table), 0.3)(0), tmp_path, None).identity()["rows"] != after["rows"]


def test_names_that_would_be_one_file_get_a_number() -> None:
    given = [Contestant(name, TuneSettings(epochs=epochs)) for name, epochs in (("a b", 1), ("A-b", 2), ("?", 3))]
    found = contestants.checked(given)
    assert [one.slug for one in found] == ["a-b", "A-b-2", "setting"]
    assert len({one.slug.lower() for one in found}) == 3 and all(re.fullmatch(r"[\w.=-]+", one.slug) for one in found)
