"""What each arm is asked: the same targets for all, and lengths checked before anything is answered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from instructrec.data.records import Origin, Record, Turn
from instructrec.evaluation.arms import Bench
from instructrec.inference.loading import Loaded, open_target

POOL = [Record.of("Say it twice", f"{word} {word}", input=word) for word in ("red", "blue", "green")]
LIMIT = 256  # positions of the tiny model


@pytest.fixture(scope="module")
def loaded(tiny_folder: Any) -> Loaded:
    torch.set_num_threads(1)
    return open_target(str(tiny_folder("qwen")), precision="fp32")


def bench(loaded: Loaded, pool: Sequence[Record] = POOL) -> Bench:
    return Bench(loaded, pool, shots=2, seed=0, batch_rows=4)


def conversation(*weights: bool) -> Record:
    """One exchange for each weight: whether its answer is trained on."""
    turns = [(Turn("user", f"Say {n}"), Turn("assistant", f"the {n}", weight)) for n, weight in enumerate(weights)]
    return Record(tuple(itertools.chain.from_iterable(turns)), origin=Origin("talks.jsonl", len(weights)))


def test_losses_of_all_arms_cover_the_last_answer_and_nothing_else(loaded: Loaded) -> None:
    rows = [conversation(True, True), conversation(True, False, False)]  # the last one was no target in training
    asked, problems = bench(loaded).ask(rows, ["base", "few_shot"], 2)
    assert not problems and asked.shots == {"base": [0, 0], "few_shot": [2, 2]}
    last = [len(row.ids) - row.prompt_end for row in asked.rows["base"]]
    for arm in ("base", "few_shot"):
        found = bench(loaded).answer(arm, asked, lambda _: None)
        assert [tokens for _, tokens in found.losses] == last
        assert all(nats > 0 for nats, _ in found.losses)


def test_arms_without_examples_share_their_rows(loaded: Loaded) -> None:
    asked, _ = bench(loaded).ask([conversation(True)], ["base", "tuned"], None)
    assert asked.rows["base"] is asked.rows["tuned"]
    right = len(asked.rows["base"][0].ids) - asked.rows["base"][0].prompt_end
    assert asked.budget == right + 8


def test_every_row_that_does_not_fit_is_named(loaded: Loaded) -> None:
    short, long = conversation(True), Record.of("Say it", "no " * LIMIT, origin=Origin("talks.jsonl", 9))
    plain = loaded.renderer.render(short).prompt_end
    right = len(loaded.renderer.render(long).ids) - loaded.renderer.render(long).prompt_end
    _, problems = bench(loaded).ask([short, long], ["base"], LIMIT)
    assert [str(problem) for problem in problems] == [
        f"talks.jsonl:1: length: {plain} tokens and an answer of up to 256 are more than this model can hold (256); "
        f"set --max-new-tokens to {LIMIT - plain} or less",
        f"talks.jsonl:9: length: {loaded.renderer.render(long).prompt_end} tokens and a right answer of {right} "
        "are more than this model can hold (256); leave the row out",
    ]
    # The right answer is measured whole, however few tokens may be generated.
    _, problems = bench(loaded).ask([short, long], ["base"], 1)
    assert [problem.line for problem in problems] == [9]
    assert bench(loaded).ask([short], ["base"], LIMIT - plain)[1] == []


def test_a_row_that_can_not_be_rendered_is_named(loaded: Loaded) -> None:
    bad = Record.of("Say \ud800", "it", origin=Origin("talks.jsonl", 4))
    _, problems = bench(loaded).ask([conversation(True), bad], ["base"], None)
    assert [(problem.line, problem.field) for problem in problems] == [(4, "prompt")] and problems[0].reason


def test_examples_leave_room_for_the_right_answer(loaded: Loaded) -> None:
    """The room is that of the longer one of budget and right answer, or the loss would run over the model's end."""
    pool = [replace(shot, turns=(Turn("user", "red " * 40), shot.turns[-1])) for shot in POOL]
    record = Record.of("Say it", "red " * 60)
    asked, problems = bench(loaded, pool).ask([record], ["few_shot"], 1)
    (row,) = asked.rows["few_shot"]
    assert not problems and asked.shots["few_shot"] == [_most(loaded, record, pool)] and len(row.ids) <= LIMIT
    assert asked.shots["few_shot"][0] < 2


def _most(loaded: Loaded, record: Record, pool: list[Record]) -> int:
    from instructrec.prompts.fewshot import pick_shots, with_shots

    chosen = pick_shots(record, pool, 2, 0)
    sizes = [len(loaded.renderer.render(with_shots(record, chosen[2 - number :])).ids) for number in range(3)]
    return max(number for number, size in enumerate(sizes) if size <= LIMIT)
