"""Estimated memory beside measured: `make bench-estimate` writes docs/results/estimate.json and .md.

    python bench/estimate.py

Each case is a `tune` of three steps in a process of its own; what it measured of itself (resident memory at its peak,
above that before the model was loaded) stands in its `run.json` beside the estimate. Needs the built-in smollm2-135m;
the other two models are random Llamas of 30 and 300 million weights, written to a temporary folder with its tokenizer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from instructrec.environment import commit
from instructrec.models import embedded
from instructrec.recipes.memory import shown

RESULTS = Path(__file__).parent.parent / "docs" / "results"
BUILT_IN = "smollm2-135m"
WORDS = "the parcel has not come yet and nobody knows where it is or when it will be here again".split()
# Model, words of a row, settings.
CASES: list[tuple[str, int, str]] = [
    (BUILT_IN, 40, ""),
    (BUILT_IN, 40, "--precision fp32"),
    (BUILT_IN, 40, "--precision fp32 --method full"),
    (BUILT_IN, 400, "--precision fp32 --batch-tokens 1024"),
    (BUILT_IN, 400, "--batch-tokens 2048 --checkpointing"),
    (BUILT_IN, 40, "--precision fp32 --checkpointing --batch-tokens 1024"),
    (BUILT_IN, 40, "--strokes 2 --batch-tokens 1024"),
    ("gemma-3-270m", 100, "--batch-tokens 1024"),
    ("30M", 40, "--precision fp32 --batch-tokens 2048"),
    ("30M", 150, "--precision fp32 --batch-tokens 1024 --lora-dropout 0.1"),
    ("30M", 400, "--method full --batch-tokens 2048"),
    ("300M", 40, ""),
    ("300M", 40, "--precision fp32 --lora-rank 64"),
    ("300M", 400, "--precision fp32 --checkpointing --batch-tokens 1024"),
]
# Width, inner width, layers, heads, key/value heads.
SIZES = {"30M": (384, 1024, 10, 6, 2), "300M": (1024, 2816, 24, 16, 8)}
BOUND = 0.2


def random_llama(name: str, folder: Path) -> Path:
    """A Llama with random weights and the built-in model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    width, inner, layers, heads, groups = SIZES[name]
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder_of(BUILT_IN))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(words: int, file: Path) -> Path:
    """48 rows of about so many words, a third of each the answer."""
    with open(file, "w", encoding="utf-8") as handle:
        for number in range(48):
            text = [WORDS[(number + place * (number % 5 + 1)) % len(WORDS)] for place in range(words)]
            cut = words * 2 // 3
            handle.write(json.dumps({"instruction": " ".join(text[:cut]), "output": " ".join(text[cut:])}) + "\n")
    return file


def measure(model: str, file: Path, options: str, folder: Path) -> dict[str, Any]:
    """The `memory` of one run."""
    out = folder / "run"
    given = ["--model", model, "--max-steps", "3", "--trackers", "none", "--held-out", "row", "--out", str(out)]
    command = [sys.executable, "-m", "instructrec", "tune", str(file), *given, *options.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {"parameters": run["parameters"], **run["memory"]}


def table(found: list[dict[str, Any]], measured: str) -> str:
    """The page. measured: the commit."""
    lines = [
        "# Estimated and measured memory",
        "",
        f"`make bench-estimate`, commit {measured}. The most that a run of three steps held above what",
        "the program held before it loaded a model, on the processor; the bound is 20%.",
        "",
        "| model | words a row | settings | estimated | measured | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in found:
        sizes = f"{shown(case['estimated'])} | {shown(case['measured'])} | {case['ratio']:.2f}"
        lines.append(f"| {case['model']} | {case['words']} | `{case['settings'] or 'defaults'}` | {sizes} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """0 if every case is within the bound."""
    found = []
    for model, words, options in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            name = str(random_llama(model, folder / "model")) if model in SIZES else model
            memory = measure(name, rows(words, folder / "rows.jsonl"), options, folder)
        ratio = round(memory["estimated"] / memory["measured"], 3)
        case = {"model": model, "words": words, "settings": options, **memory, "ratio": ratio}
        print(json.dumps(case), flush=True)
        found.append(case)
    RESULTS.mkdir(parents=True, exist_ok=True)
    measured = commit() or "unknown"  # asked once: the first file that is written changes the tree
    text = json.dumps({"commit": measured, "cases": found}, indent=1) + "\n"
    (RESULTS / "estimate.json").write_text(text, encoding="utf-8")
    (RESULTS / "estimate.md").write_text(table(found, measured), encoding="utf-8")
    return int(any(abs(case["ratio"] - 1) > BOUND for case in found))


if __name__ == "__main__":
    sys.exit(main())
