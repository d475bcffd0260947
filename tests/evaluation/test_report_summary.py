"""The summary against cases reckoned by hand, and that it claims nothing where an interval holds zero."""

from __future__ import annotations

from typing import Any

import pytest
import sample

from instructrec.evaluation.report import summary
from instructrec.evaluation.summary import summaries

CLAIMS = ("by more than chance", "does better still", "was lost", "the loss fell", "not clearly above")


def said(**changes: Any) -> list[str]:
    return summary(sample.full(**changes))


def test_the_sample_reckoned_by_hand() -> None:
    sentences = said()
    assert sentences[1] == (
        "On new wordings of tasks it was trained on, the tuned model gives the right label in 71% of 200 rows (66–76%); "
        "the base model in 31%, the few-shot base model in 50%, the best blind guess in 22%. "
        "Tuning made it better by more than chance."
    )
    # Tuned 33 against 28 of the base, ±6.5, so that the interval holds zero; few-shot 55 is better by 22.
    assert sentences[2] == (
        "On tasks it was not trained on, the tuned model gives the right label in 33% of 200 rows (28–38%); "
        "the base model in 28%, the few-shot base model in 55%, the best blind guess in 22%. "
        "The difference to the base model is within chance. "
        "The base model with examples in its prompt does better still: tuning may not be needed."
    )
    # 20% (15–25%) beside 22.5% for whoever always says the commonest answer.
    assert sentences[4].endswith("That is not clearly above a blind guess.")
    # Of 12 kinds, five have an interval that holds zero: case 4.1 ± 6, punctuation, spaces, text first, template 6.5 ± 8.
    assert sentences[5] == (
        "Damaged input: 7 of 12 kinds of damage lower the score of the tuned model by more than chance; the greatest loss, "
        "31% (26–36%) of the score, comes with keyboard typos. "
        "Where each row counts by its worst damage, the score is 30% instead of 71%."
    )
    assert sentences[6] == (
        "Of 80 instructions with several constraints, the tuned model keeps all in 16% (8–24%); the base model in 5%."
    )
    assert sentences[7] == "Bias, where 0% is none: option order 54% (45–63%), label bias 12% (7–17%)."
    assert sentences[8] == (
        "General ability was lost: on general text the loss rose by 0.130 nats a token (0.100 to 0.160)."
    )
    assert sentences[9] == "Requirements not met: 1 of 2 (unseen_tasks.accuracy>=0.6)."
    assert len(sentences) == 10
    chinese = summaries(sample.full())["zh"]
    assert len(chinese) == 10 and "71%" in chinese[1] and "31%（26–36%）" in chinese[5]


def one(change: Any, **more: Any) -> str:
    """The sentence of one suite whose difference to the base model is this."""
    suites = sample.full()["suites"][:1]
    suites[0] |= {"differences": {"tuned-base": {"accuracy": change}}, "references": {}} | more
    return said(suites=suites)[0]


@pytest.mark.parametrize(
    ("low", "high", "claim"),
    [
        (0.1, 9.0, "Tuning made it better by more than chance."),
        (0.0, 9.0, "The difference to the base model is within chance."),
        (-1.0, 9.0, "The difference to the base model is within chance."),
        (-9.0, 0.0, "The difference to the base model is within chance."),
        (-9.0, -0.1, "Tuning made it worse by more than chance."),
        (5.0, 5.0, ""),  # no interval is known
        (None, None, ""),
        (None, 9.0, ""),
    ],
)
def test_a_difference_is_claimed_only_where_its_interval_leaves_out_zero(low: Any, high: Any, claim: str) -> None:
    sentence = one({"value": 5.0, "low": low, "high": high, "n": 200})
    assert sentence.endswith(claim or "the few-shot base model in 52%.")
    assert sum(text in sentence for text in ("better", "within chance", "worse")) == bool(claim)


def test_where_lower_is_better_a_fall_is_an_improvement() -> None:
    suites = sample.full()["suites"][:1]
    suites[0]["differences"] = {"tuned-base": {"loss": sample.free(-0.5, 0.1)}}
    (sentence, *_) = said(suites=suites, primary="loss")
    assert sentence.startswith("On rows like those it was trained on, the tuned model has loss 0.840 on 200 rows")
    assert sentence.endswith("Tuning made it better by more than chance.")
    suites[0]["differences"] = {"tuned-base": {"loss": sample.free(0.5, 0.1)}}
    assert said(suites=suites, primary="loss")[0].endswith("Tuning made it worse by more than chance.")


def test_few_shot_is_called_better_only_beyond_chance() -> None:
    still = "does better still"
    for difference, claimed in ((sample.free(-9, 5), True), (sample.free(-4, 5), False), (sample.free(9, 5), False)):
        differences = {"tuned-few_shot": {"accuracy": difference}}
        assert (still in one(None, differences=differences)) == claimed


def test_a_blind_guess_is_the_better_of_guessing_and_the_commonest_answer() -> None:
    for chance, majority, shown, doubted in ((80, 20, "80%", True), (10, 79, "79%", True), (10, 78, "78%", False)):
        marks = {"chance": {"accuracy": chance}, "majority": {"accuracy": majority}}  # the interval begins at 79
        sentence = one(sample.free(40, 5), references=marks)
        assert f"the best blind guess in {shown}" in sentence and ("not clearly above" in sentence) == doubted


def damaged(*drops: tuple[float, float]) -> str:
    """The sentence on damage of drops with half widths."""
    found = sample.full()["robustness"]
    pairs = zip(found["perturbations"], drops, strict=False)
    found["perturbations"] = [{**entry, "drop": {"tuned": sample.free(*drop)}} for entry, drop in pairs]
    return said(robustness=found)[5]


def test_damage_counts_where_its_interval_is_above_zero() -> None:
    none = "Damaged input: none of 2 kinds of damage lowers the score of the tuned model by more than chance."
    assert damaged((5, 5), (-9, 2)).startswith(none)
    assert damaged((5, 4), (9, 10)).startswith(
        "Damaged input: 1 of 2 kinds of damage lowers the score of the tuned model by more than chance: keyboard typos, by "
        "5% (1–9%) of the score."
    )
    assert damaged((5, 4), (9, 1)).startswith("Damaged input: 2 of 2 kinds of damage lower")
    assert "comes with letters swapped" in damaged((5, 4), (9, 1))
    found = sample.full()["robustness"]
    found["perturbations"] = [{**entry, "drop": {}} for entry in found["perturbations"]]
    assert said(robustness=found)[5] == "Where each row counts by its worst damage, the score is 30% instead of 71%."


def test_forgetting_by_the_side_of_its_interval() -> None:
    def forgot(change: Any) -> str:
        found = sample.full()["forgetting"]
        found["loss"]["difference"] = change
        return said(forgetting=found)[8]

    assert forgot(sample.free(0.02, 0.03)) == (
        "No loss of general ability was found: on general text the change of the loss is within chance."
    )
    assert forgot(sample.free(-0.2, 0.1)) == (
        "No loss of general ability was found: on general text the loss fell by 0.200 nats a token (0.100 to 0.300)."
    )
    assert forgot({"value": 0.2, "low": None, "high": None, "n": 1}).startswith("Requirements")


def test_nothing_is_claimed_where_every_interval_holds_zero() -> None:
    def flat(value: Any) -> Any:
        if isinstance(value, dict) and {"value", "low", "high"} <= {*value}:
            return value | {"low": -1.0, "high": 101.0}
        if isinstance(value, dict):
            return {key: flat(one) for key, one in value.items() if key != "references"}
        return [flat(one) for one in value] if isinstance(value, list) else value

    sentences = summary(flat(sample.full(requirements=[])))
    text = " ".join(sentences)
    assert not [claim for claim in CLAIMS if claim in text.replace("none of 12 kinds of damage lowers the score of the "
                                                                  "tuned model by more than chance", "")]  # fmt: skip
    assert text.count("within chance") == 6 and "none of 12 kinds of damage" in text


def test_a_summary_of_an_untuned_model_speaks_of_the_arm_that_is_there() -> None:
    report = sample.full(requirements=[], robustness=None, bias=None, constraints=None, forgetting=None)
    report["arms"] = report["arms"][:1]
    for suite in report["suites"]:
        suite |= {"scores": {"base": suite["scores"]["base"]}, "differences": {}}
    sentences = summary(report)
    assert len(sentences) == 5 and all("the base model gives the right label" in one for one in sentences)
    assert not [one for one in sentences if "uning" in one]
    assert summary(report | {"suites": []}) == []
