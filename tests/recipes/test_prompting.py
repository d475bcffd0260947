"""`prompt` on tiny models: what is asked, what is answered, and what is written of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import instructrec
import tiny
from instructrec import cli
from instructrec.errors import InputError
from instructrec.inference.engine import Generation
from instructrec.inference.loading import open_target
from instructrec.inference.ranking import Candidates, likelihoods
from instructrec.prompts.tasks import find
from instructrec.recipes import asking, prompting
from instructrec.training.loss import row_losses

COLOURS = {"hot": "warm", "cold": "cool"}
THINGS = "house lamp order parcel noon address sentence answer question word model system".split()
ROWS = [{"text": f"the {thing} is {heat}", "label": label} for thing in THINGS for heat, label in COLOURS.items()] + [
    {"text": "the lamp is cold", "label": "cool"},
    {"text": "open the order", "label": "cool"},
]
TASK = "Is it {{ labels | join(' or ') }}? {{ text }}"
QUICK = {"precision": "fp32", "threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.folder("qwen", tmp_path_factory.mktemp("base"), seed=3))


def ask(base: str, out: Path, template: str = TASK, data: Any = ROWS, **settings: Any) -> prompting.Prompting:
    return instructrec.prompt(template, data, **({"model": base, "out": str(out)} | QUICK | settings))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_likeliest_label_is_the_answer(base: str, tmp_path: Path) -> None:
    found = ask(base, tmp_path / "o")
    loaded = open_target(base, precision="fp32")
    task = find(TASK)[0]
    for row, line in zip(ROWS, lines(tmp_path / "o"), strict=True):
        record = instructrec.read([row])[0]
        whole = [loaded.renderer.render(task.show(record, word, ["cool", "warm"])) for word in ("cool", "warm")]
        ended = [list(one.ids[one.prompt_end :]) for one in whole]
        nats = [total for total, _ in row_losses(loaded.model, whole, pad_id=0, batch_tokens=500)]
        assert ended[0][-1] == ended[1][-1] == loaded.renderer.end_id
        cut = [one.prompt_end + len(ids) - 1 for one, ids in zip(whole, ended, strict=True)]
        with torch.no_grad():  # without the end of the answer, as neither word begins the other
            for place, (one, end) in enumerate(zip(whole, cut, strict=True)):
                logs = torch.log_softmax(loaded.model(torch.tensor([one.ids])).logits[0], -1)
                nats[place] += float(logs[end - 1, one.ids[end]])
        assert line["scores"] == pytest.approx({"cool": -nats[0], "warm": -nats[1]}, abs=2e-3)
        assert line["answer"] == min(zip(nats, ("cool", "warm"), strict=True))[1]
        assert (line["expected"], line["shots"]) == (row["label"], [])
    right = [line["answer"] == line["expected"] for line in lines(tmp_path / "o")]
    assert found.scores["accuracy"]["value"] == pytest.approx(100 * np.mean(right))
    assert found.scores["accuracy"]["low"] <= found.scores["accuracy"]["value"] <= found.scores["accuracy"]["high"]


def test_baselines_and_account(base: str, tmp_path: Path) -> None:
    result = ask(base, tmp_path / "o", rows=20).result
    assert result == json.loads((tmp_path / "o" / "prompting.json").read_text(encoding="utf-8"))
    counts = Counter(line["expected"] for line in lines(tmp_path / "o"))
    assert result["rows"] == counts.total() == 20
    majority = result["baselines"]["majority"]
    assert (majority["answer"], majority["value"]) == (counts.most_common(1)[0][0], 100 * max(counts.values()) / 20)
    assert result["baselines"]["chance"] == 50
    assert result["wording"]["instruction"] == TASK and result["verbalizer"] == {"cool": ["cool"], "warm": ["warm"]}
    assert sum(result["answered"].values()) == 20


@pytest.mark.parametrize("calibrate", ["contextual", "pmi"])
def test_calibration_takes_away_a_bias_of_the_model(base: str, tmp_path: Path, calibrate: str) -> None:
    plain = [line["scores"] for line in ask(base, tmp_path / "a") and lines(tmp_path / "a")]
    given = [line["scores"] for line in ask(base, tmp_path / "b", calibrate=calibrate) and lines(tmp_path / "b")]
    # without examples, what is taken away is the same for every row
    shift = [(a["cool"] - a["warm"]) - (b["cool"] - b["warm"]) for a, b in zip(plain, given, strict=True)]
    assert np.ptp(shift) < 1e-3 and abs(shift[0]) > 1e-3
    loaded, task = open_target(base, precision="fp32"), find(TASK)[0]
    record, shown = instructrec.read(ROWS[:1])[0], ["cool", "warm"]
    nothing = task.content_free(record, shown) if calibrate == "contextual" else [task.premise(record, shown)]
    candidates = Candidates.of(loaded.renderer, [task.show(record, word, shown) for word in shown])
    logs = likelihoods(loaded.model, [loaded.renderer.prompt(one) for one in nothing], candidates, pad_id=0)
    if calibrate == "contextual":
        odds = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
        logs = np.log(odds.mean(0, keepdims=True))
    assert shift[0] == pytest.approx(logs[0, 0] - logs[0, 1], abs=1e-3)


def test_examples_are_set_aside_and_never_the_row_itself(base: str, tmp_path: Path) -> None:
    for by in ("random", "balanced", "bm25", "embedding", "diverse"):
        result = ask(base, tmp_path / by, shots=2, by=by).result
        shown = lines(tmp_path / by)
        assert result["shots_shown"] == 2 and result["examples"] + result["rows"] == len(ROWS)
        measured = {line["row"] for line in shown}
        assert all(len(line["shots"]) == 2 and not measured & {*line["shots"]} for line in shown)
    inside = tmp_path / "same.jsonl"
    inside.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    result = ask(base, tmp_path / "same", shots=3, examples=str(inside)).result
    assert result["rows"] == result["examples"] == len(ROWS)
    assert result["notes"] == [f"{len(ROWS)} of {len(ROWS)} rows are also among the examples"]
    for line in lines(tmp_path / "same"):
        assert line["row"] not in line["shots"] and len(line["shots"]) == 3


def test_examples_that_do_not_fit_are_left_out(base: str, tmp_path: Path) -> None:
    long = [{"text": f"the {thing} is {heat} " + "and the house is red " * 8, "label": label}
            for thing in THINGS for heat, label in COLOURS.items()]  # fmt: skip
    result = ask(base, tmp_path / "o", data=long, shots=6).result
    assert 0 < result["shots_shown"] < 6


def test_words_from_a_file_a_template_or_learned(base: str, tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("cool: [cold, red]\nwarm: house\n", encoding="utf-8")
    result = ask(base, tmp_path / "a", verbalizer=str(words)).result
    assert result["verbalizer"] == {"cool": ["cold", "red"], "warm": ["house"]}
    assert result["way"]["words_from"] == "words.yaml"
    template = tmp_path / "t.yaml"
    template.write_text(f'instruction: "{TASK}"\nverbalizer: {{warm: house, cool: cold}}\n', encoding="utf-8")
    result = ask(base, tmp_path / "b", template=str(template)).result
    assert result["way"]["words_from"] == "template" and list(result["verbalizer"]) == ["warm", "cool"]
    result = ask(base, tmp_path / "c", verbalizer="learned").result
    assert {label: len(found) for label, found in result["verbalizer"].items()} == {"cool": 3, "warm": 3}
    assert result["examples"] > 0


def test_search_chooses_on_rows_that_are_not_reported(base: str, tmp_path: Path) -> None:
    template = tmp_path / "t.yaml"
    template.write_text(
        'wordings:\n  a: "Is it hot? {{ text }}"\n  b: {instruction: "{{ text }}", answer: "It is {{ answer }}"}\n',
        encoding="utf-8",
    )
    found = ask(base, tmp_path / "o", template=str(template), search=True, shots=2, examples_share=0.5)
    tried = found.result["tried"]
    assert {one["template"] for one in tried} == {"t/a", "t/b"}
    assert {one["words_from"] for one in tried} == {"labels", "learned"}
    assert {one["calibrate"] for one in tried} == {"none", "contextual", "pmi"}
    assert {(one["stage"], one["shots"]) for one in tried} == {(1, 0), (2, 2)}
    assert {one["by"] for one in tried if one["stage"] == 2} == {"random", "bm25"}
    best = max(tried, key=lambda one: one["value"])
    assert found.result["way"] == {key: best[key] for key in found.result["way"]}
    assert found.result["rows"] + found.result["examples"] == len(ROWS)
    again = ask(base, tmp_path / "p", template=str(template), search=True, shots=2, examples_share=0.5)
    assert again.result["tried"] == tried and again.answers == found.answers


def test_free_answers_are_generated_behind_what_stands_before_them(base: str, tmp_path: Path) -> None:
    rows = [{"text": f"the {thing} is hot", "label": f"the {thing} is {place}"} for place, thing in enumerate(THINGS)]
    result = ask(base, tmp_path / "o", template="qa-en/answer", data=rows, shots=1, max_new_tokens=5).result
    assert result["verbalizer"] is None and {"exact_match", "chrf"} <= result["scores"].keys()
    loaded, task = open_target(base, precision="fp32"), find("qa-en/answer")[0]
    told = ask(base, tmp_path / "p", template="qa-en/answer", data=rows, max_new_tokens=5).answers
    for row, answer in zip(rows, told, strict=True):
        record = instructrec.read([row])[0]
        whole = loaded.renderer.render(task.show(record, "cold"))
        lead = loaded.renderer.answer_ids(task.show(record, ""))[0]
        ids = whole.ids[: whole.prompt_end] + lead
        assert whole.ids[: len(ids)] == ids
        for _ in range(5):
            token = int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
            if token in loaded.stop_ids:
                break
            ids.append(token)
        text = loaded.renderer.decode(ids[whole.prompt_end + len(lead) :]).partition("\n")[0].rstrip()
        assert answer == text


@pytest.mark.parametrize(("right", "want"), [("cold", "hot"), ("cold\nred", "hot\n\nthe lamp")])
def test_an_answer_ends_with_its_first_line_where_the_right_ones_have_one(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, want: str
) -> None:
    ids = tiny.tokenizer("qwen")("hot\n\nthe lamp", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(asking, "generate", lambda model, rows, **more: [Generation(ids, "length") for _ in rows])
    found = ask(base, tmp_path / "o", data=[{"text": "x", "label": right}], score="generate")
    assert found.answers == [want]


def test_a_tuned_run_and_several_readings(base: str, tmp_path: Path) -> None:
    rows = [{"instruction": row["text"], "output": row["label"]} for row in ROWS]
    given = {"model": base, "held_out": "none", "tensorboard": False, "learning_rate": 1e-2, "epochs": 12.0}
    run = instructrec.tune(rows, out=tmp_path / "run", strokes=2, **given, **QUICK)
    found = ask(str(run.folder), tmp_path / "o", template="row")
    assert found.result["strokes"] == 2 and found.scores["accuracy"]["value"] == 100
    once = ask(str(run.folder), tmp_path / "p", template="row", strokes=1)
    assert once.result["strokes"] == 1 and once.result["notes"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "qa-ne"}, "template: 'qa-ne' is no template of the library and no file, did you mean 'qa-en'?"),
        ({"score": "generate", "calibrate": "pmi"}, "calibrate: pmi is for ranking labels; these answers are generated"),
        ({"data": [{"text": f"{n}", "label": f"{n}"} for n in range(9)], "score": "rank"},
         "score: 9 different answers in 9 rows are no closed set of labels (want --score=generate, or a verbalizer with the labels)"),
        ({"shots": 2, "order": "nearest_last"}, "order: nearest_last needs to know what is near (got by=random, want bm25, embedding, diverse)"),
        ({"shots": 2, "examples_share": 0.0}, "examples: no row is left to choose from (want a file, or a larger --examples-share)"),
        ({"verbalizer": "there/none.yaml"}, "there/none.yaml: no such file"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_told(base: str, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(base, tmp_path / "o", **settings)
    assert str(caught.value) == message
    assert not (tmp_path / "o").exists()


def test_labels_without_words_and_columns_that_are_missing(base: str, tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("cool: cold\nworm: house\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        ask(base, tmp_path / "o", verbalizer=str(words))
    assert str(caught.value) == "<memory>:1: verbalizer: no words for label 'warm', did you mean 'worm'?"
    with pytest.raises(
        InputError, match="<memory>:1: template 'given': instruction: no column 'txt', did you mean 'text'?"
    ):
        ask(base, tmp_path / "o", template="{{ txt }}")


def test_the_command_line(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    given = ["--model", base, "--precision", "fp32", "--threads", "1", "--out", str(tmp_path / "o")]
    assert (
        cli.main(["prompt", TASK, str(file), "--shots", "1", "--by", "bm25", "--calibrate", "contextual", *given]) == 0
    )
    told = capsys.readouterr().out
    assert "Accuracy" in told and "Always '" in told and "Guessing" in told and "rows.jsonl" in told
    assert cli.main(["prompt", "list"]) == 0
    assert "classification-zh/question" in capsys.readouterr().out
    assert cli.main(["prompt", "row"]) == 2
    assert cli.main(["prompt", "rwo", str(file), *given]) == 2
    assert "did you mean 'row'?" in capsys.readouterr().err
