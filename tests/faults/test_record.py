"""docs/bugs.md and docs/promises.md name tests that exist; and the bugs of early days that had no test until then."""

from __future__ import annotations

import ast
import os
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from instructrec import cli
from instructrec.data.readers import read
from instructrec.errors import InputError

ROOT = Path(__file__).parents[2]
BUGS, PROMISES = (ROOT / "docs" / name for name in ("bugs.md", "promises.md"))


@cache
def functions(file: Path) -> frozenset[str]:
    """Names of the functions at the top of a Python file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def rows_of(document: Path) -> list[list[str]]:
    """The cells of a document's tables, without heads."""
    lines = [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if not set("".join(row)) <= {"-", " "} and row[-1] not in ("test", "command")]


def test_every_bug_names_a_test_that_exists() -> None:
    rows = rows_of(BUGS)
    assert len(rows) >= 60
    for symptom, cause, test in rows:
        assert symptom and cause, test
        place, _, name = test.strip("`").partition("::")
        assert name in functions(ROOT / "tests" / place), test
    assert len({symptom for symptom, _, _ in rows}) == len(rows)


def test_every_promise_has_a_figure_and_a_command_that_runs_tests() -> None:
    rows = rows_of(PROMISES)
    assert len(rows) >= 12
    for promise, figure, measured, command in rows:
        assert promise and re.search(r"\d|equal|none", figure) and measured, promise
        words = shlex.split(command.strip("`"))
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), command
            continue
        assert words[0] == "pytest", command
        files = [word for word in words[1:] if word.startswith("tests/")]
        assert files, command
        for word in files:
            place, _, name = word.partition("::")
            assert (ROOT / place).exists(), command
            assert not name or name in functions(ROOT / place), command


@pytest.mark.parametrize("document", [BUGS, PROMISES], ids=["bugs", "promises"])
def test_no_machine_is_named(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"(?:^|[\s`\"'(=])/(?:work|root|tmp|home|mnt)\b", text)


def test_threads_wait_asleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, turns = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    for name in (policy, turns):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
        del os.environ[name]
    assert cli.main(["version"]) == 0 and (os.environ[policy], os.environ[turns]) == ("PASSIVE", "1000")
    del os.environ[turns]
    os.environ[policy] = "ACTIVE"
    assert cli.main(["version"]) == 0 and os.environ[policy] == "ACTIVE" and turns not in os.environ


def test_rejected_rows_of_before_beside_a_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rejected.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="rows.jsonl: no such file"):
        read(tmp_path / "rows.jsonl", on_bad_row="skip", rejected=tmp_path / "rejected.jsonl")


def test_a_template_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    import tiny
    from instructrec.data.records import Record
    from instructrec.prompts.choose import make_renderer

    file = tmp_path / "mine.jinja"
    file.write_bytes(b"\xef\xbb\xbf{% for m in messages %}{{ m.content }}{% endfor %}")
    renderer = make_renderer(tiny.tokenizer("qwen"), str(file))
    assert renderer.tokenizer.decode(renderer.prompt_ids(Record.of("hot"))) == "hot"
