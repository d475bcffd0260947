"""Metrics of generated answers. One dict, `METRICS`, says what there is; `score` computes all that apply.

Letters: N rows, L labels. Scores in percent run from 0 to 100 everywhere, also by row. A row may have several
accepted answers: the best counts. An empty prediction is an answer like any other: it scores 0 unless an accepted
answer is empty too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from instructrec.measures.statistics import Floats, Statistic, mean_of
from instructrec.measures.text import normalise, tokens, writing

PERCENT = (0.0, 100.0)
LABELS = 100  # at most so many different answers make a closed label set,
LABEL_ROWS = 3  # each found so many times on average,
LABEL_LENGTH = 60  # and none longer than so many characters
BLEU_TOKENISER = {"han": "zh", "kana": "char", "other": "13a"}


@dataclass(frozen=True)
class Answers:
    """What there is to score, one entry a row. `losses` are (summed negative log-likelihood in nats, tokens)."""

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    labels: Sequence[str] | None = None
    losses: Sequence[tuple[float, int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: either a number for each row, averaged, or a statistic of all rows (None: it does not apply)."""

    name: str
    label: str
    unit: Literal["%", "nats", ""] = "%"
    higher_is_better: bool = True
    explanation: str
    per_row: Callable[[str, Sequence[str]], float] | None = None
    corpus: Callable[[Answers], Statistic | None] | None = None

    def statistic(self, answers: Answers) -> Statistic | None:
        """The metric over these rows, None where it does not apply."""
        if self.corpus:
            return self.corpus(answers)
        assert self.per_row
        rows = zip(answers.predictions, answers.references, strict=True)
        return mean_of([self.per_row(prediction, accepted) for prediction, accepted in rows], PERCENT)


@dataclass(frozen=True)
class RowScores:
    """All metrics that apply, row by row; intervals come from `statistics.bootstrap(scores.statistics[name])`."""

    statistics: dict[str, Statistic]
    outside: Floats | None = None  # (N,) 1 where the prediction is none of the labels

    def values(self, name: str) -> Floats:
        """(N,) scores of one metric row by row; raises ValueError for metrics that only whole sets have."""
        if not METRICS[name].per_row:
            raise ValueError(f"{name} has no score for one row")
        return self.statistics[name].sums[:, 0]

    def take(self, rows: Sequence[int]) -> RowScores:
        """The scores of some of the rows, such as those of one task."""
        outside = None if self.outside is None else self.outside[np.asarray(rows, dtype=np.intp)]
        return RowScores({name: statistic.take(rows) for name, statistic in self.statistics.items()}, outside)

    @property
    def outside_share(self) -> float | None:
        """Percent of predictions that are none of the labels; None without a closed label set."""
        return None if self.outside is None else 100.0 * float(self.outside.mean())


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    labels: Sequence[str] | None = None,
    losses: Sequence[tuple[float, int]] | None = None,
) -> RowScores:
    """Every metric that applies to these rows.

    `references` are the accepted answers of each row, the row's own first; `labels` a closed label set (see
    `label_set`); `losses` each row's summed negative log-likelihood (nats) and its number of tokens. Raises
    ValueError if the lengths differ, a row has no accepted answer or no token.
    """
    sizes = {"predictions": len(predictions), "references": len(references)}
    if losses is not None:
        sizes["losses"] = len(losses)
    if len(set(sizes.values())) > 1:
        raise ValueError(f"want as many of each (got {', '.join(f'{count} {name}' for name, count in sizes.items())})")
    if not predictions:
        raise ValueError("no rows to score")
    if not all(references):
        raise ValueError(
            f"row {next(row for row, accepted in enumerate(references) if not accepted)}: no answer to score against"
        )
    answers = Answers(predictions, references, labels, losses)
    statistics = {name: metric.statistic(answers) for name, metric in METRICS.items()}
    outside = None
    if labels:
        known = {normalise(label) for label in labels} | {
            normalise(text) for accepted in references for text in accepted
        }
        outside = np.array([normalise(text) not in known for text in predictions], dtype=np.float64)
    return RowScores({name: found for name, found in statistics.items() if found is not None}, outside)


def label_set(answers: Sequence[str], of: int | None = None) -> tuple[str, ...] | None:
    """The closed set of labels that training or test answers are drawn from, sorted, or None if they are not.

    of: how many answers there are, where `answers` holds each different one once.

    Closed means: 2 to 100 different answers (after `normalise`), each found 3 times on average, each one line of at
    most 60 characters (longer texts that repeat are set phrases, not labels).
    """
    spelled: dict[str, str] = {}
    for answer in answers:
        spelled.setdefault(normalise(answer), answer.strip())
        if len(spelled) > LABELS:
            return None
    if len(spelled) < 2 or (len(answers) if of is None else of) < LABEL_ROWS * len(spelled):
        return None
    if any(len(label) > LABEL_LENGTH or "\n" in label or not label for label in spelled.values()):
        return None
    return tuple(sorted(spelled.values()))


def exact_match(prediction: str, accepted: Sequence[str]) -> float:
    """100 if the prediction equals an accepted answer after `normalise`, else 0."""
    given = normalise(prediction)
    return 100.0 * any(given == normalise(text) for text in accepted)


def token_f1(prediction: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the bag of tokens (Rajpurkar et al. 2016), see `text.tokens`."""
    given = Counter(tokens(prediction))
    return max(_bag_f1(given, Counter(tokens(text))) for text in accepted)


def _bag_f1(given: Counter[str], wanted: Counter[str]) -> float:
    if not given or not wanted:
        return 100.0 * (given == wanted)
    return 200.0 * (given & wanted).total() / (given.total() + wanted.total())


def rouge_l(prediction: str, accepted: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of tokens (Lin 2004) by rouge-score, without stemming."""
    if not tokens(prediction) and any(not tokens(text) for text in accepted):
        return 100.0
    return 100.0 * _rouge().score_multi(accepted, prediction)["rougeL"].fmeasure


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Tokens(Tokenizer):  # the library's own keeps only a-z and 0-9: Chinese would be empty
        def tokenize(self, text: str) -> list[str]:
            return tokens(text)

    return RougeScorer(["rougeL"], tokenizer=Tokens())


def bleu(answers: Answers) -> Statistic | None:
    """Corpus BLEU by sacrebleu; None if fewer than half of the rows' own answers have the four tokens it needs."""
    from sacrebleu.metrics.bleu import BLEU

    own = [accepted[0] for accepted in answers.references]
    metric = BLEU(tokenize=BLEU_TOKENISER[writing(own)])
    if 2 * sum(len(metric.tokenizer(text).split()) >= 4 for text in own) < len(own):
        return None
    return sacrebleu_statistic(metric, answers)


def chrf(answers: Answers) -> Statistic:
    """Corpus chrF2 (character n-grams up to 6) by sacrebleu."""
    from sacrebleu.metrics.chrf import CHRF

    return sacrebleu_statistic(CHRF(), answers)


def sacrebleu_statistic(metric: Any, answers: Answers) -> Statistic:
    """A sacrebleu metric as sums over rows.

    The only place that uses names private to sacrebleu: its own bootstrap can neither resample groups of rows nor
    pair two systems. A test holds the result equal to `corpus_score`.
    """
    most = max(len(accepted) for accepted in answers.references)
    streams = [[(*accepted, *[None] * most)[place] for accepted in answers.references] for place in range(most)]
    sums = np.array(metric._extract_corpus_statistics(answers.predictions, streams), dtype=np.float64)

    def finish(total: Floats) -> Floats:
        return np.array([metric._compute_score_from_stats(row).score for row in total.tolist()])

    return Statistic(sums, finish, PERCENT, str(metric.get_signature()))


def accuracy(answers: Answers) -> Statistic | None:
    """Share of right labels; a prediction outside the set is wrong. None without a closed label set."""
    if not answers.labels:
        return None
    rows = zip(answers.predictions, answers.references, strict=True)
    return mean_of([exact_match(prediction, accepted) for prediction, accepted in rows], PERCENT)


def macro_f1(answers: Answers) -> Statistic | None:
    """Unweighted mean of F1 over the labels that occur among the right answers; None without a closed label set.

    Equals scikit-learn's `f1_score(average="macro", labels=sorted(set(truth)), zero_division=0)`.
    """
    if not answers.labels:
        return None
    given = [normalise(text) for text in answers.predictions]
    accepted = [[normalise(text) for text in texts] for texts in answers.references]
    truth = [guess if guess in texts else texts[0] for guess, texts in zip(given, accepted, strict=True)]
    place = {label: column for column, label in enumerate(dict.fromkeys(truth))}
    hits, guesses, wanted = (np.zeros((len(given), len(place))) for _ in range(3))  # (N, L) each
    for row, (guess, right) in enumerate(zip(given, truth, strict=True)):
        wanted[row, place[right]] = 1
        if guess in place:
            guesses[row, place[guess]] = 1
        if guess == right:
            hits[row, place[right]] = 1
    return Statistic(np.concatenate([hits, guesses, wanted], axis=1), _mean_f1, PERCENT)


def _mean_f1(sums: Floats) -> Floats:
    hits, guesses, wanted = np.split(sums, 3, axis=1)  # (R, L) each
    by_label = 200.0 * hits / np.maximum(guesses + wanted, 1.0)
    there = wanted > 0  # a resample may miss a label; one that is nobody's right answer has no F1
    return (by_label * there).sum(axis=1) / there.sum(axis=1)


def loss(answers: Answers) -> Statistic | None:
    """Negative log-likelihood in nats for each answer token, over all rows together; None without losses."""
    if answers.losses is None:
        return None
    for row, (_, count) in enumerate(answers.losses):
        if count < 1:
            raise ValueError(f"row {row}: a loss over {count} tokens")
    return Statistic(np.array(answers.losses, dtype=np.float64), lambda sums: sums[:, 0] / sums[:, 1])


def perplexity(answers: Answers) -> Statistic | None:
    """exp(summed negative log-likelihood / tokens) over all rows together; None without losses."""
    mean = loss(answers)
    return mean and Statistic(mean.sums, lambda sums: np.exp(mean.finish(sums)))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="exact_match",
            label="Exact match",
            explanation="Share of answers that equal an accepted answer, not counting capitals, spacing, width of "
            "characters and one full stop at the end.",
            per_row=exact_match,
        ),
        Metric(
            name="accuracy",
            label="Accuracy",
            explanation="Share of rows with the right label; an answer that is none of the labels is wrong.",
            corpus=accuracy,
        ),
        Metric(
            name="macro_f1",
            label="Macro F1",
            explanation="F1 of each label, averaged so that rare labels count as much as frequent ones.",
            corpus=macro_f1,
        ),
        Metric(
            name="token_f1",
            label="Token F1",
            explanation="Overlap of answer and expected answer as bags of words (Chinese and Japanese: characters), "
            "without punctuation; articles count.",
            per_row=token_f1,
        ),
        Metric(
            name="rouge_l",
            label="ROUGE-L",
            explanation="Longest common subsequence of words (Chinese and Japanese: characters) with the right answer.",
            per_row=rouge_l,
        ),
        Metric(
            name="bleu",
            label="BLEU",
            explanation="Matching sequences of up to four words over all rows together, by sacrebleu.",
            corpus=bleu,
        ),
        Metric(
            name="chrf",
            label="chrF",
            explanation="Matching sequences of up to six characters over all rows together, by sacrebleu.",
            corpus=chrf,
        ),
        Metric(
            name="loss",
            label="Loss",
            unit="nats",
            higher_is_better=False,
            explanation="Negative log-likelihood of the expected answer for each token.",
            corpus=loss,
        ),
        Metric(
            name="perplexity",
            label="Perplexity",
            unit="",
            higher_is_better=False,
            explanation="How many tokens the model hesitates between at each step of the right answer; 1 is certain.",
            corpus=perplexity,
        ),
    )
}
