"""The words of the report: two languages, the same places, each used; a Chinese page is in Chinese."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample
import yaml

from instructrec.data.records import Record
from instructrec.data.splits import plan_held_out
from instructrec.evaluation import words as room
from instructrec.evaluation.arms import ARMS
from instructrec.evaluation.report import render
from instructrec.evaluation.summary import summaries
from instructrec.evaluation.tables import markdown
from instructrec.evaluation.words import LANGUAGES, TABLE, Words, table
from instructrec.measures.metrics import METRICS
from instructrec.measures.perturbations import PERTURBATIONS
from instructrec.measures.statistics import Estimate
from instructrec.recipes import bias
from instructrec.recipes.robustness import ATTACKS
from instructrec.training.monitor import Monitor
from pagetext import ENGLISH, Page

HERE = Path(room.__file__).parent


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("name", table()["messages"])
def test_a_message_is_in_every_language_with_the_same_places(name: str) -> None:
    message = table()["messages"][name]
    assert {*message} == {*LANGUAGES} and all(isinstance(text, str) and text for text in message.values() if text != "")
    assert places(message["en"]) == places(message["zh"])
    assert message["zh"] == message["en"] or not ENGLISH.search(re.sub(r"\{\w+\}", "", message["zh"]))


def test_said_has_the_same_places_and_no_english() -> None:
    for english, chinese in table()["said"].items():
        wanted = {place.rstrip("#") for place in places(english)}
        assert wanted == places(chinese), english
        assert not ENGLISH.search(chinese), chinese


def test_no_name_is_given_twice() -> None:
    class Once(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        names = [loader.construct_object(key) for key, _ in node.value]
        assert len(names) == len({*names}), [name for name in names if names.count(name) > 1]
        return {
            name: loader.construct_object(value, deep=True) for name, (_, value) in zip(names, node.value, strict=True)
        }

    Once.add_constructor("tag:yaml.org,2002:map", mapping)
    assert yaml.load(TABLE.read_text(encoding="utf-8"), Once)


def reports() -> Iterator[dict[str, Any]]:
    """Reports that between them say all that there is to say."""
    yield sample.full()
    yield sample.full(requirements=[{"text": "x", "value": None, "met": False, "unit": "%"}], dirty=True, commit=None)
    for name, change in (("better", 5.0), ("same", 0.0), ("worse", -5.0)):
        report = sample.full(suites=sample.full()["suites"][:1], requirements=[])
        (suite,) = report["suites"]
        assert name
        suite["differences"] = {
            "tuned-base": {"accuracy": sample.free(change, 2.0)},
            "tuned-few_shot": {"accuracy": sample.free(-change, 2.0)},
        }
        suite["references"]["chance"]["accuracy"] = 99.0
        suite["clusters"] = {"better": "rows", "same": "tasks", "worse": "wordings"}[name]
        suite["overlap"] |= {"with_training": 1, "with_watched": 2, "near": 1}
        report["requirements"] = [{"text": "x", "value": 1.0, "met": True, "unit": "%"}]
        report["forgetting"]["loss"]["difference"] = sample.free(-change / 10, 0.2)
        report["constraints"]["rows"] = 1
        report["seconds"], report["training"] = {"better": 5, "same": 4000, "worse": 65}[name], None  # it takes long
        entries = report["robustness"]["perturbations"]
        kept = {"better": entries[:1], "same": entries[5:6], "worse": entries}[name]
        report["robustness"]["perturbations"] = kept
        report["robustness"]["examples"] *= 2 if name == "same" else 1
        yield report
    kinds = sample.full()
    for suite, kind in zip(kinds["suites"], ("seen", "seen", "training", "all", "other_language"), strict=True):
        suite["kind"] = kind
        suite["overlap"]["with_training"], suite["worst"] = 2, suite["worst"][:3]
        suite["by_task"] = {f"task {n}": suite["by_task"]["sum"] for n in range(27 if kind == "training" else 25)}
    kinds["suites"] = kinds["suites"][:3]
    kinds["metrics"] = {"exact_match": kinds["metrics"]["exact_match"]} | kinds["metrics"]
    kinds["suites"][0]["scores"] = {}
    kinds["primary"], kinds["training"] = "exact_match", None
    yield kinds
    chrf = sample.full(primary="chrf")
    chrf["suites"][0]["kind"] = "all"
    chrf["run"]["data"]["parts"] = {"train": 4, "test": 1, "validation": 2, "unseen_wordings": 1}
    chrf["training"]["steps"] = chrf["training"]["steps"][:10]
    chrf["training"]["looks"] = [
        {"step": 0, **{name: {"loss": 1.0} for name in ("seen", "unseen_wordings", "validation")}, "watched": 1.0}
    ]
    chrf["robustness"]["perturbations"] = [
        {**chrf["robustness"]["perturbations"][0], "kind": way.kind, "rows": 1} for way in PERTURBATIONS.values()
    ] + [{**chrf["robustness"]["perturbations"][0], "kind": "adversarial"}]
    chrf["suites"][1]["scores"] = {
        arm: dict.fromkeys(("accuracy", "bleu"), sample.about(4)) for arm in sample.ARM_NAMES
    }
    chrf["suites"][1]["ranked"] = {}
    chrf["suites"][1]["differences"] = {}
    yield chrf


class Noted(dict):  # type: ignore[type-arg]
    """Messages that remember which of them were asked for."""

    asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    """Each report in both languages, as page and Markdown, and the names of the messages that were asked for."""
    noted, said = Noted(table()["messages"]), table()["said"]
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "table", lambda: {"messages": noted, "said": said})
        for report in reports():
            pages = {language: render(report | {"language": language}) for language in LANGUAGES}
            summaries(report)
            shown.append((report, pages, markdown(report, Words("zh"))))
    return {"shown": shown, "asked": noted.asked}


def test_every_message_is_used_and_none_is_missing(rendered: dict[str, Any]) -> None:
    known = {*table()["messages"]}
    assert known - rendered["asked"] == set()
    assert {name for name in rendered["asked"] - known if name.partition(".")[0]} == set()  # "" are names of suites
    literal = re.compile(r"""(?:say|words)(?:\.count)?\(\s*["']([a-z_.]+)["']""")
    files = [*HERE.glob("*.py"), *HERE.rglob("*.jinja")]
    named = {name for file in files for name in literal.findall(file.read_text(encoding="utf-8"))}
    named = {name.rstrip(".") for name in named}  # of some only the beginning is written down
    assert len(named) > 100 and named <= known | {name.rpartition(".")[0] for name in known}


def test_labels_of_other_rooms_are_known_in_chinese() -> None:
    zh = Words("zh")
    texts = [*ARMS.values(), *ATTACKS.values(), *bias.KINDS.values(), "Template 'alpaca'"]
    texts += [way.label for way in PERTURBATIONS.values()]
    texts += [f"Words chosen against the {label.lower()}" for name, label in ARMS.items() if name != "few_shot"]
    texts += [metric.explanation for metric in METRICS.values()]
    unknown = [text for text in texts if not zh.known(text)]
    unknown += [m.label for m in METRICS.values() if m.label not in table()["said"]]  # BLEU is BLEU
    assert unknown == []
    assert {f"damage.{way.kind}" for way in PERTURBATIONS.values()} | {"damage.adversarial"} <= {*table()["messages"]}


def test_sentences_of_tuning_are_known_in_chinese() -> None:
    zh, found = Words("zh"), []
    rows = [Record.of(f"do {n % 12}", "a", input=f"x {n}", task=f"t{n % 5}") for n in range(60)]
    for records, held_out in ((rows, "auto"), (rows, "none"), (rows, "wording"), (rows, "row"), (rows[:3], "auto")):
        found.append(plan_held_out(records, held_out=held_out, share=0.1, seed=0).explanation)
    found.append(plan_held_out(rows, held_out="row", share=0.0, seed=0).explanation)
    found += [f"1 row kept for testing alone. {found[0]}", f"1,200 rows kept for testing alone. {found[1]}"]
    found += [f"{found[-2]} Of these, 40 drawn by seed (max_rows and train_share)."]
    found += ["Held out: the 12 rows of more.tsv; 1,200 rows to train on."]
    found += ["Held out: the 12 rows given to watch; 1,200 rows to train on."]
    for metric, higher in (("loss", False), ("accuracy", True), ("exact_match", True)):
        found.append(Monitor({"seen": 0.5, "unseen_tasks": 0.5}, metric, higher).describe())
    for text in found:
        said = zh.said(text)
        left = re.sub(r"max_rows and train_share", "", said)
        assert said != text and not ENGLISH.search(left) and not re.search(r"\b(rows?|and|Held|out|seen)\b", left), said


def test_sentences_of_the_learning_curve_are_known_in_chinese() -> None:
    from instructrec.measures.curve import Curve

    flat, up, down = (Estimate(value, value - 0.1, value + 0.1, 9) for value in (0.0, 0.5, -0.5))
    for gain in (flat, up, down):
        sentence = Curve((up, up, up), flat, gain).sentence
        assert not ENGLISH.search(Words("zh").said(sentence)), sentence


def test_a_chinese_page_is_in_chinese(rendered: dict[str, Any]) -> None:
    for report, pages, text in rendered["shown"]:
        page = Page(pages["zh"])
        assert page.tags[0] == ("html", {"lang": "zh"})
        assert page.english == []
        assert len(Page(pages["en"]).english) > 20  # the same eyes see English
        lines = [line for line in text.splitlines() if report["command"] not in line]
        assert [line for line in lines if ENGLISH.search(line)] == []
