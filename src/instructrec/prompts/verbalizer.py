"""Verbalizers: which words stand for which label where a model answers in words (PET, arXiv 2001.07676).

A label may have several words; what their probabilities are together is the scorer's business
(`inference.ranking`, or the cloze head of a masked encoder).

N rows, L labels, K candidate words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError, did_you_mean
from ..measures.text import normalise
from ..yamlfile import tree


@dataclass(frozen=True)
class Verbalizer:
    """label -> the words that stand for it, the first being the one that is shown in examples.

    Raises InputError when there are fewer than two labels, a label has no word, a word is blank or has spaces around
    it, or one word stands for two labels.
    """

    words: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise InputError(f"verbalizer: got {len(self.words)} labels, want at least 2")
        owner: dict[str, str] = {}
        for label, words in self.words.items():
            if not words:
                raise InputError(f"verbalizer: {label}: no word stands for it (want at least one)")
            for word in words:
                if not word.strip() or word != word.strip():
                    raise InputError(f"verbalizer: {label}: got {word!r}, want a word without spaces around it")
                if word in owner:
                    other = owner[word]
                    raise InputError(
                        f"verbalizer: {label}: '{word}' is given twice"
                        if other == label
                        else f"verbalizer: '{word}' stands for both '{other}' and '{label}'"
                    )
                owner[word] = label

    @classmethod
    def of(cls, labels: Iterable[str]) -> Verbalizer:
        """Each label in its own words: `lost_or_stolen_card` is "lost or stolen card", `正面` is itself.

        A label that another one would be mistaken for so (`a_b` and `a b`) stays as it is spelled.
        """
        names = list(dict.fromkeys(labels))
        spelled = {name: " ".join(name.replace("_", " ").split()) for name in names}
        counts: dict[str, int] = {}
        for text in spelled.values():
            counts[text] = counts.get(text, 0) + 1
        return cls({name: (text if text and counts[text] == 1 else name.strip(),) for name, text in spelled.items()})

    @classmethod
    def from_value(cls, value: Any, where: str) -> Verbalizer:
        """From `label: word` or `label: [word, …]`; where: named in messages. Raises InputError."""
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: got {type(value).__name__}, want lines such as positive: [good, great]")
        words: dict[str, tuple[str, ...]] = {}
        for label, given in value.items():
            listed = [given] if isinstance(given, str) else given
            if not isinstance(listed, (list, tuple)) or not all(isinstance(word, str) for word in listed):
                raise InputError(f"{where}: {label}: want a word or a list of words")
            words[str(label)] = tuple(word.strip() for word in listed)
        try:
            return cls(words)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def from_file(cls, path: str | Path, labels: Iterable[str] | None = None) -> Verbalizer:
        """From a YAML or JSON file of `label: word` or `label: [word, …]`; yes and no are words, not truth values.

        labels: those of the data, each of which has to have words; the words of others are left out.
        """
        found = cls.from_value(tree(Path(path), "a verbalizer"), str(path))
        return found if labels is None else found.only(labels, str(path))

    def only(self, labels: Iterable[str], where: str = "verbalizer") -> Verbalizer:
        """The same for these labels, in their order. Raises InputError for one without words, naming the nearest."""
        for label in (labels := list(dict.fromkeys(labels))):
            if label not in self.words:
                raise InputError(f"{where}: no words for label '{label}', {did_you_mean(label, self.words)}")
        return Verbalizer({label: self.words[label] for label in labels})

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in their order."""
        return tuple(self.words)

    @property
    def candidates(self) -> list[tuple[str, str]]:
        """(label, word) for every word, label by label."""
        return [(label, word) for label, words in self.words.items() for word in words]

    def number(self, answer: str) -> int:
        """The number of the label that an answer is, or is a word of. Raises InputError naming the nearest."""
        if not self.knows(answer):
            hint, count = did_you_mean(answer[:60], self.labels), len(self.labels)
            raise InputError(f"'{answer[:60]}' is none of the {count} labels that this model chooses from, {hint}")
        return self._numbers[normalise(answer)]

    def knows(self, answer: str) -> bool:
        """Whether it is a label or one of its words."""
        return normalise(answer) in self._numbers

    @cached_property
    def _numbers(self) -> dict[str, int]:
        words = {normalise(word): self.labels.index(label) for label, word in self.candidates}
        return words | {normalise(label): number for number, label in enumerate(self.labels)}

    def shown(self, label: str) -> str:
        """The word that stands for a label in an example. Raises InputError for an unknown label."""
        if label not in self.words:
            raise InputError(f"verbalizer: unknown label '{label}', {did_you_mean(label, self.words)}")
        return self.words[label][0]

    def label_of(self, word: str) -> str | None:
        """The label that a word stands for, capitals aside; None if it stands for none."""
        wanted = word.strip().casefold()
        return next((label for label, known in self.candidates if known.casefold() == wanted), None)

    def to_json(self) -> dict[str, list[str]]:
        """label -> words, as `from_file` reads it."""
        return {label: list(words) for label, words in self.words.items()}


def learn(log_probabilities: ArrayLike, labels: Sequence[str], candidates: Sequence[str], words: int = 3) -> Verbalizer:
    """The verbalizer that data chooses (PETAL, arXiv 2010.13641): for each label the `words` candidates with the best
    likelihood ratio, rows of the label against all others, which weigh as much as it together.

        s(w, l) = mean over rows of l of [log p(w) - log(1 - p(w))] - the same mean over the other rows

    log_probabilities [N, K]: of each candidate at the answer's place of each row, the candidates of one row being
    tokens of one softmax.  labels: of the N rows.  candidates: K words, different from each other.
    A word that is among the best of several labels goes to the one where it is better. Unlike PETAL the candidates
    are not cut to the most probable ones first: that is for the caller, who knows the vocabulary.
    Raises InputError when there are fewer candidates than words are wanted.
    """
    scores = np.asarray(log_probabilities, dtype=np.float64)  # [N, K]
    names = list(dict.fromkeys(labels))
    if scores.shape != (len(labels), len(candidates)):
        raise ValueError(f"want one row a label and one column a candidate (got {scores.shape})")
    if len(candidates) < words * len(names):
        raise InputError(f"verbalizer: {len(candidates)} candidates for {words} words of {len(names)} labels are few")
    scores = np.clip(scores, -80.0, -1e-12)
    odds = scores - np.log(-np.expm1(scores))
    own = np.array([[label == name for label in labels] for name in names])  # [L, N]
    ratio = np.stack([odds[rows].mean(0) - odds[~rows].mean(0) for rows in own])  # [L, K]
    chosen: dict[str, list[str]] = {name: [] for name in names}
    free = set(range(len(candidates)))
    for flat in np.argsort(-ratio, axis=None, kind="stable").tolist():  # the best pair of all first
        place, column = divmod(flat, len(candidates))
        if column in free and len(chosen[names[place]]) < words:
            free.discard(column)
            chosen[names[place]].append(candidates[column])
    return Verbalizer({name: tuple(found) for name, found in chosen.items()})


def ids_in_place(tokenizer: Any, before: str, word: str, after: str = "") -> list[int]:
    """Token ids of `word` as it stands between two texts, without special tokens: " great" is another token than
    "great" for most tokenizers.

    tokenizer: a fast Hugging Face tokenizer.  Raises InputError where a token holds the word together with other
    letters beside it (Chinese without spaces: 很好 in one token), so that the word alone has no probability.
    """
    start, end = len(before), len(before) + len(word)
    text = before + word + after
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found = []
    for number, (first, last) in zip(made["input_ids"], made["offset_mapping"], strict=True):
        if first < end and last > start:
            if text[first:start].strip() or text[end:last].strip():
                raise InputError(
                    f"verbalizer: '{word}': this tokenizer reads it together with the text beside it "
                    f"({text[min(first, start) : max(last, end)]!r})"
                )
            found.append(int(number))
    if not found:
        raise InputError(f"verbalizer: '{word}': this tokenizer makes no token of it")
    return found


__all__ = ["Verbalizer", "ids_in_place", "learn"]
