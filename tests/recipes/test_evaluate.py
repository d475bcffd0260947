"""`evaluate` on tiny models, and the public door."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import instructrec
import tiny
from instructrec.errors import DataError, EnvironmentFault, InputError
from instructrec.evaluation import arms
from instructrec.recipes.measure import run_part

WORDS = "red blue green house lamp order parcel noon".split()
ROWS = [
    {"instruction": f"Please {task} it", "input": word, "output": make(word), "task": task}
    for task, make in (("upper", str.upper), ("double", lambda word: word * 2))
    for word in WORDS
]
TEST = ROWS[:2] + [
    {"instruction": "Please upper it", "input": word, "output": word.upper(), "task": "upper"} for word in ("hot", "cold")
] + [{"instruction": "Please double it", "input": "hot", "output": "hothot", "task": "double"}]  # fmt: skip
QUICK = {"precision": "fp32", "threads": 1}
PLAIN = QUICK | {"suites": "none", "robustness": "none"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by method, on one tiny backbone."""
    place = tmp_path_factory.mktemp("runs")
    base = tiny.folder("qwen", place / "base")
    settings = {"model": str(base), "max_steps": 3, "held_out": "none", "tensorboard": False, "learning_rate": 1e-2}
    return {
        method: instructrec.tune(ROWS, out=place / method, method=method, **settings, **QUICK).folder
        for method in ("lora", "full")
    } | {"base": base}


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_three_arms_side_by_side(runs: dict[str, Path], method: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    found = instructrec.evaluate(runs[method], TEST, out=str(out), training_rows=True, **PLAIN)
    assert {path.name for path in out.iterdir()} >= {"report.json", "report.html", "answers.jsonl"}
    report = load(out / "report.json")
    assert report == json.loads(json.dumps(found.report))
    assert [arm["name"] for arm in report["arms"]] == ["base", "few_shot", "tuned"]
    suite, trained = report["suites"]
    assert report["format"] == 2 and [one["name"] for one in (suite, trained)] == ["rows-seen", "rows-training"]
    assert (suite["rows"], trained["rows"]) == (3, 2) and suite["kind"] == "seen" and trained["kind"] == "training"
    assert suite["overlap"]["with_training"] == 0 and trained["overlap"]["with_training"] == 2
    assert "5 rows read: 0 rejected, 0 without an answer, 2 trained on, 3 measured" in suite["notes"]
    assert "2 of 2 prompts were also trained on" in trained["notes"]
    assert set(suite["by_task"]) == {"upper", "double"}
    for arm in ("base", "few_shot", "tuned"):
        figures = found.scores()[arm]["exact_match"]
        assert figures["low"] <= figures["value"] <= figures["high"] and figures["n"] == 3
    rows = answers(out)
    assert [row["expected"] for row in rows] == [row["output"] for row in (*TEST[2:], *TEST[:2])]
    assert all(set(row["answers"]) == {"base", "few_shot", "tuned"} for row in rows)
    tuned = instructrec.Assistant(runs[method], max_new_tokens=64, **QUICK)
    base = instructrec.Assistant(runs["base"], max_new_tokens=64, **QUICK)
    for row, given in zip(
        rows, (*TEST[2:], *TEST[:2]), strict=True
    ):  # the same answers as in chat, up to the length that was allowed
        for arm, talk in (("tuned", tuned), ("base", base)):
            assert talk(given["instruction"], given["input"]).startswith(row["answers"][arm][:12].rstrip("�"))
    assert any(row["answers"]["tuned"] != row["answers"]["base"] for row in rows)
    assert any(row["answers"]["few_shot"] != row["answers"]["base"] for row in rows)


def test_a_report_beside_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    found = instructrec.evaluate(run, TEST, arms="tuned", **PLAIN)
    assert found.page == run / "report.html" and (run / "answers.jsonl").is_file()
    assert load(run / "report.json")["training"]["best_step"] == 3
    assert [arm["name"] for arm in found.report["arms"]] == ["tuned"]


def test_an_untuned_model_is_measured_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    found = instructrec.evaluate(runs["base"], TEST, out=str(tmp_path), **PLAIN)
    assert [arm["name"] for arm in found.report["arms"]] == ["base"]
    assert "no examples are known for this model: it was measured without them" in found.report["suites"][0]["notes"]


def test_files_become_suites(runs: dict[str, Path], tmp_path: Path) -> None:
    for folder, rows in (("a", TEST[:2]), ("b", TEST[2:])):
        (tmp_path / folder).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "test.jsonl").write_text(lines, encoding="utf-8")
    files = [str(tmp_path / folder / "test.jsonl") for folder in ("a", "b")]
    given = {"out": str(tmp_path / "out"), "arms": "tuned"} | PLAIN
    found = instructrec.evaluate(runs["lora"], files, training_rows=True, **given)
    assert [suite["name"] for suite in found.report["suites"]] == ["test", "test-2"]
    assert [suite["rows"] for suite in found.report["suites"]] == [2, 3]
    assert [suite["kind"] for suite in found.report["suites"]] == ["training", "seen"]
    assert [suite["overlap"]["with_training"] for suite in found.report["suites"]] == [2, 0]
    assert set(found.scores("test-2")) == {"tuned"}
    (suite,) = instructrec.evaluate(runs["lora"], files, **given).report["suites"]
    assert (suite["name"], suite["rows"]) == ("test-2", 3)


def test_rows_are_drawn_by_seed(runs: dict[str, Path], tmp_path: Path) -> None:
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        instructrec.evaluate(runs["base"], ROWS, rows=4, seed=seed, out=str(out), max_new_tokens=1, **PLAIN)
        drawn.append([row["expected"] for row in answers(out)])
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": "tunned"}, "arms: unknown 'tunned', did you mean 'tuned'?"),
        ({"arms": "tuned"}, "arms: nothing is left to measure (got 'tuned')"),
        ({"max_new_tokens": 250}, "<memory>:1: length: "),
        ({"rows": 0}, "rows: "),
        ({"rowz": 1}, "rowz: unknown"),
    ],
)
def test_wrong_settings(runs: dict[str, Path], tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        instructrec.evaluate(runs["base"], TEST, out=str(tmp_path / "out"), **(PLAIN | settings))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def put(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("inside", ["", "report"])
def test_a_file_in_the_way_of_the_report_is_said_first(tmp_path: Path, inside: str) -> None:
    out = tmp_path / "taken" / inside if inside else tmp_path / "taken"
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError) as caught:
        instructrec.evaluate("no such model", "no such file", out=str(out))
    assert str(caught.value) == f"out: {out} is a file, or inside one (want a folder)"
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_that_can_not_be_written_to_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("instructrec.recipes.measure.tempfile.TemporaryFile", refuse)
    with pytest.raises(EnvironmentFault) as caught:
        instructrec.evaluate("no such model", "no such file", out=str(tmp_path))
    assert str(caught.value) == f"out: {tmp_path} can't be written to: Read-only file system"


def test_all_suites_are_checked_before_any_is_answered(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "finish", lambda *_, **__: pytest.fail("answered already"))
    long = ROWS[0] | {"input": "no " * 300}
    files = [put(tmp_path / f"{name}.jsonl", [ROWS[0], long, long]) for name in "ab"]
    with pytest.raises(DataError) as caught:
        instructrec.evaluate(runs["base"], files, out=str(tmp_path / "out" / "deep"), **PLAIN)
    assert [(problem.file, problem.line, problem.field) for problem in caught.value.problems] == [
        (file, line, "length") for file in files for line in (2, 3)
    ]
    assert not (tmp_path / "out").exists()


def test_rejected_rows_are_kept_and_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    file = put(tmp_path / "test.jsonl", [*TEST, {"instruction": "", "output": "x"}])
    found = instructrec.evaluate(
        runs["base"], file, out=str(tmp_path / "out"), on_bad_row="skip", rows=4, max_new_tokens=1, **QUICK
    )
    (row,) = (json.loads(line) for line in (tmp_path / "out" / "rejected-test.jsonl").read_text().splitlines())
    assert (row["file"], row["line"]) == (file, 6)
    assert "6 rows read: 1 rejected, 0 without an answer, 4 measured" in found.report["suites"][0]["notes"]


def test_rows_that_chose_the_checkpoint_are_said(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    more = [row | {"instruction": "Please say it", "task": "same", "output": row["input"]} for row in ROWS[:8]]
    instructrec.tune(
        ROWS + more, out=run, model=str(runs["base"]), max_steps=1, eval_every=1, held_out="task", held_out_tasks=1,
        held_out_share=0.2, learning_rate=1e-2, tensorboard=False, **QUICK,
    )  # fmt: skip
    split, (watched,) = load(run / "split.json"), load(run / "run.json")["training"]["held_out_tasks"]
    capsys.readouterr()
    found = instructrec.evaluate(run, ROWS + more, arms="tuned", max_new_tokens=1, out=str(tmp_path / "out"), **PLAIN)
    seen, unseen = found.report["suites"]
    assert (seen["kind"], unseen["kind"]) == ("seen", "unseen_tasks")
    held, tasks = len(split["seen"]), len(split["unseen_tasks"])
    assert (held, tasks) == (seen["rows"], 8) and held > 0
    assert [one["overlap"]["with_watched"] for one in (seen, unseen)] == [held, 8]
    assert f"{held} of {held} prompts also served to choose the checkpoint" in seen["notes"]
    assert f"8 rows belong to tasks that were kept out of training to watch ({watched})" in unseen["notes"]
    said = " ".join(capsys.readouterr().err.split())
    assert "<memory>: 8 of 8 prompts also served to choose the checkpoint" in said
    left = len(split["train"])
    assert f"<memory>: {left} of 24 rows were trained on and are left out (--training-rows measures them apart)" in said
    fresh = [{"instruction": "Please", "input": "hot", "output": "hot", "task": watched}]
    found = instructrec.evaluate(run, fresh, arms="tuned", max_new_tokens=1, out=str(tmp_path / "out"), **PLAIN)
    (suite,) = found.report["suites"]
    assert suite["overlap"]["with_training"] == suite["overlap"]["with_watched"] == 0
    assert f"1 row belongs to tasks that were kept out of training to watch ({watched})" in suite["notes"]


def test_answers_are_json_whatever_the_model_does(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "told", lambda _, rows: [(float("nan"), 3) for _ in rows])
    instructrec.evaluate(runs["base"], TEST, out=str(tmp_path), max_new_tokens=1, **PLAIN)
    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text and [row["nats"] for row in answers(tmp_path)] == [{"base": None}] * 5


@pytest.mark.parametrize(
    ("backbone", "licence"),
    [("smollm2-135m", "apache-2.0"), ("gemma-3-270m", "gemma"), ("somebody/else", "unknown")],
)
def test_licences_of_built_in_models_are_known(runs: dict[str, Path], backbone: str, licence: str) -> None:
    from instructrec.evaluation.card import card

    run = load(runs["lora"] / "run.json") | {"backbone": {"name": backbone}}
    part = run_part(run, "runs/mine")
    assert part["license"] == licence and f"\nlicense: {licence}\n" in card(None, part)


def test_suites_have_names_of_their_own(runs: dict[str, Path], tmp_path: Path) -> None:
    files = []
    for folder, name in (("a", "test-2"), ("b", "test"), ("c", "test")):
        (tmp_path / folder).mkdir()
        files.append(put(tmp_path / folder / f"{name}.jsonl", TEST[:1]))
    found = instructrec.evaluate(runs["base"], files, out=str(tmp_path / "out"), max_new_tokens=1, **PLAIN)
    assert [suite["name"] for suite in found.report["suites"]] == ["test-2", "test", "test-3"]


# -- the public door -------------------------------------------------------------------------------------------------


def test_the_door_opens_without_heavy_imports() -> None:
    child = (
        "import sys, instructrec\n"
        "from instructrec import read, __version__\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'peft', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from instructrec import tune, evaluate, Assistant\n"
        "print(read.__name__, tune.__name__, evaluate.__name__, Assistant.__name__, __version__)\n"
    )
    ended = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["read", "tune", "evaluate", "Assistant", instructrec.__version__]


def test_the_door_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="^module 'instructrec' has no attribute 'chat'$"):
        instructrec.chat  # noqa: B018
    assert sorted(instructrec.__all__) == [
        "Assistant", "Source", "__version__", "compare", "evaluate", "prompt", "read", "tune",
    ]  # fmt: skip


def test_what_is_required_decides_the_exit_code(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from instructrec.cli import main

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in TEST), encoding="utf-8")
    words = ["evaluate", str(runs["base"]), str(rows), "--max-new-tokens=1", f"--out={tmp_path}", "--language=zh"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in PLAIN.items()]
    assert main([*words, "--require", "all.exact_match>=0"]) == 0
    assert main([*words, "--require", "all.exact_match>=0,all.loss<=0.001"]) == 4
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "require: all.loss<=0.001: not met (got " in told
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [entry["met"] for entry in kept["requirements"]] == [True, False]
    assert 'lang="zh' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main([*words, "--require", "all.acuracy>=0.5"]) == 2
    assert "did you mean 'accuracy'?" in capsys.readouterr().err
