"""What is measured on rows of our own: what was forgotten, and whether several constraints at once are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import console
from ..data.language import script_of
from ..data.records import Origin, Record
from ..errors import InputError
from ..evaluation.arms import Bench
from ..evaluation.probes import probe
from ..inference.engine import Sampling, generate
from ..measures.constraints import kept
from ..measures.statistics import Statistic, bootstrap, mean_of, paired_difference
from ..prompts.template import Rendered
from ..training.loss import row_losses
from .scoring import RESAMPLES, entry_of

BUDGET = 96  # tokens of an answer to an instruction with constraints
SHOWN = 12
PERCENT = (0.0, 100.0)


def sides(arms: Sequence[str]) -> list[str]:
    """The arms that our own rows are asked of: base and tuned, or the last where there is neither."""
    return [arm for arm in ("base", "tuned") if arm in arms] or list(arms)[-1:]


def forgetting(bench: Bench, seed: int) -> dict[str, Any]:
    """Loss for each token of the right answers to the general probe set, before (base) and after (tuned), by part."""
    parts, records = [], []
    for part, rows in probe("general").items():
        for number, row in enumerate(rows, 1):
            parts.append(part)
            records.append(Record.of(row["q"], row["a"], origin=Origin(f"general/{part}", number)))
    rendered = [bench.loaded.renderer.render(record) for record in records]
    kept_rows = [
        place
        for place, row in enumerate(rendered)
        if len(row.ids) - row.prompt_end <= min(bench.room(row, arm) for arm in ("base", "tuned"))
    ]
    rows = [rendered[place] for place in kept_rows]
    parts = [parts[place] for place in kept_rows]
    sums = {}
    for arm in ("base", "tuned"):
        with bench.model_of(arm) as model:
            losses = row_losses(model, rows, pad_id=bench.loaded.backbone.pad_id, batch_tokens=4096)
        sums[arm] = Statistic(np.array(losses, dtype=np.float64), lambda total: total[:, 0] / total[:, 1])
    return {
        "set": "general",
        "rows": len(rows),
        "loss": _before_and_after(sums["base"], sums["tuned"], seed),
        "by_part": {
            part: _before_and_after(sums["base"].take(places), sums["tuned"].take(places), seed)
            for part in dict.fromkeys(parts)
            if (places := _places(parts, part))
        },
    }


def _before_and_after(before: Statistic, after: Statistic, seed: int) -> dict[str, Any]:
    given: dict[str, Any] = {"resamples": RESAMPLES, "seed": seed}
    return {
        "before": entry_of(bootstrap(before, **given)),
        "after": entry_of(bootstrap(after, **given)),
        "difference": entry_of(paired_difference(after, before, **given)),
    }


def _places(parts: Sequence[str], wanted: str) -> list[int]:
    return [place for place, part in enumerate(parts) if part == wanted]


def languages_of(records: Sequence[Record]) -> list[str]:
    """Which of `en` and `zh` prompts are in, else both: a model is asked rows of our own in languages it is for."""
    scripts = {script_of(record.last_user.content) for record in records}
    found = [language for language, script in (("en", "Latin"), ("zh", "Han")) if script in scripts]
    return found or ["en", "zh"]


def constraints(bench: Bench, arms: Sequence[str], languages: Sequence[str], seed: int) -> dict[str, Any]:
    """Answers to instructions with several constraints, each checked by a program, in these languages (en, zh).

    all: the share of instructions of which every constraint is kept.  each: the share of constraints, resampled by
    instruction.  by_kind: of each kind of constraint; of `implied`, `english` and `chinese` instructions, all kept.
    """
    asked, rows, owners = [], [], []
    for language in languages:
        found = probe("constraints")[language]
        for number, row in enumerate(found, 1):
            record = Record.of(row["ask"], origin=Origin(f"constraints/{language}", number))
            prompt = prompt_of(bench, record, arms, BUDGET)
            if prompt is not None:
                asked.append(prompt)
                rows.append(row)
                owners.append({"en": "english", "zh": "chinese"}[language])
    texts, verdicts = {}, {}
    with console.progress(len(asked) * len(arms), "Answering constraints", unit="rows") as bar:
        for arm in arms:
            texts[arm] = answers(bench, arm, asked, BUDGET, bar.advance)
            verdicts[arm] = [kept(row["checks"], text) for row, text in zip(rows, texts[arm], strict=True)]
    kinds = sorted({kind for row in rows for check in row["checks"] for kind in check})
    groups = {"implied": [place for place, row in enumerate(rows) if "implied" in row]}
    groups |= {name: _places(owners, name) for name in dict.fromkeys(owners)}
    scores, by_kind = {}, {kind: {} for kind in [*kinds, *groups]}  # type: dict[str, Any], dict[str, dict[str, Any]]
    given: dict[str, Any] = {"resamples": RESAMPLES, "seed": seed}
    for arm in arms:
        whole = np.array([100.0 * all(ok for _, ok in one) for one in verdicts[arm]])
        counts = np.array([(sum(ok for _, ok in one), len(one)) for one in verdicts[arm]], dtype=np.float64)
        each = Statistic(counts, lambda total: 100.0 * total[:, 0] / total[:, 1], PERCENT)
        scores[arm] = {
            "all": entry_of(bootstrap(mean_of(whole, PERCENT), **given)),
            "each": entry_of(bootstrap(each, **given)),
        }
        for kind in kinds:
            found = [100.0 * ok for one in verdicts[arm] for name, ok in one if name == kind]
            by_kind[kind][arm] = entry_of(bootstrap(mean_of(found, PERCENT), **given))
        for name, places in groups.items():
            by_kind[name][arm] = entry_of(bootstrap(mean_of(whole[places], PERCENT), **given))
    last = arms[-1]
    wrong = [place for place, one in enumerate(verdicts[last]) if not all(ok for _, ok in one)]
    chosen = sorted(np.random.default_rng(seed).permutation(wrong)[:SHOWN].tolist())
    examples = [
        {
            "origin": str(asked[place].origin),
            "prompt": rows[place]["ask"],
            "answer": texts[last][place],
            "answers": {arm: texts[arm][place] for arm in arms},
            "broken": [kind for kind, ok in verdicts[last][place] if not ok],
        }
        for place in chosen
    ]
    return {"rows": len(rows), "scores": scores, "by_kind": by_kind, "examples": examples}


def prompt_of(bench: Bench, record: Record, arms: Sequence[str], room: int) -> Rendered | None:
    """The prompt of a row of ours; None where it can't be rendered or leaves no room for the answer."""
    try:
        prompt = bench.loaded.renderer.prompt(record)
    except InputError:  # a template that knows no such row
        return None
    return prompt if min(bench.room(prompt, arm) for arm in arms) >= room else None


def answers(bench: Bench, arm: str, prompts: Sequence[Rendered], budget: int, done: Any) -> list[str]:
    """What an arm answers to prompts, in at most `budget` tokens."""
    loaded = bench.loaded
    given: dict[str, Any] = {"stop_ids": loaded.stop_ids, "pad_id": loaded.backbone.pad_id, "done": done}
    with bench.model_of(arm) as model:
        sampling = Sampling(max_new_tokens=budget)
        found = generate(model, prompts, sampling=sampling, batch_rows=bench.batch_rows, **given)
    return [loaded.renderer.decode(one.ids) for one in found]


__all__ = ["answers", "constraints", "forgetting", "languages_of", "prompt_of", "sides"]
