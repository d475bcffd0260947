"""The report: says what was measured, survives hostile text and odd numbers, asks nothing of the network."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec.evaluation.card import card, write_card
from instructrec.evaluation.drawings import bar
from instructrec.evaluation.pictures import loss_curve, save_loss_png, svg
from instructrec.evaluation.report import FOLD, change, count, duration, interval, number, render, summary, write_report

PERCENT = {"label": "Exact match", "unit": "%", "higher_is_better": True, "explanation": "Share of equal answers."}
NATS = {"label": "Loss", "unit": "nats", "higher_is_better": False, "explanation": "Negative log-likelihood."}
EVIL = "<script>alert(1)</script>"


def estimate(value: float, low: float, high: float, n: int = 75) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def suite(**changes: Any) -> dict[str, Any]:
    return {
        "name": "unseen_wordings",
        "file": "test.tsv",
        "sha256": "ab" * 32,
        "rows": 75,
        "overlap": {"with_training": 0},
        "scores": {
            "base": {"exact_match": estimate(0, 0, 4.9), "loss": estimate(3.1, 3.0, 3.2)},
            "few_shot": {"exact_match": estimate(12, 5.4, 19.2)},
            "tuned": {"exact_match": estimate(61.3, 49.3, 72.4), "loss": estimate(1.25, 1.1, 1.4)},
        },
        "differences": {"tuned-base": {"exact_match": estimate(61.3, 48, 72)}},
        "by_task": {"return_policy": {"tuned": {"exact_match": estimate(50, 1, 99, 4)}}},
        "worst": [
            {
                "origin": "test.tsv:3",
                "task": "退货",
                "prompt": f"{EVIL} 怎么退货?",
                "expected": "a & b",
                "answers": {"base": "bell \x07", "tuned": ""},
                "score": 0.0,
            }
        ],
        "notes": [],
    } | changes


def make(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "command": "instructrec evaluate runs/mine test.tsv",
        "created": "2026-03-02T10:20:30+00:00",
        "seconds": 143.2,
        "version": "0.1.0",
        "commit": "0123abc",
        "dirty": True,
        "run": {
            "folder": "runs/mine",
            "backbone": "smollm2-135m",
            "method": "lora",
            "trained_parameters": 4_884_480,
            "parameters": 134_515_008,
            "settings": {"learning_rate": 0.0002, "model": EVIL},
            "data": {
                "files": {"rows.tsv": "cd" * 32},
                "rows": 251,
                "parts": {"train": 219, "unseen_tasks": 32},
                "held_out": "4 tasks were kept out.",
            },
        },
        "arms": [
            {"name": "base", "label": "Base model", "detail": ""},
            {"name": "few_shot", "label": "Few-shot base model", "detail": "5 rows in the prompt"},
            {"name": "tuned", "label": "Tuned model", "detail": "step 120"},
        ],
        "metrics": {"exact_match": PERCENT, "loss": NATS},
        "primary": "exact_match",
        "interval": "95% bootstrap over rows, 1,000 resamples, seed 0",
        "suites": [suite()],
        "training": {
            "steps": [{"step": step, "loss": 3 / step, "learning_rate": 1e-4} for step in range(1, 101)],
            "looks": [
                {"step": 0, "seen": {"loss": 3.0}, "unseen_tasks": {"loss": 3.2}, "watched": 3.1},
                {"step": 50, "seen": {"loss": 1.0}, "unseen_tasks": {"loss": 1.5}, "watched": 1.25},
            ],
            "best_step": 50,
            "stopped": "Stopped at step 100.",
            "watch": "Watched: half and half.",
            "held_out_tasks": ["礼品卡"],
            "seconds": 402.0,
            "tokens_per_second": 611.0,
            "padding_share": 0.043,
        },
    } | changes


class Page(HTMLParser):
    """Tags and visible words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.words += " " if tag in ("div", "span", "dt", "dd", "td", "th") else ""

    def handle_data(self, data: str) -> None:
        self.words += data


def test_summary_says_it_in_plain_words() -> None:
    assert summary(make()) == [
        "On unseen wordings, the tuned model gives exactly the expected answer in 61% of 75 rows (49–72%); "
        "the base model in 0%, the few-shot base model in 12%. Tuning made it better by more than chance."
    ]


@pytest.mark.parametrize(
    ("primary", "ends", "sentence"),
    [
        ("exact_match", (61.3, -2, 72), "The difference to the base model is within chance."),
        ("exact_match", (-61.3, -72, -48), "Tuning made it worse by more than chance."),
        ("loss", (-1.85, -2, -1.7), "Tuning made it better by more than chance."),
    ],
)
def test_summary_weighs_the_difference(primary: str, ends: tuple[float, float, float], sentence: str) -> None:
    report = make(primary=primary, suites=[suite(differences={"tuned-base": {primary: estimate(*ends)}})])
    assert summary(report)[0].endswith(sentence)


def test_summary_of_other_metrics_and_of_nothing() -> None:
    report = make(primary="loss", suites=[suite(differences={})])
    assert summary(report) == [
        "On unseen wordings, the tuned model has loss 1.25 on 75 rows (1.10–1.40); the base model has 3.10."
    ]
    report = make(suites=[suite(scores={}, differences={}, by_task={}, worst=[])])
    assert summary(report) == ["On unseen wordings, exact match was not measured."]
    assert "was not measured" in render(report)


def test_files_are_written_and_the_numbers_are_those_given(tmp_path: Path) -> None:
    report = make()
    page = write_report(report, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == report
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    words = " ".join(Page(page.read_text(encoding="utf-8")).words.split())
    for text in (
        "61.3% 49–72%",
        "+61.3 (48 to 72)",
        "Tuned model − base model",
        "return policy 4 Tuned model: 50.0% 1–99% 50.0% 1–99%",
        "step 120",
        "smollm2-135m",
        "4.88 M of 135 M parameters",
        "6 min 42 s",
        "instructrec evaluate runs/mine test.tsv",
        "0123abc, with changes not committed",
        "cd" * 32,
        "ab" * 32,
        "0.0002",
        "Step 50: seen 1.00, unseen tasks 1.50 nats a token",
        "Tasks kept out: 礼品卡",
        "test.tsv:3 · 退货",
        "95% bootstrap over rows, 1,000 resamples, seed 0",
    ):
        assert text in words, text


def test_text_of_rows_and_models_is_never_markup() -> None:
    evil = '"><img src=x onerror=alert(1)>'
    arms = [{"name": name, "label": evil, "detail": evil} for name in ("base", "few_shot", "tuned")]
    entry = suite(name=evil, notes=[evil], by_task={evil: {"tuned": {"exact_match": estimate(50, 1, 99)}}})
    entry["worst"][0] |= {"origin": evil, "task": evil, "prompt": evil, "answers": {"tuned": evil}}
    report = make(arms=arms, suites=[entry], command=evil)
    report["training"] |= {"watch": evil, "held_out_tasks": [evil], "looks": [{"step": 0, evil: {"loss": 1.0}}]}
    for page in (Page(render(make())), Page(render(report))):
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"script", "img", "iframe", "object", "link", "a", "form"}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.words.count(evil) > 8
    assert EVIL in Page(render(make())).words


def test_page_is_self_contained() -> None:
    text = render(make())
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    metas = [attributes.get("content") for tag, attributes in Page(text).tags if tag == "meta"]
    assert policy in metas
    addresses = set(re.findall(r"https?://[^\"'<> ]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert not re.search(r"@import|src=|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text


def test_control_characters_are_shown_and_empty_answers_named() -> None:
    page = Page(render(make()))
    assert "bell ␇" in page.words and "\x07" not in page.words
    assert "nothing" in page.words


def test_numbers_that_are_none_and_half_characters_do_not_stop_a_report(tmp_path: Path) -> None:
    report = make()
    report["suites"][0]["scores"]["tuned"]["loss"] = estimate(float("inf"), float("nan"), float("inf"))
    report["suites"][0]["worst"][0]["answers"]["tuned"] = "half \ud83d"
    page = write_report(report, tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored["suites"][0]["scores"]["tuned"]["loss"] == {"value": None, "low": None, "high": None, "n": 75}
    assert "half \ufffd" in page.read_text(encoding="utf-8")
    write_card(report, report["run"], tmp_path)


def test_rows_that_chose_the_checkpoint_are_a_warning() -> None:
    warning = "3 of these rows served to choose the checkpoint: the scores of the tuned model may be too good."
    assert warning in render(make(suites=[suite(overlap={"with_training": 0, "with_watched": 3})]))
    assert "served to choose" not in render(make())
    limit = "- 3 of the rows of unseen wordings served to choose the checkpoint.\n"
    report = make(suites=[suite(overlap={"with_training": 0, "with_watched": 3})])
    assert limit in card(report, report["run"]) and limit not in card(make(), make()["run"])


def test_overlap_with_training_is_a_warning() -> None:
    warning = "2 of these rows are also in the training data"
    assert warning in render(make(suites=[suite(overlap={"with_training": 2})]))
    assert "also in the training data" not in render(make())


def test_a_report_may_lack_parts() -> None:
    report = make(training=None, suites=[suite(by_task={}, worst=[], differences={})], commit=None, dirty=None)
    page = Page(render(report))
    assert "commit unknown." in page.words
    assert "Worst answers" not in page.words and "by task" not in page.words and "Tuning took" not in page.words
    training = make()["training"] | {"steps": [], "looks": [], "best_step": None, "held_out_tasks": []}
    assert loss_curve(training).legends == []
    assert "Tasks kept out" not in render(make(training=training))


def test_weakest_tasks_come_first_and_many_are_folded() -> None:
    by_task = {
        f"task {place:02}": {"tuned": {"exact_match": estimate(place, 0, 100, 4)}}
        for place in reversed(range(FOLD + 3))
    }
    text = render(make(suites=[suite(by_task=by_task)]))
    shown = re.findall(r"<bdi>task (\d\d)</bdi>", text)
    assert shown == [f"{place:02}" for place in range(FOLD + 3)]
    assert "<summary>3 more tasks</summary>" in text


def test_bars_have_the_length_of_their_numbers() -> None:
    drawn = bar(estimate(25, 10, 50), 2, 50, title="a < b")
    assert 'class="fill-2" width="50.00%"' in drawn
    assert 'x1="20.00%" x2="100.00%"' in drawn
    assert "<title>a &lt; b</title>" in drawn
    assert "whisker" not in bar(estimate(25, 25, 25), 0, 50)
    assert 'class="fill-0" width="0%"' in bar(estimate(0, 0, 0), 0, 0)


def test_loss_curve_shows_every_set_and_the_step_kept() -> None:
    training = make()["training"]
    figure = loss_curve(training)
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.get_lines()][1:4] == [
        "training, mean of 5 steps",
        "held out, rows like those trained on",
        "held out, unseen tasks",
    ]
    assert list(axes.get_lines()[3].get_xydata()[:, 1]) == [3.2, 1.5]
    assert [text.get_text() for text in axes.texts] == ["kept: step 50"]
    few = copy.deepcopy(training) | {"steps": training["steps"][:10]}
    assert [line.get_label() for line in loss_curve(few).axes[0].get_lines()][0] == "training"


def test_svg_takes_the_colours_of_the_page_and_is_the_same_each_time() -> None:
    training = make()["training"]
    drawn = svg(loss_curve(training), "one")
    assert drawn == svg(loss_curve(training), "one")
    assert "var(--series-0)" in drawn and "var(--ink)" in drawn
    assert "xlink" not in drawn  # undeclared in the tag that is left
    assert "<style" not in drawn and "<metadata" not in drawn and "<text" in drawn
    ids = [set(re.findall(r' id="([^"]+)"', svg(loss_curve(training), name))) for name in ("one", "two")]
    referenced = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawn))
    assert referenced and referenced <= ids[0]
    assert not referenced & ids[1]


def test_loss_png_is_a_picture(tmp_path: Path) -> None:
    save_loss_png(make()["training"], tmp_path / "new" / "loss.png")
    assert (tmp_path / "new" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_card_has_a_readable_head_and_the_scores(tmp_path: Path) -> None:
    report = make(suites=[suite(overlap={"with_training": 2})])
    text = write_card(report, report["run"] | {"license": "apache-2.0"}, tmp_path).read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head == {
        "base_model": "smollm2-135m",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["rows.tsv"],
        "tags": ["instructrec", "instruction-tuning", "lora"],
    }
    assert "| Exact match | 0.0% (0–5%) | 12.0% (5–19%) | 61.3% (49–72%) | +61.3 (48 to 72) |" in text
    assert "| Loss (lower is better) | 3.10 (3.00–3.20) | – | 1.25 (1.10–1.40) | – |" in text
    assert "instructrec chat runs/mine\n" in text
    assert "- 2 of the rows of unseen wordings are also in the training data." in text


def test_card_without_a_report_claims_nothing() -> None:
    run = make()["run"] | {"folder": "my runs/it's", "method": "full", "trained_parameters": 134_515_008}
    text = card(None, run)
    assert "Nothing was measured yet" in text and "The scores hold" not in text
    assert "instructrec chat 'my runs/it'\\''s'\n" in text
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["library_name"], head["license"]) == ("transformers", "unknown")


def test_numbers_as_words() -> None:
    assert [number(value, "%") for value in (61.34, 0.0, None)] == ["61.3%", "0.0%", "–"]
    assert [number(value, "") for value in (3.0, 0.4821, 20.06, 134.5, 12800.0)] == [
        "3.00",
        "0.482",
        "20.1",
        "134",
        "12,800",
    ]
    assert interval(estimate(1, 49.4, 72.5), "%") == "49–72%"
    assert interval(estimate(1, 1, 1), "nats") == ""
    assert change(estimate(-3.04, -8.2, 0.3), "%") == "−3.0 (−8 to 0)"
    assert change(estimate(-3.04, -8.5, -0.5), "%") == "−3.0 (−8 to 0)"
    assert change(estimate(0.1, -0.034, 0.2), "nats") == "+0.100 (−0.034 to 0.20)"
    assert change(estimate(32, 26, 138), "") == "+32.0 (26 to 138)"
    assert [duration(value) for value in (45.2, 402, 7512)] == ["45 s", "6 min 42 s", "2 h 5 min"]
    assert [count(value) for value in (12800, 4_884_480, 134_515_008, 7_200_000_000)] == [
        "12,800",
        "4.88 M",
        "135 M",
        "7.20 B",
    ]
