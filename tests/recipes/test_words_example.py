"""examples/words.tsv: single words translated at a mask. What a random model is tuned on it learns, and of the words that
were kept from it it knows nothing: that takes a model that was pretrained on both languages."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from instructrec import cli

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random BERT whose vocabulary has the characters and the English words of the list."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    words = (EXAMPLES / "words.tsv").read_text(encoding="utf-8").split()[2:]
    letters = sorted({*"的英文是"} | {letter for word in words[::2] for letter in word})
    vocab = {word: number for number, word in enumerate([*names.values(), *letters, *words[1::2]])}
    made = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    around = [(name, vocab[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    set_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(vocab), **sizes, **drops)).save_pretrained(folder)
    return folder


def commands() -> list[list[str]]:
    """Those of the section in docs/kinds.md."""
    text = (ROOT / "docs" / "kinds.md").read_text(encoding="utf-8").partition("## Single words")[2]
    block = text.partition("```bash\n")[2].partition("```")[0].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines() if line.strip()]


def test_the_documented_commands(model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    asked, tuned, measured, run = commands()
    assert [command[0] for command in (asked, tuned, measured, run)] == ["prompt", "tune", "evaluate", "run"]
    small = ["--precision", "fp32", "--threads", "1"]
    learn = ["--learning-rate", "3e-3", "--epochs", "20", "--batch-rows", "8", "--trackers", "none", "--patience", "0"]
    place = {"./multilingual-bert": str(model)}
    for command, more in ((asked, small), (tuned, small + learn), (measured, small), (run, small)):
        assert cli.main([place.get(word, word) for word in command] + more) == 0
    found = json.loads(next(tmp_path.glob("runs/prompt-*/prompting.json")).read_text())
    assert found["scores"]["accuracy"]["value"] < 10
    report = json.loads((tmp_path / "runs/words/report.json").read_text())
    scores = report["suites"][0]["scores"]
    assert scores["base"]["accuracy"]["value"] < 10 and scores["tuned"]["accuracy"]["value"] >= 90
    labels = {*_words_of_labels()}
    assert capsys.readouterr().out.splitlines()[-1] in labels
    held = [place.get(word, word) for word in tuned if word not in ("--held-out", "none", "runs/words")]
    assert cli.main([*held, "runs/held", *small, *learn]) == 0
    assert "no look at the held-out rows was better than the untuned model" in capsys.readouterr().err


def test_the_list(tmp_path: Path) -> None:
    head, *rows = (EXAMPLES / "words.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("\t") for row in rows]
    assert head == "word\tenglish" and len(pairs) == 40
    assert all(len(column) == len({*column}) for column in zip(*pairs, strict=True))
    assert _words_of_labels() == {english: english for _, english in pairs}


def _words_of_labels() -> dict[str, str]:
    lines = (EXAMPLES / "words.yaml").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ") for line in lines if not line.startswith("#"))
