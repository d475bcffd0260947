"""Numbers that are not finite, through the whole command: stopped before the update, rows named, checkpoint kept."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from instructrec import cli
from instructrec.training import checkpoint, loop

ROWS = ["red", "blue", "green", "house", "lamp", "order", "parcel", "noon", "hot", "cold"]


@pytest.fixture
def command(tmp_path: Path, base: Path, capsys: Any) -> Callable[..., tuple[int, str]]:
    """`instructrec tune` on ten rows, two a step, a checkpoint a step: exit code and last line of stderr."""
    lines = [f"Please say it\t{word}\t{word.upper()}" for word in ROWS]
    (tmp_path / "rows.tsv").write_text("\n".join(["instruction\tinput\toutput", *lines]) + "\n", encoding="utf-8")

    def run(*more: str) -> tuple[int, str]:
        words = "--held-out none --batch-rows 1 --accumulation 2 --epochs 2 --save-steps 1 --precision fp32 --threads 1"
        words += " --seed 3"
        given = ["--model", str(base), "--out", str(tmp_path / "run"), *words.split(), "--no-tensorboard", *more]
        code = cli.main(["tune", str(tmp_path / "rows.tsv"), *given])
        return code, capsys.readouterr().err.splitlines()[-1]

    return run


def spoiled(monkeypatch: pytest.MonkeyPatch, at: int, spoil: Callable[[Any], None]) -> list[list[int]]:
    """Do something to the training before step `at`; returns the rows of each step that was begun."""
    begun: list[list[int]] = []
    step = loop.Training._step

    def spoiling(self: Any, number: int) -> Any:
        begun.append([row for batch in self.steps[number] for row in batch])
        if number + 1 == at:
            spoil(self)
        return step(self, number)

    monkeypatch.setattr(loop.Training, "_step", spoiling)
    return begun


def kept(run: Path, step: int) -> None:
    """The run has stopped after this step, and its checkpoint is whole."""
    assert sorted(os.listdir(run / "checkpoints")) == [f"step-{step}"]
    checkpoint.verify(run / "checkpoints" / f"step-{step}")
    assert "run.json" not in os.listdir(run) and ".instructrec.lock" not in os.listdir(run)


def test_a_row_whose_loss_is_no_number(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny.model("qwen"), tiny.tokenizer("qwen")
    (first, *_) = tokens("Ω", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[first] = float("nan")  # one byte that one row alone has
    model.save_pretrained(tmp_path / "model")
    tokens.save_pretrained(tmp_path / "model")
    table = tmp_path / "rows.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\tlamp\t", "\tΩ\t"), encoding="utf-8")
    begun = spoiled(monkeypatch, 0, lambda _: None)
    code, text = command("--model", str(tmp_path / "model"))
    at = next(number for number, rows in enumerate(begun, 1) if ROWS.index("lamp") in rows)
    want = f"step {at}: the loss is not finite; stopped before the update. Rows: {table}:{ROWS.index('lamp') + 2}"
    assert (code, text, len(begun)) == (2, want, at) and at > 1
    kept(tmp_path / "run", at - 1)
    assert command("--model", str(tmp_path / "model"), "--resume") == (2, want)
    assert len(begun) == at + 1
    kept(tmp_path / "run", at - 1)


def test_a_gradient_that_is_infinite(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(training: Any) -> None:
        weight = next(weight for weight in training.model.parameters() if weight.requires_grad)
        weight.register_hook(lambda gradient: gradient * float("inf"))

    with monkeypatch.context() as patch:
        begun = spoiled(patch, 4, spoil)
        code, text = command()
    rows = ", ".join(f"{tmp_path / 'rows.tsv'}:{row + 2}" for row in begun[3])
    assert len(begun) == 4 and len(begun[3]) == 2
    assert (code, text) == (2, f"step 4: the gradient is not finite; stopped before the update. Rows: {rows}")
    kept(tmp_path / "run", 3)
    assert command("--resume")[0] == 0


def test_a_step_in_which_nothing_is_supervised(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows like that are refused before; this is what stands behind it."""

    def spoil(training: Any) -> None:
        for row in [row for batch in training.steps[2] for row in batch]:
            training.rows[row] = dataclasses.replace(
                training.rows[row], supervised=[False] * len(training.rows[row].ids)
            )

    begun = spoiled(monkeypatch, 3, spoil)
    code, text = command()
    want = f"step 3: the loss is not finite; stopped before the update. Rows: {tmp_path / 'rows.tsv'}:{begun[2][0] + 2}"
    assert (code, text) == (2, want)
    kept(tmp_path / "run", 2)


def test_a_row_of_which_no_token_is_supervised(command: Any, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% elif 'LAMP' not in m.content %}"
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        encoding="utf-8",
    )
    want = f"{tmp_path / 'rows.tsv'}:6: prompt: prompt template 'mine.jinja' does not show the assistant's answer"
    assert command("--template", str(template)) == (2, want)
    assert not (tmp_path / "run").exists()
