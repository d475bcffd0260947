"""Encoder-decoders from rows to answers: tuned, resumed, stopped early, measured, exported; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import entries, load, refused
from stops import EXACT, STEPS, counted, same_result, shaken, signalled

import tiny
from instructrec import Assistant, cli
from instructrec.config import ExportSettings
from instructrec.data.records import Record
from instructrec.errors import DataError
from instructrec.export.merged import export_run
from instructrec.inference.loading import open_target
from instructrec.models.methods import METHODS, Method, register
from instructrec.recipes.measure import evaluate
from instructrec.recipes.tune import Interrupted

OPPOSITES = {"hot": "cold", "red": "green", "big": "small", "day": "night"}
FEW = [{"instruction": "Write the opposite", "input": word, "output": other} for word, other in OPPOSITES.items()]


@pytest.fixture(params=tiny.PAIRS)
def base(request: pytest.FixtureRequest, tiny_folder: Any) -> Path:
    return tiny_folder(str(request.param))


def test_a_run_learns_its_rows_and_is_measured_beside_the_base_model(quick: Any, tmp_path: Path, undrawn: None) -> None:
    result = quick(FEW, method="full", learning_rate=4e-3, epochs=80.0, held_out="none", eval_every=100)
    report = evaluate(result, FEW, out=str(tmp_path / "report"), precision="fp32", training_rows=True)
    scores = report.scores()
    assert list(scores) == ["base", "few_shot", "tuned"]
    assert scores["base"]["exact_match"]["value"] == 0.0 and scores["tuned"]["exact_match"]["value"] == 100.0
    assert scores["tuned"]["loss"]["value"] < scores["base"]["loss"]["value"] - 2  # T5's small logits are slow to part
    assistant = Assistant(str(result), precision="fp32", max_new_tokens=20)
    assert assistant("Write the opposite", "hot") == "".join(assistant.stream("Write the opposite", "hot")) == "cold"
    assert "".join(assistant.chat([("user", "Write the opposite\nred")])) == "green"


def test_stopped_and_resumed_equals_straight(
    straight: Any, quick: Any, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    import signal

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        signalled(patch, 5, signal.SIGTERM)
        quick(**EXACT)
    shaken(99)
    with counted() as taken:
        result = quick(resume=True, **EXACT)
    assert [number for number, *_ in taken] == list(range(6, STEPS + 1))
    assert taken == straight[1][5:]
    same_result(straight[0].folder, result.folder)


def test_answers_are_watched_and_patience_stops(quick: Any, undrawn: None) -> None:
    result = quick(watch="chrf", patience=1, eval_every=2, learning_rate=1e-9, epochs=9.0)
    assert result.stopped.startswith("no improvement in 1 looks") and result.best_step == 2
    looks = [entry["look"] for entry in entries(result.folder) if "look" in entry]
    assert all({"loss", "chrf"} == figures.keys() for look in looks for figures in look.values())


def test_recomputed_activations_learn_the_same(quick: Any, tmp_path: Path, undrawn: None, capfd: Any) -> None:
    plain = quick(out=tmp_path / "plain", max_steps=3)
    again = quick(out=tmp_path / "again", max_steps=3, checkpointing=True)
    losses = [[entry["loss"] for entry in entries(run.folder) if "loss" in entry] for run in (plain, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert "use_cache" not in capfd.readouterr().err


def test_reading_twice_is_kept_and_turned_back(quick: Any, table: Path, tmp_path: Path, undrawn: None) -> None:
    result = quick(strokes=2, max_steps=4)
    twice, once = (open_target(str(result), precision="fp32", strokes=number) for number in (None, 1))
    assert (twice.strokes, once.strokes) == (2, 1)
    prompt = twice.renderer.prompt(Record.of("Please upper it", input="house"))
    assert twice.positions(prompt) == prompt.prompt_end + prompt.instruction_end
    scores = evaluate(result, table, out=str(tmp_path / "report"), rows=4, precision="fp32").scores()
    assert list(scores) == ["base", "reread", "few_shot", "tuned"]


@pytest.mark.parametrize(
    "settings", [{"slots": 4}, {"strokes": 2, "deep": True}, {"strokes": 2, "memory": "sink+last"}]
)
def test_a_memory_is_refused_before_training(quick: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    message = refused(quick, **settings)
    assert message.startswith("strokes: an encoder-decoder reads again by writing the instruction again (got ")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("method", [name for name in METHODS if "encoder-decoder" not in METHODS[name].kinds])
def test_a_method_that_tunes_decoders_alone_is_refused(quick: Any, method: str, tmp_path: Path) -> None:
    able = sorted(name for name, one in METHODS.items() if "encoder-decoder" in one.kinds)
    assert refused(quick, method=method) == (
        f"method: '{method}' can't tune an encoder-decoder (want {' or '.join(able)})"
    )
    assert not (tmp_path / "run" / "settings.json").exists()


def test_a_new_method_is_for_decoders_unless_it_says_more(quick: Any) -> None:
    class Narrow(Method):
        name = "narrow"
        reference = "this test"
        learning_rate = 1e-3

    register(Narrow())
    try:
        message = refused(quick, method="narrow")
    finally:
        del METHODS["narrow"]
    assert message.startswith("method: 'narrow' can't tune an encoder-decoder (want ") and "lora" in message


def test_each_answer_of_a_conversation_is_a_row(quick: Any, capsys: Any, undrawn: None) -> None:
    roles = ("user", "assistant", "user", "assistant")
    talk = {"messages": [{"role": role, "content": f"{role} says {n}"} for n, role in enumerate(roles)]}
    result = quick([talk, talk | {"messages": talk["messages"][2:]}], max_steps=1, held_out="none")
    said = "Each answer of a conversation is a row of its own: 2 rows became 3."
    assert said in capsys.readouterr().out and said in load(result.folder / "run.json")["data"]["held_out"]
    assert load(result.folder / "run.json")["data"]["parts"]["train"] == 3


def test_export_is_an_ordinary_model(quick: Any, tmp_path: Path, undrawn: None) -> None:
    from transformers import AutoModelForSeq2SeqLM

    run = quick(max_steps=8, learning_rate=1e-2)
    folder = export_run(str(run), str(tmp_path / "whole"), ExportSettings(precision="fp32"))
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tuned = Assistant(str(run), precision="fp32", max_new_tokens=12)
    words = tuned.loaded.backbone.tokenizer("Please upper it\nhouse", return_tensors="pt")["input_ids"]
    assert words[0].tolist() == tuned.loaded.renderer.prompt_ids(Record.of("Please upper it", input="house"))
    pad = model.config.pad_token_id
    given: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [pad]}
    with torch.no_grad():
        (ids,) = model.generate(input_ids=words, attention_mask=torch.ones_like(words), **given).tolist()
    assert tuned.loaded.renderer.decode(ids[1:]) == tuned("Please upper it", "house")
    assert open_target(str(folder), precision="fp32").backbone.kind.name == "encoder-decoder"


def test_check_and_config_from_the_command_line(base: Path, table: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(table.parent)
    assert cli.main(["check", str(table), "--model", str(base), "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "Prompt template: plain; " in out and "Please upper it red</s>⟦RED</s>⟧" in out.replace("\n", " ")
    assert cli.main(["config", "show", f"model={base}"]) == 0


# -- lengths: each side has positions of its own ---------------------------------------------------------------------


def long_rows(prompt: int, answer: int) -> list[dict[str, str]]:
    return [{"instruction": "Say", "input": "hot " * prompt, "output": "cold " * answer}]


@pytest.mark.parametrize("base", ["marian"], indirect=True)
def test_each_side_is_held_against_the_models_positions(quick: Any, tmp_path: Path, undrawn: None) -> None:
    room = tiny.POSITIONS["marian"]
    tokens = tiny.tokenizer("marian")
    width = len(tokens("hot " * 40)["input_ids"]) // 40
    fits = (room - 20) // width
    both = quick(long_rows(fits, fits // 2) * 6, max_steps=1, held_out="none")
    (step,) = (entry for entry in entries(both.folder) if "tokens" in entry)
    assert step["tokens"] / 4 > room  # prompt and answer together, of each of the four rows in the batch
    more = {"out": tmp_path / "more", "held_out": "none", "max_steps": 1}
    for rows in (long_rows(room, 1), long_rows(1, room)):
        with pytest.raises(DataError, match=f"over max_length {room}"):
            quick(rows, **more)
    with pytest.raises(DataError, match=f" positions when read 2 times, over the model's {room}; lower --strokes"):
        quick(long_rows(fits * 2 // 3, 3), strokes=2, **more)
    assert quick(long_rows(room, 1) * 2, on_long="trim-input", **more).steps == 1


def test_an_answer_has_all_positions_of_the_decoder(tiny_folder: Any) -> None:
    room = tiny.POSITIONS["marian"]
    assistant = Assistant(str(tiny_folder("marian")), precision="fp32", max_new_tokens=room)
    assert isinstance(assistant("Say hot " * 4), str)
    longer = Assistant(str(tiny_folder("marian")), precision="fp32", max_new_tokens=room + 1)
    assert f"and the answer may have {room + 1}; this model can hold {room}" in refused(longer, "Say hot")
