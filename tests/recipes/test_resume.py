"""A run that is stopped, killed or finished, and taken up again: it is the run that nobody has stopped, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from children import BEGUN, ended, start, wait_for
from run_files import entries, refused
from stops import EXACT, STEPS, counted, same_result, shaken, signalled

import learning
import tiny
from instructrec import cli
from instructrec.config import TuneSettings
from instructrec.models.methods import METHODS
from instructrec.recipes import resume
from instructrec.recipes.tune import Interrupted
from instructrec.recipes.watch import UNSEEN, Watcher
from instructrec.settings import Leaf, leaves_of
from instructrec.training import checkpoint, loop
from instructrec.training.monitor import Monitor

# -- bit by bit ------------------------------------------------------------------------------------------------------


def trained(folder: Path, method: str, first: int, stop_at: int) -> tuple[Any, list[Any]]:
    """Train from `first` (resuming `step-<first>`) to the end of step `stop_at`: training and the steps taken."""
    chosen, base = METHODS[method], tiny.model("llama")
    options = learning.options_of(chosen) | {"dropout": 0.1}
    model = chosen.load(base, folder / f"step-{first}", trainable=True) if first else chosen.attach(base, options, 0)
    how = learning.plan(epochs=2.5, batch_rows=1, accumulation=3, schedule="cosine", seed=3, learning_rate=5e-3)
    run = learning.training(model, learning.rows([4, 14, 12, 7, 20, 9] * 4, 290), how)
    monitor = Monitor({})
    if first:
        state = checkpoint.restore(folder / f"step-{first}", run.optimizer.optimizer, run.names)
        monitor.restore(state["monitor"])
        run.outcome.restore(state["outcome"])

    def save(step: int, state: dict[str, Any]) -> None:
        write = lambda target: chosen.save(model, target, "tiny")  # noqa: E731
        optimizer = run.optimizer.optimizer
        checkpoint.save(folder, step, write_weights=write, optimizer=optimizer, names=run.names, state=state)

    with counted() as taken:
        stop = lambda: "stop" if run.outcome.steps == stop_at else ""  # noqa: E731
        run.run(monitor, loop.Hooks(save=save, stop=stop), first)
    return run, taken


@pytest.mark.parametrize("method", ["lora", "full", "adapter", "ia3"])
def test_training_stopped_at_any_step_and_resumed_equals_straight(method: str, tmp_path: Path) -> None:
    straight, want = trained(tmp_path / "straight", method, 0, 0)
    assert [number for number, *_ in want] == list(range(1, 21))
    last = tmp_path / "straight" / "step-20" / checkpoint.OPTIMIZER
    for stop in range(1, 21):
        folder = tmp_path / str(stop)
        head = trained(folder, method, 0, stop)[1]
        shaken(stop)
        again, tail = trained(folder, method, stop, 20)
        assert head == want[:stop] and tail == want[stop:], stop
        assert learning.same(learning.weights_of(again.model), learning.weights_of(straight.model)), stop
        assert again.outcome.tokens == straight.outcome.tokens
        assert (folder / "step-20" / checkpoint.OPTIMIZER).read_bytes() == last.read_bytes(), stop


def test_a_signal_at_any_step_stops_with_a_checkpoint_and_resuming_equals_straight(
    quick: Any, tmp_path: Path, straight: Any, undrawn: None
) -> None:
    whole, want = straight
    for at in range(1, STEPS + 1):
        number, code = [(signal.SIGINT, 130), (signal.SIGTERM, 143)][at // 2 % 2]
        with counted() as head, pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
            signalled(patch, at, number)
            quick(**EXACT)
        run = tmp_path / "run"
        step = f"step {at} of {STEPS} is in {run / 'checkpoints'}, go on with --resume"
        assert str(caught.value) == f"stopped by {signal.Signals(number).name}; {step}"
        assert caught.value.exit_code == code and "run.json" not in os.listdir(run)
        shaken(at)
        with counted() as tail:
            result = quick(resume=True, **EXACT)
        assert head == want[:at] and tail == want[at:], at
        assert (result.steps, result.best_step) == (whole.steps, whole.best_step)
        same_result(run, whole.folder)
        shutil.rmtree(run)


def test_resuming_again_and_again_and_after_the_end(quick: Any, tmp_path: Path, straight: Any, undrawn: None) -> None:
    whole, want = straight
    with counted() as taken:
        for at in (3, 4, 11, 21):
            shaken(at)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
                signalled(patch, at, signal.SIGINT)
                quick(resume=at != 3, **EXACT)
            assert len(taken) == at
        result = quick(resume=True, **EXACT)
        assert taken == want
        assert quick(resume=True, **EXACT) == result and len(taken) == STEPS
    same_result(tmp_path / "run", whole.folder)


# -- real processes --------------------------------------------------------------------------------------------------


def command(base: Path, table: Path, run: Path, *more: str) -> list[str]:
    """EXACT on the command line."""
    words = "--precision fp32 --threads 1 --no-tensorboard --batch-rows 1 --accumulation 3 --lora-dropout 0.1 --seed 3"
    words += " --epochs 2.5 --eval-every 4"
    return ["tune", str(table), "--model", str(base), "--out", str(run), *words.split(), *more]


def steps_logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text(encoding="utf-8").count('"learning_rate"') if file.is_file() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_gets_a_signal(
    base: Path, table: Path, tmp_path: Path, quick: Any, straight: Any, number: int, code: int
) -> None:
    run, printed, name = tmp_path / "run", tmp_path / "printed", signal.Signals(number).name
    process = start(command(base, table, run), printed, slow=0.3)
    wait_for(lambda: steps_logged(run) >= 5, process)
    os.kill(process.pid or 0, number)
    assert ended(process) == code
    at = int(checkpoint.checkpoints(run / "checkpoints")[-1].name.removeprefix("step-"))
    text = f"stopped by {name}; step {at} of 22 is in {run / 'checkpoints'}, go on with --resume"
    assert printed.read_text(encoding="utf-8").splitlines()[-1] == text and 5 <= at < STEPS
    printed = tmp_path / "printed-2"
    process = start(command(base, table, run, "--resume"), printed, slow=900)
    wait_for(lambda: printed.is_file() and BEGUN in printed.read_text(encoding="utf-8"), process)
    os.kill(process.pid or 0, number)
    wait_for(lambda: "stopping after this step" in printed.read_text(encoding="utf-8"), process)
    os.kill(process.pid or 0, number)
    assert ended(process) == code
    text = f"stopped by {name} at once, without a checkpoint of this step"
    assert printed.read_text(encoding="utf-8").splitlines()[-1] == text
    with counted() as taken:
        assert cli.main(command(base, table, run, "--resume")) == 0
    assert taken == straight[1][at:]
    same_result(run, straight[0].folder)


def test_a_process_that_is_killed_inside_a_save(
    base: Path, table: Path, tmp_path: Path, straight: Any, undrawn: None
) -> None:
    """settings.json and prompt.json take two fsyncs each; every later one here belongs to the saves of steps 4 and 8."""
    run, seen = tmp_path / "run", set()
    for call in (5, 8, 12, 14, 16, 18, 20):
        process = start(command(base, table, run), tmp_path / "printed", kill_at_sync=call)
        assert ended(process) == -signal.SIGKILL
        found = checkpoint.checkpoints(run / "checkpoints")
        at = int(found[-1].name.removeprefix("step-")) if found else 0
        seen.add(at)
        with counted() as taken:
            assert cli.main(command(base, table, run, *["--resume"][: len(found)])) == 0
        assert taken == straight[1][at:]
        same_result(run, straight[0].folder)
        assert not [path.name for path in run.rglob(".*")]
        shutil.rmtree(run)
    assert seen == {0, 4}


def test_a_second_signal_stops_at_once(quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        quick(eval_every=100, save_steps=2)
    text = "stopped by SIGINT at once, without a checkpoint of this step"
    assert (str(caught.value), caught.value.exit_code) == (text, 130)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-2"]
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3]
    monkeypatch.undo()
    verified: list[Path] = []
    verify = checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda path: (verified.append(path), verify(path)))
    assert quick(eval_every=100, save_steps=2, resume=True).steps == 7
    where = tmp_path / "run" / "checkpoints"
    assert verified == [where / "step-2", where / "step-7"]  # what goes on, and what becomes the result
    assert [entry["step"] for entry in entries(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_each_look_leaves_a_checkpoint_and_the_best_is_remembered(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 2: 2.0, 4: 4.0, 6: 3.0, 7: 3.0}
    looked = lambda self, step: {name: {"loss": losses[step]} for name in ("seen", UNSEEN)}  # noqa: E731
    monkeypatch.setattr(Watcher, "look", looked)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 5, signal.SIGTERM, signal.SIGINT)
        quick(eval_every=2)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-2", "step-4"]
    result = quick(eval_every=2, resume=True)
    assert (result.best_step, result.steps) == (2, 7)


# -- another run -----------------------------------------------------------------------------------------------------


def changed(leaf: Leaf) -> Any:
    """Another value that the setting may have."""
    if isinstance(leaf.base, tuple):
        return next(choice for choice in leaf.base if choice != leaf.default)
    if leaf.base is bool:
        return not leaf.default
    if leaf.base is float:
        return leaf.default / 2 + 0.2 if leaf.default is not None else 0.25
    if leaf.base is int:
        return (leaf.default or 6) + 1
    if leaf.key == "trackers":
        return "none"
    return {"answer": "label"} if leaf.base is dict else "3"


def test_every_setting_that_matters_is_part_of_the_run() -> None:
    before = {"settings": TuneSettings().model_dump(mode="json", exclude=set(resume.FREE))}
    names = []
    for key, leaf in leaves_of(TuneSettings).items():
        section, _, name = key.rpartition(".")
        other = changed(leaf)
        settings = TuneSettings.model_validate({section: {name: other}} if section else {name: other})
        now = {"settings": settings.model_dump(mode="json", exclude=set(resume.FREE))}
        found = resume.differences(before, now)
        names += [key] if found else []
        if found and leaf.base is not dict:
            assert found == [f"settings.{key}: was {leaf.default!r}, is {other!r}"]
    free = set("resume out offline trackers threads ignore learning_curve".split())  # no change, or told in a note
    assert set(leaves_of(TuneSettings)) - set(names) == free


def test_differences_are_listed_together_and_in_order() -> None:
    before = {"b": {"y": 1, "x": None}, "a": "one", "c": [1], "gone": {"k": 1}}
    now = {"c": [2], "b": {"x": 0.5, "z": True}, "a": "two"}
    lines = ["a: was 'one', is 'two'", "b.x: was None, is 0.5", "b.y: was 1, is None", "b.z: was None, is True"]
    lines += ["c: was [1], is [2]", "gone: was {'k': 1}, is None"]
    assert resume.differences(before, now) == lines
    assert resume.differences(before, {key: now[key] for key in sorted(now)}) == lines
    assert resume.differences(before, json.loads(json.dumps(before))) == []


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
    assert "  settings.lora.rank: was 16, is 4" in lines and "  settings.seed: was 3, is 5" in lines


def test_resuming_with_another_data_file_or_prompt_is_refused(quick: Any, table: Path, tmp_path: Path) -> None:
    quick(max_steps=2)
    other = shutil.copyfile(table, tmp_path / "other.tsv")
    lines = refused(quick, other, resume=True, max_steps=2, template="alpaca").splitlines()
    digest = json.loads((tmp_path / "run" / "settings.json").read_text(encoding="utf-8"))["data"][str(table)]
    assert lines[1:3] == [f"  data.{other}: was None, is '{digest}'", f"  data.{table}: was '{digest}', is None"]
    assert lines[3].startswith("  prompt: was '") and lines[4] == "  settings.template: was 'auto', is 'alpaca'"
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing, so it can't be told which run this is"),
        ("{", "not JSON, so it can't be told which run this is: Expecting property name enclosed in double quotes"),
    ],
)
def test_without_its_settings_a_run_is_not_gone_on_with(
    quick: Any, tmp_path: Path, content: str | None, reason: str
) -> None:
    quick(max_steps=2)
    file = tmp_path / "run" / "settings.json"
    file.unlink() if content is None else file.write_text(content, encoding="utf-8")
    assert refused(quick, resume=True, max_steps=2).startswith(f"{file}: {reason}")


def test_another_machine_is_noted_and_not_refused(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fewer() -> list[str]:
        return [*(flag for flag in flags if flag != flags[0]), "zmm9"]

    flags, digits = resume.arithmetic_flags(), ": results can differ in the last digits"
    assert flags == sorted(set(flags)) and "avx2" in flags
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 3, signal.SIGTERM)
        quick()
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-3" / "state.json").read_text(encoding="utf-8"))
    assert state["arithmetic"] == {
        "threads": 1, "processor": flags, "vectors": torch.backends.cpu.get_cpu_capability(), "device": "cpu",
        "precision": "float32", "torch": torch.__version__, "processes": 1,
    }  # fmt: skip
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    capsys.readouterr()
    quick(out=tmp_path / "same", resume=True)
    assert "resume: " not in capsys.readouterr().err
    monkeypatch.setattr(resume, "arithmetic_flags", fewer)
    try:
        quick(resume=True, threads=2)
    finally:
        torch.set_num_threads(1)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("resume: ")] == [
        f"resume: the processor is without {flags[0]}; has zmm9 in addition{digits}",
        f"resume: threads were 1, are 2{digits}",
    ]
    before = state["arithmetic"] | {"precision": "bfloat16", "torch": "2.0", "vectors": "DEFAULT"}
    now = state["arithmetic"] | {"precision": "float32", "torch": "2.1", "vectors": "AVX2"}
    assert resume.other_arithmetic(before, now) == [
        "resume: precision was bfloat16, is float32: results will differ",
        f"resume: torch was 2.0, is 2.1{digits}",
        f"resume: vectors were DEFAULT, are AVX2{digits}",
    ]


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
