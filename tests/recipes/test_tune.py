"""`tune` end to end on tiny models: what the run folder holds, what is kept out of training, stopping and resuming."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import instructrec
import learning
import tiny
from instructrec.data.records import Record
from instructrec.errors import DataError, EnvironmentFault, InputError
from instructrec.recipes.tune import Interrupted, tune
from instructrec.recipes.watch import UNSEEN, Watcher, part_rows

WORDS = "red blue green house lamp order parcel noon hot cold".split()
TASKS = {"upper": str.upper, "title": str.title, "double": lambda word: word + word, "first": lambda word: word[0]}
PROMISED = [
    "README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoints", "examples.json", "loss.png",
    "metrics.jsonl", "prompt.json", "report.html", "report.json", "run.json", "settings.json", "split.json",
]  # fmt: skip


@pytest.fixture
def base(tiny_folder: Any) -> Path:
    return tiny_folder("qwen")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 rows of four tasks."""
    lines = ["instruction\tinput\toutput\ttask"]
    lines += [f"Please {task} it\t{word}\t{make(word)}\t{task}" for task, make in TASKS.items() for word in WORDS]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "rows.tsv"


@pytest.fixture
def quick(base: Path, table: Path, tmp_path: Path) -> Callable[..., Any]:
    """`tune` with settings for seconds; the run folder is tmp_path/run unless said."""

    def run(data: Any = table, **settings: Any) -> Any:
        given = {"model": str(base), "precision": "fp32", "threads": 1, "tensorboard": False, "batch_rows": 4}
        return tune(data, **({"out": tmp_path / "run", "epochs": 1.0, "seed": 1} | given | settings))

    return run


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refused(run: Callable[..., Any], *data: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(*data, **settings)
    return str(caught.value)


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
    assert run["settings"]["lora"] == {"rank": 16, "alpha": 32.0, "dropout": 0.0, "target": "all-linear"}
    assert run["settings"]["seed"] == 1 and run["surroundings"]["threads"] == 1
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
    (_, rows, _, _), *_ = seen
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


def test_two_runs_of_one_process_may_differ_in_precision(quick: Any, tmp_path: Path) -> None:
    quick(max_steps=1)
    folder = quick(max_steps=1, precision="bf16", out=tmp_path / "bf16").folder
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
    assert refused(quick, **settings).startswith(f"{key}: ")
    assert not (tmp_path / "run").exists()


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


# -- stopping and going on -------------------------------------------------------------------------------------------


def signalled(monkeypatch: pytest.MonkeyPatch, at: int, *numbers: int) -> None:
    """This process gets the signals while step `at` runs."""
    from instructrec.training import loop

    step = loop.Training._step

    def send(self: Any, number: int) -> Any:
        entry = step(self, number)
        for signal_number in numbers if number + 1 == at else ():
            os.kill(os.getpid(), signal_number)
        return entry

    monkeypatch.setattr(loop.Training, "_step", send)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("at", [3, 4])  # 4: the look that is due then is made up for
def test_a_signal_stops_with_a_checkpoint_and_resuming_equals_straight(
    quick: Any, tmp_path: Path, number: int, code: int, at: int
) -> None:
    settings = {"lora": {"dropout": 0.1}, "epochs": 2.5, "eval_every": 4, "accumulation": 3, "batch_rows": 1}
    straight = quick(out=tmp_path / "straight", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        signalled(patch, at, number)
        quick(**settings)
    where = tmp_path / "run" / "checkpoints"
    text = f"stopped by {signal.Signals(number).name}; step {at} of {straight.steps} is in {where}, go on with --resume"
    assert (str(caught.value), caught.value.exit_code) == (text, code)
    assert "run.json" not in os.listdir(tmp_path / "run")
    torch.manual_seed(at)
    result = quick(resume=True, **settings)
    assert (result.steps, result.best_step) == (straight.steps, straight.best_step)
    for file in ("adapter_model.safetensors", f"checkpoints/step-{result.steps}/optimizer.safetensors", "split.json"):
        assert (result.folder / file).read_bytes() == (straight.folder / file).read_bytes(), file
    assert _figures(result.folder) == _figures(straight.folder)


def test_a_second_signal_stops_at_once(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(eval_every=100, save_steps=2)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3]
    monkeypatch.undo()
    assert quick(eval_every=100, save_steps=2, resume=True).steps == 7
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_each_look_leaves_a_checkpoint_and_the_best_is_remembered(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 2: 2.0, 4: 4.0, 6: 3.0, 7: 3.0}
    looked = lambda self, step: {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", looked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signalled(patch, 5, signal.SIGTERM, signal.SIGINT)
        quick(eval_every=2)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-2", "step-4"]
    result = quick(eval_every=2, resume=True)
    assert (result.best_step, result.steps) == (2, 7)


def _figures(folder: Path) -> list[Any]:
    dropped = ("seconds", "tokens_per_second")
    return [{key: value for key, value in entry.items() if key not in dropped} for entry in entries(folder)]


def test_resuming_another_run_lists_each_difference(quick: Any, table: Path, tmp_path: Path) -> None:
    quick(max_steps=2)
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("Please upper it\tred\tRED", "Please upper it\tred\tROT"), encoding="utf-8")
    message = refused(quick, resume=True, max_steps=2, seed=5, lora={"rank": 4, "target": "q_proj"}, method="lora")
    lines = message.splitlines()
    assert lines[0] == "resume: this is another run:"
    assert [line.split(":")[0].strip() for line in lines[1:-1] + lines[-1:]] == [
        f"data.{table}", "settings.lora.rank", "settings.lora.target", "settings.seed",
    ]  # fmt: skip
    assert "  settings.lora.rank: was 16, is 4" in lines and "  settings.seed: was 1, is 5" in lines


def test_resuming_with_other_rows_to_watch_is_refused(quick: Any) -> None:
    watch = [{"instruction": "Say lamp", "output": "LAMP"}]
    quick(max_steps=2, validation=watch)
    message = refused(quick, resume=True, max_steps=2, validation=[{"instruction": "Say lamp", "output": "Lamp"}])
    assert message.splitlines()[1].startswith("  validation.<memory>: was '")


def test_resuming_on_another_backbone_is_refused(quick: Any, tmp_path: Path) -> None:
    model = tiny.folder("qwen", tmp_path / "model")
    quick(max_steps=2, model=str(model))
    tiny.folder("qwen", model, seed=3)
    message = refused(quick, resume=True, max_steps=2, model=str(model))
    assert message.splitlines()[1].startswith("  backbone.fingerprint: was '") and len(message.splitlines()) == 2


def test_a_damaged_checkpoint_is_named_before_it_is_read(quick: Any, tmp_path: Path) -> None:
    result = quick(max_steps=2)
    file = result.folder / "checkpoints" / "step-2" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    want = f"{file}: sha256 differs from the manifest, the checkpoint is damaged"
    assert refused(quick, resume=True, max_steps=2) == want


def test_a_finished_run_taken_up_again_is_the_same(quick: Any) -> None:
    first = quick(max_steps=4)
    before = {name: (first.folder / name).read_bytes() for name in ("adapter_model.safetensors", "split.json")}
    again = quick(max_steps=4, resume=True)
    assert (again.best_step, again.steps) == (first.best_step, first.steps)
    assert all((again.folder / name).read_bytes() == content for name, content in before.items())


def test_signal_handlers_are_put_back(quick: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    quick(max_steps=1)
    assert signal.getsignal(signal.SIGINT) is before


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


def test_a_run_that_died_before_its_first_checkpoint_starts_over(quick: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n', encoding="utf-8")
    quick(max_steps=2)
    assert [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line and '"look"' not in line
    ] == [1, 2]
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run2" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds files already"):
        quick(max_steps=2, out=tmp_path / "run2")
