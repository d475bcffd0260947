"""The rows of `bench/reading.py`: which tasks are held out, which wordings, which rows, and how text is damaged.

An example can be worded in several ways. Tasks come in three folds: seed k never sees the tasks of fold k, and of each
other task it never sees some wordings. All of it follows from the seed alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Example = dict[str, Row]  # wording -> the example in that wording


@dataclass(frozen=True)
class Source:
    """Examples by task. folds: tasks held out by seed k.  choosing: those of them that designs are chosen on; the
    others are for reporting.  orders: set -> wordings of a task that put the question before or after the text."""

    tasks: dict[str, list[Example]]
    folds: tuple[tuple[str, ...], ...]
    choosing: tuple[str, ...]
    orders: dict[str, dict[str, tuple[str, ...]]] | None = None

    def __add__(self, other: Source) -> Source:
        folds = tuple(one + two for one, two in zip(self.folds, other.folds, strict=True))
        orders = (self.orders or {}) | (other.orders or {})
        return Source(self.tasks | other.tasks, folds, self.choosing + other.choosing, orders or None)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of each part. unseen: of each unseen task.  watch: of each task, to choose a learning rate on.  wordings_of:
    wordings of one example that are trained on at most."""

    train: int
    seen: int
    wordings: int
    unseen: int
    watch: int = 0
    wordings_of: int = 1


# Balanced in kind (letters, words, sentences, numbers, languages, meaning) and size: the three tasks with few rows
# (cause_and_effect 52, common_concept 16, informal_to_formal 15) are in different folds.
INDUCTION = (
    ("first_word_letter", "translation_en-de", "sum", "antonyms", "active_to_passive", "cause_and_effect"),
    ("singular_to_plural", "sentiment", "common_concept", "letters_list", "taxonomy_animal", "negation"),
    ("num_to_verbal", "rhymes", "informal_to_formal", "orthography_starts_with", "translation_en-fr",
     "sentence_similarity"),
)  # fmt: skip
P3 = (
    ("wiki_bio", "quartz", "common_gen"),
    ("kilt_tasks_hotpotqa", "qasc", "cosmos_qa"),
    ("ropes", "paws_labeled_final", "commonsense_qa"),
)
ORDERS = {
    "question_first": {
        "quartz": ("answer_question_based_on", "answer_question_below"),
        "qasc": ("qa_with_separated_facts_4", "qa_with_separated_facts_5"),
    },
    "question_last": {
        "quartz": ("given_the_fact_answer_the_q", "having_read_above_passage", "use_info_from_paragraph_question"),
        "qasc": ("qa_with_separated_facts_1", "qa_with_separated_facts_3"),
    },
}
# A typo in the input of these changes the right answer: only their instruction is damaged.
SPELLED = ("first_word_letter", "letters_list", "orthography_starts_with", "rhymes", "singular_to_plural")


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file; lines end at a newline byte and nowhere else."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def induction(data: Path) -> Source:
    """instruction_induction: 18 tasks, three to six wordings each."""
    folder = data / "instruction_induction"
    wordings = json.loads((folder / "paraphrases.json").read_text(encoding="utf-8"))
    tasks: dict[str, list[Example]] = {}
    for row in read_jsonl(folder / "rows.jsonl"):
        task = row["task"]
        known = {"task": task, "input": row["input"], "output": row["output"]}
        known |= {"alternatives": row["alternatives"]} if row.get("alternatives") else {}
        tasks.setdefault(task, []).append({text: known | {"instruction": text} for text in wordings[task]})
    return Source(tasks, INDUCTION, tuple(task for fold in INDUCTION for task in fold[:3]))


def p3(data: Path) -> Source:
    """p3_mini: 9 data sets, longer instructions; an example is never in two parts under different templates."""
    tasks: dict[str, list[Example]] = {}
    for task in sorted(task for fold in P3 for task in fold):
        examples: dict[int, Example] = {}
        for row in read_jsonl(data / "p3_mini" / f"{task}.jsonl"):
            shown = {"task": task, "instruction": row["instruction"], "output": row["answer"]}
            # common_gen: three consecutive examples share a set of concepts
            number = row["example"] // 3 if task == "common_gen" else row["example"]
            examples.setdefault(number, {}).setdefault(row["template"], shown)
        tasks[task] = list(examples.values())
    return Source(tasks, P3, tuple(fold[0] for fold in P3), ORDERS)


def only_to_learn_from(data: Path) -> Source:
    """Tasks with one wording, never held out and in no test: 175 tasks of one row each, and three of many rows."""
    rows = [{name: row[name] for name in ("instruction", "input", "output")}
            for row in read_jsonl(data / "seed_tasks" / "seed_tasks.jsonl")]  # fmt: skip
    tasks = {"seed_tasks": rows}
    asked = "Which intent does this message to a bank have? Answer with the name of the intent."
    tasks["banking77"] = [
        {"instruction": asked, "input": row["text"], "output": row["label"]}
        for row in read_jsonl(data / "banking77" / "train.jsonl")
    ]
    asked = "Is this tweet about the stock market bullish, bearish or neutral?"
    tasks["twitter_fin_sentiment"] = [
        {"instruction": asked, "input": row["text"], "output": row["label"]}
        for row in read_jsonl(data / "twitter_fin_sentiment" / "train.jsonl")
    ]
    tasks["sentfin"] = sentfin(data / "sentfin" / "train.jsonl")
    examples = {task: [{"": {"task": task} | row} for row in rows] for task, rows in tasks.items()}
    return Source(examples, ((), (), ()), ())


def sentfin(file: Path) -> list[Row]:
    """Headlines with the sentiment towards the first company named."""
    asked = "Which sentiment does this headline express towards {}: positive, negative or neutral?"
    return [
        {"instruction": asked.format(name), "input": row["text"], "output": sentiment}
        for row in read_jsonl(file)
        for name, sentiment in list(row["entities"].items())[:1]
    ]


def generated() -> Source:
    """Six toy tasks on eight words: enough to run everything in a minute."""
    words = ("house", "parcel", "lamp", "order", "money", "answer", "street", "garden")
    makers = {
        "first": lambda word: word[0],
        "last": lambda word: word[-1],
        "plural": lambda word: f"{word}s",
        "twice": lambda word: f"{word} {word}",
        "reverse": lambda word: word[::-1],
        "spell": lambda word: " ".join(word),
    }
    tasks: dict[str, list[Example]] = {}
    for task, make in makers.items():
        forms = [f"{verb} the {task} form of the {kind}" for verb in ("Write", "Tell me") for kind in ("word", "input")]
        tasks[task] = [
            {form: {"task": task, "instruction": form, "input": word, "output": make(word)} for form in forms}
            for word in words
        ]
    names = list(tasks)
    return Source(tasks, tuple(tuple(names[start : start + 2]) for start in (0, 2, 4)), tuple(names[::2]))


def shares(most: Sequence[int], total: int) -> list[int]:
    """`total` rows cut evenly among tasks that have at most so many; where one has fewer, others give more."""
    given = [0] * len(most)
    for _ in range(min(total, sum(most))):  # one at a time: the fewest so far, first come first served
        place = min((place for place in range(len(most)) if given[place] < most[place]), key=given.__getitem__)
        given[place] += 1
    return given


def select(source: Source, seed: int, counts: Counts) -> dict[str, list[Row]]:
    """Part -> rows of one seed. Raises ValueError when two parts would share an example."""
    draw = random.Random(seed)
    held_out = set(source.folds[seed % len(source.folds)])
    seen = [task for task in source.tasks if task not in held_out]
    parts: dict[str, list[Row]] = {"train": [], "seen": [], "unseen_wordings": [], "unseen_tasks": [], "watch": []}
    pools = {task: draw.sample(examples, len(examples)) for task, examples in sorted(source.tasks.items())}
    known = {task: _known(pools[task]) for task in seen}
    testable = [task for task in seen if known[task][1]]
    room = [max(2, len(pools[task]) // 8) for task in testable]
    for part, total in (("seen", counts.seen), ("unseen_wordings", counts.wordings)):
        for task, count in zip(testable, shares(room, total), strict=True):
            allowed = known[task][int(part == "unseen_wordings")]
            parts[part] += _take(pools[task], count, allowed, draw)
    for task in testable:
        parts["watch"] += _take(pools[task], min(counts.watch, len(pools[task]) // 8), known[task][0], draw)
    for task in sorted(held_out):
        every = sorted({wording for example in pools[task] for wording in example})
        parts["unseen_tasks"] += _take(pools[task], counts.unseen, every, draw)
        if task in source.choosing:
            parts["watch"] += _take(pools[task], min(2 * counts.watch, len(pools[task])), every, draw)
    parts |= _orders(source, pools, known, draw)
    lots = {task: _lots(pools[task], known[task][0], counts.wordings_of, draw) for task in seen}
    for task, count in zip(seen, shares([len(lots[task]) for task in seen], counts.train), strict=True):
        parts["train"] += lots[task][:count]
    draw.shuffle(parts["train"])
    for part in ("unseen_wordings", "unseen_tasks"):
        parts[f"{part}_typos"] = [damaged(row, random.Random(f"{seed} {n}")) for n, row in enumerate(parts[part])]
    return {part: rows for part, rows in parts.items() if rows}


def _known(examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Wordings to train on, and those that never are: half of them, at most two."""
    wordings = sorted({wording for example in examples for wording in example})
    cut = len(wordings) - min(2, len(wordings) // 2)
    return wordings[:cut], wordings[cut:]


def _take(pool: list[Example], count: int, allowed: Sequence[str], draw: random.Random) -> list[Row]:
    """Up to `count` examples out of the pool, each in one of the allowed wordings; they are gone from it."""
    taken, left = [], []
    for example in pool:
        fitting = [wording for wording in allowed if wording in example]
        if fitting and len(taken) < count:
            taken.append(example[draw.choice(fitting)])
        else:
            left.append(example)
    pool[:] = left
    return taken


def _orders(
    source: Source, pools: dict[str, list[Example]], known: dict[str, tuple[list[str], list[str]]], draw: random.Random
) -> dict[str, list[Row]]:
    """The same examples with the question before and after the text, in wordings that are not trained on where the
    task is seen and has such."""
    orders = source.orders or {}
    parts: dict[str, list[Row]] = {name: [] for name in orders}
    for task in sorted({task for wordings in orders.values() for task in wordings}):
        both = [all(set(orders[name][task]) & example.keys() for name in orders) for example in pools[task]]
        chosen = [example for example, fits in zip(pools[task], both, strict=True) if fits][:40]
        pools[task][:] = [example for example in pools[task] if example not in chosen]
        for example in chosen:
            for name in orders:
                fitting = [wording for wording in orders[name][task] if wording in example]
                parts[name].append(example[draw.choice(fitting)])
    return parts


def _lots(pool: Sequence[Example], allowed: Sequence[str], most: int, draw: random.Random) -> list[Row]:
    """All that can be trained on: every example once, then in another wording, and so on, `most` times."""
    worded = [draw.sample(fitting, len(fitting)) for fitting in ([w for w in allowed if w in one] for one in pool)]
    rounds = min(most, max(map(len, worded), default=0))
    return [
        example[names[number]]
        for number in range(rounds)
        for example, names in zip(pool, worded, strict=True)
        if number < len(names)
    ]


_NEAR = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        "sqwz vngh xvdf ersfxc wrsd rtgdvc tyfhvb yugjnb uojk uikhmn iojlm kop njk bhmj ipkl ol wa etdf adwezx "
        "rygf yihj cgfb qeas zsdc tugh xas".split(),
        strict=True,
    )
)


def typo(word: str, draw: random.Random) -> str:
    """The word with two neighbours swapped, a letter lost, or the key beside it hit; its ends keep their places."""
    places = [place for place in range(len(word)) if word[place].isalpha()]
    place = draw.choice(places[1:] or places)
    kind = draw.choice(("swap", "drop", "near"))
    if kind == "swap" and word[place] != word[place - 1]:
        return word[: place - 1] + word[place] + word[place - 1] + word[place + 1 :]
    if kind == "near" and word[place].lower() in _NEAR:
        return word[:place] + draw.choice(_NEAR[word[place].lower()]) + word[place + 1 :]
    return word[:place] + word[place + 1 :]


def damaged(row: Row, draw: random.Random) -> Row:
    """The row with typos in a tenth of the words of instruction and input, one at least. Words with digits and words of
    the answer stay as they are, and so do the inputs of tasks about letters: there a typo changes the right answer."""
    answers = " ".join([row["output"], *row.get("alternatives", ())])
    kept = {_bare(word) for word in answers.split()}
    texts = {name: re.split(r"(\s+)", row.get(name, "")) for name in ("instruction", "input")}
    spelled = row["task"] in SPELLED
    places = [
        (name, place)
        for name, words in texts.items()
        for place, word in enumerate(words)
        if not (spelled and name == "input")
        and len(_bare(word)) >= 3
        and _bare(word).isalpha()
        and _bare(word) not in kept
    ]
    total = sum(bool(word.strip()) for words in texts.values() for word in words)
    for name, place in draw.sample(places, min(len(places), max(1, round(total / 10)))):
        texts[name][place] = typo(texts[name][place], draw)
    return row | {name: "".join(words) for name, words in texts.items() if name in row}


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()[]{}").lower()


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Rows as a file, whole or not at all."""
    from instructrec.files import write_text

    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def tiny_model(folder: Path, source: Source) -> Path:
    """A random Llama of two layers with a tokenizer trained on the rows of `source`, saved as a user's would be."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if (folder / "model.safetensors").is_file():
        return folder
    texts = [
        " ".join(str(value) for value in row.values())
        for examples in source.tasks.values()
        for example in examples
        for row in example.values()
    ]
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        [*texts, "system user assistant"],
        BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=learner, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
