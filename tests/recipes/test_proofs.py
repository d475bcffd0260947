"""A whole evaluation on a tiny run that kept rows for testing: suites, references, ranking, and rows of our own."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import load, refused

import instructrec
import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference.loading import open_target
from instructrec.measures.metrics import label_set
from instructrec.measures.statistics import Statistic, paired_difference
from instructrec.recipes.known import Known, kept_rows
from instructrec.training.loss import row_losses

QUICK = {"precision": "fp32", "threads": 1}
WORDS = "red blue green house lamp order parcel noon".split()
ROWS = [
    {"instruction": f"{asks} {task}?", "input": f"the {word} {word}", "output": "yes" if len(word) > 4 else "no", "task": task}
    for task in "abcdefg" for asks in ("Is it", "Would you call this") for word in WORDS
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("proofs")
    base = tiny.folder("qwen", place / "base")
    given = {
        "model": str(base),
        "max_steps": 3,
        "held_out": "none",
        "trackers": "none",
        "learning_rate": 1e-2,
        "test_share": 0.2,
    }
    return instructrec.tune(ROWS, out=place / "run", **given, **QUICK).folder


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """report.json and answers.jsonl of the rows that the run kept for testing."""
    out = tmp_path_factory.mktemp("report")
    instructrec.evaluate(
        run, out=str(out), arms="base,tuned", suites="bias,constraints,forgetting", robustness="none", **QUICK
    )
    return load(out / "report.json"), [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_the_test_part_is_stored_and_never_trained_on(run: Path) -> None:
    kept, split, parts = kept_rows(run), load(run / "split.json"), load(run / "run.json")["data"]["parts"]
    assert kept is not None and {"train": len(split["train"]), "test": len(kept)} == parts
    assert sum(parts.values()) == len(ROWS) and [row.prompt_key for row in kept] == split["test"]
    assert not {*split["train"]} & {*split["test"]}
    given = {(row["instruction"], row["input"], row["output"], row["task"]) for row in ROWS}
    assert {(row.instruction, row.input, row.answer, row.task) for row in kept} <= given
    known = Known.of(run, load(run / "run.json"))
    assert known.traits is not None and known.index is not None
    assert len(known.index) == len(known.origins) == known.traits.rows == parts["train"]
    assert known.traits.tasks.isdisjoint({row.task for row in kept} - known.traits.tasks)


def test_suites_come_from_the_test_part(run: Path, report: Any) -> None:
    found, samples = report
    kept = kept_rows(run)
    assert kept is not None
    suites = {suite["kind"]: suite for suite in found["suites"]}
    assert list(suites) == ["seen", "unseen_wordings", "unseen_tasks"] and {
        suite["file"] for suite in suites.values()
    } == {str(run / "test.jsonl")}
    trained = Known.of(run, load(run / "run.json")).traits
    assert trained is not None
    assert suites["unseen_tasks"]["rows"] == sum(row.task not in trained.tasks for row in kept) > 0
    assert sum(suite["rows"] for suite in suites.values()) == len(kept) == len(samples)
    assert Counter(sample["kind"] for sample in samples) == {kind: suite["rows"] for kind, suite in suites.items()}
    assert suites["seen"]["clusters"] == "tasks" and found["interval"].endswith("rows, wordings or tasks")


def test_a_sample_tells_what_was_asked_written_and_taken(run: Path, report: Any) -> None:
    _, samples = report
    for sample in samples:
        assert sample["rendered"]["base"] == sample["rendered"]["tuned"] and len(sample["target"]) == 16
        for arm in ("base", "tuned"):
            assert sample["extracted"][arm]["rule"] in ("whole", "first_line", "label", "none")
            right = sample["extracted"][arm]["text"].casefold() == sample["expected"]
            assert sample["scores"][arm]["exact_match"] == 100.0 * right
            assert sample["ranked"][arm]["label"] in ("yes", "no") and 0.5 <= sample["ranked"][arm]["confidence"] <= 1
    assert len({sample["rendered"]["base"] for sample in samples}) == len({sample["prompt"] for sample in samples})
    assert len({sample["target"] for sample in samples}) == 2


def test_ranking_is_what_one_pass_over_each_label_says(run: Path, report: Any) -> None:
    _, samples = report
    kept = kept_rows(run)
    assert kept is not None
    loaded = open_target(str(run), precision="fp32")
    by_key = {row.prompt_key: row for row in kept}
    for sample in samples[:6]:
        row = by_key[sample["prompt"]]
        shown = [loaded.renderer.render(Record.of(row.instruction, label, input=row.input)) for label in ("no", "yes")]
        # Without the end of the answer, as neither label begins the other.
        words = [_without_end(loaded, one) for one in shown]
        nats = np.array([-total for total, _ in row_losses(loaded.model, words, pad_id=0, batch_tokens=1000)])
        share = np.exp(nats) / np.exp(nats).sum()
        assert sample["ranked"]["tuned"]["label"] == ("no", "yes")[int(share.argmax())]
        assert sample["ranked"]["tuned"]["confidence"] == pytest.approx(share.max(), abs=1e-3)


def _without_end(loaded: Any, row: Any) -> Any:
    from dataclasses import replace

    size = row.prompt_end + len(
        loaded.renderer.answer_ids(Record.of("x", loaded.renderer.decode(row.ids[row.prompt_end :])))[0]
    )
    return replace(row, ids=row.ids[:size], supervised=[False] * row.prompt_end + [True] * (size - row.prompt_end))


def test_chance_and_majority_stand_beside_the_scores(run: Path, report: Any) -> None:
    found, samples = report
    trained = {*load(run / "split.json")["train"]}
    answers: dict[str, Counter[str]] = {}
    for row in ROWS:
        if Record.of(row["instruction"], input=row["input"]).prompt_key in trained:
            answers.setdefault(row["task"], Counter())[row["output"]] += 1
    commonest = {task: min(counts, key=lambda answer: (-counts[answer], answer)) for task, counts in answers.items()}
    total = sum(answers.values(), Counter())
    overall = min(total, key=lambda answer: (-total[answer], answer))
    for suite in found["suites"]:
        own = [sample for sample in samples if sample["suite"] == suite["name"]]
        references = suite["references"]
        assert references["chance"] == {"exact_match": 50.0, "accuracy": 50.0, "macro_f1": None, "token_f1": None}
        right = [commonest.get(sample["task"], overall) == sample["expected"] for sample in own]
        assert references["majority"]["accuracy"] == pytest.approx(100 * np.mean(right))
        assert references["majority_from"] == "the training rows"
        for arm in ("base", "tuned"):
            right = [sample["ranked"][arm]["label"] == sample["expected"] for sample in own]
            assert suite["ranked"][arm]["accuracy"]["value"] == pytest.approx(100 * np.mean(right))
            bins = suite["calibration"][arm]["bins"]
            assert sum(one["n"] for one in bins) == suite["rows"]
            error = sum(abs(one["accuracy"] - one["confidence"]) * one["n"] for one in bins if one["n"]) / suite["rows"]
            assert suite["calibration"][arm]["ece"]["value"] == pytest.approx(error)


def test_forgetting_is_the_loss_of_the_same_rows_before_and_after(run: Path, report: Any) -> None:
    from instructrec.evaluation.probes import probe

    found = report[0]["forgetting"]
    loaded = open_target(str(run), precision="fp32")
    records = [Record.of(row["q"], row["a"]) for rows in probe("general").values() for row in rows]
    rows = [loaded.renderer.render(record) for record in records]
    after = row_losses(loaded.model, rows, pad_id=0, batch_tokens=4096)
    with loaded.untuned() as model:
        before = row_losses(model, rows, pad_id=0, batch_tokens=4096)
    sums = [Statistic(np.array(one, dtype=float), lambda total: total[:, 0] / total[:, 1]) for one in (after, before)]
    wanted = paired_difference(*sums)
    difference = found["loss"]["difference"]
    assert found["rows"] == 60 and difference["value"] == pytest.approx(wanted.value, abs=1e-6)
    assert (difference["low"], difference["high"]) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert difference["value"] == pytest.approx(found["loss"]["after"]["value"] - found["loss"]["before"]["value"])
    assert list(found["by_part"]) == ["knowledge", "arithmetic", "language", "instructions"]
    assert sum(part["before"]["n"] for part in found["by_part"].values()) == 60


def test_constraints_and_bias_are_told_of_both_arms(report: Any) -> None:
    kept = report[0]["constraints"]
    assert (
        kept["rows"] == kept["scores"]["base"]["all"]["n"] == 40 and "chinese" not in kept["by_kind"]
    )  # as the rows are
    assert set(kept["scores"]) == {"base", "tuned"} and {"implied", "english", "json_keys"} <= set(kept["by_kind"])
    for arm, scores in kept["scores"].items():
        parts = [kept["by_kind"][name][arm] for name in ("english", "chinese") if name in kept["by_kind"]]
        whole = sum(part["value"] * part["n"] for part in parts) / kept["rows"]
        assert scores["all"]["value"] == pytest.approx(whole) and scores["all"]["value"] <= scores["each"]["value"]
    assert all(example["broken"] and example["answer"] == example["answers"]["tuned"] for example in kept["examples"])
    names = [check["name"] for check in report[0]["bias"]]
    assert names == [
        "label_bias",
        "content_free",
        "option_position",
        "option_order",
        "counterfactual_names",
        "counterfactual_genders",
        "counterfactual_cities",
    ]
    for check in report[0]["bias"]:
        assert set(check["arm"]) == {"base", "tuned"} and check["ideal"] == 0 and check["rows"] > 0
        assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 100 for one in check["arm"].values())


def test_near_copies_of_training_rows_are_counted(run: Path, tmp_path: Path) -> None:
    first = next(
        row
        for row in ROWS
        if Record.of(row["instruction"], input=row["input"]).prompt_key in load(run / "split.json")["train"]
    )
    rows = [
        first | {"input": first["input"].upper() + "!"},
        first | {"input": "something else entirely that nobody wrote"},
        first,
    ]
    found = instructrec.evaluate(
        run, rows, arms="tuned", max_new_tokens=1, suites="none", robustness="none", out=str(tmp_path), **QUICK
    )
    (suite,) = found.report["suites"]
    overlap = suite["overlap"]
    assert (suite["rows"], overlap["exact"], overlap["near"]) == (2, 0, 1)
    (pair,) = overlap["near_examples"]
    assert pair["origin"] == "<memory>:1" and pair["trained"].startswith("<memory>:")
    assert f"1 of 2 rows nearly repeats a training row (<memory>:1 = {pair['trained']})" in suite["notes"]


def test_a_run_made_before_stays_readable(run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    for name in ("traits.json", "signatures.safetensors", "test.jsonl"):
        (old / name).unlink()
    fresh = ROWS[0] | {"instruction": "What then?"}
    found = instructrec.evaluate(
        old,
        [fresh, *ROWS],
        rows=3,
        arms="tuned",
        max_new_tokens=1,
        suites="none",
        robustness="none",
        out=str(tmp_path / "out"),
        **QUICK,
    )
    (suite,) = found.report["suites"]
    assert suite["kind"] == "all" and "near" not in suite["overlap"]
    assert refused(instructrec.evaluate, old) == (
        f"no rows were named (want a file: instructrec evaluate {old} rows.tsv; {old} kept none for testing (tune --test-share))"
    )


def test_damaged_files_are_named(run: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "signatures.safetensors").write_bytes(b"no tensors here")
    (broken / "test.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"test\.jsonl: not as tune wrote it \('turns'\)"):
        instructrec.evaluate(broken)
    with pytest.raises(InputError, match=r"signatures\.safetensors: not as tune wrote it"):
        instructrec.evaluate(broken, ROWS[:1], out=str(tmp_path / "out"))


def test_only_training_rows_are_nothing_to_measure(run: Path, tmp_path: Path) -> None:
    keys = {*load(run / "split.json")["train"]}
    rows = [row for row in ROWS if Record.of(row["instruction"], input=row["input"]).prompt_key in keys]
    assert refused(instructrec.evaluate, run, rows, out=str(tmp_path / "out")) == (
        f"every row was trained on (got {len(rows)} rows; --training-rows measures them)"
    )
    assert label_set([row["output"] for row in rows]) == ("no", "yes")


@pytest.mark.parametrize("text", ["bais", "bias,constraint"])
def test_unknown_suites_are_refused(run: Path, text: str) -> None:
    assert "want none, or some of bias, constraints, forgetting" in refused(instructrec.evaluate, run, suites=text)


def test_the_terminal_shows_every_part(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from instructrec.recipes.measure import _print, _print_further

    found = report[0]
    for suite in found["suites"]:
        _print(found, suite)
    _print_further(found)
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if "95% interval" in line or line.startswith("General probe set")]
    seen = found["suites"][0]
    assert titles[0] == f"test-seen: {seen['rows']} rows, seen, 95% interval over tasks in brackets"
    assert titles[-3:] == [
        "Bias: 0% is without, 95% interval in brackets",
        "Constraints: 40 instructions, 95% interval in brackets",
        "General probe set: loss on 60 rows",
    ]
    headers = next(line for line in lines if "Chance" in line)
    assert headers.split("  ")[-1] == "Majority" and any(line.startswith("Accuracy, labels ranked") for line in lines)
