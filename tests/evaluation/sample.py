"""A report with every part that there can be, made by hand in the size of real ones: 5 suites, 12 kinds of damage, 3
curves, 20 tasks."""

from __future__ import annotations

import random
from typing import Any

from instructrec.evaluation.arms import ARMS
from instructrec.measures.metrics import METRICS

TASKS = (
    "antonyms diff first_letter larger_animal letters_list negation num_to_verbal orthography_starts_with passivization "
    "rhymes second_word_letter sentence_similarity sentiment singular_to_plural sum synonyms taxonomy_animal "
    "translation_en-de word_in_context 礼品卡退货"
).split()
DAMAGE = (
    ("typos", "Keyboard typos", "characters", 31.2),
    ("swap_letters", "Letters swapped", "characters", 22.0),
    ("drop_letters", "Letters lost", "characters", 18.5),
    ("case", "Upper and lower case", "format", 4.1),
    ("punctuation", "Punctuation", "format", 1.2),
    ("spaces", "White space", "format", 0.4),
    ("drop_words", "Function words lost", "words", 27.0),
    ("synonyms", "Synonyms", "words", 9.8),
    ("distractor_before", "Distractor before", "distractor", 12.3),
    ("text_first", "Text before instruction", "order", -2.0),
    ("template", "Another template", "template", 6.5),
    ("homophones", "Homophones", "chinese", 15.0),
)
ARM_NAMES = ("base", "few_shot", "tuned")


def about(value: float, half: float = 5.0, n: int = 200) -> dict[str, Any]:
    """An estimate in percent with an interval of this half width."""
    return {"value": round(value, 2), "low": max(0.0, value - half), "high": min(100.0, value + half), "n": n}


def free(value: float, half: float, n: int = 200) -> dict[str, Any]:
    """An estimate that may lie on either side of zero."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def suite(name: str, kind: str | None, levels: tuple[float, float, float], draw: random.Random) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for arm, level in zip(ARM_NAMES, levels, strict=True):
        scores[arm] = {
            "exact_match": about(level),
            "accuracy": about(level),
            "macro_f1": about(level * 0.93),
            "token_f1": about(min(100, level + 6)),
            "rouge_l": about(min(100, level + 5)),
            "chrf": about(min(100, level + 8)),
            "loss": free(4.2 - level / 25, 0.12),
            "perplexity": free(2.72 ** (4.2 - level / 25), 0.9),
        }
    gain, over = levels[2] - levels[0], levels[2] - levels[1]
    names = list(scores["tuned"])
    return {
        "name": name,
        "kind": kind,
        "clusters": "wordings",
        "file": f"data/{name}.jsonl",
        "sha256": "ab" * 32,
        "rows": 200,
        "overlap": {
            "with_training": 3 if kind == "training" else 0,
            "with_watched": 0,
            "exact": 3 if kind == "training" else 0,
            "near": 2,
            "near_examples": [{"origin": f"data/{name}.jsonl:17", "trained": "rows.tsv:203"}],
        },
        "references": {
            "chance": {"accuracy": 14.3, "exact_match": None},
            "majority": {"accuracy": 22.5, "exact_match": None},
        },
        "scores": scores,
        "ranked": {arm: {"accuracy": about(min(100, level + 4))} for arm, level in zip(ARM_NAMES, levels, strict=True)},
        "calibration": {
            arm: {
                "ece": about(ece, 2.5),
                "bins": [
                    {
                        "low": 10.0 * place,
                        "high": 10.0 * (place + 1),
                        "confidence": 10.0 * place + 5,
                        "accuracy": max(0.0, min(100.0, 10.0 * place + 5 - ece + draw.uniform(-6, 6))),
                        "n": n,
                    }
                    for place, n in enumerate((0, 0, 4, 9, 14, 22, 30, 41, 38, 42))
                ],
            }
            for arm, ece in (("base", 24.0), ("tuned", 7.5))
        },
        "differences": {
            "tuned-base": {metric: free(gain if metric != "loss" else -gain / 25, 6.5) for metric in names},
            "tuned-few_shot": {metric: free(over if metric != "loss" else -over / 25, 6.5) for metric in names},
        },
        "by_task": {
            task: {
                arm: {"accuracy": about(max(0, min(100, level + draw.uniform(-35, 35))), 18, 10)}
                for arm, level in zip(ARM_NAMES, levels, strict=True)
            }
            for task in TASKS
        },
        "worst": [
            {
                "origin": f"data/{name}.jsonl:{place}",
                "task": draw.choice(TASKS),
                "prompt": "Write the plural of the given noun: cactus",
                "expected": "cacti",
                "answers": {
                    "base": "Cactus is a plant.",
                    "few_shot": "cactuses",
                    "tuned": "" if place == 3 else "cactuses",
                },
                "score": 0.0,
            }
            for place in range(3, 9)
        ],
        "notes": [
            "412 rows read: 2 rejected, 0 without an answer, 210 of other kinds, 200 measured",
            *(
                f"{ARMS[arm]}: {share}% of answers ended by themselves"
                for arm, share in zip(ARM_NAMES, (61, 97, 100), strict=True)
            ),
        ],
    }


def robustness(draw: random.Random) -> dict[str, Any]:
    clean = {"base": 31.0, "tuned": 71.0}
    kinds = []
    for place, (name, label, kind, drop) in enumerate(DAMAGE):
        lost = {"base": drop * 1.4, "tuned": drop}
        kinds.append(
            {
                "name": name,
                "label": label,
                "kind": kind,
                "strength": 0.1,
                "rows": 200 - 3 * place,
                "scores": {arm: about(clean[arm] * (1 - lost[arm] / 100)) for arm in clean},
                "drop": {arm: free(lost[arm], 5.0 + place / 3) for arm in clean},
                "difference": {arm: free(-clean[arm] * lost[arm] / 100, 4.0) for arm in clean},
                "flips": {arm: about(abs(lost[arm]) + 3, 3) for arm in clean},
            }
        )
    curves = [
        {
            "name": name,
            "label": label,
            "points": [
                {
                    "strength": strength,
                    "scores": {arm: about(clean[arm] * (1 - strength * slope), 4 + 8 * strength) for arm in clean},
                }
                for strength in (0, 0.05, 0.1, 0.2, 0.4)
            ],
        }
        for (name, label, _, _), slope in zip(DAMAGE[:3], (2.0, 1.4, 1.1), strict=True)
    ]
    by_task = {}
    for task in TASKS:
        by_task[task] = {
            name: {"base": round(-drop * draw.uniform(0, 1), 2), "tuned": round(-drop * draw.uniform(0, 2), 2)}
            for name, _, _, drop in DAMAGE
        }
    return {
        "suite": "test_wordings",
        "rows": 200,
        "seed": 0,
        "metric": "accuracy",
        "clusters": "wordings",
        "arms": ["base", "tuned"],
        "clean": {arm: about(level) for arm, level in clean.items()},
        "perturbations": kinds,
        "worst_case": {"base": about(6.5), "tuned": about(29.5)},
        "curves": curves,
        "by_task": by_task,
        "examples": [
            {
                "perturbation": name,
                "origin": f"data/test_wordings.jsonl:{place}",
                "task": task,
                "clean": clean_text,
                "damaged": damaged,
                "expected": expected,
                "clean_answer": expected,
                "damaged_answer": answer,
            }
            for place, (name, task, clean_text, damaged, expected, answer) in enumerate(
                (
                    ("typos", "antonyms", "Write a word that means the opposite of the input word: winter", "Writr a word tgat means the opposite of the input word: wimter", "summer", "weather"),
                    ("drop_words", "sum", "Sum the two given numbers. 22 17", "Sum two numbers. 22 17", "39", "22 17"),
                    ("homophones", "礼品卡退货", "礼品卡可以退货吗？请回答可以或不可以。", "礼品卡可已退货马？请回答可以或不可以。", "不可以", "可以"),
                    ("distractor_before", "sentiment", "Is this movie review positive or negative? A gripping drama.", "The weather in Lisbon was mild. Is this movie review positive or negative? A gripping drama.", "positive", ""),
                    ("template", "rhymes", "Write a word that rhymes: night", "### Instruction:\nWrite a word that rhymes: night", "light", "night"),
                )
            )
        ],
        "adversarial": {
            "rows": 40,
            "queries": 41.3,
            "label": "Words chosen against the tuned model",
            "scores": {"base": about(4.0), "tuned": about(22.5, 12)},
            "examples": [],
        },
    }  # fmt: skip


def full(**changes: Any) -> dict[str, Any]:
    """The report."""
    draw = random.Random(7)
    suites = [
        suite("train_like", "seen", (33.0, 52.0, 84.0), draw),
        suite("test_wordings", "unseen_wordings", (31.0, 50.0, 71.0), draw),
        suite("test_tasks", "unseen_tasks", (28.0, 55.0, 33.0), draw),
        suite("movies", "other_domains", (40.0, 49.0, 61.0), draw),
        suite("test_zh", "other_language", (19.0, 24.0, 20.0), draw),
    ]
    return {
        "format": 2,
        "command": "instructrec evaluate runs/mine data/*.jsonl --require 'unseen_tasks.accuracy>=0.6'",
        "created": "2026-03-02T10:20:30+00:00",
        "seconds": 1843.2,
        "version": "0.1.0",
        "commit": "0123abc",
        "dirty": False,
        "run": {
            "folder": "runs/mine",
            "backbone": "smollm2-135m",
            "method": "lora",
            "trained_parameters": 4_884_480,
            "parameters": 134_515_008,
            "settings": {"learning_rate": 0.0002, "model": "smollm2-135m", "epochs": 4.0, "lora.rank": 16},
            "data": {
                "files": {"rows.tsv": "cd" * 32},
                "rows": 2510,
                "parts": {"train": 2190, "seen": 240, "unseen_tasks": 80},
                "held_out": "Held out: 4 of 20 tasks (diff, rhymes, sum, taxonomy_animal; 80 rows) as unseen tasks and 240 rows of the "
                "other tasks; 2,190 rows to train on.",
            },
            "license": "apache-2.0",
            "learning_curve": None,
        },
        "arms": [
            {"name": "base", "label": ARMS["base"], "detail": "smollm2-135m, not tuned"},
            {
                "name": "few_shot",
                "label": ARMS["few_shot"],
                "detail": "smollm2-135m with up to 3 training rows in its prompt",
            },
            {"name": "tuned", "label": ARMS["tuned"], "detail": "smollm2-135m tuned with lora"},
        ],
        "metrics": {
            name: {
                "label": metric.label,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "explanation": metric.explanation,
            }
            for name, metric in METRICS.items()
        },
        "primary": "accuracy",
        "interval": "95% bootstrap, 1,000 resamples, over what each suite names: rows, wordings or tasks",
        "suites": suites,
        "robustness": robustness(draw),
        "bias": [
            {
                "name": "label_bias",
                "label": "Label bias",
                "arm": {"base": about(38.0, 6), "tuned": about(12.0, 5)},
                "ideal": 0.0,
                "explanation": "Share of the labels chosen that would have to be others to be spread as the right ones are.",
                "rows": 200,
            },
            {
                "name": "option_order",
                "label": "Option order",
                "arm": {"base": about(71.0, 9), "tuned": about(54.0, 9)},
                "ideal": 0.0,
                "explanation": "The same questions: share whose chosen option changes when the options change places.",
                "rows": 48,
            },
        ],
        "constraints": {
            "rows": 80,
            "scores": {
                "base": {"all": about(5.0, 4, 80), "each": about(41.0, 6, 80)},
                "tuned": {"all": about(16.0, 8, 80), "each": about(52.0, 6, 80)},
            },
            "by_kind": {
                "words": {"base": about(40), "tuned": about(51)},
                "json_keys": {"base": about(10), "tuned": about(35)},
            },
            "examples": [
                {"origin": "constraints:4", "prompt": "List three fruits as JSON, in capitals.", "answer": "apple", "broken": ["json_keys"]}
            ],
        },
        "forgetting": {
            "set": "general",
            "rows": 300,
            "loss": {"before": free(2.91, 0.06), "after": free(3.04, 0.06), "difference": free(0.13, 0.03)},
            "by_part": {
                "knowledge": {"before": free(2.5, 0.1), "after": free(2.7, 0.1), "difference": free(0.2, 0.05)},
                "language": {"before": free(3.5, 0.1), "after": free(3.52, 0.1), "difference": free(0.02, 0.05)},
            },
        },
        "requirements": [
            {"text": "unseen_tasks.accuracy>=0.6", "value": 33.0, "met": False, "unit": "%"},
            {"text": "seen.accuracy.low>=75%", "value": 79.0, "met": True, "unit": "%"},
        ],
        "training": {
            "steps": [{"step": step, "loss": 0.4 + 3 / step**0.5, "learning_rate": 1e-4} for step in range(1, 401)],
            "looks": [
                {"step": step, "seen": {"loss": 0.6 + 2.4 / (1 + step / 40)}, "unseen_tasks": {"loss": 1.6 + 1.6 / (1 + step / 25)}, "watched": 1.0}
                for step in range(0, 401, 50)
            ],
            "best_step": 350,
            "stopped": "all 400 steps done",
            "watch": "loss on held-out rows (0.5 × seen + 0.5 × unseen_tasks), lowest is best",
            "held_out_tasks": ["diff", "rhymes", "sum", "taxonomy_animal"],
            "seconds": 402.0,
            "tokens_per_second": 611.0,
            "padding_share": 0.043,
            "shared_share": 0.38,
        },
    } | changes  # fmt: skip
