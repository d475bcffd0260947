"""Answers of a model that reads again, against a slow loop of full passes that keeps nothing between two tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import learning
import tiny
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.evaluation.arms import Bench
from instructrec.inference.assistant import Assistant
from instructrec.inference.engine import Sampling, generate, stream
from instructrec.inference.loading import open_target
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.models.reading import Reading, ReadingPlan, cut, lay
from instructrec.prompts.template import Rendered

LORA = METHODS["lora"]
STEPS = 10
PLANS = {
    "repeated": ReadingPlan(strokes=(2,)),
    "frozen": ReadingPlan(strokes=(2,), prior="frozen"),
    "three, sink": ReadingPlan(strokes=(3,), memory="sink+last", direction="bidirectional"),
    "gated": ReadingPlan(strokes=(2,), mix="gated", direction="bidirectional", memory="sink+last"),
    "separate, slots": ReadingPlan(strokes=(2,), stroke_adapters="separate", slots=3),
    "slots": ReadingPlan(slots=3),
}
NAMES = pytest.mark.parametrize("name", list(PLANS))


def reading(kind: str, plan: ReadingPlan) -> Reading:
    """A tiny model behind a plan, all of whose weights do something."""
    options = learning.options_of(LORA) | {"rank": 4}
    model = LORA.attach(tiny.model(kind), options, 0)
    for number, adapter in enumerate(plan.adapters):
        LORA.add(model, adapter, options, number + 1)
    made = Reading(model, plan, LORA.using)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained_parameters(made).values():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=draw))
    return made.eval()


def prompts() -> list[Rendered]:
    """Unequal instructions, with headers of 1 to 3 tokens and one without any."""
    draw = random.Random(3)
    made = []
    for instruction, header in ((3, 2), (20, 3), (9, 1), (12, 0), (6, 2)):
        ids = [draw.randrange(6, 290) for _ in range(instruction + header)]
        made.append(Rendered(ids, [False] * len(ids), instruction, len(ids)))
    return made


@torch.no_grad()
def slowly(model: Reading, prompt: Rendered, steps: int, stops: list[int]) -> tuple[list[int], str]:
    """Read everything again for each token."""
    ids, end, strokes = list(prompt.ids), cut(prompt), model.strokes
    for _ in range(steps):
        if model.plan.one_pass(strokes):  # then it is what the decoder itself does with repeated tokens
            whole = torch.tensor([ids[:end] * (strokes - 1) + ids])
            token = int(model.model(whole, use_cache=False).logits[0, -1].argmax())
        else:
            row = Rendered(ids, [False] * len(ids), prompt.instruction_end, prompt.prompt_end)
            laid = lay([row], model.plan, strokes, pad_id=0)
            token = int(model(laid.passes, laid.ends)[0, -1].argmax())
        if token in stops:
            return ids[prompt.prompt_end :], "stop"
        ids.append(token)
    return ids[prompt.prompt_end :], "length"


def answers(model: Any, asked: list[Any], stops: list[int], **options: Any) -> list[tuple[list[int], str]]:
    sampling = Sampling(max_new_tokens=options.pop("steps", STEPS))
    found = generate(model, asked, stop_ids=stops, pad_id=0, sampling=sampling, **options)
    return [(answer.ids, answer.finish) for answer in found]


@NAMES
@pytest.mark.parametrize("kind", ["gemma", "gpt2"])  # windows, learned positions
def test_generate_and_stream_equal_a_slow_loop(kind: str, name: str) -> None:
    model, asked = reading(kind, PLANS[name]), prompts()
    free = [slowly(model, prompt, STEPS, [1])[0] for prompt in asked]
    stops = sorted({free[0][2], free[1][6]})
    want = [slowly(model, prompt, STEPS, stops) for prompt in asked]
    assert answers(model, asked, stops) == want and {finish for _, finish in want} >= {"stop"}
    assert answers(model, asked[::-1], stops, batch_rows=2)[::-1] == want
    given = stream(model, asked[1], stop_ids=stops, pad_id=0, sampling=Sampling(max_new_tokens=STEPS))
    assert list(given) == want[1][0]
    assert answers(model, asked[:1], [1], steps=1) == [(free[0][:1], "length")]


@NAMES
def test_an_answer_of_a_rendered_row_is_that_of_its_prompt(name: str) -> None:
    model, asked = reading("llama", PLANS[name]), prompts()[:2]
    rows = [
        Rendered([*one.ids, 7, 8, 9], [*one.supervised, True, True, True], one.instruction_end, one.prompt_end)
        for one in asked
    ]
    assert answers(model, rows, [1]) == answers(model, asked, [1])


def test_ids_alone_are_all_instruction() -> None:
    model, asked = reading("llama", PLANS["repeated"]), prompts()[1]
    bare = Rendered(asked.ids, asked.supervised, len(asked.ids), len(asked.ids))
    want = slowly(model, bare, STEPS, [1])
    assert answers(model, [asked.ids, prompts()[0].ids], [1])[0] == want != slowly(model, asked, STEPS, [1])


@pytest.mark.parametrize("name", ["repeated", "frozen", "three, sink", "gated"])
def test_the_dial_at_one_is_the_tuned_decoder(name: str) -> None:
    model, asked = reading("llama", PLANS[name]), prompts()
    twice = answers(model, asked, [1])
    model.strokes = 1
    once = answers(model, asked, [1])
    assert once == answers(model.model, [prompt.ids for prompt in asked], [1]) != twice


@pytest.mark.parametrize("name", ["repeated", "frozen", "gated", "separate, slots"])
def test_an_answer_may_fill_the_last_position(name: str) -> None:
    """GPT-2 has a table of positions and no more."""
    plan, limit = PLANS[name], tiny.POSITIONS["gpt2"]
    model, asked = reading("gpt2", plan), prompts()[:2]
    taken = plan.last_position(cut(asked[1]), 3, plan.most)
    steps = limit - taken + 1  # the last token is not read again
    ids, finish = answers(model, asked, [1], steps=steps)[1]
    assert (len(ids), finish) == (steps, "length")
    with pytest.raises(IndexError):
        answers(model, asked, [1], steps=steps + 1)


# -- from a model folder ---------------------------------------------------------------------------------------------


def asked_twice(folder: Path, text: str) -> list[int]:
    """What the untuned model says to [x; x; a], written out."""
    base = open_target(str(folder), precision="fp32")
    prompt = base.renderer.prompt(Record.of(text))
    whole = prompt.ids[: cut(prompt)] + prompt.ids
    (answer,) = generate(
        base.model, [whole], stop_ids=base.stop_ids, pad_id=base.backbone.pad_id, sampling=Sampling(max_new_tokens=8)
    )
    return answer.ids


def test_an_untuned_model_reads_again(tiny_folder: Any, kind: str) -> None:
    folder = tiny_folder(kind)
    assistant = Assistant(str(folder), strokes=2, max_new_tokens=8, precision="fp32")
    assert assistant("Say hot") == assistant._whole(asked_twice(folder, "Say hot"))
    assert "".join(assistant.stream("Say hot")) == assistant("Say hot")
    assert assistant.loaded.strokes == 2 and assistant.loaded.notes == ()


def test_prompts_that_take_too_many_positions_when_read_again(tiny_folder: Any) -> None:
    """The right number of tokens is let through, one more is not."""
    folder, limit = tiny_folder("gpt2"), tiny.POSITIONS["gpt2"]
    assistant = Assistant(str(folder), strokes=2, max_new_tokens=8, precision="fp32")
    prompt = assistant.loaded.renderer.prompt(Record.of("Say hot"))
    size = 2 * cut(prompt) + len(prompt.ids) - cut(prompt)
    assert assistant.loaded.positions(prompt) == size
    for room, fits in ((limit - size, True), (limit - size + 1, False)):
        asked = Assistant(str(folder), strokes=2, max_new_tokens=room, precision="fp32")
        if fits:
            assert asked("Say hot") is not None
            continue
        with pytest.raises(InputError) as caught:
            asked("Say hot")
        assert str(caught.value) == (
            f"<memory>: the prompt has {len(prompt.ids)} tokens, read 2 times {size}, and the answer may have {room}; "
            f"this model can hold {limit} (--max-new-tokens, --strokes)"
        )


def test_the_arm_with_examples_reads_once_and_has_room_for_as_many(tiny_folder: Any) -> None:
    pool = [Record.of("Say it twice", f"{word} {word}", input=word) for word in ("red", "blue", "green")]
    shown = []
    for strokes in (1, 6):
        loaded = open_target(str(tiny_folder("qwen")), precision="fp32", strokes=strokes)
        bench = Bench(loaded, pool, shots=3, seed=0, batch_rows=4)
        asked, problems = bench.ask([Record.of("Say hot", "cold")], ["reread", "few_shot"], 4)
        assert not problems
        shown.append(asked.shots["few_shot"])
    (size,) = (loaded.positions(row) for row in asked.rows["few_shot"])
    assert shown == [[3], [3]] and size > 256  # read six times it would not have fitted


@pytest.mark.parametrize("strokes", [0, -1, 9])
def test_a_dial_out_of_range_is_refused_before_a_model_is_loaded(strokes: int) -> None:
    with pytest.raises(InputError) as caught:
        Assistant("no/such/model", strokes=strokes)
    assert str(caught.value) == f"strokes: got {strokes}, want a number from 1 to 8"
