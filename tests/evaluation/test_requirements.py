"""Conditions on a report: how they are written, what is wrong with them, what they are measured on, how a run ends."""

from __future__ import annotations

from typing import Any

import pytest
import sample

from instructrec.errors import InputError, InstructRecError
from instructrec.evaluation.requirements import Unmet, check, parse, unmet
from instructrec.measures.perturbations import PERTURBATIONS
from instructrec.recipes import bias, robustness

SUITES = ("test", "test-unseen_tasks", "a.b")


def met(text: str, **changes: Any) -> tuple[float | None, bool, str]:
    """Value, whether it is met, and unit, in the sample report."""
    (found,) = check(parse(text, [suite["name"] for suite in sample.full()["suites"]]), sample.full(**changes))
    assert found["text"] == text
    return found["value"], found["met"], found["unit"]


@pytest.mark.parametrize(
    ("text", "path", "sign", "bound", "unit"),
    [
        ("test.accuracy>=0.6", ("test", "accuracy"), ">=", 60.0, "%"),
        (" test.accuracy > 60 % ", ("test", "accuracy"), ">", 60.0, "%"),
        ("unseen_tasks.accuracy.low>=1", ("unseen_tasks", "accuracy", "low"), ">=", 100.0, "%"),
        ("test-unseen_tasks.chrf.gain>=-.05", ("test-unseen_tasks", "chrf", "gain"), ">=", -5.0, "%"),
        ("a.b.accuracy.gain.high<5e-1", ("a.b", "accuracy", "gain", "high"), "<", 50.0, "%"),
        ("seen.loss<=2.5", ("seen", "loss"), "<=", 2.5, "nats"),
        ("seen.perplexity<30", ("seen", "perplexity"), "<", 30.0, ""),
        ("seen.ece<10%", ("seen", "ece"), "<", 10.0, "%"),
        ("robustness.worst_case.low>0.2", ("robustness", "worst_case", "low"), ">", 20.0, "%"),
        ("robustness.typos.drop<=25%", ("robustness", "typos", "drop"), "<=", 25.0, "%"),
        ("bias.label_bias<0.1", ("bias", "label_bias"), "<", 10.0, "%"),
        ("constraints.all>=0.3", ("constraints", "all"), ">=", 30.0, "%"),
        ("forgetting.loss.high<=0.1", ("forgetting", "loss", "high"), "<=", 0.1, "nats"),
    ],
)
def test_every_form(text: str, path: tuple[str, ...], sign: str, bound: float, unit: str) -> None:
    (found,) = parse(text, SUITES, robustness.NAMES, bias.NAMES)
    assert (found.text, found.path, found.sign, found.unit) == (text.strip(), path, sign, unit)
    assert found.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test.accuracy", "not understood (got 'test.accuracy', want such as unseen_tasks.accuracy>=0.6)"),
        ("test.accuracy=0.6", "not understood (got 'test.accuracy=0.6', want such as unseen_tasks.accuracy>=0.6)"),
        ("test.accuracy>=much", "not understood (got 'test.accuracy>=much', want such as unseen_tasks.accuracy>=0.6)"),
        ("test.accuracy>=60", "a share is at most 1 (got 'test.accuracy>=60', want test.accuracy>=0.6 or 60%)"),
        ("test.loss<=2%", "'test.loss' is no share (got '2%', want a number without %)"),
        ("tset.accuracy>0.6", "'tset.accuracy>0.6': unknown part 'tset', did you mean 'test'?"),
        ("unseen_task.accuracy>0.6", "'unseen_task.accuracy>0.6': unknown part 'unseen_task', did you mean 'unseen_tasks'?"),
        ("test.acuracy>0.6", "'test.acuracy>0.6': unknown 'acuracy', did you mean 'accuracy'?"),
        ("test.accuracy.gian>0", "'test.accuracy.gian>0': unknown 'gian', did you mean 'gain'?"),
        ("test>0.6", "'test>0.6': names no number (want test.accuracy)"),
        ("robustness.typoes.drop<0.1", "'robustness.typoes.drop<0.1': unknown 'typoes', did you mean 'typos'?"),
        ("robustness.typos.dorp<0.1", "'robustness.typos.dorp<0.1': unknown 'dorp', did you mean 'drop'?"),
        ("robustness.typos<0.1", "'robustness.typos<0.1': names no number (want robustness.worst_case or robustness.NAME.drop)"),
        ("robustness.worst<0.1", "'robustness.worst<0.1': unknown 'worst', did you mean 'worst_case'?"),
        ("bias.lable_bias<0.1", "'bias.lable_bias<0.1': unknown 'lable_bias', did you mean 'label_bias'?"),
        ("bias<0.1", "'bias<0.1': names no number (want bias.NAME)"),
        ("constraints.al>0.1", "'constraints.al>0.1': unknown 'al', did you mean 'all'?"),
        ("forgetting.los<0.1", "'forgetting.los<0.1': unknown 'los', did you mean 'loss'?"),
        ("forgetting<0.1", "'forgetting<0.1': names no number (want forgetting.loss)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_nearest_name(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, SUITES, robustness.NAMES, bias.NAMES)
    assert str(caught.value) == f"require: {message}" and caught.value.exit_code == 2


def test_several_in_one_text_or_in_several_and_every_fault_is_told() -> None:
    both = ["seen.accuracy>=0.5, seen.loss<2", "bias.option_order<0.5,"]
    assert parse(",".join(both), SUITES) == parse(both, SUITES) and len(parse(both, SUITES)) == 3
    assert parse("", SUITES) == []
    with pytest.raises(InputError) as caught:
        parse("seen.accuracy>=2,seen.accuracy>0.1,sen.loss<2", SUITES)
    assert [line[:9] for line in str(caught.value).splitlines()] == ["require: "] * 2


def test_each_form_is_measured_on_its_own_number() -> None:
    report = sample.full()
    suite = report["suites"][1]
    assert met("test_wordings.accuracy>=0.71") == (71.0, True, "%")
    assert met("test_wordings.accuracy>0.71") == (71.0, False, "%")
    assert met("test_wordings.accuracy<=71%") == (71.0, True, "%") and not met("test_wordings.accuracy<71%")[1]
    assert met("unseen_wordings.accuracy.low>=0.7") == (66.0, False, "%")
    assert met("unseen_wordings.accuracy.high>=0.7") == (76.0, True, "%")
    assert met("test_wordings.accuracy.gain>=0.3") == (40.0, True, "%")
    assert met("test_wordings.accuracy.gain.low>=0.3") == (33.5, True, "%")
    assert met("test_wordings.loss<=2") == (suite["scores"]["tuned"]["loss"]["value"], True, "nats")
    assert met("test_wordings.ece<=5%") == (7.5, False, "%")
    assert met("robustness.worst_case>=0.3") == (29.5, False, "%")
    assert met("robustness.typos.drop<=0.3") == (31.2, False, "%")
    assert met("robustness.typos.flips.low<0.5")[1] and met("robustness.case.score>0.6")[1]
    assert met("bias.option_order<=0.54") == (54.0, True, "%")
    assert met("constraints.each>0.5") == (52.0, True, "%")
    assert met("forgetting.loss<=0.1") == (0.13, False, "nats")
    assert met("forgetting.loss.low<=0.1") == (0.1, True, "nats")


def test_of_several_of_a_kind_the_one_furthest_from_it_counts() -> None:
    suites = sample.full()["suites"]
    suites[0]["kind"] = "unseen_wordings"  # 84% beside 71%
    assert met("unseen_wordings.accuracy>=0.75", suites=suites) == (71.0, False, "%")
    assert met("unseen_wordings.accuracy<=0.75", suites=suites) == (84.0, False, "%")
    assert met("train_like.accuracy>=0.75", suites=suites) == (84.0, True, "%")  # a name is one suite
    found = sample.full()["robustness"]
    for place, name in ((3, "template_plain"), (10, "template_alpaca")):
        found["perturbations"][place] |= {"name": name, "kind": "template"}
    assert met("robustness.template.drop<=0.05", robustness=found) == (6.5, False, "%")
    assert met("robustness.template_plain.drop<=0.05", robustness=found) == (4.1, True, "%")


def test_what_was_not_measured_is_not_met() -> None:
    bare = {"robustness": None, "bias": None, "constraints": None, "forgetting": None}
    for text in ("robustness.worst_case>0", "robustness.typos.drop<1", "bias.label_bias<1", "constraints.all>=0"):
        assert met(text, **bare) == (None, False, "%")
    assert met("forgetting.loss<9", **bare) == (None, False, "nats")
    assert met("training.accuracy>0") == (None, False, "%") and met("seen.bleu>0") == (None, False, "%")
    suites = sample.full()["suites"]
    suites[0]["scores"]["tuned"]["perplexity"]["value"] = None
    assert met("train_like.perplexity<9", suites=suites) == (None, False, "")
    # Without a tuned model it is the last arm that is meant.
    for suite in suites:
        del suite["scores"]["tuned"]
    assert met("seen.accuracy>0.5", suites=suites) == (52.0, True, "%")


def test_what_is_not_met_ends_with_code_4() -> None:
    texts = "seen.accuracy>=0.9,seen.accuracy>0.1,robustness.width.drop<0.1,forgetting.loss<0.1"
    report = sample.full()
    report["requirements"] = check(parse(texts, ()), report)
    error = unmet(report)
    assert isinstance(error, Unmet) and isinstance(error, InstructRecError) and error.exit_code == 4
    assert str(error).splitlines() == [
        "require: seen.accuracy>=0.9: not met (got 84.0%)",
        "require: robustness.width.drop<0.1: not met (got nothing measured)",
        "require: forgetting.loss<0.1: not met (got 0.130)",
    ]
    assert unmet(sample.full(requirements=[])) is None and unmet({}) is None
    assert unmet({"requirements": check(parse("seen.accuracy>0.1", ()), report)}) is None


def test_names_are_those_of_reports() -> None:
    assert {*PERTURBATIONS, *robustness.ATTACKS, "template_model", "template_alpaca", "template_plain"} == {
        *robustness.NAMES
    }
