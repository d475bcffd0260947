"""Labels by likelihood: how probable a model finds each label's words after a prompt, and calibration.

Each prompt is read once; its keys and values are then shared by all candidates. What a candidate scores is what one
full pass over prompt and candidate would give it.

    log p(w | x) = sum over the word's tokens of log p(token | x, tokens before)
    several words, any:    log sum_w p(w | x): that the label is said in any of its words; a label with more words than
                           others is ahead of them
    several words, mean:   mean over w of log p(w | x): no label is ahead, but one odd word costs much
    per token:             log p(w | x) / tokens of w
    contextual (arXiv 2102.09690):  log q(l | x) - log mean_f q(l | f), q = p over the labels, f content-free inputs
    PMI (arXiv 2104.08315):         log p(w | x) - log p(w | domain premise)

N prompts, B prompts of a batch, R pairs of a prompt and a candidate, K candidates, L labels, F content-free inputs,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.records import Record
from ..errors import InputError
from ..models.kinds import Reader, fine_logits, kind_of
from ..models.packing import packed
from ..models.reading.beside import beside
from ..models.sharing import turn_of
from ..prompts.template import Rendered, Renderer
from ..prompts.verbalizer import Verbalizer
from .engine import Asked

Floats = NDArray[np.float64]

COMBINE = ("any", "mean")
CALIBRATIONS = ("none", "contextual", "pmi")
LOGITS = 2**25  # numbers of logits that one call makes at most: 128 MiB in fp32


@dataclass(frozen=True)
class Candidates:
    """Answers to choose from, as ids behind a prompt.

    lead: ids that all of them begin with (`Label:`), read with the prompt.  ids: what comes after it, of K candidates.
    """

    lead: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, renderer: Renderer, shown: Sequence[Record], ended: bool | None = None) -> Candidates:
        """From records that differ in their answer only. Its ids do not depend on the rest of the row.

        ended: count the end of the answer as part of it; None: where one candidate begins another ("card", "card
        lost"), which could otherwise never win. Raises InputError when two candidates have the same ids.
        """
        pairs = [renderer.answer_ids(record) for record in shown]
        words = [tuple(ids) for ids, _ in pairs]
        starts = {word[:size] for word in words for size in range(1, len(word))}
        if ended or (ended is None and starts & {*words}):
            words = [word + tuple(end) for word, (_, end) in zip(words, pairs, strict=True)]
        if len({*words}) < len(words):
            twice = next(place for place, word in enumerate(words) if word in words[:place])
            raise InputError(f"verbalizer: '{shown[twice].answer}' is made of the same tokens as another word")
        size = min(len(commonprefix(words)), min(map(len, words)) - 1) if len(words) > 1 else 0
        return cls(words[0][:size], tuple(word[size:] for word in words))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest candidate, with the lead."""
        return len(self.lead) + max(map(len, self.ids))

    @property
    def tokens(self) -> Floats:
        """Tokens of each candidate without the lead, [K]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.float64)

    def behind(self, prompt: Rendered) -> Rendered:
        """The prompt with the lead."""
        ids = [*prompt.ids[: prompt.prompt_end], *self.lead]
        return replace(prompt, ids=ids, supervised=[False] * len(ids), prompt_end=len(ids))


def likelihoods(
    model: Any,
    prompts: Sequence[Rendered],
    candidates: Candidates,
    *,
    pad_id: int,
    batch_rows: int = 16,
    batch_tokens: int = 8192,
    done: Callable[[int], None] = lambda count: None,
) -> Floats:
    """log p of each candidate after each prompt, [N, K], in nats; equal prompts are read once.

    model: a backbone that generates, or a `Reading`, which reads each prompt as its plan says.  batch_tokens: tokens,
    filled up, that are kept for a batch of prompts, and again for the pairs of prompts and candidates made of it.
    """
    # A prompt for an encoder can't end with what is answered: there the decoder begins with the lead.
    asked = candidates if kind_of(model).causal else replace(candidates, lead=())
    rows = [asked.behind(prompt) for prompt in prompts]
    first: dict[tuple[tuple[int, ...], int], int] = {}
    keys = [(tuple(row.ids), row.instruction_end) for row in rows]
    unique = [number for number, key in enumerate(keys) if first.setdefault(key, number) == number]
    found = np.zeros((len(rows), len(candidates)))
    lead = () if kind_of(model).causal else candidates.lead  # it is no part of what an encoder reads
    with packed(model):
        reading = Asked([rows[number] for number in unique], model, pad_id)
        for numbers in reading.batches(batch_rows, batch_tokens):
            pairs = max(1, batch_tokens // max(reading.lengths[number] for number in numbers))
            with turn_of(model), fine_logits(model):
                reader = reading.start(numbers, candidates.longest)
                found[[unique[number] for number in numbers]] = _batch(reader, candidates, pairs, lead)
            done(len(numbers))
    done(len(rows) - len(unique))
    return found[[first[key] for key in keys]]


@torch.inference_mode()
def _batch(reader: Reader, candidates: Candidates, pairs: int, lead: Sequence[int]) -> Floats:
    """[B, K]; pairs: of a prompt and what comes before a candidate's last token, at most so many at once. lead: what
    all candidates begin with and is yet to be read."""
    rows = len(reader.logits)
    for token in lead:
        reader.logits = reader.proceed(torch.full((rows,), token))
    logs = _log_softmax(reader.logits)  # [B, V]
    scores = torch.stack([logs[:, ids[0]] for ids in candidates.ids], 1)  # [B, K]
    # What has to be read to score every token: candidates without their last one, and of these only the longest of
    # those that begin alike.
    heads = {ids[:-1] for ids in candidates.ids if len(ids) > 1}
    paths = sorted(path for path in heads if not any(path != other and other[: len(path)] == path for other in heads))
    if paths and not _at_once(reader, candidates, paths, scores):
        _in_steps(reader, candidates, paths, pairs, scores)
    return np.asarray(scores.double().cpu().numpy(), dtype=np.float64)


def _at_once(reader: Reader, candidates: Candidates, paths: Sequence[tuple[int, ...]], scores: torch.Tensor) -> bool:
    """Add what comes after the first tokens to `scores` [B, K], all paths behind one copy of each prompt. False where
    the model can't be asked so, nothing being added."""
    rows, vocabulary = reader.logits.shape
    most = max(1, LOGITS // vocabulary)  # tokens of a call
    done: set[tuple[int, int]] = set()  # parts may share beginnings, which count once
    for part in _parts(paths, most):
        nodes = sorted({path[:size] for path in part for size in range(1, len(path) + 1)})
        number = {node: place for place, node in enumerate(nodes)}
        device = scores.device
        seen = torch.eye(len(nodes), dtype=torch.bool)
        for node, place in number.items():
            for size in range(1, len(node)):
                seen[place, number[node[:size]]] = True
        ids = torch.tensor([node[-1] for node in nodes], device=device)
        depth = torch.tensor([[len(node) - 1 for node in nodes]], device=device)
        picks = []  # candidate, node after which its next token is scored, that token
        for place, words in enumerate(candidates.ids):
            for size in range(1, len(words)):
                if words[:size] in number and (place, size) not in done:
                    done.add((place, size))
                    picks.append((place, number[words[:size]], words[size]))
        columns, where, tokens = (torch.tensor(part, device=device) for part in zip(*picks, strict=True))
        for begin in range(0, rows, step := max(1, most // len(nodes))):
            some = torch.arange(begin, min(rows, begin + step), device=device)
            logits = beside(reader, some, ids.expand(len(some), -1), depth, seen[None].to(device))
            if logits is None:
                return False
            found = _log_softmax(logits)[:, where, tokens]  # [R, number of picks]
            scores[begin : begin + len(some)].index_add_(1, columns, found.to(scores.dtype))
    return True


def _parts(paths: Sequence[tuple[int, ...]], most: int) -> list[list[tuple[int, ...]]]:
    """Paths in their order, as many together as have at most `most` tokens between them, shared ones counted once."""
    parts: list[list[tuple[int, ...]]] = []
    nodes: set[tuple[int, ...]] = set()
    for path in paths:
        own = {path[:size] for size in range(1, len(path) + 1)}
        if not parts or len(nodes | own) > most:
            parts.append([])
            nodes = set()
        parts[-1].append(path)
        nodes |= own
    return parts


def _in_steps(
    reader: Reader, candidates: Candidates, paths: Sequence[tuple[int, ...]], pairs: int, scores: torch.Tensor
) -> None:
    """The same token by token, each path behind a copy of its prompt's memory."""
    work = [(row, path) for row in range(len(scores)) for path in paths]
    done: set[tuple[int, int, int]] = set()  # paths that begin alike may fall into several parts
    for begin in range(0, len(work), pairs):
        part = work[begin : begin + pairs]
        own = reader.branch(torch.tensor([row for row, _ in part], device=scores.device))
        for step in range(max(len(path) for _, path in part)):
            tokens = torch.tensor([path[step] if step < len(path) else path[-1] for _, path in part])
            after = _log_softmax(own.proceed(tokens))  # [R, V]
            for place, (row, path) in enumerate(part):
                if step >= len(path):
                    continue
                for number, ids in enumerate(candidates.ids):
                    new = len(ids) > step + 1 and ids[: step + 1] == path[: step + 1]
                    if new and (row, number, step) not in done:
                        done.add((row, number, step))
                        scores[row, number] += after[place, ids[step + 1]]


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(exact, -1)


@torch.inference_mode()
def next_tokens(
    model: Any, prompts: Sequence[Rendered], ids: Sequence[int], *, pad_id: int, batch_tokens: int = 8192
) -> Floats:
    """log p of each of `ids` as the next token after each prompt, [N, K]: what verbalizers are learned from."""
    found = np.zeros((len(prompts), len(ids)))
    with packed(model):
        reading = Asked(prompts, model, pad_id)
        for numbers in reading.batches(16, batch_tokens):
            with turn_of(model), fine_logits(model):
                reader = reading.start(numbers, 1)
            found[numbers] = _log_softmax(reader.logits)[:, list(ids)].double().cpu().numpy()
    return found


def by_label(scores: Floats, verbalizer: Verbalizer, combine: str = "any") -> Floats:
    """Scores of labels, [N, L], from those of the verbalizer's candidates, [N, K]; see the head of this file."""
    if combine not in COMBINE:
        raise InputError(f"combine: unknown '{combine}' (want {' or '.join(COMBINE)})")
    owners = np.array([label for label, _ in verbalizer.candidates])
    parts = [scores[:, owners == label] for label in verbalizer.labels]
    if combine == "mean":
        return np.stack([part.mean(1) for part in parts], 1)
    return np.stack([np.logaddexp.reduce(part, axis=1) for part in parts], 1)


def contextual(scores: Floats, free: Floats) -> Floats:
    """Contextual calibration of label scores [N, L] with those of content-free inputs [N, F, L] or [F, L]: afterwards
    an input that says nothing gets the same score for every label, on average over the F."""
    expected = np.exp(_normalised(free)).mean(axis=-2)
    return _normalised(scores) - np.log(np.maximum(expected, np.finfo(np.float64).tiny))


def _normalised(scores: Floats) -> Floats:
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))


def fits(model: Any, prompt: Rendered, candidates: Candidates, limit: int) -> bool:
    """Whether a model with `limit` positions can hold the prompt and every candidate."""
    from .loading import positions

    return candidates.longest <= kind_of(model).room(limit, positions(model, prompt))


__all__ = ["CALIBRATIONS", "COMBINE", "Candidates", "by_label", "contextual", "fits", "likelihoods", "next_tokens"]
