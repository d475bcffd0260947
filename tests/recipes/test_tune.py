"""`tune` end to end on tiny models: what the run folder holds, what is kept out of training, what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from run_files import TASKS, WORDS, entries, load, refused
from safetensors.torch import load_file

import instructrec
import learning
import tiny
from instructrec.config import TuneSettings
from instructrec.data.records import Origin, Record
from instructrec.errors import DataError, EnvironmentFault
from instructrec.models.methods import METHODS
from instructrec.recipes.tune import _spread
from instructrec.recipes.watch import UNSEEN, Watcher, fewer, part_rows

PROMISED = [
    "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoints", "examples.json", "loss.png",
    "metrics.jsonl", "prompt.json", "report.html", "report.json", "run.json", "settings.json", "signatures.safetensors",
    "split.json", "traits.json",
]  # fmt: skip


def test_the_run_folder_holds_what_was_promised(quick: Any, table: Path, base: Path, capsys: Any) -> None:
    result = quick(tensorboard=True)
    folder = result.folder
    found = sorted(path.name for path in folder.iterdir() if not path.is_dir() or path.name == "checkpoints")
    assert found == PROMISED
    assert list(folder.rglob("events.out.tfevents*"))
    run = load(folder / "run.json")
    assert run["method"] == "lora" and run["backbone"]["name"] == str(base) and run["backbone"]["fingerprint"]
    assert list(run["data"]["files"]) == [str(table)] and len(run["data"]["files"][str(table)]) == 64
    assert (run["data"]["read"], run["data"]["rejected"], run["data"]["rows"]) == (40, 0, 40)
    assert run["settings"]["lora"] == {
        "rank": 16, "alpha": 32.0, "dropout": 0.0, "target": "all-linear", "dora": False, "rslora": False,
    }  # fmt: skip
    assert run["settings"]["seed"] == 3 and run["surroundings"]["threads"] == 1
    assert run["surroundings"]["packages"]["torch"] == torch.__version__
    assert 0 < run["trained_parameters"] < run["parameters"]
    assert run["training"]["best_step"] == result.best_step and run["training"]["stopped"] == result.stopped
    assert sum(run["data"]["parts"].values()) == 40
    out = capsys.readouterr().out
    assert run["data"]["held_out"] in out and f"run folder: {folder}" in out
    assert os.fspath(result) == str(result) == str(folder)
    for name in ("report.html", "README.md"):
        assert (folder / name).stat().st_size > 500
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_fewer_rows_of_each_file_are_among_more_and_leave_the_held_out_ones() -> None:
    rows = [
        Record.of(f"{file} {number}", "x", origin=Origin(file, number)) for file in ("a", "b") for number in range(20)
    ]
    parts = part_rows(rows, None, TuneSettings(held_out="row", held_out_share=0.25))
    given = {most: TuneSettings(seed=3, max_rows=most) for most in (None, 4, 8, 100)}
    trained = {most: fewer(parts, settings) for most, settings in given.items()}
    assert trained[None] is parts and trained[100] is parts
    assert all(trained[most].sets == parts.sets for most in (4, 8))
    assert Counter(row.origin.file for row in trained[4].train) == {"a": 4, "b": 4}
    keys = {most: [row.key for row in trained[most].train] for most in (4, 8, 100)}
    assert set(keys[4]) < set(keys[8]) < set(keys[100])
    assert [key for key in keys[100] if key in keys[8]] == keys[8]
    assert {row.key for row in fewer(parts, TuneSettings(seed=4, max_rows=4)).train} != set(keys[4])
    assert trained[8].explanation == f"{parts.explanation} Of these, 16 drawn by seed (max_rows)."
    shares = [fewer(parts, TuneSettings(seed=3, train_share=share)) for share in (0.25, 0.5, 1.0)]
    quarter, half, whole = ({row.key for row in one.train} for one in shares)
    assert quarter < half < whole and [len(quarter), len(half), len(whole)] == [8, 15, 30]
    both = fewer(parts, TuneSettings(seed=3, train_share=0.25, max_rows=8))
    assert len(both.train) == 4 and both.explanation.endswith("Of these, 4 drawn by seed (max_rows and train_share).")


def test_rows_to_train_on_at_most(quick: Any) -> None:
    run = load(quick(max_rows=12).folder / "run.json")
    assert run["data"]["parts"]["train"] == 12 and run["data"]["rows"] == 40
    assert "Of these, 12 drawn by seed (max_rows)." in run["data"]["held_out"]


def test_metrics_are_one_object_a_line(quick: Any) -> None:
    folder = quick(eval_every=3).folder
    looks = [entry for entry in entries(folder) if "look" in entry]
    steps = [entry for entry in entries(folder) if "look" not in entry]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 6
    for entry in steps:
        assert {
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens_per_second",
            "tokens",
            "supervised_tokens",
        } <= entry.keys()
    assert [entry["step"] for entry in looks] == [0, 3, 6, 7] and steps[-1]["step"] == 7
    assert set(looks[0]["look"]) == {"unseen_tasks", "seen"}
    mix = looks[1]["look"]
    assert looks[1]["watched"] == pytest.approx(0.5 * mix["seen"]["loss"] + 0.5 * mix["unseen_tasks"]["loss"], rel=1e-4)
    training = load(folder / "run.json")["training"]
    best = min((entry for entry in looks if entry["step"]), key=lambda entry: entry["watched"])
    assert training["best_step"] == best["step"]


def test_held_out_tasks_are_never_trained_on(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from instructrec.training import loop

    seen: list[Any] = []
    init = loop.Training.__init__
    monkeypatch.setattr(loop.Training, "__init__", lambda self, *given: (seen.append(given), init(self, *given))[1])
    folder = quick(held_out_tasks=2).folder
    held = load(folder / "run.json")["training"]["held_out_tasks"]
    assert len(held) == 2
    split = load(folder / "split.json")
    keys = {task: {_key(task, word) for word in WORDS} for task in TASKS}
    apart = keys[held[0]] | keys[held[1]]
    assert set(split["unseen_tasks"]) == apart and not apart & set(split["train"])
    assert not set(split["train"]) & set(split["seen"])
    assert len(split["train"]) + len(split["seen"]) + len(split["unseen_tasks"]) == 40
    tokenizer = tiny.tokenizer("qwen")
    (_, rows, *_), *_ = seen
    texts = [tokenizer.decode(row.ids) for row in rows]
    assert len(texts) == len(split["train"])
    assert not any(f"Please {task} it" in text for text in texts for task in held)
    examples = load(folder / "examples.json")
    assert {row["task"] for row in examples} == set(TASKS) - set(held)


def _key(task: str, word: str) -> str:
    return Record.of(f"Please {task} it", input=word).prompt_key


def test_the_best_checkpoint_is_the_one_on_top(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {0: 9.0, 2: 3.0, 4: 2.0, 6: 4.0, 7: 3.0}
    figures = lambda step: {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", lambda self, step: figures(step))
    result = quick(eval_every=2)
    assert (result.best_step, result.steps) == (4, 7)
    kept = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert kept == ["step-4", "step-7"]
    top, best, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (result.folder, *(result.folder / "checkpoints" / name for name in kept))
    )
    assert learning.same(top, best) and not learning.same(top, last)


def test_a_run_worse_than_untuned_is_called_so(quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    looked = lambda self, step: {name: {"loss": 1.0 + step} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", looked)
    result = quick(eval_every=1, patience=2)
    assert result.stopped == "no improvement in 2 looks, stopped at step 3 of 7"
    text = "warning: no look at the held-out rows was better than the untuned model: do not rely on this run"
    assert text in capsys.readouterr().err


def test_equal_settings_give_equal_weights(quick: Any, tmp_path: Path) -> None:
    one, other, seeded = (
        load_file(quick(out=tmp_path / name, lora={"dropout": 0.2}, seed=seed).folder / "adapter_model.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert learning.same(one, other) and not learning.same(one, seeded)


def test_full_tuning_end_to_end(quick: Any, base: Path) -> None:
    folder = quick(method="full", max_steps=3).folder
    assert {"model.safetensors", "config.json"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "adapter_config.json").exists()
    talk = instructrec.Assistant(folder, precision="fp32", max_new_tokens=5)
    assert not learning.same(learning.weights_of(talk.loaded.model), learning.weights_of(tiny.model("qwen")))
    assert isinstance(talk("Please upper it"), str)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"full"}))
def test_two_runs_of_one_process_may_differ_in_precision(quick: Any, tmp_path: Path, method: str) -> None:
    quick(max_steps=1)
    folder = quick(max_steps=1, precision="bf16", method=method, out=tmp_path / "bf16").folder
    weights = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}  # trained weights stay precise


def test_a_list_of_dicts(quick: Any) -> None:
    rows = [{"instruction": f"Say {word}", "output": word.upper()} for word in WORDS]
    folder = quick(rows, held_out="row").folder
    run = load(folder / "run.json")
    assert list(run["data"]["files"]) == ["<memory>"] and run["data"]["rows"] == 10
    assert set(run["data"]["parts"]) == {"train", "seen"}


def test_rows_given_to_watch(quick: Any) -> None:
    watch = [{"instruction": "Say lamp", "output": "LAMP"}]
    folder = quick(validation=watch).folder
    assert load(folder / "run.json")["data"]["parts"] == {"train": 40, "validation": 1}


def test_nothing_held_out_keeps_the_last_step(quick: Any) -> None:
    result = quick(held_out="none")
    assert result.best_step == result.steps
    run = load(result.folder / "run.json")
    assert run["training"]["watch"] == "nothing was held out: the last step is kept" and run["training"]["looks"] == []


def test_a_metric_of_answers_can_be_watched(quick: Any) -> None:
    folder = quick(watch="exact_match", max_steps=2).folder
    looks = [entry["look"] for entry in entries(folder) if "look" in entry]
    assert len(looks) >= 2
    assert all(0 <= figures["exact_match"] <= 100 for look in looks for figures in look.values())
    watch = "exact_match on held-out rows (0.5 × unseen_tasks + 0.5 × seen), highest is best"
    assert load(folder / "run.json")["training"]["watch"] == watch


def test_what_is_watched_is_the_answer_found_in_a_text(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec.prompts.template.Renderer.decode", lambda self, ids: "LAMP\nand so on")
    rows = [{"instruction": "Say lamp", "output": "LAMP"}]
    folder = quick(watch="exact_match", validation=rows, max_steps=1).folder
    looks = [entry["look"] for entry in entries(folder) if "look" in entry]
    assert {figures["exact_match"] for look in looks for figures in look.values()} == {100.0}


def test_a_metric_that_does_not_fit_the_rows_is_named_with_its_reason(quick: Any, tmp_path: Path) -> None:
    message = refused(quick, watch="bleu", max_steps=1)
    assert message == "watch: bleu can't be computed on these rows"
    message = refused(quick, watch="accuracy", max_steps=1, out=tmp_path / "other")
    assert message == "watch: accuracy can't be computed on these rows (no closed set of labels)"


def test_watched_rows_that_are_too_long_are_said_and_counted(quick: Any, tmp_path: Path, capsys: Any) -> None:
    short, long = ({"instruction": "Say lamp", "output": text} for text in ("LAMP", "long " * 100))
    folder = quick(validation=[short, long, short], on_long="drop", max_length=100, max_steps=1).folder
    assert load(folder / "run.json")["data"]["parts"] == {"train": 40, "validation": 2}
    out = " ".join(capsys.readouterr().out.split())
    assert "Held-out rows, validation: tokens a row: " in out and "; 0 inputs trimmed, 1 rows dropped" in out
    message = refused(quick, validation=[long], on_long="drop", max_length=100, out=tmp_path / "other")
    assert message == "no rows are left to watch in 'validation' (got 1 rows, 1 of them over max_length 100)"
    assert not (tmp_path / "other").exists()


def test_threads_are_torchs_own_choice_unless_said(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    folder = quick(max_steps=1, threads=0).folder
    assert chosen == [] and load(folder / "run.json")["surroundings"]["threads"] == 7
    quick(max_steps=1, threads=3, out=folder / "b")
    assert chosen == [3]


def test_the_loop_runs_where_the_model_is(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Recorded(accelerate.Accelerator):
        def __init__(self, **options: Any) -> None:
            given.append(options["cpu"])
            super().__init__(**options)

    monkeypatch.setattr(accelerate, "Accelerator", Recorded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    quick(max_steps=1)
    assert given == [True]


def test_examples_are_drawn_from_all_rows_of_a_task() -> None:
    records = [Record.of("Sort", "good" if n < 50 else "bad", input=str(n), task="sort") for n in range(100)]
    records += [Record.of("Shout", "A", input=str(n), task="shout") for n in range(3)]
    drawn = _spread(records, 40, 0)
    assert [record.task for record in drawn] == ["sort"] * 20 + ["shout"] * 3
    assert {record.answer for record in drawn} == {"good", "bad", "A"}
    assert drawn == _spread(records, 40, 0) != _spread(records, 40, 1)


def test_bad_rows_can_be_skipped_into_a_file(quick: Any, table: Path) -> None:
    with open(table, "a", encoding="utf-8") as handle:
        handle.write("Please upper it\tred\n")
    folder = quick(on_bad_row="skip", max_steps=1).folder
    run = load(folder / "run.json")
    assert (run["data"]["read"], run["data"]["rows"], run["data"]["rejected"]) == (41, 40, 1)
    assert len((folder / "rejected.jsonl").read_text().splitlines()) == 1


# -- refusals: before anything is touched ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lorra"}, "method: unknown tuning method 'lorra', did you mean 'lora'?"),
        ({"watch": "exactmatch"}, "watch: unknown metric 'exactmatch', did you mean 'exact_match'?"),
        ({"max_length": 500}, "max_length: more than this model can hold (got 500, want at most 256)"),
        ({"lora": {"target": "q_prj"}}, "lora.target: no linear layer is called 'q_prj', did you mean 'q_proj'?"),
        ({"template": "alpacca"}, "template: unknown template 'alpacca', did you mean 'alpaca'?"),
    ],
)
def test_wrong_settings_leave_nothing_behind(quick: Any, tmp_path: Path, settings: Any, message: str) -> None:
    assert refused(quick, **settings) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"epochs": 0}, "epochs"), ({"learning_rate": float("nan")}, "learning_rate"), ({"lora": {"rank": -1}}, "lora.rank"), ({"lr": 1}, "lr")],
)  # fmt: skip
def test_settings_out_of_range_are_named(quick: Any, tmp_path: Path, settings: Any, key: str) -> None:
    message = refused(quick, **settings)
    assert message.startswith(f"{key}: ") and ("(want " in message or ", want " in message or "did you mean" in message)
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_after_rejecting_rows_can_be_corrected(quick: Any, table: Path, tmp_path: Path) -> None:
    with open(table, "a", encoding="utf-8") as handle:
        handle.write("Please upper it\tred\n")
    other = table.with_name("other.tsv")
    other.write_bytes(table.read_bytes())
    for data, files in ((table, ["rejected.jsonl"]), ([table, other], ["rejected-1.jsonl", "rejected-2.jsonl"])):
        out = tmp_path / f"run{len(files)}"
        assert refused(quick, data, on_bad_row="skip", max_length=500, out=out).startswith("max_length: ")
        assert sorted(os.listdir(out)) == files
        quick(data, on_bad_row="skip", max_steps=1, out=out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rejected-by-me.jsonl").write_text("mine")
    assert "holds files already" in refused(quick, max_steps=1, out=tmp_path / "mine")


def test_bad_rows_leave_nothing_behind(quick: Any, table: Path, tmp_path: Path) -> None:
    with open(table, "a", encoding="utf-8") as handle:
        handle.write("Please upper it\tred\n")
    with pytest.raises(DataError, match=f"^{table}:42: "):
        quick()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["train", "unseen_tasks"])
def test_a_row_too_long_leaves_nothing_behind(quick: Any, table: Path, tmp_path: Path, place: str) -> None:
    rows = [{"instruction": f"Please {t} it", "input": w, "output": w, "task": t} for t in TASKS for w in WORDS]
    from instructrec.config import TuneSettings

    parts = part_rows(instructrec.read(rows).records, None, TuneSettings(seed=1))
    chosen = (parts.train if place == "train" else parts.sets[UNSEEN])[0]
    number = next(
        n for n, row in enumerate(rows) if (row["instruction"], row["input"]) == (chosen.instruction, chosen.input)
    )
    rows[number]["output"] = "long " * 300
    with pytest.raises(DataError) as caught:
        quick(rows)
    assert str(caught.value).startswith(f"<memory>:{number + 1}: length: ")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it(quick: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    assert refused(quick) == f"out: {run} holds files already; choose another --out, or go on with --resume"
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
    (run / "run.json").write_text("{}")
    assert refused(quick) == f"out: {run} holds a finished run; choose another --out, or go on with --resume"
    assert refused(quick, resume=True) == f"resume: {run} holds no checkpoints to go on from"
    assert refused(quick, out=run / "thesis.txt") == f"out: {run / 'thesis.txt'} is a file (want a folder)"


def test_a_folder_that_cannot_be_made(quick: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault) as caught:
        quick(out=tmp_path / "file" / "run", max_steps=1)
    assert str(caught.value) == f"out: {tmp_path / 'file' / 'run'} can't be made: Not a directory"


# -- a method of a test ----------------------------------------------------------------------------------------------


def test_a_registered_method_is_tuned_with(quick: Any) -> None:
    from instructrec.models import methods
    from instructrec.models.methods.full import Full

    class HeadOnly(Full):
        """The last norm only."""

        name = "last_norm"

        def attach(self, model: Any, options: Any, seed: int) -> Any:
            model.requires_grad_(False)
            model.model.norm.requires_grad_(True)
            return model

    methods.register(HeadOnly())
    try:
        folder = quick(method="last_norm", max_steps=2).folder
        tuned = load_file(folder / "model.safetensors")
        base = dict(tiny.model("qwen").state_dict())
        assert [name for name in tuned if not torch.equal(tuned[name], base[name])] == ["model.norm.weight"]
        assert load(folder / "run.json")["trained_parameters"] == tiny.WIDTH
        instructrec.Assistant(folder, precision="fp32", max_new_tokens=3)("Please upper it")
    finally:
        del methods.METHODS["last_norm"]
