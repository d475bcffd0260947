"""Kinds of backbone: encoder-decoders give the loss and the answers that `transformers` gives, whatever stands around a
row, and what they can't do is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import tiny
from instructrec.inference.engine import Sampling, generate, stream
from instructrec.models.kinds import kind_of
from instructrec.models.kinds.encoder_decoder import starts
from instructrec.models.reading import Reading, ReadingPlan, repeat
from instructrec.prompts.template import Rendered
from instructrec.training.batching import Layout
from instructrec.training.loss import row_losses, token_losses


def bart() -> Any:
    """Absolute positions that are learned, and a first token that is forced."""
    from transformers import BartConfig, BartForConditionalGeneration

    halves = [("layers", 2), ("attention_heads", 4), ("ffn_dim", 64)]
    half: dict[str, Any] = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in halves}
    config = BartConfig(
        vocab_size=300, d_model=32, max_position_embeddings=96, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_bos_token_id=0, forced_eos_token_id=None, dropout=0.0, **half,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def model(name: str) -> Any:
    """In fp64, so that bounds can be close."""
    if name != "bart":
        return tiny.model(name, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = bart()
        with torch.no_grad():
            for weight in made.parameters():
                if weight.dim() > 1:
                    weight.normal_(0.0, 0.2)
    return made.double().eval()


def rows(end: int, count: int = 6) -> list[Rendered]:
    """Prompts and answers of unequal lengths; the end token stands behind each."""
    draw = random.Random(3)
    made = []
    for _ in range(count):
        prompt = [draw.randrange(5, 290) for _ in range(draw.randrange(2, 20))] + [end]
        answer = [draw.randrange(5, 290) for _ in range(draw.randrange(1, 15))] + [end]
        made.append(
            Rendered(prompt + answer, [False] * len(prompt) + [True] * len(answer), len(prompt) - 1, len(prompt))
        )
    return made


def padded(parts: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(part) for part in parts], batch_first=True, padding_value=value)


PAIRS = (*tiny.PAIRS, "bart")


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Any:
    return model(str(request.param))


@torch.no_grad()
def test_the_loss_is_the_models_own(pair: Any) -> None:
    config = pair.config
    data = rows(config.eos_token_id)
    begin = starts(pair)[1:]  # BART's labels begin with <s>
    prompts = padded([row.ids[: row.prompt_end] for row in data], config.pad_token_id)
    mask = padded([[1] * row.prompt_end for row in data], 0)
    labels = padded([begin + row.ids[row.prompt_end :] for row in data], -100)
    logits = pair(input_ids=prompts, attention_mask=mask, labels=labels).logits
    labels[:, : len(begin)] = -100  # what is forced is not learned
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    if not begin:
        assert float(pair(input_ids=prompts, attention_mask=mask, labels=labels).loss - want) == 0.0
    losses = token_losses(pair, Layout.of(pair, config.pad_token_id).batch(data))
    assert len(losses) == int((labels != -100).sum())
    assert abs(float(losses.mean() - want)) <= 1e-10


@torch.no_grad()
def test_answers_are_those_of_the_library(pair: Any) -> None:
    config = pair.config
    data = rows(config.eos_token_id)
    prompts = padded([row.ids[: row.prompt_end] for row in data], config.pad_token_id)
    mask = padded([[1] * row.prompt_end for row in data], 0)
    pad, end = config.pad_token_id, config.eos_token_id
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "suppress_tokens": [pad]}
    wanted = pair.generate(input_ids=prompts, attention_mask=mask, **given)[:, len(starts(pair)) :].tolist()
    sampling = Sampling(20 - len(starts(pair)) + 1)
    found = generate(pair, data, stop_ids=[end], pad_id=pad, sampling=sampling)
    for want, answer, row in zip(wanted, found, data, strict=True):
        assert answer.ids == (want[: want.index(end)] if end in want else want)
        assert answer.finish == ("stop" if end in want else "length")
        assert answer.ids == list(stream(pair, row, stop_ids=[end], pad_id=pad, sampling=sampling))


def test_padding_is_never_generated() -> None:
    marian = tiny.model("marian")
    pad, end = marian.config.pad_token_id, marian.config.eos_token_id
    with torch.no_grad():
        marian.final_logits_bias[0, pad] = 1e6
    (answer,) = generate(marian, rows(end, 1), stop_ids=[end], pad_id=pad, sampling=Sampling(8))
    assert answer.ids and pad not in answer.ids


def test_the_encoder_reads_once() -> None:
    t5 = tiny.model("t5")
    calls: list[int] = []
    t5.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    data = rows(1, 4)
    answers = generate(t5, data, stop_ids=[1], pad_id=0, sampling=Sampling(9))
    assert max(len(answer.ids) for answer in answers) >= 5 and len(calls) == 1


def test_neighbours_and_padding_never_change_a_row(pair: Any) -> None:
    pad, end = pair.config.pad_token_id, pair.config.eos_token_id
    data = rows(end)
    alone = [row_losses(pair, [row], pad_id=pad, batch_tokens=1)[0] for row in data]
    for value in (pad, 7):
        together = row_losses(pair, data, pad_id=value, batch_tokens=10_000)
        assert [count for _, count in together] == [len(row.ids) - row.prompt_end for row in data]
        assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], rel=1e-9)


@torch.no_grad()
def test_reading_twice_is_the_instruction_twice(pair: Any) -> None:
    pad, end = pair.config.pad_token_id, pair.config.eos_token_id
    data = rows(end)
    twice = []
    for row in data:
        x, answer = row.ids[: row.instruction_end], row.ids[row.prompt_end :]
        ids = [*x, *x, end, *answer]
        flags = [False] * (len(ids) - len(answer)) + [True] * len(answer)
        twice.append(Rendered(ids, flags, 2 * len(x), 2 * len(x) + 1))
        assert repeat(row, 2).ids == ids
    reading = Reading(pair, ReadingPlan(strokes=(2,))).eval()
    assert kind_of(reading) is kind_of(pair)
    given: dict[str, Any] = {"pad_id": pad, "batch_tokens": 4096}
    assert row_losses(reading, data, **given) == row_losses(pair, twice, **given)
    assert row_losses(reading, data, **given) != row_losses(pair, data, **given)
    asked: dict[str, Any] = {"stop_ids": [end], "pad_id": pad, "sampling": Sampling(6)}
    assert generate(reading, data, **asked) == generate(pair, twice, **asked)
