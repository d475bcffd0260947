"""Generation against a plain greedy loop that keeps no cache and knows no batches."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import tiny
from instructrec.inference.engine import Sampling, batches_of, choose, generate, stream

DRAW = random.Random(2)
PROMPTS = [[DRAW.randrange(6, 290) for _ in range(length)] for length in (3, 40, 17, 1, 25, 9)]
LENGTHS = [len(prompt) for prompt in PROMPTS]
NEVER = [1]  # an id that no model here writes


@torch.no_grad()
def plain(model: Any, prompt: list[int], steps: int, stops: list[int]) -> tuple[list[int], str]:
    ids = list(prompt)
    for _ in range(steps):
        token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            return ids[len(prompt) :], "stop"
        ids.append(token)
    return ids[len(prompt) :], "length"


def answers(model: Any, prompts: list[list[int]], stops: list[int], **options: Any) -> list[tuple[list[int], str]]:
    sampling = Sampling(**({"max_new_tokens": 24} | options.pop("sampling", {})))
    found = generate(model, prompts, stop_ids=stops, pad_id=0, sampling=sampling, **options)
    return [(answer.ids, answer.finish) for answer in found]


@pytest.fixture
def model(kind: str) -> Any:
    return tiny.model(kind)


@pytest.fixture
def stops(model: Any) -> list[int]:
    """Ids of which some answers write one early, some late and some never."""
    free = [plain(model, prompt, 24, NEVER)[0] for prompt in PROMPTS]
    return sorted({free[0][4], free[1][11], free[2][20]})


def test_generate_equals_a_plain_loop(model: Any, stops: list[int]) -> None:
    want = [plain(model, prompt, 24, stops) for prompt in PROMPTS]
    assert {finish for _, finish in want} >= {"stop"}
    assert len({len(ids) for ids, _ in want}) > 1
    assert answers(model, PROMPTS, stops) == want
    assert answers(model, PROMPTS, NEVER) == [plain(model, prompt, 24, NEVER) for prompt in PROMPTS]


def test_neither_order_nor_batches_matter(model: Any, stops: list[int]) -> None:
    want = answers(model, PROMPTS, stops)
    assert answers(model, PROMPTS[::-1], stops)[::-1] == want
    for rows, tokens in ((1, 8192), (2, 8192), (32, 45), (32, 1)):
        assert answers(model, PROMPTS, stops, batch_rows=rows, batch_tokens=tokens) == want
    assert answers(model, [], stops) == []


def test_stream_equals_generate(model: Any, stops: list[int]) -> None:
    for prompt, (ids, _) in zip(PROMPTS, answers(model, PROMPTS, stops), strict=True):
        given = stream(model, prompt, stop_ids=stops, pad_id=0, sampling=Sampling(max_new_tokens=24))
        assert list(given) == ids


def test_finish_reasons_and_lengths() -> None:
    model = tiny.model("llama")
    (free, finish), *_ = answers(model, PROMPTS[:1], NEVER, sampling={"max_new_tokens": 5})
    assert (len(free), finish) == (5, "length")
    first = [free[0]]
    assert answers(model, PROMPTS[:1], first) == [([], "stop")]
    place = free.index(free[4])  # the end token as the last of the budget is still an end
    assert answers(model, PROMPTS[:1], [free[4]], sampling={"max_new_tokens": place + 1}) == [(free[:place], "stop")]


def test_no_token_is_computed_once_all_rows_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny.model("llama"), []
    ends = [plain(model, prompt, 24, NEVER)[0][2] for prompt in PROMPTS[:2]]
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: (calls.append(1), forward(**given))[1])
    found = answers(model, PROMPTS[:2], ends)
    assert len(calls) == 1 + max(len(ids) for ids, _ in found) <= 3
    assert {finish for _, finish in found} == {"stop"}


def test_progress_counts_every_prompt() -> None:
    counts: list[int] = []
    answers(tiny.model("llama"), PROMPTS, NEVER, batch_rows=4, sampling={"max_new_tokens": 1}, done=counts.append)
    assert counts == [4, 2]


def test_batches_hold_prompts_of_like_length() -> None:
    assert batches_of(LENGTHS, 2, 8192) == [[1, 4], [2, 5], [0, 3]]
    assert batches_of(LENGTHS, 32, 50) == [[1], [4, 2], [5, 0, 3]]
    assert batches_of([], 4, 10) == []


# -- sampling --------------------------------------------------------------------------------------------------------


def draws(sampling: Sampling, count: int = 4000) -> list[float]:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(count, 1)
    tokens = choose(logits, sampling, torch.Generator().manual_seed(sampling.seed))
    return (torch.bincount(tokens, minlength=4) / count).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "want"),
    [
        (0.0, 1.0, [1, 0, 0, 0]),
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.6, [0.625, 0.375, 0, 0]),  # 0.5 alone is too little, so the token that reaches 0.6 belongs to it
        (1.0, 0.5, [1, 0, 0, 0]),
        (1.0, 1e-9, [1, 0, 0, 0]),
        (0.5, 1.0, [0.685, 0.247, 0.062, 0.007]),
        (0.01, 1.0, [1, 0, 0, 0]),
    ],
)
def test_draws_have_the_right_shares(temperature: float, top_p: float, want: list[float]) -> None:
    found = draws(Sampling(temperature=temperature, top_p=top_p))
    assert found == pytest.approx(want, abs=0.03)
    assert [share == 0 for share in found] == [share == 0 for share in want] or temperature not in (0.0, 1.0)


def test_sampling_is_seeded_and_a_tiny_nucleus_is_greedy() -> None:
    model = tiny.model("qwen")
    greedy = answers(model, PROMPTS, NEVER)
    warm = {"temperature": 2.0, "seed": 1}
    one = answers(model, PROMPTS, NEVER, sampling=warm)
    torch.manual_seed(5)
    assert one == answers(model, PROMPTS, NEVER, sampling=warm) != greedy
    assert one != answers(model, PROMPTS, NEVER, sampling=warm | {"seed": 2})
    assert answers(model, PROMPTS, NEVER, sampling=warm | {"top_p": 1e-6}) == greedy
