"""Scores of candidates against one full pass for each, and what is made of them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import learning
import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.inference import engine
from instructrec.inference.ranking import Candidates, by_label, contextual, likelihoods, next_tokens
from instructrec.models.methods import METHODS
from instructrec.models.reading import Reading, ReadingPlan, install
from instructrec.prompts.choose import make_renderer
from instructrec.prompts.tasks import Task
from instructrec.prompts.template import Rendered
from instructrec.prompts.verbalizer import Verbalizer
from instructrec.training.loss import row_losses

DRAW = random.Random(5)
WORDS = {"good": ("positive", "very good indeed", "positive news"), "bad": ("negative",), "so": ("中性", "neither")}
VERBALIZER = Verbalizer(WORDS)
TEXTS = ("The lamp is broken.", "It is", "我的包裹还没有到，现在在哪里？", "Where is my parcel now? " * 2, "It is")


def prompt(length: int) -> Rendered:
    ids = [DRAW.randrange(6, 290) for _ in range(length)]
    return Rendered(ids, [False] * length, length - 2, length)


@torch.no_grad()
def plain(model: Any, ids: list[int], candidate: tuple[int, ...]) -> float:
    """One full pass over prompt and candidate, without cache, batch or padding."""
    logits = model(torch.tensor([[*ids, *candidate]]), use_cache=False).logits[0]
    logs = torch.log_softmax(logits, -1)
    return float(sum(logs[len(ids) + place - 1, token] for place, token in enumerate(candidate)))


def test_scores_equal_one_full_pass_for_each_candidate(kind: str) -> None:
    model = tiny.model(kind, dtype=torch.float64)
    install(model)
    rows = [prompt(length) for length in (3, 40, 17, 2, 25, 9)]
    heads = Candidates((), ((7,), (7, 8), (7, 8, 9, 10), (11, 12), (11, 13), (14, 15, 16, 17, 18), (11,)))
    alike = Candidates((), ((7, 8, 9, 10), (7, 8, 11, 12), (7, 8, 9, 13, 14), (5,)))
    for candidates in (heads, Candidates((21, 22), heads.ids), Candidates((), ((5,), (6,))), alike):
        want = [[plain(model, [*row.ids, *candidates.lead], ids) for ids in candidates.ids] for row in rows]
        for options in ({}, {"batch_rows": 2}, {"batch_tokens": 90}, {"batch_tokens": 1}):
            found = likelihoods(model, rows, candidates, pad_id=0, **options)
            assert np.abs(found - np.array(want)).max() < 1e-9
    again = likelihoods(model, rows[::-1], heads, pad_id=0)[::-1]
    assert np.abs(again - likelihoods(model, rows, heads, pad_id=0)).max() < 1e-9


@pytest.mark.parametrize("kind", tiny.PAIRS)
def test_an_encoder_reads_the_prompt_and_candidates_are_the_decoders(kind: str) -> None:
    model = tiny.model(kind, dtype=torch.float64)
    rows = [prompt(length) for length in (3, 40, 17)]
    candidates = Candidates((21, 22), ((7,), (7, 8), (7, 8, 9, 10), (11, 12)))
    found = likelihoods(model, rows, candidates, pad_id=0, batch_rows=2)
    for row, scores in zip(rows, found, strict=True):
        for ids, score in zip(candidates.ids, scores, strict=True):
            answer = [*candidates.lead, *ids]
            fed = torch.tensor([[model.config.decoder_start_token_id, *answer]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.ids]), decoder_input_ids=fed, use_cache=False).logits[0]
            logs = torch.log_softmax(logits, -1)
            want = sum(float(logs[place, token]) for place, token in enumerate(answer) if place > 1)
            assert score == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_scores_through_a_tuning_method_equal_its_losses(name: str) -> None:
    method = METHODS[name]
    model = tiny.model("qwen", dtype=torch.float64)
    install(model)
    model = method.attach(model, learning.options_of(method), 0)
    learning.take_steps(model, 2, 290)
    model = model.double().eval()
    rows = [prompt(length) for length in (3, 24, 9)]
    candidates = Candidates((21,), ((7, 8, 9), (7, 8, 10), (11,), (7,)))
    assert np.abs(likelihoods(model, rows, candidates, pad_id=0) - losses(model, rows, candidates)).max() < 1e-9


def losses(model: Any, rows: list[Rendered], candidates: Candidates) -> np.ndarray:
    """What `row_losses` says of each candidate."""
    found = []
    for row in rows:
        given = candidates.behind(row)
        flags = [False] * len(given.ids)
        whole = [
            Rendered([*given.ids, *ids], flags + [True] * len(ids), row.instruction_end, len(flags))
            for ids in candidates.ids
        ]
        found.append([-nats for nats, _ in row_losses(model, whole, pad_id=0, batch_tokens=500)])
    return np.array(found)


@pytest.mark.parametrize(
    "plan",
    [
        ReadingPlan(strokes=(2,)),
        ReadingPlan(strokes=(3,), memory="sink+last"),
        ReadingPlan(strokes=(2,), direction="bidirectional"),
        ReadingPlan(strokes=(2,), direction="bidirectional", mix="gated"),
        ReadingPlan(slots=2),
    ],
)
def test_scores_of_a_reading_equal_its_losses(kind: str, plan: ReadingPlan) -> None:
    model = tiny.model(kind, dtype=torch.float64)
    reading = Reading(model, plan).eval()
    with torch.no_grad():
        for weight in reading.extra().values():
            weight.fill_(0.3)
    rows = [prompt(length) for length in (3, 24, 9)]
    candidates = Candidates((21,), ((7, 8, 9), (7, 8, 10), (11,), (7,)))
    found = likelihoods(reading, rows, candidates, pad_id=0, batch_rows=2)
    assert np.abs(found - losses(reading, rows, candidates)).max() < 1e-9


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_candidates_are_what_training_would_see(kind: str) -> None:
    renderer = make_renderer(tiny.tokenizer(kind))
    task = Task("t", "Is it good?", "{{ text }}", answer="It is {{ answer }}")
    words = [word for _, word in VERBALIZER.candidates]
    for ended in (False, True, None):
        for text in TEXTS:
            record = Record.of(text)
            made = Candidates.of(renderer, [task.show(Record.of("another row"), word) for word in words], ended)
            asked = made.behind(renderer.prompt(task.ask(record)))
            for word, ids in zip(words, made.ids, strict=True):
                whole = renderer.render(task.show(record, word)).ids
                told = [*asked.ids, *ids]
                assert whole[: len(told)] == told
                assert (len(told) == len(whole)) is (ended is not False)  # `positive` begins `positive news`
    assert made.lead and made.longest == len(made.lead) + max(made.tokens)


def test_an_end_counts_only_where_one_candidate_begins_another() -> None:
    renderer = make_renderer(tiny.tokenizer("qwen"))
    task = Task("t", "{{ text }}")
    row = Record.of("x")
    sizes = [
        sum(map(len, Candidates.of(renderer, [task.show(row, word) for word in ("cold", "hot")], ended).ids))
        for ended in (None, False, True)
    ]
    assert sizes[0] == sizes[1] == sizes[2] - 2
    with pytest.raises(InputError, match="verbalizer: 'a' is made of the same tokens as another word"):
        Candidates.of(renderer, [task.show(row, "a"), task.show(row, "a")])


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    sizes = []
    begin = engine.start
    monkeypatch.setattr(
        engine, "start", lambda model, rows, *more: (sizes.append(len(rows)), begin(model, rows, *more))[1]
    )
    one, two = prompt(9), prompt(9)
    counts: list[int] = []
    found = likelihoods(model, [one, two, one, one], Candidates((), ((7, 8), (9,))), pad_id=0, done=counts.append)
    assert (sizes, sum(counts)) == ([2], 4)
    assert (found[0] == found[2]).all() and (found[0] == found[3]).all() and (found[0] != found[1]).all()


def test_logits_of_half_precision_do_not_tie() -> None:
    model = tiny.model("llama", dtype=torch.bfloat16)
    rows = [prompt(9) for _ in range(3)]
    every = Candidates((), tuple((token,) for token in range(6, 250)))
    found = likelihoods(model, rows, every, pad_id=0)
    coarse = torch.log_softmax(model(torch.tensor([rows[0].ids])).logits[0, -1].float(), -1)[6:250].detach().numpy()
    assert np.abs(found[0] - coarse).max() < 0.1
    assert [len(set(row)) for row in found] == [244] * 3 and len({*coarse.tolist()}) < 244
    assert not model.get_output_embeddings()._forward_hooks


def test_next_tokens_are_the_first_tokens_of_candidates() -> None:
    model = tiny.model("gemma", dtype=torch.float64)
    rows = [prompt(length) for length in (5, 30, 11)]
    one = next_tokens(model, rows, [7, 9, 250], pad_id=0)
    assert np.abs(one - likelihoods(model, rows, Candidates((), ((7,), (9,), (250,))), pad_id=0)).max() < 1e-12


def test_words_of_a_label_are_put_together() -> None:
    scores = np.log(np.array([[0.1, 0.2, 0.05, 0.3, 0.15, 0.1]]))
    assert np.exp(by_label(scores, VERBALIZER)) == pytest.approx(np.array([[0.35, 0.3, 0.25]]))
    want = [[(0.1 * 0.2 * 0.05) ** (1 / 3), 0.3, (0.15 * 0.1) ** 0.5]]
    assert np.exp(by_label(scores, VERBALIZER, "mean")) == pytest.approx(np.array(want))
    with pytest.raises(InputError, match="combine: unknown 'best' .want any or mean."):
        by_label(scores, VERBALIZER, "best")


def test_calibration_makes_a_row_that_says_nothing_even() -> None:
    free = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.1]]))  # the second row is not normalised
    biased = np.log(np.array([[0.5, 0.4, 0.1]]))
    found = contextual(biased, free)
    mean = (np.array([0.6, 0.3, 0.1]) + np.array([0.2, 0.3, 0.1]) / 0.6) / 2
    assert np.exp(found) == pytest.approx(np.array([[0.5, 0.4, 0.1]]) / mean)
    assert np.ptp(contextual(np.log(mean)[None], free)) == pytest.approx(0, abs=1e-12)
    each = contextual(np.repeat(biased, 2, 0), np.stack([free, free[::-1]]))  # free inputs of each row
    assert each == pytest.approx(np.repeat(found, 2, 0))
