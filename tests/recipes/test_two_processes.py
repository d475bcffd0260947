"""`tune` in two processes: one run folder, one result, and one end, whatever happens to one of the two."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import entries, load, refused
from safetensors.torch import load_file

from instructrec import cli
from instructrec.recipes import tune as recipe
from instructrec.recipes import watch
from instructrec.training import checkpoint, loop
from ranks import PATIENCE, Ranks

EXACT = {"lora.dropout": 0.1, "epochs": 2.5, "eval_every": 4, "accumulation": 3, "batch_rows": 1}
PLAIN = {"epochs": 1.0, "eval_every": 2, "accumulation": 3, "batch_rows": 1}


def command(base: Path, table: Path, out: Path, **settings: Any) -> list[str]:
    fixed = {"model": base, "precision": "fp32", "threads": 1, "tensorboard": False, "seed": 3, "out": out}
    return ["tune", str(table), *(f"{key}={value}" for key, value in (fixed | settings).items())]


def ran(arguments: list[str], **happening: Any) -> None:
    """The command line in one of several processes; what happens, happens in process 1 alone.

    signal_at, kill_at, bad_at: in this step.  break_in, error: what a function of ours raises.  rows: other rows.
    """
    from instructrec.evaluation import pictures, report

    pictures.save_loss_png = report.write_report = lambda *_: None  # type: ignore[assignment]
    if os.environ.get("RANK") == "1":
        _arrange(arguments, happening)
    sys.exit(cli.main(arguments))


def _arrange(arguments: list[str], happening: dict[str, Any]) -> None:
    step, losses, now = loop.Training._step, loop.token_losses, [0]

    def stepping(self: Any, number: int) -> Any:
        now[0] = number + 1
        entry = step(self, number)
        if now[0] == happening.get("signal_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        return entry

    def measured(*given: Any) -> Any:
        if now[0] == happening.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(*given) * (float("nan") if now[0] == happening.get("bad_at") else 1.0)

    def broken(*_: Any, **__: Any) -> Any:
        raise happening["error"]

    loop.Training._step, loop.token_losses = stepping, measured  # type: ignore[method-assign,assignment]
    if where := happening.get("break_in"):
        setattr({"look": watch.Watcher, "check_positions": recipe}[where], where, broken)
    if rows := happening.get("rows"):
        arguments[1] = rows


def happens(arguments: list[str], happening: dict[str, Any]) -> None:
    ran(list(arguments), **happening)


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., Ranks]:
    def start(arguments: list[str], env: dict[str, str] | None = None, **happening: Any) -> Ranks:
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        return Ranks(folder, happens, arguments, happening, **(env or {}))

    return start


def figures(folder: Path) -> list[Any]:
    dropped = ("seconds", "tokens_per_second")
    return [{key: value for key, value in entry.items() if key not in dropped} for entry in entries(folder)]


def weights(folder: Path) -> Any:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_of_two_is_a_run_of_one(
    two: Any, quick: Any, base: Path, table: Path, tmp_path: Path, undrawn: None
) -> None:
    ranks = two(command(base, table, tmp_path / "two", **PLAIN))
    quick(out=tmp_path / "one", **PLAIN)
    assert ranks.codes() == [0, 0]
    one, other = tmp_path / "one", tmp_path / "two"
    assert sorted(path.name for path in other.iterdir()) == sorted(path.name for path in one.iterdir())
    assert len(figures(one)) == len(figures(other)) > 9
    for mine, theirs in zip(figures(other), figures(one), strict=True):
        assert mine.pop("look", {}).keys() == theirs.pop("look", {}).keys()
        assert mine == pytest.approx(theirs, abs=2e-4)
    want, got = weights(one), weights(other)
    assert max(float((want[name] - got[name]).abs().max()) for name in want) <= 1e-4
    assert load(other / "run.json")["surroundings"]["processes"] == 2
    assert ranks.printed(0).count("Stopped: all ") == 1 and ranks.printed(1) == ""


def test_stopped_by_a_signal_to_one_and_resumed_equals_straight(
    two: Any, quick: Any, base: Path, table: Path, tmp_path: Path, capsys: Any, undrawn: None
) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    stopping = two(command(base, table, run, **EXACT), signal_at=7)
    assert stopping.codes() == [143, 143]
    assert stopping.printed(0).splitlines()[-1] == (
        f"stopped by SIGTERM; step 7 of 22 is in {run / 'checkpoints'}, go on with --resume"
    )
    assert stopping.printed(1) == ""
    assert not (run / ".instructrec.lock").exists() and load(run / "checkpoints/step-7/state.json")["step"] == 7
    shutil.copytree(run, tmp_path / "alone")
    resuming, whole = (
        two([*command(base, table, run, **EXACT), "resume=true"]),
        two(command(base, table, straight, **EXACT)),
    )
    assert resuming.codes() == whole.codes() == [0, 0]
    assert "Going on after step 7 of 22" in resuming.printed(0) and "resume: " not in resuming.printed(0)
    for file in ("adapter_model.safetensors", "checkpoints/step-22/optimizer.safetensors"):
        assert (run / file).read_bytes() == (straight / file).read_bytes(), file
    assert figures(run) == figures(straight)
    random = load_file(run / "checkpoints/step-22/optimizer.safetensors")
    assert (random["random/torch"] != random["random/torch/1"]).any()  # dropout of their own
    # In another number of processes it goes on too, and says what that changes.
    quick(
        out=tmp_path / "alone", resume=True, lora={"dropout": 0.1}, **{k: v for k, v in EXACT.items() if "." not in k}
    )
    said = "resume: processes were 2, are 1: results can differ in the last digits, and dropout is drawn anew"
    assert said in capsys.readouterr().err.splitlines()
    assert [entry["step"] for entry in figures(tmp_path / "alone")] == [entry["step"] for entry in figures(run)]


def test_weights_cut_up_are_whole_on_disk_and_a_run_goes_on_without_cutting(
    two: Any, quick: Any, base: Path, table: Path, tmp_path: Path, undrawn: None
) -> None:
    how = PLAIN | {"method": "full", "watch": "exact_match", "eval_rows": 3, "learning_rate": 1e-3}
    fsdp = {"ACCELERATE_USE_FSDP": "true"}
    stopping = two(command(base, table, tmp_path / "run", **how), env=fsdp, signal_at=4)
    whole = two(command(base, table, tmp_path / "whole", **how), env=fsdp)
    assert (stopping.codes(), whole.codes()) == ([143, 143], [0, 0]), stopping.printed(0) + whole.printed(0)
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    quick(out=tmp_path / "alone", resume=True, **how)
    quick(out=tmp_path / "one", **how)
    resuming = two([*command(base, table, tmp_path / "run", **how), "resume=true"], env=fsdp)
    assert resuming.codes() == [0, 0], resuming.printed(0)
    want, at_first = (load_file(path / "model.safetensors") for path in (tmp_path / "one", base))
    assert max(float((want[name] - at_first[name]).abs().max()) for name in want) > 1e-3
    for out in ("whole", "run", "alone"):
        got = load_file(tmp_path / out / "model.safetensors")
        assert got.keys() == want.keys(), out
        assert max(float((got[name] - want[name]).abs().max()) for name in want) <= 1e-4, out
    exact = (tmp_path / out / "checkpoints/step-9/optimizer.safetensors" for out in ("run", "whole"))
    assert next(exact).read_bytes() == next(exact).read_bytes()


def test_the_backbone_of_an_adapter_cut_up(
    two: Any, quick: Any, base: Path, table: Path, tmp_path: Path, undrawn: None
) -> None:
    """The first process alone asks for the weights of an adapter, at each checkpoint; the next step works all the same."""
    ranks = two(command(base, table, tmp_path / "two", **PLAIN), env={"ACCELERATE_USE_FSDP": "true"})
    quick(out=tmp_path / "one", **PLAIN)
    assert ranks.codes() == [0, 0], ranks.printed(0)
    want, got = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((want[name] - got[name]).abs().max()) for name in want) <= 1e-4


@pytest.mark.parametrize(("name", "precision"), [("bert", "fp32"), ("minilm", "bf16")])
def test_an_encoder_in_two_processes(
    two: Any, quick: Any, tiny_folder: Any, tmp_path: Path, undrawn: None, name: str, precision: str
) -> None:
    """At a mask and with a head, whose weights lie beside the adapter's; stopped and gone on with, too."""
    rows, base = tmp_path / "labels.tsv", tiny_folder(name)
    lines = [
        f"the {noun} is {word}\t{word}" for word in ("hot", "red") for noun in ("lamp", "order", "parcel", "house")
    ]
    rows.write_text("\n".join(["instruction\toutput", *lines]) + "\n", encoding="utf-8")
    how = PLAIN | {"precision": precision, "held_out": "none", "learning_rate": 1e-2}
    stopping = two(command(base, rows, tmp_path / "stopped", **how), signal_at=2)
    whole = two(command(base, rows, tmp_path / "two", **how))
    quick(rows, model=str(base), out=tmp_path / "one", **how)
    assert (stopping.codes(), whole.codes()) == ([143, 143], [0, 0]), stopping.printed(0) + whole.printed(0)
    resuming = two([*command(base, rows, tmp_path / "stopped", **how), "resume=true"])
    assert resuming.codes() == [0, 0], resuming.printed(0)
    files = ["adapter_model.safetensors"] + ["extra.safetensors"] * (name == "minilm")
    for file in files:
        want, got = (load_file(tmp_path / run / file) for run in ("one", "two"))
        assert want.keys() == got.keys() and max(float(weight.abs().max()) for weight in want.values()) > 1e-3
        apart = max(float((want[key] - got[key]).abs().max()) for key in want)
        assert apart <= (1e-4 if precision == "fp32" else 1e-2), file
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert load(tmp_path / "one" / "labels.json") == load(tmp_path / "two" / "labels.json")
    for mine, theirs in zip(figures(tmp_path / "two"), figures(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4 if precision == "fp32" else 2e-2)


def test_what_reads_in_several_passes_is_not_cut_up(two: Any, base: Path, table: Path, tmp_path: Path) -> None:
    ranks = two(command(base, table, tmp_path / "run", strokes=2, slots=4), env={"ACCELERATE_USE_FSDP": "true"})
    assert ranks.codes() == [2, 2]
    assert (
        ranks.printed(0).splitlines()[-1].startswith("launcher: --use_fsdp can't cut up what reads in several passes (")
    )


@pytest.mark.parametrize("env", [{}, {"ACCELERATE_USE_FSDP": "true"}])
def test_a_killed_process_ends_the_other_and_leaves_the_checkpoint(
    env: dict[str, str], two: Any, base: Path, table: Path, tmp_path: Path
) -> None:
    ranks = two(command(base, table, tmp_path / "run", **PLAIN), env=env, kill_at=4)
    assert ranks.codes() == [3, -9]
    last = ranks.printed(0).splitlines()[-1]
    assert last.startswith("another of the 2 processes of this run has ended or can't be reached (")
    assert last.endswith("); go on with --resume")
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")][-1] == "step-2"
    checkpoint.verify(tmp_path / "run" / "checkpoints" / "step-2")


@pytest.mark.parametrize(
    ("happening", "code", "text"),
    [
        ({"bad_at": 2}, 2, "step 2: the loss is not finite; stopped before the update. Rows: {rows}:"),
        (
            {"break_in": "look", "error": OSError(5, "no such luck")},
            3,
            "process 1 of 2: OSError: [Errno 5] no such luck",
        ),
        (
            {"break_in": "check_positions", "error": KeyError("a bug")},
            1,
            "process 1 of 2: KeyError: 'a bug'",
        ),
    ],
)
def test_an_error_in_one_process_ends_both(
    happening: dict[str, Any], code: int, text: str, two: Any, base: Path, table: Path, tmp_path: Path
) -> None:
    ranks = two(command(base, table, tmp_path / "run", **PLAIN), **happening)
    assert ranks.codes() == [code, code], ranks.printed(0)
    assert ranks.printed(0).splitlines()[-1].startswith(text.format(rows=table))
    assert "is not finite" not in ranks.printed(1)
    assert not (tmp_path / "run" / "run.json").exists()


def test_processes_that_see_other_rows_are_refused(two: Any, base: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / table.name
    other.write_text(table.read_text().replace("parcel", "packet"))
    ranks = two(command(base, table, tmp_path / "run"), rows=str(other))
    assert ranks.codes() == [2, 2]
    first, *lines = ranks.printed(0).splitlines()[-3:]
    assert first == "the processes of this run differ:"
    assert lines[0].startswith(f"  data.{other}: process 0 has None, process 1 has '")
    assert not (tmp_path / "run").exists()


# -- launchers -------------------------------------------------------------------------------------------------------


def test_a_signal_to_the_launcher_stops_all_with_a_checkpoint(base: Path, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "instructrec",
    ]
    arguments = command(base, table, run, epochs=5000, patience=0, save_steps=1, held_out="none", batch_rows=4)
    with open(tmp_path / "printed.txt", "w") as printed:
        process = subprocess.Popen([*launcher, *arguments], stdout=printed, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + PATIENCE
        while not checkpoint.checkpoints(run / "checkpoints"):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "printed.txt").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1  # torchrun's own
    finally:
        process.kill()
    lines = (tmp_path / "printed.txt").read_text().splitlines()
    last = checkpoint.checkpoints(run / "checkpoints")[-1]
    checkpoint.verify(last)
    said = [line for line in lines if line.startswith("stopped by SIGTERM; step ")]
    assert said == [
        f"stopped by SIGTERM; step {last.name[5:]} of 50000 is in {run / 'checkpoints'}, go on with --resume"
    ]
    assert len([line for line in lines if line.startswith("Tuning ")]) == 1  # one process is heard


def test_a_launcher_that_starts_one_process_of_several_is_noticed(
    quick: Any, undrawn: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --cpu --num_processes 2` leaves
    quick(max_steps=1)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert said == [
        "warning: accelerate launch --cpu starts only one process (without MPI); several on processors: "
        "torchrun --nproc-per-node 2 -m instructrec tune …"
    ]


@pytest.mark.parametrize("verb", ["check", "evaluate", "export"])
def test_other_commands_run_in_one_process(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main([verb, "something"]) == 2
    assert capsys.readouterr().err == f"{verb}: runs in one process (got 2 from a launcher, which only tune can use)\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "launcher: DeepSpeed is not supported (want plain processes, or --use_fsdp)"),
        ("ACCELERATE_USE_MEGATRON_LM", "launcher: Megatron-LM is not supported (want plain processes, or --use_fsdp)"),
    ],
)
def test_what_a_launcher_is_asked_for_in_vain(
    name: str, text: str, quick: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "true")
    assert refused(quick) == text
    assert not (tmp_path / "run").exists()
