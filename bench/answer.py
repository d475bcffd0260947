"""`make bench-answer`: how fast prompts are answered and labels ranked, beside loops that a sensible user would write.

    python bench/answer.py                   # writes docs/results/answer.json; an hour on one core
    python bench/answer.py --size short --sets banking77,ranking   # ten minutes
    python bench/answer.py --size tiny --model FOLDER --data FOLDER --out FOLDER   # to try it

Generation: `generate` as `evaluate` calls it, `Assistant.answer` on all prompts, and `Assistant(...)` one prompt at a
time, against `model.generate` one prompt at a time (greedy; same model, dtype, prompts, budget, stop ids). Evaluation:
an answer to each row and the likelihood of the right one, against the loop and one pass a row. Ranking: `likelihoods`
against one full pass for each candidate. All sides in one process, taking turns round by round; ratios are medians of
the rounds' ratios, by the wall clock and by processor time, which other work on the machine changes less. The rate of
products is measured between the rounds. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reading_data import read_jsonl

from instructrec import Assistant, console
from instructrec.data.records import Record
from instructrec.environment import commit_of_source
from instructrec.evaluation.arms import Bench
from instructrec.files import read_json, write_json
from instructrec.inference.engine import Sampling, generate
from instructrec.inference.loading import Loaded, open_target
from instructrec.inference.ranking import Candidates, likelihoods
from instructrec.prompts.template import Rendered

Times = dict[str, list[float]]
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "results"
INTENT = "Which intent does this message to a bank have? Answer with the name of the intent."


@dataclass(frozen=True)
class Size:
    """rows: prompts of a round.  ranked: prompts of a round that are ranked at once.  passed: of these, how many the
    loop of full passes does; it takes seconds a prompt."""

    rows: int
    ranked: int
    passed: int
    rounds: int


SIZES = {"cpu": Size(16, 8, 1, 5), "short": Size(8, 4, 1, 2), "tiny": Size(4, 2, 1, 2)}


def banking(data: Path) -> list[Record]:
    """Short rows that share one instruction."""
    rows = read_jsonl(data / "banking77" / "test.jsonl")
    return [Record.of(INTENT, row["label"], input=row["text"]) for row in rows]


def induction(data: Path) -> list[Record]:
    """Short rows of many tasks, the wordings as they are."""
    wordings = read_json(data / "instruction_induction" / "paraphrases.json")
    rows = read_jsonl(data / "instruction_induction" / "rows.jsonl")
    draw = random.Random(0)
    return [Record.of(draw.choice(wordings[row["task"]]), row["output"], input=row["input"]) for row in rows]


def p3(data: Path) -> list[Record]:
    """Longer rows: those of over 300 characters."""
    files = sorted(file for file in (data / "p3_mini").glob("*.jsonl") if file.stem != "templates")
    rows = [row for file in files for row in read_jsonl(file) if len(row["instruction"]) > 300]
    return [Record.of(row["instruction"], row["answer"]) for row in rows]


RANKING = "ranking"  # among the names of sets
SETS: dict[str, Callable[[Path], list[Record]]] = {"banking77": banking, "instruction_induction": induction, "p3": p3}


def loop(loaded: Loaded, prompts: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """`model.generate` on one prompt after the other: ids of the answers without their end."""
    answers = []
    for ids in prompts:
        given = torch.tensor([ids])
        with torch.inference_mode():
            out = loaded.model.generate(
                given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=budget,
                eos_token_id=loaded.stop_ids, pad_token_id=loaded.backbone.pad_id,
            )  # fmt: skip
        ids = out[0, given.shape[1] :].tolist()
        answers.append(ids[: next((at for at, token in enumerate(ids) if token in loaded.stop_ids), None)])
    return answers


@torch.inference_mode()
def passes(loaded: Loaded, prompt: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[float]:
    """log p of each candidate by one full pass over prompt and candidate, logits where the candidate is predicted."""
    found = []
    for ids in candidates:
        whole = torch.tensor([[*prompt, *ids]])
        logits = loaded.model(whole[:, :-1], use_cache=False, logits_to_keep=len(ids)).logits[0].float()
        logs = torch.log_softmax(logits, -1)
        found.append(float(logs[torch.arange(len(ids)), torch.tensor(list(ids))].sum()))
    return found


def rate(dtype: torch.dtype, size: int) -> float:
    """1e9 operations (multiplications and additions) a second of a square product, the best of three."""
    one, other = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    best = min(timed(lambda: one @ other)[0] for _ in range(3))
    return 2 * size**3 / best / 1e9


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the wall clock, seconds of processor time, and what was found."""
    started, used = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - started, time.process_time() - used, found


def alternate(sides: dict[str, Callable[[int], Any]], rounds: int, label: str) -> tuple[Times, Times, dict[str, Any]]:
    """Seconds of each side in each round, side by side, after a round to warm up, by the wall clock and of the
    processor; and what each found in the last."""
    times: Times = {name: [] for name in sides}
    used: Times = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for number in console.track(range(rounds + 1), label, unit="rounds"):
        for name, work in sides.items():
            wall, processor, found[name] = timed(lambda work=work, number=number: work(number))
            if number:
                times[name].append(wall)
                used[name].append(processor)
    return times, used, found


def ratio(times: Times, slow: str, quick: str, scale: float = 1.0) -> float:
    """How many times as fast: the median of the rounds' ratios."""
    return statistics.median(scale * a / b for a, b in zip(times[slow], times[quick], strict=True))


def generation(
    loaded: Loaded, assistant: Assistant, records: Sequence[Record], rounds: int, name: str
) -> dict[str, Any]:
    """All ways to answer the same rows."""
    bench = Bench(loaded, [], 0, 0, 32)
    asked, problems = bench.ask(records, ["base"], None)
    assert not problems, problems
    rows, budget = asked.rows["base"], asked.budget
    prompts = [row.ids[: row.prompt_end] for row in rows]
    given: dict[str, Any] = {"stop_ids": loaded.stop_ids, "pad_id": loaded.backbone.pad_id}
    sampling = Sampling(max_new_tokens=budget)
    assistant.sampling = sampling
    some = list(records)
    sides: dict[str, Callable[[int], Any]] = {
        "loop": lambda _: loop(loaded, prompts, budget),
        "generate": lambda _: [one.ids for one in generate(loaded.model, rows, sampling=sampling, **given)],
        "assistant": lambda _: assistant.answer(some),
        "assistant_one_by_one": lambda _: [assistant.answer([record])[0] for record in some],
        "evaluation": lambda _: bench.answer("base", asked, lambda _: None),
        "loop_and_losses": lambda _: (loop(loaded, prompts, budget), [_loss(loaded, row) for row in rows]),
    }
    times, used, found = alternate(sides, rounds, name)
    tokens = sum(min(budget, len(ids) + 1) for ids in found["loop"])
    middle = {side: statistics.median(found) for side, found in times.items()}
    return {
        "rows": len(rows),
        "prompt_tokens": sum(map(len, prompts)) / len(rows),
        "answer_tokens": tokens / len(rows),
        "budget": budget,
        "prompts_per_second": {side: len(rows) / seconds for side, seconds in middle.items()},
        "ms_per_token": {side: 1000 * seconds / tokens for side, seconds in middle.items()},
        "ratio": _ratios(times),
        "ratio_of_processor_time": _ratios(used),
        "same_answers": sum(a == b for a, b in zip(found["loop"], found["generate"], strict=True)),
        "seconds": times,
        "processor_seconds": used,
    }


def _ratios(times: Times) -> dict[str, float]:
    beside = {"generate": "loop", "assistant": "loop", "assistant_one_by_one": "loop", "evaluation": "loop_and_losses"}
    return {side: ratio(times, slow, side) for side, slow in beside.items()}


def _loss(loaded: Loaded, row: Rendered) -> float:
    return -passes(loaded, row.ids[: row.prompt_end], [row.ids[row.prompt_end :]])[0]


def ranking(loaded: Loaded, records: Sequence[Record], labels: Sequence[str], size: Size, name: str) -> dict[str, Any]:
    """All labels behind each prompt: other prompts each round."""
    renderer = loaded.renderer
    shown = [Record.of(INTENT, label, input="x") for label in labels]
    candidates = Candidates.of(renderer, shown)
    whole = [[*candidates.lead, *ids] for ids in candidates.ids]
    rows = [renderer.prompt(record) for record in records]

    def ours(number: int) -> Any:
        part = rows[number * size.ranked : (number + 1) * size.ranked]
        return likelihoods(loaded.model, part, candidates, pad_id=loaded.backbone.pad_id)

    def one_each(number: int) -> Any:
        part = rows[number * size.ranked :][: size.passed]
        return [passes(loaded, row.ids[: row.prompt_end], whole) for row in part]

    times, used, found = alternate({"passes": one_each, "likelihoods": ours}, size.rounds, name)
    lead = len(candidates.lead)
    apart = 0.0
    if not lead:
        pairs = zip(found["passes"], found["likelihoods"].tolist(), strict=False)
        apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    return {
        "labels": len(labels),
        "rows": size.ranked,
        "rows_of_the_loop": size.passed,
        "rows_per_second": {
            "passes": size.passed / statistics.median(times["passes"]),
            "likelihoods": size.ranked / statistics.median(times["likelihoods"]),
        },
        "ratio": ratio(times, "passes", "likelihoods", size.ranked / size.passed),
        "ratio_of_processor_time": ratio(used, "passes", "likelihoods", size.ranked / size.passed),
        "furthest_apart_nats": apart,
        "seconds": times,
        "processor_seconds": used,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--sets", default=",".join([*SETS, RANKING]))
    parser.add_argument("--rounds", type=int, default=0, help="instead of those of the size")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--name", default="answer", help="of the result file")
    given = parser.parse_args(arguments)
    size = SIZES[given.size]
    size = Size(size.rows, size.ranked, size.passed, given.rounds or size.rounds)
    commit, dirty = commit_of_source()
    labels = read_json(given.data / "banking77" / "labels.json")
    result: dict[str, Any] = {
        "command": " ".join(["python bench/answer.py", *(arguments if arguments is not None else sys.argv[1:])]),
        "commit": commit,
        "dirty": dirty,
        "model": given.model,
        "threads": torch.get_num_threads(),
        "rounds": size.rounds,
        "precisions": {},
    }
    draw = random.Random(0)
    for precision in given.precisions.split(","):
        loaded = open_target(given.model, precision=precision, offline=True)
        assistant = Assistant(given.model, precision=precision, offline=True)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        entry: dict[str, Any] = {"gigaflops": rate(dtype, 64 if given.size == "tiny" else 2048)}
        result["precisions"][precision] = entry
        sets = given.sets.split(",")
        for name in [name for name in sets if name != RANKING]:
            records = [one for one in SETS[name](given.data) if loaded.room(loaded.renderer.prompt(one)) > 64]
            some = draw.sample(records, size.rows)
            entry[name] = generation(loaded, assistant, some, size.rounds, f"{precision} {name}")
            write_json(given.out / f"{given.name}.json", result)
        if RANKING in sets:
            rows = draw.sample(banking(given.data), size.ranked * (size.rounds + 1))
            entry[RANKING] = ranking(loaded, rows, labels, size, f"{precision} {RANKING}")
        write_json(given.out / f"{given.name}.json", result)
        for name in sets:
            console.say(f"{precision} {name}: {entry[name]['ratio']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
