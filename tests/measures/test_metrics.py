"""Metrics: values by hand, or equal to the library that defines them."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from instructrec.measures.metrics import METRICS, exact_match, label_set, rouge_l, score, token_f1
from instructrec.measures.statistics import bootstrap
from instructrec.measures.text import normalise, tokens, writing

ENGLISH = ["the cat sat on the mat today", "a dog ran over the old bridge", "she sells sea shells"]
GUESSES = ["the cat sat on a mat today", "a dog ran under the bridge", ""]
CHINESE = ["我想把这件衣服退掉,可以吗?", "您的包裹明天就会送到。", "请问怎么付款?"]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  Paris.\n", "paris"),
        ("Card  Arrival", "card arrival"),
        ("你好。", "你好"),
        ("ＡＢＣ１２", "abc12"),
        ("Straße", "strasse"),
        (".", "."),
        ("3.5", "3.5"),
        ("wait..", "wait."),
        ("è", "è"),
    ],
)
def test_normal_form(text: str, form: str) -> None:
    assert normalise(text) == form


def test_normal_form_keeps_what_matters() -> None:
    assert normalise("resume") != normalise("résumé")
    assert normalise("yes!") != normalise("yes")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat, the Dog!", ["the", "cat", "the", "dog"]),
        ("我有2个iPhone。", ["我", "有", "2", "个", "iphone"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("서울 날씨", ["서울", "날씨"]),
        (":-)", [":", "-", ")"]),
        ("", []),
        (" \n", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_writing_is_what_most_texts_are_in() -> None:
    assert writing(["你好吗", "很好", "iPhone"]) == "han"
    assert writing(["これはペンです", "東京に行きます"]) == "kana"
    assert writing(["hello 你", "good", "3.14", ""]) == "other"


def test_exact_match_takes_the_best_accepted_answer() -> None:
    assert exact_match("four", ["4", "Four."]) == 100
    assert exact_match("five", ["4", "four"]) == 0
    assert exact_match("", ["4"]) == 0
    assert exact_match("", [""]) == 100


def test_token_f1_by_hand() -> None:
    assert token_f1("the red cat", ["red cat sleeps now"]) == pytest.approx(100 * 2 * 2 / (3 + 4))
    assert token_f1("退掉衣服", ["把衣服退掉"]) == pytest.approx(100 * 2 * 4 / 9)
    assert token_f1("a a a", ["a b"]) == pytest.approx(100 * 2 * 1 / 5)  # a word counts as often as it is there
    assert token_f1("a a", ["a a b"]) == pytest.approx(100 * 2 * 2 / 5)
    assert token_f1("?", ["!"]) == 0
    assert token_f1("", ["x"]) == 0
    assert token_f1("", ["x", ""]) == 100
    assert token_f1("a", ["the"]) == 0  # articles are words


def test_rouge_l_equals_the_library_on_plain_english_and_by_hand_on_chinese() -> None:
    scorer = RougeScorer(["rougeL"])
    for guess, right in zip(GUESSES, ENGLISH, strict=True):
        assert rouge_l(guess, [right]) == pytest.approx(100 * scorer.score(right, guess)["rougeL"].fmeasure)
    assert rouge_l("退掉衣服", ["把衣服退掉"]) == pytest.approx(100 * 2 * 2 / 9)  # order counts: 衣服 or 退掉
    assert rouge_l("", ["x"]) == 0
    assert rouge_l("", [""]) == 100
    assert rouge_l("b", ["a", "b"]) == 100


def test_bleu_and_chrf_equal_the_library() -> None:
    references = [[right] for right in ENGLISH]
    scores = score(GUESSES, references)
    assert scores.statistics["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(GUESSES, [ENGLISH]).score)
    assert scores.statistics["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(GUESSES, [ENGLISH]).score)
    assert scores.statistics["bleu"].value > 10
    version = sacrebleu.__version__
    assert scores.statistics["bleu"].note == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert scores.statistics["chrf"].note == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"


def test_bleu_of_chinese_is_by_character_and_takes_several_answers() -> None:
    guesses = ["我想退掉这件衣服,可以吗?", "您的包裹明天送到。", "怎么付款?"]
    second = ["我要退掉这件衣服,可以吗?", None, "怎么付款呢?"]
    references = [[first, *([other] if other else [])] for first, other in zip(CHINESE, second, strict=True)]
    statistic = score(guesses, references).statistics["bleu"]
    assert statistic.value == pytest.approx(sacrebleu.corpus_bleu(guesses, [CHINESE, second], tokenize="zh").score)
    assert "tok:zh" in statistic.note and "nrefs:var" in statistic.note
    assert "tok:char" in score(["東京です"], [["これは東京タワーです"]]).statistics["bleu"].note


def test_bleu_is_left_out_for_answers_it_cannot_score() -> None:
    assert "bleu" not in score(["yes", "no"], [["yes"], ["no"]]).statistics


def test_resampled_bleu_equals_the_library_on_the_same_rows() -> None:
    statistic = score(GUESSES, [[right] for right in ENGLISH]).statistics["bleu"]
    rows = [0, 0, 1, 2]
    want = sacrebleu.corpus_bleu([GUESSES[row] for row in rows], [[ENGLISH[row] for row in rows]]).score
    assert statistic.take(rows).value == pytest.approx(want)


def test_macro_f1_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    names = ["card arrival", "refund", "top up", "pin"]
    truth = [names[place] for place in rng.choice(4, 60, p=[0.6, 0.2, 0.15, 0.05])]
    guesses = [right if rng.random() < 0.6 else str(rng.choice([*names, "no idea"])) for right in truth]
    scores = score(guesses, [[right] for right in truth], labels=names)
    want = 100 * f1_score(truth, guesses, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert scores.statistics["macro_f1"].value == pytest.approx(want)
    assert scores.outside_share == pytest.approx(100 * guesses.count("no idea") / 60)
    assert scores.statistics["accuracy"].value == pytest.approx(
        100 * np.mean([a == b for a, b in zip(guesses, truth, strict=True)])
    )
    part = scores.take(range(20))
    want = 100 * f1_score(truth[:20], guesses[:20], labels=sorted(set(truth[:20])), average="macro", zero_division=0)
    assert part.statistics["macro_f1"].value == pytest.approx(want)


def test_labels_are_compared_in_normal_form() -> None:
    scores = score(["Refund.", "PIN", "?"], [["refund"], ["pin"], ["pin"]], labels=["refund", "pin"])
    assert scores.values("exact_match").tolist() == [100, 100, 0]
    assert scores.outside_share == pytest.approx(100 / 3)
    assert scores.statistics["macro_f1"].value == pytest.approx((100 + 200 / 3) / 2)


def test_any_accepted_label_is_right() -> None:
    scores = score(["top up", "pin"], [["refund", "top up"], ["pin"]], labels=["refund", "top up", "pin"])
    assert scores.statistics["accuracy"].value == scores.statistics["macro_f1"].value == 100


def test_label_set_is_closed_or_none() -> None:
    assert label_set(["yes", "no", "Yes.", "no", "yes", "no"]) == ("no", "yes")
    assert label_set(["yes", "no", "yes", "no", "yes"]) is None  # 2.5 rows a label
    assert label_set(["yes"] * 10) is None
    assert label_set([str(number) for number in range(101)] * 5) is None
    assert len(label_set([str(number) for number in range(100)] * 3) or ()) == 100
    assert label_set(["Sorry, " + "very " * 20 + "much", "no"] * 5) is None
    assert label_set(["", "no"] * 5) is None


def test_perplexity_and_loss_weigh_tokens_not_rows() -> None:
    scores = score(["a", "b"], [["a"], ["b"]], losses=[(2.0, 1), (1.0, 5)])
    assert scores.statistics["loss"].value == pytest.approx(0.5)
    assert scores.statistics["perplexity"].value == pytest.approx(np.exp(0.5))
    estimate = bootstrap(scores.statistics["perplexity"])
    assert (estimate.low, estimate.high) == pytest.approx((np.exp(0.2), np.exp(2.0)))


def test_what_does_not_apply_is_left_out() -> None:
    scores = score(["one two three four"], [["one two three four"]])
    assert set(scores.statistics) == {"exact_match", "token_f1", "rouge_l", "bleu", "chrf"}
    assert scores.outside_share is None
    with pytest.raises(ValueError, match="bleu has no score for one row"):
        scores.values("bleu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": ["a"], "references": []}, "want as many of each (got 1 predictions, 0 references)"),
        ({"predictions": [], "references": []}, "no rows to score"),
        ({"predictions": ["a"], "references": [[]]}, "row 0: no answer to score against"),
        ({"predictions": ["a"], "references": [["a"]], "losses": [(1.0, 0)]}, "row 0: a loss over 0 tokens"),
    ],
)
def test_wrong_calls_say_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        score(**arguments)
    assert str(caught.value) == message


def test_the_registry_describes_every_metric() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert (metric.per_row is None) != (metric.corpus is None)
        assert metric.explanation.endswith(".")
