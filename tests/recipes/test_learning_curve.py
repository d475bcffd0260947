"""`tune --learning-curve`: nested runs on the same held-out rows, gone on with where they were stopped, and what is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from run_files import entries, load, refused

from instructrec.config import TuneSettings
from instructrec.measures.curve import Curve
from instructrec.measures.statistics import Estimate
from instructrec.recipes import curve as recipe

QUICK: dict[str, Any] = {
    "learning_curve": True,
    "held_out": "row",
    "held_out_share": 0.2,
    "learning_rate": 1e-2,
    "epochs": 2.0,
}


def test_a_curve_from_three_nested_runs(quick: Any, capsys: Any) -> None:
    folder = quick(**QUICK).folder
    runs = [folder / "curve" / "25", folder / "curve" / "50", folder]
    splits = [load(one / "split.json") for one in runs]
    keys = [set(split["train"]) for split in splits]
    assert keys[0] < keys[1] < keys[2] and [len(one) for one in keys] == [8, 16, 32]
    assert all(split["seen"] == splits[0]["seen"] for split in splits)
    settings = [load(one / "run.json")["settings"] for one in runs]
    assert [one["train_share"] for one in settings] == [0.25, 0.5, 1.0]
    assert [one["epochs"] for one in settings] == [2.0] * 3 and [one["learning_curve"] for one in settings] == [0, 0, 1]
    steps = [len([entry for entry in entries(one) if "look" not in entry]) for one in runs]
    assert steps == [2 * math.ceil(len(one) / 4) for one in keys]
    found = load(folder / "run.json")["learning_curve"]
    assert found["rows"] == [8, 16, 32] and len(found["losses"]) == 3
    assert [loss["n"] for loss in found["losses"]] == [8, 8, 8]
    assert load(folder / "report.json")["run"]["learning_curve"] == found
    for name in ("README.md", "report.html"):
        assert found["sentence"][:40] in (folder / name).read_text().replace("\\", "")
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.splitlines()[-1] == found["sentence"]


def test_a_curve_that_was_stopped_goes_on(quick: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    ready, draw = [], recipe.draw_curve

    def stopped(main: Path, settings: TuneSettings, parts: Any, tune: Any) -> None:
        def once(other: TuneSettings) -> Any:
            if ready:
                raise KeyboardInterrupt
            ready.append(tune(other))

        draw(main, settings, parts, once)

    monkeypatch.setattr("instructrec.recipes.tune.draw_curve", stopped)
    with pytest.raises(KeyboardInterrupt):
        quick(**QUICK)
    folder = ready[0].folder.parents[1]
    assert not (folder / "curve" / "50").exists() and "learning_curve" not in load(folder / "run.json")
    before = (folder / "curve" / "25" / "adapter_model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("instructrec.recipes.tune.draw_curve", draw)
    quick(**QUICK, resume=True)
    assert (folder / "curve" / "25" / "adapter_model.safetensors").stat().st_mtime_ns == before
    found = load(folder / "run.json")["learning_curve"]
    assert found["rows"] == [8, 16, 32]
    capsys.readouterr()
    quick(**QUICK, resume=True)
    assert capsys.readouterr().out.splitlines()[-1] == found["sentence"]


def test_the_losses_are_those_of_each_run_on_the_same_rows(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run's loss on the held-out rows is what its own look at them found."""
    seen: list[Any] = []

    def noted(losses: Any, sets: Any, weights: Any, **more: Any) -> Curve:
        seen.append((losses, sets, weights))
        flat = Estimate(1.0, 1.0, 1.0, 1)
        return Curve((flat, flat, flat), flat, flat)

    monkeypatch.setattr(recipe, "learning_curve", noted)
    folder = quick(**QUICK).folder
    ((losses, sets, weights),) = seen
    assert set(sets) == {"seen"} == set(weights) and [len(one) for one in losses] == [len(sets)] * 3
    for one, run in zip(losses, (folder / "curve" / "25", folder / "curve" / "50", folder), strict=True):
        training = load(run / "run.json")["training"]
        (look,) = [look for look in training["looks"] if look["step"] == training["best_step"]]
        mean = sum(nats for nats, _ in one) / sum(tokens for _, tokens in one)
        assert mean == pytest.approx(look["seen"]["loss"], rel=1e-5)


def test_where_no_curve_can_come(quick: Any, tmp_path: Path) -> None:
    assert refused(quick, learning_curve=True, held_out="none") == (
        "learning_curve: no rows are held out to compare the runs on"
    )
    rows = [{"instruction": f"say {number}", "output": "x"} for number in range(9)]
    message = "learning_curve: too few rows to train on (got 5, want at least 8)"
    assert refused(quick, rows, learning_curve=True, held_out="row", held_out_share=0.5) == message
    assert not (tmp_path / "run").exists()


def test_steps_are_scaled_with_the_rows() -> None:
    given = TuneSettings(max_steps=100, eval_every=10, save_steps=7, train_share=0.5, learning_curve=True)
    found = recipe.share_settings(given, 0.25, Path("out"), resume=False)
    assert (found.max_steps, found.eval_every, found.save_steps) == (25, 3, 2)
    assert (found.train_share, found.learning_curve, found.resume, found.out) == (0.125, False, False, "out")
    assert recipe.share_settings(TuneSettings(), 0.5, Path("out"), resume=True).resume is True
    kept = TuneSettings(resume="latest-valid")
    assert recipe.share_settings(kept, 0.5, Path("out"), resume=True).resume == "latest-valid"
