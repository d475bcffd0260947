"""Reading plans through `tune`, run folders and `evaluate`: what is left, what goes on bit by bit, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import TASKS, WORDS, entries, load, refused
from safetensors.torch import load_file, save_file
from stops import figures, shaken, signalled

import instructrec
import learning
import tiny
from instructrec import cli
from instructrec.data.records import Record
from instructrec.errors import DataError, InputError
from instructrec.inference.engine import Sampling, generate
from instructrec.inference.loading import open_target
from instructrec.models import backbone
from instructrec.models.reading import cut
from instructrec.recipes.tune import Interrupted
from instructrec.training.loss import row_losses

Quick = Callable[..., Any]

PLANS: dict[str, dict[str, Any]] = {
    "repeated": {"strokes": 2},
    "deep": {"strokes": 2, "deep": True},
    "frozen": {"strokes": 2, "prior": "frozen"},
    "gated": {"strokes": 2, "mix": "gated", "direction": "bidirectional", "memory": "sink+last", "checkpointing": True},
    "separate": {"strokes": 2, "stroke_adapters": "separate"},
    "separate, gated, slots": {"strokes": 2, "stroke_adapters": "separate", "mix": "gated", "slots": 3},
    "slots": {"slots": 3},
    "drawn": {"strokes": "1,2,3", "deep": True, "consistency": 0.5},
    "full": {"strokes": 2, "method": "full", "deep": True},
}
EVERYTHING = "separate, gated, slots"  # a run with a file for every part


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a run folder, without its checkpoints."""
    files = [path for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts]
    files = [path for path in files if path.name != "signatures.safetensors"]  # of rows, not weights
    return {
        f"{file.relative_to(folder)}: {key}": part for file in sorted(files) for key, part in load_file(file).items()
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Any) -> Iterator[Callable[[str], Path]]:
    """A function of a plan's name: its run folder, made once. Do not write into it."""
    from instructrec.evaluation import pictures, report

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            rows = [
                {"instruction": f"Please {task} it", "input": word, "output": make(word), "task": task}
                for task, make in TASKS.items()
                for word in WORDS[:6]
            ]
            given = {"model": str(tiny_folder("qwen")), "precision": "fp32", "threads": 1, "tensorboard": False}
            more = {"max_steps": 3, "batch_rows": 4, "held_out": "none", "learning_rate": 1e-2}
            out = tmp_path_factory.mktemp("kept") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pictures, "save_loss_png", lambda *_: None)
                patch.setattr(report, "write_report", lambda *_: None)
                made[name] = instructrec.tune(rows, out=out, **(given | more | PLANS[name])).folder
        return made[name]

    yield get


# -- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PLANS))
def test_every_plan_tunes_and_its_folder_answers(kept: Any, name: str) -> None:
    folder, wanted = kept(name), PLANS[name]
    plan = load(folder / "prompt.json")["reading"]
    assert plan["strokes"] == [int(part) for part in str(wanted.get("strokes", 1)).split(",")]
    for key in plan.keys() - {"strokes"} & wanted.keys():
        assert plan[key] == wanted[key]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts}
    files -= {"signatures.safetensors"}
    extra = ["extra.safetensors"] * (wanted.get("mix") == "gated" or "slots" in wanted)
    more = ["stroke_1/adapter_model.safetensors"] * ("stroke_adapters" in wanted)
    first = "model.safetensors" if wanted.get("method") == "full" else "adapter_model.safetensors"
    assert files == {first, *extra, *more}
    (last,) = (folder / "checkpoints").iterdir()
    assert files <= {str(path.relative_to(last)) for path in last.rglob("*.safetensors")}
    run = load(folder / "run.json")
    base = tiny.model("qwen")
    if first != "model.safetensors":
        assert run["trained_parameters"] == sum(part.numel() for part in tensors(folder).values())
        assert run["parameters"] == run["trained_parameters"] + sum(part.numel() for part in base.parameters())
    logged = [entry.get("strokes") for entry in run["training"]["steps"]]
    assert (logged == [None] * 3) == (name != "drawn")
    assistant = instructrec.Assistant(folder, max_new_tokens=4, precision="fp32")
    assert assistant.loaded.strokes == max(plan["strokes"]) and assistant.loaded.notes == ()
    assert isinstance(assistant("Please upper it", "red"), str)


def test_flags_file_and_python_give_the_same_run(
    quick: Quick, base: Path, table: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(base), "--precision=fp32", "--threads=1", "--no-tensorboard", "--batch-rows=4"]
    common += ["--max-steps=3", "--seed=3", "--epochs=1"]
    assert cli.main(["tune", str(table), "--strokes", "2", "--deep", *common, "--out", "flags"]) == 0
    Path("run.yaml").write_text("strokes: [2]\ndeep: yes\n")
    assert cli.main(["tune", "run.yaml", str(table), *common, "--out", "file"]) == 0
    quick(strokes=2, deep=True, max_steps=3, out=tmp_path / "python")
    weights = [tensors(tmp_path / name) for name in ("flags", "file", "python")]
    assert weights[0] and all(learning.same(weights[0], other) for other in weights[1:])
    assert figures(tmp_path / "flags") == figures(tmp_path / "file") == figures(tmp_path / "python")
    assert load(Path("file/run.json"))["origins"]["strokes"] == "run.yaml:1"
    quick(strokes=2, max_steps=3, out=tmp_path / "other")
    assert not learning.same(weights[0], tensors(tmp_path / "other"))


@pytest.mark.parametrize("name", ["frozen", EVERYTHING, "slots", "drawn"])
def test_stopped_and_resumed_equals_straight(
    quick: Quick, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = PLANS[name] | {"lora": {"rank": 4, "dropout": 0.1}, "max_steps": 6, "eval_every": 4, "epochs": 2.0}
    straight = quick(out=tmp_path / "straight", **given).folder
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 3, 2)
        quick(**given)
    shaken(7)
    resumed = quick(resume=True, **given).folder
    assert tensors(straight) and learning.same(tensors(straight), tensors(resumed))
    assert figures(straight) == figures(resumed) and len(entries(resumed)) == 6 + 3
    final = "checkpoints/step-6/optimizer.safetensors"
    assert (straight / final).read_bytes() == (resumed / final).read_bytes()
    other = refused(quick, resume=True, **(given | {"slots": 5}))
    assert f"settings.slots: was {given.get('slots', 0)}, is 5" in other


# -- parts that are missing or changed -------------------------------------------------------------------------------


def opening(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_target(str(folder), precision="fp32", **options)
    return str(caught.value)


def test_a_part_that_is_missing_or_changed_is_named(kept: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(kept(EVERYTHING), run)
    extra, more = run / "extra.safetensors", run / "stroke_1" / "adapter_model.safetensors"
    whole = {file: file.read_bytes() for file in (extra, more, run / "prompt.json")}
    held = {file: load_file(file) for file in (extra, more)}
    key = sorted(held[more])[0]

    def spoilt(file: Path, weights: dict[str, torch.Tensor] | None) -> str:
        file.unlink() if weights is None else save_file(weights, file)
        message = opening(run)
        file.write_bytes(whole[file])
        return message

    assert spoilt(extra, None) == f"{extra}: missing, the reading plan needs it (gates, slots)"
    gates, slots = held[extra]["gates"], held[extra]["slots"]
    assert spoilt(extra, {"gates": gates}) == f"{extra}: slots: missing by the reading plan"
    many = {"gates": gates, "slots": slots, "x": gates.clone()}
    assert spoilt(extra, many) == f"{extra}: x: not wanted by the reading plan"
    for wrong in (gates[:1], gates * float("inf")):
        message = spoilt(extra, {"gates": wrong, "slots": slots})
        assert message == f"{extra}: gates: does not fit this backbone, or is not finite"
    extra.write_bytes(whole[extra][:-1])
    assert opening(run).startswith(f"{extra}: ")
    extra.write_bytes(whole[extra])
    assert spoilt(more, None) == f"{more}: missing, the reading plan needs it"
    fewer = {name: part for name, part in held[more].items() if name != key}
    assert spoilt(more, fewer) == f"{more}: {key}: missing"
    message = spoilt(more, held[more] | {key: held[more][key] * float("nan")})
    assert message == f"{more}: {key}: of another shape than the first adapter's, or not finite"
    prompt = json.loads(whole[run / "prompt.json"])
    prompt["reading"]["slots"] = 0
    (run / "prompt.json").write_text(json.dumps(prompt))
    changed = (
        f"{run / 'prompt.json'}: sha256: the prompt was changed after tuning, the model would be asked differently"
    )
    assert opening(run) == changed
    (run / "prompt.json").write_bytes(whole[run / "prompt.json"])
    open_target(str(run), precision="fp32")


def test_a_checkpoint_without_one_of_its_parts_is_not_gone_on_from(
    quick: Quick, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PLANS[EVERYTHING] | {"max_steps": 2}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 1, 2)
        quick(**given)
    step = tmp_path / "run" / "checkpoints" / "step-1"
    for part in ("extra.safetensors", "stroke_1/adapter_model.safetensors"):
        data = (step / part).read_bytes()
        (step / part).unlink()
        missing = f"{step / part}: missing, the checkpoint is damaged"
        assert refused(quick, resume=True, **given) == (
            f"{missing}; --resume=latest-valid goes on from the newest one that is whole"
        )
        (step / part).write_bytes(data)
    assert quick(resume=True, **given).steps == 2


# -- conversations ---------------------------------------------------------------------------------------------------


def talk(*weights: int) -> dict[str, Any]:
    """A conversation with one exchange for each weight: whether its answer is learned."""
    messages: list[dict[str, Any]] = []
    for number, weight in enumerate(weights):
        messages.append({"role": "user", "content": f"{len(weights)} word {number}"})
        messages.append({"role": "assistant", "content": f"answer {number}", "weight": weight})
    return {"messages": messages}


@pytest.mark.parametrize("name", ["repeated", "slots"])
def test_no_answer_of_a_conversation_is_lost(
    quick: Quick, undrawn: None, monkeypatch: pytest.MonkeyPatch, name: str, capsys: Any
) -> None:
    from instructrec.training import loop

    seen: list[Any] = []
    init = loop.Training.__init__
    monkeypatch.setattr(loop.Training, "__init__", lambda self, *given: (seen.append(given), init(self, *given))[1])
    rows = [talk(1), talk(1, 1), talk(1, 1, 1), talk(1, 0), talk(0, 1, 0), talk(0, 1)]
    held = [talk(1, 1, 1, 1)]
    folder = quick(rows, validation=held, max_steps=1, batch_rows=16, batch_tokens=10**5, **PLANS[name]).folder
    (_, trained, *_), *_ = seen
    tokenizer = tiny.tokenizer("qwen")
    texts = [
        tokenizer.decode([token for token, flag in zip(row.ids, row.supervised, strict=True) if flag])
        for row in trained
    ]
    wanted = [0, 0, 1, 0, 1, 2, 0, 1, 1]
    assert sorted(texts) == sorted(f"answer {number}<|im_end|>" for number in wanted)
    run, sentence = load(folder / "run.json"), "Each answer of a conversation is a row of its own: 7 rows became 13."
    assert run["data"]["rows"] == run["data"]["read"] == 6
    assert run["data"]["parts"] == {"train": 9, "validation": 4}
    assert run["data"]["held_out"].endswith(sentence) and sentence in " ".join(capsys.readouterr().out.split())
    assert {name: len(keys) for name, keys in load(folder / "split.json").items()} == run["data"]["parts"]
    (step,) = [entry for entry in entries(folder) if "look" not in entry]
    assert step["supervised_tokens"] == sum(row.targets for row in trained)
    assert len(load(folder / "examples.json")) == 9


def test_rows_of_one_answer_stay_as_they_are(quick: Quick, undrawn: None, capsys: Any) -> None:
    quick(strokes=2, max_steps=1)
    assert "row of its own" not in capsys.readouterr().out


# -- positions -------------------------------------------------------------------------------------------------------


def rows_of(*sizes: int) -> list[dict[str, Any]]:
    """One row for each number of words."""
    return [{"instruction": f"{number}" + " hot" * size, "output": "cold"} for number, size in enumerate(sizes)]


def test_rows_with_too_many_positions_stop_or_are_dropped(
    quick: Quick, tiny_folder: Any, tmp_path: Path, undrawn: None, capsys: Any
) -> None:
    given = {"model": str(tiny_folder("gpt2")), "held_out": "none", "max_steps": 1, "batch_rows": 8}
    renderer = open_target(given["model"], precision="fp32").renderer
    file = tmp_path / "long.jsonl"
    rows = rows_of(2, 30, 3, 40)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = []
    for row in rows:
        made = renderer.render(Record.of(row["instruction"], row["output"]))
        sizes.append(2 * cut(made) + len(made.ids) - cut(made) + 2)
    long = [place for place, size in enumerate(sizes) if size > 128]
    assert long == [1, 3]
    with pytest.raises(DataError) as caught:
        quick(file, strokes=2, slots=2, **given)
    advice = "lower --strokes or --slots, or choose --on-long=drop"
    assert str(caught.value).splitlines() == [
        f"{file}:{place + 1}: length: {sizes[place]} positions when read 2 times, 2 slots, over the model's 128; {advice}"
        for place in long
    ]
    assert not (tmp_path / "run").exists()
    capsys.readouterr()
    folder = quick(file, strokes=2, slots=2, on_long="drop", **given).folder
    assert load(folder / "run.json")["data"]["parts"] == {"train": 2}
    note = "2 rows dropped: more positions when read 2 times, 2 slots than the model has"
    assert note in " ".join(capsys.readouterr().err.split())
    message = refused(quick, rows_of(30, 40), strokes=2, on_long="drop", out=tmp_path / "none", **given)
    assert message == "no rows are left to train on"


def test_watched_rows_have_positions_too(quick: Quick, tiny_folder: Any, tmp_path: Path, undrawn: None) -> None:
    given = {"model": str(tiny_folder("gpt2")), "strokes": 2, "max_steps": 1, "batch_rows": 8}
    message = refused(quick, rows_of(2, 3), validation=rows_of(2, 30), **given)
    assert "positions when read 2 times, over the model's 128; lower --strokes, or choose --on-long=drop" in message
    folder = quick(rows_of(2, 3), validation=rows_of(2, 30, 40), on_long="drop", **given).folder
    assert load(folder / "run.json")["data"]["parts"] == {"train": 2, "validation": 1}
    out = tmp_path / "none"
    message = refused(quick, rows_of(2, 3), validation=rows_of(30, 40), on_long="drop", out=out, **given)
    assert message == (
        "no rows are left to watch in 'validation' (got 2 rows, 0 of them over max_length 128, 2 over the model's 128 "
        "positions)"
    )


@pytest.mark.parametrize("strokes", [1, 2])
def test_a_watched_answer_stays_within_the_positions(
    quick: Quick, tiny_folder: Any, undrawn: None, strokes: int
) -> None:
    """GPT-2 has 128 positions and fails beyond them; a long prompt leaves no room for the longest answer and more."""
    words = {1: 50, 2: 20}[strokes]
    watched = [*rows_of(2), *rows_of(words)]
    watched[0]["output"] = "hot cold " * 8
    given = {"model": str(tiny_folder("gpt2")), "strokes": strokes, "max_steps": 1, "batch_rows": 8}
    folder = quick(rows_of(2, 3), validation=watched, watch="exact_match", **given).folder
    assert [entry["look"]["validation"]["exact_match"] for entry in entries(folder) if "look" in entry] == [0.0, 0.0]


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strokes": 0}, "strokes: got 0, want numbers from 1 to 8"),
    ({"strokes": 9}, "strokes: got 9, want numbers from 1 to 8"),
    ({"strokes": [1, 2, 2]}, "strokes: got 1,2,2, want each number once"),
    (
        {"strokes": "two"},
        "strokes: not the right kind (got 'two', want a number such as 2, or several such as 1,2,3)",
    ),
    ({"strokes": True}, "strokes: not the right kind (got True, want a number such as 2, or several such as 1,2,3)"),
    ({"strokes": []}, "strokes: not the right kind (got [], want a number such as 2, or several such as 1,2,3)"),
    ({"deep": True}, "deep: True needs a second reading (want strokes of 2 or more)"),
    ({"prior": "frozen"}, "prior: frozen needs a second reading (want strokes of 2 or more)"),
    ({"strokes": 2, "prior": "cold"}, "prior: unknown value (got 'cold', want tuned or frozen)"),
    (
        {"strokes": 2, "prior": "frozen", "method": "full"},
        "prior: frozen needs a method that can be switched off (got method 'full')",
    ),
    (
        {"strokes": 2, "stroke_adapters": "separate", "method": "full"},
        "stroke_adapters: separate needs a method with adapters (got method 'full')",
    ),
    (
        {"strokes": 2, "stroke_adapters": "separate", "checkpointing": True},
        "checkpointing: does not go with stroke_adapters=separate",
    ),
    (
        {"strokes": 3, "mix": "gated", "prior": "frozen"},
        "strokes: mix=gated averages two readings (got 3, want 2)",
    ),
    (
        {"strokes": 2, "mix": "gated"},
        "mix: gated averages two equal readings (want direction=bidirectional, prior=frozen or "
        "stroke_adapters=separate)",
    ),
    (
        {"strokes": [1, 2], "stroke_adapters": "separate"},
        "strokes: separate adapters need one number (got 1,2)",
    ),
    ({"strokes": 2, "slots": 300}, "slots: out of range (got 300, want a whole number from 0 to 256)"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_plans_without_a_meaning_are_refused_before_anything_is_read(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert refused(lambda **given: instructrec.tune("no-such-file.tsv", **given), **settings) == message


# -- evaluate --------------------------------------------------------------------------------------------------------

TEST = [{"instruction": f"Please {task} it", "input": "noon", "output": TASKS[task]("noon")} for task in TASKS]
MEASURE = {"precision": "fp32", "threads": 1, "max_new_tokens": 6, "suites": "none", "training_rows": True}


def asked_plainly(folder: Path, strokes: int) -> tuple[list[str], list[float]]:
    """Answers and nats of the untuned backbone, which is fed the instruction `strokes` times by hand."""
    loaded = open_target(str(folder), precision="fp32")
    texts, nats = [], []
    for row in TEST:
        record = Record.of(row["instruction"], row["output"], input=row["input"])
        made = loaded.renderer.render(record)
        end, ids = cut(made), made.ids
        prompt = ids[:end] * (strokes - 1) + ids[: made.prompt_end]
        how = {"stop_ids": loaded.stop_ids, "pad_id": 0, "sampling": Sampling(max_new_tokens=6)}
        texts.append(loaded.renderer.decode(generate(loaded.model, [prompt], **how)[0].ids))
        whole = torch.tensor([prompt + ids[made.prompt_end :]])
        with torch.no_grad():
            logs = torch.log_softmax(loaded.model(whole).logits[0].double(), -1)
        answer = range(len(prompt), whole.shape[1])
        nats.append(-sum(float(logs[place - 1, whole[0, place]]) for place in answer))
    return texts, nats


def answered(folder: Path, arm: str) -> tuple[list[str], list[float]]:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return [line["answers"][arm] for line in lines], [line["nats"][arm] for line in lines]


@pytest.mark.parametrize("name", ["gated", EVERYTHING, "full"])
def test_the_arms_are_what_they_are_called(kept: Any, base: Path, tmp_path: Path, name: str) -> None:
    folder, out = kept(name), tmp_path / "report"
    result = instructrec.evaluate(folder, TEST, out=str(out), **MEASURE)
    arms = [arm["name"] for arm in result.report["arms"]]
    assert arms == ["base", "reread", "few_shot", "tuned"]
    for arm, strokes in (("base", 1), ("reread", 2)):
        texts, nats = asked_plainly(base, strokes)
        assert answered(out, arm)[0] == texts
        assert answered(out, arm)[1] == pytest.approx(nats, rel=1e-4)
    tuned = instructrec.Assistant(folder, precision="fp32", max_new_tokens=6)
    given = [tuned(row["instruction"], row["input"]) for row in TEST]  # leaves out the half of a character
    assert [text.rstrip("\ufffd") for text in answered(out, "tuned")[0]] == [text.rstrip("\ufffd") for text in given]
    records = [Record.of(row["instruction"], row["output"], input=row["input"]) for row in TEST]
    rows = [tuned.loaded.renderer.render(record) for record in records]
    losses = row_losses(tuned.loaded.model, rows, pad_id=0, batch_tokens=1000)
    assert answered(out, "tuned")[1] == pytest.approx([nats for nats, _ in losses], rel=1e-4)
    assert answered(out, "tuned")[1] != pytest.approx(answered(out, "reread")[1], rel=1e-3)
    details = {arm["name"]: arm["detail"] for arm in result.report["arms"]}
    assert details["reread"].endswith(", not tuned, the instruction read 2 times")
    assert details["tuned"].endswith(", the instruction read 2 times") and details["base"].endswith(", not tuned")


def test_a_dial_that_was_not_tuned_for_is_warned_of_once_and_noted(kept: Any, tmp_path: Path, capsys: Any) -> None:
    note = "tuned to read 2 times, deep, asked to read 3 times"
    out = tmp_path / "report"
    found = instructrec.evaluate(kept("deep"), TEST, strokes=3, arms="tuned", out=str(out), **MEASURE)
    err = " ".join(capsys.readouterr().err.split())
    assert f"warning: {note}" in err and err.count(note) == 1
    assert note in found.report["suites"][0]["notes"]
    assert note in " ".join((out / "report.html").read_text().split())
    assert note in load(out / "report.json")["suites"][0]["notes"]
    for strokes in (None, 2):
        again = instructrec.evaluate(kept("deep"), TEST, strokes=strokes, arms="tuned", out=str(out), **MEASURE)
        assert not [line for line in again.report["suites"][0]["notes"] if "asked to read" in line]
    one = instructrec.evaluate(kept("drawn"), TEST, strokes=1, out=str(out), **MEASURE)
    assert [arm["name"] for arm in one.report["arms"]] == ["base", "few_shot", "tuned"]
    assert not [line for line in one.report["suites"][0]["notes"] if "asked to read" in line]


def test_plans_that_have_no_such_dial_refuse_it(kept: Any) -> None:
    separate, gated = "each stroke has an adapter of its own", "mix=gated averages two readings"
    for strokes in (1, 3):
        assert opening(kept("separate"), strokes=strokes) == f"strokes: {separate} (got {strokes}, want 2)"
    assert opening(kept("gated"), strokes=3) == f"strokes: {gated} (got 3, want 1 or 2)"
    assert open_target(str(kept("gated")), strokes=1, precision="fp32").strokes == 1


def test_an_untuned_model_is_measured_reading_again(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    found = instructrec.evaluate(base, TEST, strokes=2, out=str(out), **MEASURE)
    assert [arm["name"] for arm in found.report["arms"]] == ["base", "reread"]
    assert answered(out, "reread")[1] == pytest.approx(asked_plainly(base, 2)[1], rel=1e-4)
    assert answered(out, "base")[1] == pytest.approx(asked_plainly(base, 1)[1], rel=1e-4)


def test_rows_that_fit_once_and_not_twice(tiny_folder: Any, tmp_path: Path) -> None:
    """The arms that read once are not held to the positions of those that read again."""
    model, out = tiny_folder("gpt2"), str(tmp_path / "report")
    rows = rows_of(2, 30)
    with pytest.raises(DataError) as caught:
        instructrec.evaluate(model, rows, strokes=2, out=out, **MEASURE)
    (problem,) = caught.value.problems
    assert " tokens (read 2 times) and a right answer of " in str(problem)
    assert str(problem).endswith("are more than this model can hold (128); lower --strokes, or leave the row out")
    found = instructrec.evaluate(model, rows, strokes=2, arms="base", out=out, **MEASURE)
    assert found.report["suites"][0]["rows"] == 2
