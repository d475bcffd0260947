"""Masked encoders from rows to answers: tuned, resumed, measured, asked, exported; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import entries, load, refused
from stops import shaken, signalled

import tiny
from instructrec import Assistant, cli
from instructrec.config import ExportSettings
from instructrec.errors import DataError
from instructrec.export.merged import export_run
from instructrec.inference.loading import open_target
from instructrec.models.methods import METHODS
from instructrec.recipes.measure import evaluate
from instructrec.recipes.prompting import prompt
from instructrec.recipes.tune import Interrupted, tune

# The label with an underscore comes back as it is spelled; "hot" decides.
KINDS = {"hot": "Too_Hot", "red": "red", "answer": "cold"}
NOUNS = ("parcel", "lamp", "order", "house", "review", "money")
ROWS = [
    {"instruction": "Which is it?", "input": f"the {noun} is {word}", "output": label}
    for word, label in KINDS.items()
    for noun in NOUNS
]
LEARN: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 24.0, "held_out": "none", "eval_every": 1000}
LEARN["batch_rows"] = 9
FULL = LEARN | {"learning_rate": 4e-3, "epochs": 40.0}


@pytest.fixture(params=tiny.ENCODERS)
def base(request: pytest.FixtureRequest, tiny_folder: Any) -> Path:
    return tiny_folder(str(request.param))


BERT = pytest.mark.parametrize("base", ["bert"], indirect=True)


@pytest.mark.parametrize(
    ("base", "method"),
    [("bert", "full"), ("bert", "lora"), ("roberta", "full"), ("minilm", "full"), ("minilm", "lora")],
    indirect=["base"],
)
def test_a_run_learns_its_labels_and_is_measured_beside_the_base_model(
    quick: Any, tmp_path: Path, undrawn: None, method: str, base: Path
) -> None:
    run = quick(ROWS, method=method, **(FULL if method == "full" else LEARN))
    report = evaluate(run, ROWS, out=str(tmp_path / "report"), precision="fp32", training_rows=True)
    scores = report.scores()
    masked = base.name.startswith(("bert", "roberta"))
    assert list(scores) == (["base", "few_shot", "tuned"] if masked else ["base", "tuned"])
    assert scores["tuned"]["accuracy"]["value"] == scores["tuned"]["macro_f1"]["value"] == 100.0
    assert scores["base"]["accuracy"]["value"] < 70 and scores["tuned"]["loss"]["value"] < 0.1
    assert report.report["primary"] == "accuracy"
    untuned = evaluate(str(base), ROWS, out=str(tmp_path / "untuned"), precision="fp32", arms="base").scores()
    assert untuned["base"]["loss"]["value"] == pytest.approx(scores["base"]["loss"]["value"], rel=1e-4)
    assistant = Assistant(str(run), precision="fp32")
    asked = ("Which is it?", "the lamp is hot")
    assert assistant(*asked) == "".join(assistant.stream(*asked)) == "Too_Hot"
    assert set(load(run.folder / "run.json")["labels"]) == {*KINDS.values()}
    ranked = prompt("row", ROWS, model=str(run), precision="fp32", out=str(tmp_path / "ranked"))
    assert ranked.scores["accuracy"]["value"] == 100.0
    first = json.loads((tmp_path / "ranked" / "rows.jsonl").read_text().splitlines()[0])
    assert first["answer"] == "Too_Hot" and set(first["scores"]) == {*KINDS.values()}


@pytest.mark.parametrize(
    ("base", "method"), [("bert", "lora"), ("minilm", "lora"), ("minilm", "full")], indirect=["base"]
)
def test_tuned_and_measured_in_bf16(quick: Any, tmp_path: Path, undrawn: None, method: str, base: Path) -> None:
    run = quick(ROWS, method=method, precision="bf16", **(FULL if method == "full" else LEARN))
    losses: dict[str, dict[str, float]] = {}
    for precision in ("bf16", "fp32"):
        given = {"out": str(tmp_path / precision), "precision": precision, "training_rows": True}
        scores = evaluate(run, ROWS, **given).scores()
        assert scores["tuned"]["accuracy"]["value"] == 100.0
        losses[precision] = {arm: scores[arm]["loss"]["value"] for arm in ("base", "tuned")}
    assert losses["bf16"]["tuned"] < 0.1 < losses["bf16"]["base"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.02)


def test_stopped_and_resumed_equals_straight(quick: Any, tmp_path: Path, monkeypatch: Any, undrawn: None) -> None:
    import signal

    how: dict[str, Any] = {"max_steps": 6, "epochs": 9.0, "held_out": "none", "learning_rate": 1e-2, "save_steps": 2}
    straight = quick(ROWS, out=tmp_path / "straight", **how)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 3, signal.SIGTERM)
        quick(ROWS, **how)
    shaken(99)
    again = quick(ROWS, resume=True, **how)
    names = [name for name in ("adapter_model", "extra") if (straight.folder / f"{name}.safetensors").is_file()]
    assert "adapter_model" in names
    for name in names:
        file = f"{name}.safetensors"
        assert (straight.folder / file).read_bytes() == (again.folder / file).read_bytes()
    assert load(straight.folder / "labels.json") == load(again.folder / "labels.json")


def test_export_is_an_ordinary_encoder_with_its_labels(quick: Any, tmp_path: Path, undrawn: None, base: Path) -> None:
    import transformers

    run = quick(ROWS, **LEARN)
    folder = export_run(str(run), str(tmp_path / "whole"), ExportSettings(precision="fp32"))
    masked = base.name.startswith(("bert", "roberta"))
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModel
    _, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not [name for name in info["missing_keys"] if "pooler" not in name]
    asked = [f"the {noun} is {word}" for word in KINDS for noun in NOUNS]
    tuned, whole = (Assistant(str(place), precision="fp32") for place in (run, folder))
    assert [whole("Which is it?", text) for text in asked] == [tuned("Which is it?", text) for text in asked]
    scores = [
        evaluate(
            str(place), ROWS, out=str(tmp_path / "report"), precision="fp32", arms=arm, training_rows=True
        ).scores()[arm]["loss"]
        for place, arm in ((folder, "base"), (run, "tuned"))
    ]
    assert scores[0]["value"] == pytest.approx(scores[1]["value"], abs=1e-4)


@BERT
def test_several_runs_over_one_encoder(quick: Any, tmp_path: Path, undrawn: None, base: Path) -> None:
    head = {"head": "mean"}
    one = quick(ROWS, model=str(base), out=tmp_path / "one", encoder=head, **LEARN)
    other = [row | {"output": {"red": "yes"}.get(row["output"], "no")} for row in ROWS]
    two = quick(other, model=str(base), out=tmp_path / "two", encoder=head, **LEARN)
    both = Assistant([one, two], precision="fp32")
    for word, label in KINDS.items():
        text = f"the lamp is {word}"
        assert both("Which is it?", text, adapter="one") == label
        assert both("Which is it?", text, adapter="two") == ("yes" if label == "red" else "no")


@BERT
def test_words_of_the_labels_out_of_a_file(quick: Any, tmp_path: Path, undrawn: None, base: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("Too_Hot: [hot, negative]\nred: positive\ncold: the answer\n")
    rows = [row | {"output": "hot"} if row["output"] == "Too_Hot" else row for row in ROWS]
    run = quick(rows, model=str(base), method="full", encoder={"verbalizer": str(words)}, **FULL)
    assert load(run.folder / "labels.json")["labels"]["Too_Hot"] == ["hot", "negative"]
    scores = evaluate(
        run, rows, out=str(tmp_path / "report"), precision="fp32", arms="tuned", training_rows=True
    ).scores()
    assert scores["tuned"]["accuracy"]["value"] == 100.0  # an answer may be a word of its label


@BERT
def test_asked_through_a_template_of_words(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": str(base), "precision": "fp32"}
    task = tmp_path / "task.yaml"
    task.write_text(
        'instruction: "{{ text }}"\nanswer: "It is {{ answer }}"\n'
        "verbalizer: {Too_Hot: [hot, negative], red: positive, cold: answer}\n"
    )
    for more in ({}, {"calibrate": "contextual"}, {"calibrate": "pmi"}, {"shots": 2}, {"encoder": {"head": "mean"}}):
        found = prompt(str(task), ROWS, out=str(tmp_path / "found"), **given, **more)
        assert found.scores["accuracy"]["n"] > 5 and set(found.answers) <= {*KINDS.values()}
    message = refused(prompt, str(task), ROWS, out=str(tmp_path / "found"), per_token=True, **given)
    assert message == "per_token: an encoder scores labels as a whole (leave it away)"
    message = refused(
        prompt, "row", ROWS, out=str(tmp_path / "found"), verbalizer="learned", examples_share=0.8, **given
    )
    assert message == "verbalizer: words are learned from models that write text (want a file of words)"


# -- what is refused -------------------------------------------------------------------------------------------------


def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, no weights can be read."""
    import transformers

    for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModel):
        monkeypatch.setattr(auto, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))


def test_texts_are_refused_before_anything_is_loaded(
    quick: Any, base: Path, table: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    unloaded(monkeypatch)
    rows = [{"instruction": f"Say {n}", "output": f"This is number {n}."} for n in range(9)]
    assert refused(quick, rows) == (
        f"model: '{base}' is an encoder, which chooses among labels and writes no text, and these answers are no closed "
        "set of labels (want 2 to 100 different ones, each three times on average, or --encoder.verbalizer with the "
        "labels)"
    )
    assert not (tmp_path / "run" / "settings.json").exists()
    unknown = (
        f"model: '{base}' is an encoder: it chooses among labels and writes no text, and no closed set of labels is "
        "known here (want label rows, words of the labels, or a run that was tuned on them)"
    )
    assert refused(evaluate, str(base), rows, out=str(tmp_path / "report")) == unknown
    assert refused(Assistant, str(base)) == unknown
    assert refused(prompt, "row", rows, model=str(base), out=str(tmp_path / "p")) == unknown


@pytest.mark.parametrize("method", [name for name in METHODS if "encoder" not in METHODS[name].kinds])
def test_soft_prompts_are_refused(quick: Any, base: Path, method: str, monkeypatch: Any) -> None:
    unloaded(monkeypatch)
    kind = "encoder" if base.name.startswith("minilm") else "encoder with a mask"
    able = sorted(name for name, one in METHODS.items() if kind in one.kinds)
    assert refused(quick, ROWS, method=method) == f"method: '{method}' can't tune an {kind} (want {' or '.join(able)})"


@BERT
def test_reading_again_is_refused(quick: Any, base: Path, tmp_path: Path) -> None:
    message = refused(quick, ROWS, model=str(base), strokes=2)
    assert message.startswith("strokes: an encoder sees its whole text at once (got ")


@BERT
def test_an_answer_that_is_no_label_is_named(quick: Any, base: Path, tmp_path: Path, undrawn: None) -> None:
    run = quick(ROWS, model=str(base), max_steps=1, held_out="none")
    with pytest.raises(DataError) as caught:
        evaluate(
            run,
            [*ROWS, ROWS[0] | {"output": "Too_Hott"}],
            out=str(tmp_path / "report"),
            precision="fp32",
            training_rows=True,
        )
    assert "prompt: 'Too_Hott' is none of the 3 labels that this model chooses from, did you mean 'Too_Hot'?" in str(
        caught.value
    )


@pytest.mark.parametrize("base", ["minilm"], indirect=True)
def test_parts_that_are_missing_or_damaged(quick: Any, base: Path, tmp_path: Path, undrawn: None) -> None:
    from safetensors.torch import load_file, save_file

    run = quick(ROWS, max_steps=1, held_out="none").folder

    def message(name: str, change: Any) -> str:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(run, other)
        change(other / name)
        return refused(open_target, str(other), precision="fp32").replace(str(other), "RUN")

    def changed(file: Path) -> None:
        weights = load_file(file)
        save_file(weights | {"bias": weights["bias"][:2].contiguous()}, file)

    def other_head(file: Path) -> None:
        file.write_text(json.dumps(load(file) | {"head": "sideways"}))

    def reordered(file: Path) -> None:
        kept = load(file)
        file.write_text(json.dumps(kept | {"labels": dict(reversed(kept["labels"].items()))}))

    gone = "RUN/labels.json: missing: nobody knows what this model chooses from"
    assert message("labels.json", Path.unlink) == gone
    assert message("extra.safetensors", Path.unlink) == (
        "RUN/extra.safetensors: missing: it holds the classification head"
    )
    assert message("extra.safetensors", changed) == (
        "RUN/extra.safetensors: bias: does not fit, or is not finite (got [2], want [3])"
    )
    assert message("labels.json", reordered) == (
        "RUN/labels.json: labels: others than prompt.json has, which the model was tuned with"
    )
    assert message("labels.json", other_head) == (
        "RUN/labels.json: head: unknown (got 'sideways', want cloze, tied, mean or cls)"
    )


@BERT
def test_check_and_estimate(base: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli.main(["check", "rows.jsonl", "--model", str(base), "--show", "1"]) == 0
    said = capsys.readouterr()
    out = said.out.replace("\n", " ")
    assert "Chooses among 3 labels: " in out and "Prompt template: cloze; " in out and "answer : [MASK]." in out
    assert "⟦Too_Hot⟧" in out and ", 18 of them supervised" in out and "does not know" not in said.err
    strange = [row | {"output": row["output"].replace("cold", "☃")} for row in ROWS]
    Path("strange.jsonl").write_text("".join(json.dumps(row) + "\n" for row in strange))
    assert cli.main(["check", "strange.jsonl", "--model", str(base)]) == 0
    refusal = "verbalizer: ☃: '☃' holds what this tokenizer has no token for (it reads [UNK]; want other words, "
    refusal += "or encoder.head=mean)"
    assert f"warning: {refusal}" in capsys.readouterr().err.splitlines()
    assert refused(tune, strange, model=str(base), out="run") == refusal
    assert cli.main(["estimate", "--model", str(base)]) == 2
    assert "estimate: memory of masked encoders is not estimated (got bert)" in capsys.readouterr().err


@BERT
def test_a_look_at_held_out_rows_is_by_label(quick: Any, base: Path, undrawn: None) -> None:
    run = quick(ROWS, model=str(base), watch="accuracy", held_out="row", held_out_share=0.3, max_steps=4, eval_every=2)
    looks = [entry["look"] for entry in entries(run.folder) if "look" in entry]
    assert all({"loss", "accuracy"} == figures.keys() for look in looks for figures in look.values())
