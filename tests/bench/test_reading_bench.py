"""bench/reading.py and bench/rereading.py from rows to page, on a tiny random model and toy rows."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import instructrec

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import reading  # noqa: E402
import reading_data  # noqa: E402
import reading_page  # noqa: E402
import rereading  # noqa: E402

SETS = {"seen", "unseen_wordings", "unseen_tasks", "unseen_wordings_typos", "unseen_tasks_typos"}


def run(build: Path, *more: str) -> int:
    return reading.main(["--size", "tiny", "--build", str(build), *more])


def results(build: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(build.glob("results/tiny/*.json"))}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of size tiny."""
    return reading_data.tiny_model(tmp_path_factory.mktemp("model") / "tiny-model", reading_data.generated())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The build folder of one call that ran every arm."""
    build = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_model, build / "tiny-model")
    assert run(build) == 0
    return build


@pytest.fixture
def build(tmp_path: Path, tiny_model: Path) -> Path:
    """A build folder with nothing but the model."""
    shutil.copytree(tiny_model, tmp_path / "build" / "tiny-model")
    return tmp_path / "build"


# -- one call from rows to page ---------------------------------------------------------------------------------------


def test_every_arm_runs_on_the_same_rows_in_the_same_steps(finished: Path) -> None:
    found = results(finished)
    assert set(found) == {f"{arm}-s0" for arm in reading.ARMS}
    single = found["single-s0"]
    assert single["own"] == "1" and set(single["sets"]) == SETS
    for name, result in found.items():
        assert result["steps"] == single["steps"] * (2 if name == "single_x2-s0" else 1), name
        assert result["data"] == single["data"]
        assert result["commit"] == reading.commit_of_source()[0] and result["command"].endswith(" --seeds 0")
        for part, scores in result["sets"].items():
            assert scores["rows"] == single["sets"][part]["rows"] and len(scores["rows"]) == 8
            assert scores["tokens"] == single["sets"][part]["tokens"]
            assert ("exact" in scores) == ("typos" not in part)
            assert all(len(nats) == 8 for nats in scores["nats"].values())
    assert (
        list(found["deep-s0"]["sets"]["seen"]["nats"]) == ["1", "2", "3", "1 and 2, averaged"]
        and found["deep-s0"]["own"] == "2"
    )
    assert list(found["sampled-s0"]["sets"]["seen"]["nats"]) == ["1", "2", "3", "4", "1 and 2 and 3, averaged"]
    assert found["separate-s0"]["trained_parameters"] == single["trained_parameters"]


def test_arms_differ(finished: Path) -> None:
    """Each plan reached the run: no two arms gave the same losses."""
    losses = {name: tuple(result["sets"]["seen"]["nats"][result["own"]]) for name, result in results(finished).items()}
    assert len(set(losses.values())) == len(reading.ARMS)


def test_no_text_of_a_row_is_in_a_result(finished: Path) -> None:
    rows = reading_data.read_jsonl(finished / "data" / "tiny" / "s0" / "seen.jsonl")
    texts = {row["instruction"] for row in rows} | {f'"{row["input"]}"' for row in rows}
    for file in finished.glob("results/tiny/*.json"):
        assert not [text for text in texts if text in file.read_text()]


def test_a_plan_changes_neither_rows_nor_order_of_a_step() -> None:
    import learning
    import tiny
    from instructrec.models.reading import ReadingPlan
    from instructrec.prompts.template import Rendered
    from instructrec.training.loop import Plan

    draw = random.Random(0)
    rows = []
    for _ in range(40):
        x, a = draw.randrange(3, 30), draw.randrange(2, 30)
        rows.append(Rendered([5] * (x + a), [False] * x + [True] * a, x, x))
    model = tiny.model("llama")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    steps = [
        learning.training(
            model, rows, Plan(epochs=1, batch_tokens=1 << 20, batch_rows=4, learning_rate=1e-3, reading=plan)
        ).steps
        for plan in (ReadingPlan(), ReadingPlan(strokes=(2,)), ReadingPlan(strokes=(1, 2, 3), deep=True))
    ]
    assert steps[0] == steps[1] == steps[2] and len(steps[0]) == 10


def test_what_is_there_is_not_made_again(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.glob("results/tiny/*.json")}
    monkeypatch.setattr(reading, "tuned", lambda *_: pytest.fail("tuned again"))
    assert run(finished) == 0
    assert {file: file.stat().st_mtime_ns for file in finished.glob("results/tiny/*.json")} == before
    assert capsys.readouterr().out.count("there already") == len(reading.ARMS)


def test_other_settings_or_rows_are_another_result(
    finished: Path, build: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(finished / "results", build / "results")
    monkeypatch.setitem(reading.ARMS, "single", {"weight_decay": 0.5})
    assert run(build, "--arms", "single,repeat") == 0
    assert results(build)["single-s0"]["settings"]["weight_decay"] == 0.5
    assert "tiny/repeat-s0: there already" in capsys.readouterr().out


# -- stopping and going on --------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import reading  # noqa: E402
from instructrec.training.loop import Training
step = Training._step
def deadly(self, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number)
Training._step = deadly
reading.main(["--size", "tiny", "--build", sys.argv[2], "--arms", "deep"])
"""


def test_a_killed_run_goes_on_to_the_same_result(finished: Path, build: Path, capsys: Any) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(instructrec.__file__).parents[1])}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(BENCH), str(build)], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert not results(build)
    assert run(build, "--arms", "deep") == 0
    assert "Going on after step 3 of 4" in capsys.readouterr().out
    assert list(results(build)) == ["deep-s0"]
    whole, resumed = results(finished)["deep-s0"]["sets"], results(build)["deep-s0"]["sets"]
    for part in SETS:
        assert resumed[part]["nats"]["2"] == pytest.approx(whole[part]["nats"]["2"], abs=1e-3)


def test_when_the_time_is_up_the_next_call_goes_on(build: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clocks: list[reading.Clock] = []

    class Clock(reading.Clock):
        def __init__(self, minutes: float | None) -> None:
            super().__init__(minutes)
            clocks.append(self)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a background job of a shell
    try:
        with monkeypatch.context() as patch:
            patch.setattr(reading, "Clock", Clock)
            patch.setattr(reading, "measure", lambda *_: clocks[0].ring())
            assert run(build, "--arms", "single", "--minutes", "60") == reading.UNFINISHED
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert "The time is up" in capsys.readouterr().out and not results(build)
    assert clocks[0].timer.finished.is_set()
    monkeypatch.setattr("instructrec.recipes.tune.tune_files", lambda *_, **__: pytest.fail("tuned again"))
    assert run(build, "--arms", "single") == 0
    assert list(results(build)) == ["single-s0"]


def test_rates_are_tried_on_the_first_seed_which_decides(build: Path) -> None:
    assert run(build, "--arms", "single", "--rates", "1e-4,1e-2", "--seeds", "0,1") == 0
    found = results(build)
    wanted = ("single-s0-lr0.0001", "single-s0-lr0.01")
    best = min(wanted, key=lambda name: reading_page.watched(found[name]))
    assert set(found) == {*wanted, best.replace("-s0-", "-s1-")}
    page = (build / "results.md").read_text()
    assert "Learning rate, by loss on rows for choosing" in page and "| single (2) |" in page


def test_wrong_names_are_told(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, "--arms", "singel") == 2
    assert "arms: unknown 'singel', did you mean 'single'?" in capsys.readouterr().err
    assert run(tmp_path, "--only-page") == 2
    assert f"results: nothing in {tmp_path / 'results'} yet" in capsys.readouterr().err
    assert reading.main(["--size", "cpu", "--shared", str(tmp_path / "no")]) == 2
    assert "no is not there: these rows need the shared data" in capsys.readouterr().err


# -- rows -------------------------------------------------------------------------------------------------------------


def test_selection_keeps_parts_apart() -> None:
    source = reading_data.generated()
    counts = reading_data.Counts(train=48, seen=8, wordings=8, unseen=4, watch=1, wordings_of=3)
    for seed in range(3):
        parts = reading_data.select(source, seed, counts)
        assert parts == reading_data.select(source, seed, counts)
        unseen = set(source.folds[seed])
        inputs = {part: {(row["task"], row["input"]) for row in rows} for part, rows in parts.items()}
        wordings = {part: {(row["task"], row["instruction"]) for row in rows} for part, rows in parts.items()}
        assert {row["task"] for row in parts["unseen_tasks"]} == unseen
        assert not unseen & {row["task"] for part in ("train", "seen", "unseen_wordings") for row in parts[part]}
        for one in ("seen", "unseen_wordings", "unseen_tasks", "watch"):
            for other in ("train", "seen", "unseen_wordings", "unseen_tasks", "watch"):
                assert one == other or not inputs[one] & inputs[other], (seed, one, other)
        assert wordings["seen"] <= wordings["train"] and not wordings["unseen_wordings"] & wordings["train"]


def test_folds_hold_each_task_once() -> None:
    for folds, size in ((reading_data.INDUCTION, 18), (reading_data.P3, 9)):
        assert len({task for fold in folds for task in fold}) == size == sum(map(len, folds))
    assert {len(fold) for fold in reading_data.INDUCTION} == {6}


def test_shares_by_hand() -> None:
    assert reading_data.shares([300, 300, 16], 200) == [92, 92, 16]
    assert reading_data.shares([3, 1], 10) == [3, 1]


def test_typos_spare_what_the_answer_is_made_of() -> None:
    row = {"task": "any", "instruction": "Please make the following number into one word", "input": "the parcel 4125 came",
           "output": "parcel number"}  # fmt: skip
    changed = set()
    for seed in range(200):
        bad = reading_data.damaged(row, random.Random(seed))
        pairs = [
            (old, new)
            for name in ("instruction", "input")
            for old, new in zip(row[name].split(), bad[name].split(), strict=True)
        ]
        differing = [old for old, new in pairs if old != new]
        assert len(differing) == 1  # a tenth of twelve words
        changed.update(differing)
        assert bad["output"] == row["output"] and bad["task"] == "any"
    assert changed == {"Please", "make", "the", "following", "into", "one", "word", "came"}
    spelled = row | {"task": "letters_list"}
    assert all(reading_data.damaged(spelled, random.Random(seed))["input"] == row["input"] for seed in range(50))


# -- the page ---------------------------------------------------------------------------------------------------------


def result(arm: str, nats: list[float], exact: list[int], **changes: Any) -> dict[str, Any]:
    part = {"rows": ["a", "b", "c", "d"], "tasks": ["one", "one", "two", "two"], "tokens": [2, 2, 2, 2],
            "nats": {"1": nats}, "exact": exact}  # fmt: skip
    known = {"arm": arm, "seed": 0, "rate": 1e-3, "model": "m", "source": "s", "command": f"run {arm}", "commit": "c"}
    known |= {"dirty": False, "tuned": {"commit": "c", "dirty": False}, "rows": 4, "trained_parameters": 5, "steps": 6}
    known |= dict.fromkeys(("training_seconds", "tokens_per_second", "peak_memory_mb", "evaluation_seconds"), 2.0)
    known |= {"choosing": ["two"], "own": "1"}
    return known | {"sets": {name: part for name in ("seen", "unseen_wordings", "unseen_tasks")}} | changes


def write(folder: Path, *entries: dict[str, Any]) -> reading_page.Group:
    for entry in entries:
        reading_page.write_result(folder / f"{entry['arm']}-s{entry['seed']}.json", entry)
    return reading_page.Group.read(folder)


def test_no_times_are_shown_that_were_taken_beside_other_work(tmp_path: Path) -> None:
    entries = [result("single", [2.0] * 4, [1] * 4), result("deep", [2.0] * 4, [1] * 4, training_seconds=77.0)]
    assert any("| 77 | 38.50 | 2 | 2 | 2 |" in line for line in reading_page._costs(write(tmp_path, *entries)))
    entries[1]["beside"] = True
    assert "| deep | 5 | 6 |  |  |  | 2 |  |" in reading_page._costs(write(tmp_path, *entries))


def test_differences_by_hand(tmp_path: Path) -> None:
    group = write(
        tmp_path,
        result("single", [2.0, 4.0, 6.0, 8.0], [1, 1, 1, 0]),
        result("deep", [2.0, 3.0, 4.0, 7.0], [1, 1, 0, 0]),
    )
    assert list(group.arms) == ["single", "deep"]
    found = reading_page.difference(group, "deep", "single", "seen")
    assert (found.value, found.low, found.high) == pytest.approx(
        (-0.5, -0.75, -0.25)
    )  # clusters: -1 and -3 of 4 tokens
    assert reading_page.difference(group, "deep", "single", "unseen_tasks/report").value == pytest.approx(-0.25)
    assert reading_page.difference(group, "deep", "single", "unseen_tasks/choose").value == pytest.approx(-0.75)
    assert reading_page.difference(group, "deep", "single", "seen", "exact").value == pytest.approx(-25.0)
    assert reading_page.never_worse(group)[2] == "- deep: broken (-25.0 [-50.0, +0.0] points)"
    better = write(tmp_path, result("deep", [1.0] * 4, [1, 1, 1, 1]))
    assert reading_page.never_worse(better)[2].startswith("- deep: held (+25.0 [+0.0, +50.0]")


def test_other_rows_are_not_compared(tmp_path: Path) -> None:
    other = result("deep", [1.0] * 4, [1] * 4)
    other["sets"]["seen"] = other["sets"]["seen"] | {"rows": ["a", "b", "c", "x"]}
    group = write(tmp_path, result("single", [1.0] * 4, [1] * 4), other)
    with pytest.raises(reading.InputError, match="deep and single were measured on other rows of 'seen'"):
        reading_page.difference(group, "deep", "single", "seen")


def test_the_page_comes_from_the_files_alone(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "results" / "tiny", tmp_path / "results" / "tiny")
    assert run(tmp_path, "--only-page") == 0
    page = (tmp_path / "results.md").read_text()
    assert page == (finished / "results.md").read_text()
    assert (tmp_path / "results.png").stat().st_size > 10_000
    for arm in reading.ARMS:
        assert page.count(f"\n| {arm} (1) |") == 2, arm  # loss and exact match
    assert "\n| deep, answered after 1 |" in page and "\n| deep, answered after 2, as tuned |" in page
    assert "| arm − single |" in page and "| arm − repeat |" in page and "### Cost" in page


# -- reading again without tuning -------------------------------------------------------------------------------------


def test_one_pass_gives_the_loss_after_every_reading(tiny_model: Path) -> None:
    from instructrec.data.readers import read
    from instructrec.inference.loading import open_target
    from instructrec.models.reading import Reading, ReadingPlan
    from instructrec.training.loss import row_losses

    loaded = open_target(str(tiny_model), precision="fp32")
    chosen = [list(example.values())[0] for rows in reading_data.generated().tasks.values() for example in rows[:2]]
    rows = [loaded.renderer.render(record) for record in read(chosen)]
    assert len({len(row.ids) for row in rows}) > 3
    model = Reading(loaded.model, ReadingPlan(strokes=(2,))).eval()
    options = {"pad_id": loaded.backbone.pad_id, "batch_tokens": 400}
    found = rereading.losses_by_reading(model, rows, 4, **options)
    for strokes in range(1, 5):
        model.strokes = strokes
        wanted = row_losses(model, rows, **options)
        assert [count for _, count in found[strokes - 1]] == [count for _, count in wanted]
        assert [nats for nats, _ in found[strokes - 1]] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)


def test_the_mean_of_several_readings(tiny_model: Path) -> None:
    from instructrec.data.readers import read
    from instructrec.inference.loading import open_target
    from instructrec.models.reading import Reading, ReadingPlan

    loaded = open_target(str(tiny_model), precision="fp32")
    chosen = [list(example.values())[0] for rows in reading_data.generated().tasks.values() for example in rows[:2]]
    rows = [loaded.renderer.render(record) for record in read(chosen)]
    model = Reading(loaded.model, ReadingPlan(strokes=(2,))).eval()
    options = {"pad_id": loaded.backbone.pad_id, "batch_tokens": 400}
    last = [replace(row, supervised=[False] * (len(row.ids) - 1) + [True]) for row in rows]  # one token: by hand
    *single, mean = rereading.losses_by_reading(model, last, 4, averaged=3, **options)
    assert len(single) == 4 and len(mean) == len(rows)
    for place, (nats, tokens) in enumerate(mean):
        wanted = -math.log(sum(math.exp(-single[reading][place][0]) for reading in range(3)) / 3)
        assert tokens == 1 and nats == pytest.approx(wanted, abs=1e-5)
    *single, mean = rereading.losses_by_reading(model, rows, 3, averaged=3, **options)
    apart = [sum(each[place][0] for each in single) / 3 - mean[place][0] for place in range(len(rows))]
    assert min(apart) > -1e-5 and max(apart) > 1e-5  # a mean of probabilities is never worse than the mean of losses


def test_rereading_from_rows_to_page(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = [
        {"instruction": f"Write word {number} of the input", "input": "order lamp", "output": "lamp"}
        for number in range(9)
    ]
    rows[4]["input"] = "order " * 400  # too long
    reading_data.write_jsonl(tmp_path / "shared" / "seed_tasks" / "seed_tasks.jsonl", rows)
    model = str(tiny_model)
    call = ["--models", model, "--sets", "seed_tasks", "--rows", "300", "--data", str(tmp_path / "shared")]
    call += ["--results", str(tmp_path / "rereading")]
    monkeypatch.setattr(rereading, "SINK_MODEL", model)
    assert rereading.main(call) == 0
    kept = json.loads((tmp_path / "rereading" / "tiny-model-seed_tasks.json").read_text())
    assert len(kept["rows"]) == 8 and kept["too_long"] == 1
    assert list(kept["nats"]) == ["1", "2", "3", "4", "2 sink+last"]
    assert "order" not in json.dumps(kept["nats"] | {"rows": kept["rows"]})
    page = (tmp_path / "rereading.md").read_text()
    assert "| set | read 1 | read 2 | read 3 | read 4 | read 2 sink+last |" in page and "(8 rows)" in page
    assert (tmp_path / "rereading.png").is_file()
    capsys.readouterr()
    monkeypatch.setattr(rereading, "measure", lambda *_: pytest.fail("measured again"))
    assert rereading.main(call) == 0
    assert "tiny-model-seed_tasks.json: there already" in capsys.readouterr().out
