"""What tests of faults share: the command line in this process, and a small adapter to damage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import learning
import tiny
from instructrec import cli
from instructrec.models.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))  # `import tiny_gguf`
torch.set_num_threads(1)  # tiny models are slowed down by threads, and a child of a fork has none of the parent's


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run `instructrec` in an empty folder; what it says on stderr is kept."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        code = cli.main(arguments)
        return Ended(code, capsys.readouterr().err)

    return run


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a model is looked for."""
    from instructrec.models import backbone

    for name in ("find", "load", "load_tokenizer"):
        monkeypatch.setattr(backbone, name, lambda *_, **__: pytest.fail("a model was looked for"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of eight rows."""
    lines = [
        f"Write it in capitals\t{word}\t{word.upper()}" for word in "red blue hot cold lamp noon order house".split()
    ]
    (tmp_path / "rows.tsv").write_text("instruction\tinput\toutput\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "rows.tsv"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with a LoRA adapter of about 4 KB for `tiny.model("llama")`, after two steps of training."""
    lora = METHODS["lora"]
    options = learning.options_of(lora) | {"rank": 4, "target": "q_proj,v_proj"}
    model: Any = lora.attach(tiny.model("llama"), options, 0)
    learning.take_steps(model, 2, len(tiny.tokenizer("llama")))
    folder = tmp_path / "adapter"
    folder.mkdir()
    lora.save(model, folder, "tiny")
    return folder
