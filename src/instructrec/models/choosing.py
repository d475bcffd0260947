"""Models that write no text: an encoder, and what scores its labels. An answer is one id, the label's number behind
the vocabulary, so loop, engine and ranking see a model whose answers are one token long.

    cloze:  s(l | x) = log sum over the words w of l of p(w | x),  p(w | x) = prod_i p(w_i at the i-th mask | x with
            |w| masks in the answer's place); what all words begin with stands there as text
    head:   s(l | x) = W_l h + b_l,  h = sqrt(D) v / |v|,  v the mean of the states, or the first one

and the loss is the cross-entropy of softmax(s) over the labels, as in PET (arXiv 2001.07676). Words of several tokens
are scored in one pass with as many masks as the word has tokens (arXiv 2009.07118 fills them in one after the other
when it answers). The head starts as the nearest label text: W_l is the vector of the label's words, scaled so that s is
20 times the cosine (the scale of sentence-transformers), b = 0. An untuned encoder answers by that start.

B rows, L labels, K words of all labels, N masks of a batch, S lengths of words, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..data.records import Record
from ..errors import InputError
from ..files import write_json
from ..prompts.template import Rendered, Renderer
from ..prompts.verbalizer import Verbalizer
from .kinds import Batch, fill, fine_logits, kind_of, logits_at
from .kinds.batch import as_mask
from .kinds.encoder import CLOZE, CLS, MARK, MEAN, TIED
from .loading import json_object, read_tensors
from .sharing import Turn

LABELS, EXTRA = "labels.json", "extra.safetensors"
SCALE = 20.0
_FORMAT = 1
_TEXTS = 32  # label texts read at once


@dataclass(frozen=True)
class Spelled:
    """Labels as ids. lead: what all words begin with, given as text.  words: of each label, without the lead.
    texts: of each word, as a text of its own.  mask: its id, None where nothing is masked.  end: the stop id.
    first: id of the first label."""

    labels: Verbalizer
    lead: tuple[int, ...]
    words: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[tuple[list[int], ...], ...]
    mask: int | None
    end: int
    first: int

    @property
    def extra(self) -> int:
        """Positions that the answer's place takes at most, besides the one mask that a prompt has."""
        return len(self.lead) + max(len(word) for words in self.words for word in words) - 1 if self.words else 0


def spell(renderer: Renderer, *, masked: bool) -> Spelled:
    """The labels of a renderer as ids. Raises InputError for a prompt without just one mask, and for words that the
    tokenizer can't write or tell apart."""
    labels, plain, tokenizer = renderer.labels, renderer.with_labels(None), renderer.tokenizer
    assert labels
    texts = tuple(tuple(list(tokenizer(word)["input_ids"]) for word in own) for own in labels.words.values())
    lead: tuple[int, ...] = ()
    words: tuple[tuple[tuple[int, ...], ...], ...] = ()
    if masked:
        found = renderer.prompt_ids(Record.of("x", input="y")).count(tokenizer.mask_token_id)
        if found != 1:
            raise InputError(
                f"template: '{renderer.name}' has {found or 'no'} masks in its prompt (want one {{{{ mask_token }}}} "
                "where the answer stands)"
            )
        whole = [[tuple(plain.answer_ids(Record.of("x", word))[0]) for word in own] for own in labels.words.values()]
        _check_apart(labels, whole, tokenizer)
        every = [word for own in whole for word in own]
        size = min(len(commonprefix(every)), min(map(len, every)) - 1)
        lead, words = every[0][:size], tuple(tuple(word[size:] for word in own) for own in whole)
    mask = tokenizer.mask_token_id if masked else None
    return Spelled(labels, lead, words, texts, mask, renderer.end_id, len(tokenizer))


def _check_apart(labels: Verbalizer, whole: Sequence[Sequence[tuple[int, ...]]], tokenizer: Any) -> None:
    owner: dict[tuple[int, ...], tuple[str, str]] = {}
    for (label, words), ids in zip(labels.words.items(), whole, strict=True):
        for word, own in zip(words, ids, strict=True):
            shown = " ".join(tokenizer.convert_ids_to_tokens(list(own)))
            if tokenizer.unk_token_id in own:
                raise InputError(
                    f"verbalizer: {label}: '{word}' holds what this tokenizer has no token for (it reads {shown}; want "
                    "other words, or encoder.head=mean)"
                )
            if own in owner:
                raise InputError(
                    f"verbalizer: '{word}' and '{owner[own][1]}' are the same for this tokenizer ({shown})"
                )
            owner[own] = (label, word)


class Chooser(nn.Module):
    """An encoder, perhaps inside an adapter, that chooses one of its labels."""

    def __init__(self, model: Any, spelled: Spelled) -> None:
        super().__init__()
        self.model, self.spelled = model, spelled
        self.turn: Turn = nullcontext  # its turn, where it shares a backbone
        self.tuned = False  # whether it was tuned to these labels

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.model.config

    def get_output_embeddings(self) -> Any:
        """The encoder's output layer over the vocabulary, None where it has none."""
        return self.model.get_output_embeddings()

    def over(self, model: Any) -> Chooser:
        """The same labels over another model, as an untuned one chooses among them."""
        made = choose(model, self.spelled).eval()
        made.turn = self.turn
        return made

    def collate(self, rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int]) -> Batch:
        """Rows as one batch with N = B targets, the numbers of their labels."""
        batch = self._read([row.ids[: row.prompt_end] for row in rows], pad_id)
        targets = [row.ids[row.prompt_end] - self.spelled.first for row in rows]
        return Batch(*batch, torch.tensor(targets), torch.arange(len(rows)), tuple(numbers))

    def _read(
        self, prompts: Sequence[Sequence[int]], pad_id: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Ids [B, T], their mask, and the places that `scores` looks at."""
        ids, mask = fill(prompts, pad_id)
        return torch.from_numpy(ids), as_mask(mask), torch.arange(len(prompts)) * ids.shape[1]

    def scores(self, batch: Batch) -> torch.Tensor:
        """Scores [B, L] of the labels in fp32, before the softmax."""
        raise NotImplementedError

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], pad_id: int) -> Chosen:
        """Prompts read, ready for an answer."""
        none = torch.zeros(len(prompts), dtype=torch.long)
        batch = Batch(*self._read(prompts, pad_id), none, none, ())
        return Chosen(self.scores(batch.to(next(self.parameters()).device)), self.spelled)

    def save_extra(self, folder: Path) -> None:
        """labels.json, and extra.safetensors where there is a head."""
        words = {label: list(words) for label, words in self.spelled.labels.words.items()}
        write_json(folder / LABELS, {"format": _FORMAT, "head": getattr(self.config, MARK), "labels": words})

    def load_extra(self, folder: Path) -> None:
        """What `save_extra` wrote, but for the labels. Raises InputError for what is missing or damaged."""
        self.tuned = True


class Cloze(Chooser):
    """By the words that the encoder would put in the place of a mask."""

    def __init__(self, model: Any, spelled: Spelled) -> None:
        super().__init__(model, spelled)
        by_size: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for number, words in enumerate(spelled.words):
            for word in words:
                by_size.setdefault(len(word), []).append((number, word))
        self.sizes = sorted(by_size)  # S
        self.tokens = {size: torch.tensor([word for _, word in by_size[size]]) for size in self.sizes}  # [K, size]
        self.owners = torch.tensor([number for size in self.sizes for number, _ in by_size[size]])  # [K]

    def _read(
        self, prompts: Sequence[Sequence[int]], pad_id: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Each prompt once for each length of words: ids [B * S, T], lengths outside, rows inside."""
        laid: list[list[int]] = []
        places: list[list[int]] = []
        mask = self.spelled.mask
        for size in self.sizes:
            for prompt in prompts:
                at = list(prompt).index(mask)  # type: ignore[arg-type]
                begin = at + len(self.spelled.lead)
                laid.append([*prompt[:at], *self.spelled.lead, *[mask] * size, *prompt[at + 1 :]])  # type: ignore[list-item]
                places.append(list(range(begin, begin + size)))
        ids, there = fill(laid, pad_id)
        flat = [row * ids.shape[1] + at for row, own in enumerate(places) for at in own]
        return torch.from_numpy(ids), as_mask(there), torch.from_numpy(np.array(flat, dtype=np.int64))

    def scores(self, batch: Batch) -> torch.Tensor:
        """[B, L]."""
        logits = self._logits(batch)  # [N, V]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        rows, done, parts = len(batch.ids) // len(self.sizes), 0, []
        for size in self.sizes:
            part = logits[done : done + rows * size].unflatten(0, (rows, size))  # [B, size, V]
            done += rows * size
            ids = self.tokens[size].to(logits.device)  # [K, size]
            logs = part.transpose(1, 2)[:, ids, torch.arange(size, device=logits.device)]  # [B, K, size]
            parts.append((logs - part.logsumexp(-1)[:, None]).sum(-1))
        words, owners = torch.cat(parts, 1), self.owners.to(logits.device)  # [B, K], [K]
        labels = range(len(self.spelled.words))
        return torch.stack([words[:, owners == number].logsumexp(-1) for number in labels], 1)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Of the vocabulary at the masks, [N, V]."""
        given = {"input_ids": batch.ids, "attention_mask": batch.mask}
        training = torch.is_grad_enabled()  # the layer may be tuned, and rounding there evens out over the steps
        if getattr(self.config, MARK, None) != TIED:
            with nullcontext() if training else fine_logits(self.model), logits_at(self.model, batch.positions):
                logits: torch.Tensor = self.model(**given).logits[0]
            return logits
        states = self.model(**given).last_hidden_state.flatten(0, 1)[batch.positions]  # [N, D]
        words = self.model.get_input_embeddings().weight  # [V, D]
        if training or states.dtype == torch.float64:
            return functional.linear(states, words)
        with torch.autocast(states.device.type, enabled=False):
            return functional.linear(states.float(), words.float())


class Head(nn.Module):
    """s = W h + b. No `nn.Linear`: methods look for those, and this is no part of the backbone."""

    def __init__(self, labels: int, width: int, device: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(labels, width, device=device))
        self.bias = nn.Parameter(torch.zeros(labels, device=device))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """[B, L] from [B, D]."""
        return functional.linear(pooled, self.weight, self.bias)


class Pooled(Chooser):
    """By a classification head over the mean of the states, or over the first one."""

    def __init__(self, model: Any, spelled: Spelled) -> None:
        super().__init__(model, spelled)
        some = next(model.parameters())
        self.head = Head(len(spelled.texts), int(self.config.get_text_config().hidden_size), some.device)
        if some.dtype == torch.float64:
            self.head.double()
        self.head.weight.data = self._start()

    @torch.no_grad()
    def _start(self) -> torch.Tensor:
        """[L, D]: the vectors of the labels' words."""
        owners = [number for number, own in enumerate(self.spelled.texts) for _ in own]
        texts = [text for own in self.spelled.texts for text in own]
        found = []
        with _answering(self.model):
            for begin in range(0, len(texts), _TEXTS):
                ids, mask = fill(texts[begin : begin + _TEXTS], 0)
                part = (torch.from_numpy(ids), torch.from_numpy(mask))
                found.append(self._pooled(*(one.to(self.head.weight.device) for one in part)))
        vectors = torch.cat(found).to(self.head.weight.dtype)  # [K, D]
        sums = torch.zeros_like(self.head.weight).index_add_(0, torch.tensor(owners, device=vectors.device), vectors)
        return functional.normalize(sums, dim=-1) * SCALE / sums.shape[1] ** 0.5

    def _pooled(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, D], of length sqrt(D)."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, D]
        states = states if states.dtype == torch.float64 else states.float()
        if getattr(self.config, MARK) == CLS:
            pooled = states[:, 0]
        elif mask is None:
            pooled = states.mean(1)
        else:
            share = mask.to(states.dtype)[:, :, None]
            pooled = (states * share).sum(1) / share.sum(1)
        return functional.normalize(pooled, dim=-1) * pooled.shape[-1] ** 0.5

    def scores(self, batch: Batch) -> torch.Tensor:
        """[B, L]."""
        pooled = self._pooled(batch.ids, batch.mask)
        with torch.autocast(batch.ids.device.type, enabled=False):  # labels may be near each other
            found: torch.Tensor = self.head(pooled)
        return found

    def save_extra(self, folder: Path) -> None:
        """labels.json and extra.safetensors."""
        from safetensors.torch import save_file

        super().save_extra(folder)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.head.state_dict().items()}
        save_file(weights, folder / EXTRA, {"format": "pt"})

    def load_extra(self, folder: Path) -> None:
        """Raises InputError naming the file."""
        super().load_extra(folder)
        file = folder / EXTRA
        if not file.is_file():
            raise InputError(f"{file}: missing: it holds the classification head")
        weights, own = read_tensors(file), self.head.state_dict()
        for name in sorted(weights.keys() ^ own.keys()):
            raise InputError(f"{file}: {name}: {'not known here' if name in weights else 'missing'}")
        for name, weight in weights.items():
            if weight.shape != own[name].shape or not weight.isfinite().all():
                got, want = list(weight.shape), list(own[name].shape)
                raise InputError(f"{file}: {name}: does not fit, or is not finite (got {got}, want {want})")
        self.head.load_state_dict(weights)


class Chosen:
    """Prompts read by a model that chooses: an answer is the id of a label, and then the end."""

    never: Sequence[int] = ()

    def __init__(self, scores: torch.Tensor, spelled: Spelled) -> None:
        self.spelled, self.scores = spelled, scores
        rows, labels = scores.shape
        self.logits = scores.new_full((rows, spelled.first + labels), -torch.inf)
        self.logits[:, spelled.first :] = scores

    def proceed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The end, whatever was chosen."""
        logits = self.logits.new_full((len(tokens), self.logits.shape[1]), -torch.inf)
        logits[:, self.spelled.end] = 0.0
        return logits

    def branch(self, rows: torch.Tensor) -> Chosen:
        """These rows of this one."""
        return Chosen(self.scores[rows], self.spelled)


def choose(model: Any, spelled: Spelled) -> Chooser:
    """A chooser over a model of one of the encoders' kinds."""
    return Cloze(model, spelled) if kind_of(model).masked else Pooled(model, spelled)


def read_labels(folder: Path) -> tuple[Verbalizer, str]:
    """The labels that `save_extra` wrote, and the mark of what chooses among them. Raises InputError."""
    file = folder / LABELS
    if not file.is_file():
        raise InputError(f"{file}: missing: nobody knows what this model chooses from")
    given = json_object(file)
    if given.get("format") != _FORMAT or not isinstance(given.get("head"), str):
        raise InputError(f"{file}: format: want labels of format {_FORMAT} and what chooses among them")
    if given["head"] not in (CLOZE, TIED, MEAN, CLS):
        raise InputError(f"{file}: head: unknown (got '{given['head'][:40]}', want cloze, tied, mean or cls)")
    return Verbalizer.from_value(given.get("labels"), str(file)), given["head"]


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
