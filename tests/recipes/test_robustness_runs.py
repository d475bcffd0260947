"""Rows clean and damaged through a tiny model: the same rows, every figure of the report, and attacks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import instructrec
import tiny
from instructrec.config import TuneSettings
from instructrec.data.records import Record, Turn
from instructrec.errors import InputError
from instructrec.evaluation.arms import Bench
from instructrec.evaluation.report import render
from instructrec.inference.loading import open_target
from instructrec.prompts.template import Renderer
from instructrec.recipes import adversarial, bias
from instructrec.recipes.check import check
from instructrec.recipes.damage import Damager, damager, wordings_of
from instructrec.recipes.robustness import NAMES, chosen
from pagetext import Page

torch.set_num_threads(1)
WORDS = "red blue green house lamp order parcel noon".split()
WORDINGS = {
    "upper": ("Write the following word in capitals", "Change this word into capitals please"),
    "double": ("Repeat the given word two times", "Write the word twice please"),
}
ROWS = [
    {
        "instruction": wording,
        "input": word,
        "output": word.upper() if task == "upper" else f"{word} {word}",
        "task": task,
    }
    for task, wordings in WORDINGS.items()
    for wording in wordings
    for word in WORDS[:6]
]
MOODS = [
    {
        "instruction": "Which mood has the following sentence: sad or glad?",
        "input": f"The {word} is {how} today",
        "output": mood,
    }
    for mood, how in (("sad", "broken"), ("glad", "splendid"))
    for word in WORDS
]
QUICK = {"precision": "fp32", "threads": 1, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    base = tiny.folder("qwen", place / "base")
    settings = {
        "model": str(base),
        "max_steps": 12,
        "held_out": "none",
        "tensorboard": False,
        "learning_rate": 3e-2,
        "precision": "fp32",
        "threads": 1,
    }
    return instructrec.tune(MOODS, out=place / "run", **settings).folder


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report")
    instructrec.evaluate(run, MOODS, arms="base,tuned", robustness="full", out=str(out), training_rows=True, **QUICK)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def loaded_bench(run: Path) -> Bench:
    return Bench(open_target(str(run), precision="fp32"), (), shots=1, seed=0, batch_rows=4)


def test_every_figure_is_there(report: dict[str, Any]) -> None:
    found = report["robustness"]
    assert (found["rows"], found["metric"], found["arms"]) == (16, "accuracy", ["base", "tuned"])
    names = [entry["name"] for entry in found["perturbations"]]
    assert {"typos", "case", "options", "distractor_before", "text_first", "template_alpaca", "template_plain"} <= {
        *names
    }
    assert {*names} <= {*NAMES} and {check["name"] for check in report["bias"]} <= {*bias.NAMES}  # for --require
    assert names[-2:] == ["adversarial", "adversarial_wording"] and not {"homophones", "width", "paraphrase"} & {*names}
    for entry in found["perturbations"]:
        for arm in found["arms"]:
            clean, after, apart = (entry[key][arm] for key in ("clean", "scores", "difference"))
            assert clean["n"] == after["n"] == entry["rows"] > 0
            assert apart["value"] == pytest.approx(after["value"] - clean["value"])
            assert 0 <= entry["flips"][arm]["low"] <= entry["flips"][arm]["value"] <= 100
            assert (arm in entry["drop"]) == (clean["low"] > 0)
            if arm in entry["drop"]:
                assert entry["drop"][arm]["value"] == pytest.approx(100 * (1 - after["value"] / clean["value"]))
    (suite,) = report["suites"]
    for arm in found["arms"]:  # all rows were taken, so that it is the suite's own score
        assert found["clean"][arm]["value"] == suite["scores"][arm]["accuracy"]["value"]
        plain = [
            entry["scores"][arm]["value"]
            for entry in found["perturbations"]
            if entry["kind"] != "adversarial" and entry["rows"] == 16
        ]
        assert found["worst_case"][arm]["value"] <= min([*plain, found["clean"][arm]["value"]])
    assert found["clean"]["tuned"]["value"] > found["worst_case"]["tuned"]["value"]  # it has learned something to lose
    assert {example["arm"] for example in found["examples"]} == {"tuned"}
    assert all(
        one["clean"] != one["damaged"] and one["clean_answer"] != one["damaged_answer"] for one in found["examples"]
    )
    assert found["adversarial"]["rows"] == 16 and 0 < found["adversarial"]["queries"] <= adversarial.QUERIES + 1


@pytest.mark.parametrize("extract", [True, False])
def test_damaged_answers_are_scored_as_the_suite_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extract: bool
) -> None:
    written = Renderer.decode
    monkeypatch.setattr(Renderer, "decode", lambda self, ids: f"It is {written(self, ids)}!\nThat is all.")
    given = {"arms": "base,tuned", "robustness": "full", "perturbations": "case,options", "training_rows": True}
    report = instructrec.evaluate(run, MOODS, extract=extract, out=str(tmp_path), **given, **QUICK).report
    found, (suite,) = report["robustness"], report["suites"]
    for arm in found["arms"]:  # value and interval
        assert found["clean"][arm] == suite["scores"][arm]["accuracy"]
    assert (found["clean"]["tuned"]["value"] > 50) == extract
    turned = [one for one in found["perturbations"] if one["scores"]["tuned"] != one["clean"]["tuned"]]
    assert bool(turned) == bool(found["examples"]) == extract  # no text as a whole is a label
    assert all(one["clean_answer"].startswith("It is ") for one in found["examples"])  # shown as it was written
    assert found["adversarial"]["clean"]["tuned"] == found["clean"]["tuned"]


def test_another_ending_is_no_other_answer(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = itertools.count()
    monkeypatch.setattr(Renderer, "decode", lambda self, ids: f"sad\n{next(endings)}")
    given = {"arms": "tuned", "perturbations": "case", "training_rows": True, **QUICK}
    flips = [
        instructrec.evaluate(run, MOODS, extract=extract, out=str(tmp_path), **given).report["robustness"][
            "perturbations"
        ][0]["flips"]["tuned"]["value"]
        for extract in (True, False)
    ]
    assert flips == [0.0, 100.0]


def test_words_that_stand_for_labels_are_right_under_damage_too(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Renderer, "accepted", lambda self, answers: ["sad", "glad"])
    given = {"arms": "tuned", "robustness": "full", "perturbations": "case", "training_rows": True, **QUICK}
    report = instructrec.evaluate(run, MOODS, out=str(tmp_path), **given).report
    assert report["robustness"]["clean"]["tuned"] == report["suites"][0]["scores"]["tuned"]["accuracy"]


def test_curves_begin_undamaged_and_go_on_by_strength(report: dict[str, Any]) -> None:
    curves = {curve["name"]: curve["points"] for curve in report["robustness"]["curves"]}
    assert {*curves} == {"typos", "drop_words", "distractor_before"}
    for name, points in curves.items():
        own = next(entry for entry in report["robustness"]["perturbations"] if entry["name"] == name)
        assert [point["strength"] for point in points] == sorted({0.0, 0.1, 0.6, 1.0, own["strength"]})
        assert points[0]["scores"] == own["clean"]
        at = next(point for point in points if point["strength"] == own["strength"])
        assert at["scores"] == own["scores"]


def test_a_real_report_is_in_chinese_where_asked(run: Path, report: dict[str, Any]) -> None:
    named = json.loads(json.dumps(report).replace(str(run.parent), "runs"))  # the folder has words of its own
    page = Page(render(named | {"language": "zh"}))
    assert page.english == [] and "模板“alpaca”" in page.words


def test_rows_are_drawn_by_seed_and_bounded(run: Path, tmp_path: Path) -> None:
    given = {"arms": "tuned", "robustness_rows": 3, "perturbations": "typos:1,case", "training_rows": True, **QUICK}
    found = [
        instructrec.evaluate(run, MOODS, out=str(tmp_path / str(number)), seed=seed, **given).report["robustness"]
        for number, seed in enumerate((1, 1, 2))
    ]
    for one in found:
        del one["seconds"]
    assert found[0] == found[1] != found[2]
    assert found[0]["rows"] == 3 and found[0]["arms"] == ["tuned"] and found[0]["adversarial"] is None
    assert [(one["name"], one["strength"]) for one in found[0]["perturbations"]] == [("typos", 1.0), ("case", 0.5)]


def test_none_means_none(run: Path, tmp_path: Path) -> None:
    found = instructrec.evaluate(
        run, MOODS[:2], arms="base", robustness="none", out=str(tmp_path), training_rows=True, **QUICK
    )
    assert "robustness" not in found.report
    found = instructrec.evaluate(
        run, MOODS[:2], arms="few_shot", out=str(tmp_path), training_rows=True, **QUICK
    )  # nothing to compare with
    assert "robustness" not in found.report
    again = instructrec.evaluate(
        run.parent / "base", MOODS[:2], arms="reread", strokes=2, perturbations="case", out=str(tmp_path), **QUICK
    )
    assert again.report["robustness"]["arms"] == ["reread"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("typoes", "perturbations: unknown 'typoes', did you mean 'typos'?"),
        ("typos:2", "perturbations: typos: strength out of range (got '2', want above 0, to 1)"),
        ("typos:much", "perturbations: typos: strength out of range (got 'much', want above 0, to 1)"),
        (" , ", "perturbations: none is named (want auto, or names such as typos,case:0.5)"),
    ],
)
def test_what_is_wrong_with_perturbations_is_said_first(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        instructrec.evaluate("no such model", "no such file", perturbations=given, out=str(tmp_path / "out"))
    assert str(caught.value) == message
    assert [(way.name, strength) for way, strength in chosen("typos, options:0.5", "quick")] == [
        ("typos", 0.3),
        ("options", 1.0),
    ]


def test_a_row_is_damaged_alike_in_any_company() -> None:
    records = [Record.of(row["instruction"], row["output"], input=row["input"], task=row["task"]) for row in ROWS]
    ready = damager(records, (), None, 0, "instruction")
    alone = [damager(records, (), None, 0, "instruction").damaged(record, "typos", 0.5) for record in reversed(records)]
    assert [ready.damaged(record, "typos", 0.5) for record in records] == alone[::-1]
    assert [ready.damaged(record, "typos", 0.0) for record in records] == records
    other = damager(records, (), None, 1, "instruction")
    assert [other.damaged(record, "typos", 0.5) for record in records] != alone[::-1]


def test_only_the_last_question_changes() -> None:
    turns = (
        Turn("system", "Be kind please"),
        Turn("user", "Hello there"),
        Turn("assistant", "Good morning", True),
        Turn("user", "Write something friendly"),
        Turn("assistant", "Lovely", True),
    )
    record = Record(turns, task="talk", alternatives=("Nice",))
    after = Damager().damaged(record, "typos", 1.0)
    assert after.turns[:3] == turns[:3] and after.turns[4] == turns[4] and after.turns[3] != turns[3]
    assert (after.task, after.answers, after.origin) == (record.task, record.answers, record.origin)
    same = Damager().damaged(record, "options", 1.0)
    assert same is record  # nothing to damage


def test_wordings_are_those_used_alike() -> None:
    records = [Record.of(row["instruction"], row["output"], input=row["input"], task=row["task"]) for row in ROWS]
    assert wordings_of(records) == {task: tuple(sorted(wordings)) for task, wordings in WORDINGS.items()}
    names = [Record.of(f"What is said of {word}?", "good", input=f"{word} is {word}", task="about") for word in WORDS]
    assert wordings_of(names) == {}  # each names what it asks about
    asks = [
        Record.of(text, answer, input=word, task="ask")
        for text, answer in (("Is it red?", "yes"), ("Is it blue?", "no"))
        for word in WORDS
    ]
    assert wordings_of(asks) == {}  # the same input has another answer
    found = damager(records, (), None, 0, "instruction").damaged(records[0], "paraphrase", 1.0)
    assert found.instruction == WORDINGS["upper"][1] and found.answer == records[0].answer


@pytest.mark.parametrize("labels", [("sad", "glad"), None])
def test_an_attack_hurts_more_than_chance_and_keeps_to_its_budget(run: Path, labels: Any) -> None:
    bench = loaded_bench(run)
    records = [Record.of(row["instruction"], row["output"], input=row["input"]) for row in MOODS[::4]]
    ready = damager(records, (), labels, 0, "instruction")
    found = adversarial.attack_rows(bench, "tuned", ready, records, labels, 0)
    again = adversarial.attack_rows(bench, "tuned", ready, records, labels, 0)
    assert found == again and found is not None
    assert {*found.records} == {*range(len(records))} and found.queries <= (adversarial.QUERIES + 1) * len(records)
    with bench.model_of("tuned") as model:
        ask = adversarial._margin(bench, model, labels) if labels else adversarial._loss(bench, model)
        before, after = ask(records), ask(list(found.records.values()))
        drawn = ask([ready.damaged(record, "typos", 0.2) for record in records])
    assert (after >= before - 1e-4).all() and after.mean() > max(before.mean(), drawn.mean())
    for row, record in found.records.items():
        assert record.answer == records[row].answer and record.input == records[row].input
        assert "sad or glad" in record.instruction or labels is None


def test_a_wording_is_attacked_for_all_rows_that_share_it(run: Path) -> None:
    bench = loaded_bench(run)
    records = [Record.of(row["instruction"], row["output"], input=row["input"]) for row in MOODS]
    ready = damager(records, (), ("sad", "glad"), 0, "instruction")
    found = adversarial.attack_wordings(bench, "tuned", ready, records, ("sad", "glad"), 0)
    assert found is not None
    assert len({record.instruction for record in found.records.values()}) == 1
    assert {*found.records} == {*range(len(records))}
    alone = [Record.of(f"Say {word} once more", word, input=word) for word in WORDS]
    assert (
        adversarial.attack_wordings(bench, "tuned", damager(alone, (), None, 0, "instruction"), alone, None, 0) is None
    )


def test_a_row_that_no_longer_fits_stays_clean(run: Path, tmp_path: Path) -> None:
    long = [
        row | {"input": "no " * 66} for row in MOODS[:2]
    ]  # fits into 256 positions, but not with five sentences more
    found = instructrec.evaluate(
        run, long, arms="tuned", perturbations="distractor_before:1,case", out=str(tmp_path), **QUICK
    )
    assert [one["name"] for one in found.report["robustness"]["perturbations"]] == ["case"]


def test_damaged_rows_can_be_looked_at(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MOODS), encoding="utf-8")
    check(["rows.jsonl"], [], TuneSettings(model=str(run.parent / "base")), damaged=1)
    shown = capsys.readouterr().out
    assert "rows.jsonl:1: Which mood has the following sentence: sad or glad?" in shown
    assert "Which mood has the following sentence: glad or sad?" in shown and "rows.jsonl:2" not in shown
    first = Damager(("glad", "sad")).damaged(
        Record.of(MOODS[0]["instruction"], "sad", input=MOODS[0]["input"]), "typos", 0.3
    )
    assert first.instruction in shown and np.char.find(shown, first.input) > 0
