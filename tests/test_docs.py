"""The documents say what the program does: commands parse, links lead somewhere, the generated page is fresh, quoted
messages are the program's, and both languages have the same examples."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import instructrec
import tiny
from instructrec import cli, config
from instructrec.config import EvaluateSettings, TuneSettings
from instructrec.data.readers import read
from instructrec.data.records import Record
from instructrec.errors import InputError
from instructrec.prompts.choose import make_renderer
from instructrec.settings import resolve

ROOT = Path(__file__).parent.parent
PAIRS = [
    ("README.md", "README.zh-CN.md"),
    ("docs/tutorial.md", "docs/tutorial.zh-CN.md"),
    ("docs/rrtransformer.md", "docs/rrtransformer.zh-CN.md"),
    ("docs/data.md", "docs/data.zh-CN.md"),
    ("docs/robustness.md", "docs/robustness.zh-CN.md"),
    ("docs/comparing.md", "docs/comparing.zh-CN.md"),
    ("docs/evaluation.md", "docs/evaluation.zh-CN.md"),
]
TWINS = [name for pair in PAIRS for name in pair]
DOCUMENTS = [
    *TWINS,
    "docs/decisions.md",
    "docs/settings.md",
    "docs/prompting.md",
    "docs/bugs.md",
    "docs/promises.md",
    "docs/scaling.md",
    "docs/matrix.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
# Paths of one machine, and hosts of package indexes and model hubs: a mirror may stand in their place.
PRIVATE = re.compile(
    r"(?:^|[\s`\"'(=])/(?:work|root|tmp|home|mnt)\b|pypi|huggingface\.co|hf-mirror|anaconda\.org", re.I
)


def text_of(name: str) -> str:
    """A document's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str = r"\w*") -> list[str]:
    """The code blocks of a document."""
    return re.findall(rf"^```(?:{language})\n(.*?)^```$", text_of(name), flags=re.M | re.S)


def commands(name: str) -> Iterator[list[str]]:
    """The instructrec command lines in a document's shell blocks, cut into arguments, without the program's name."""
    for block in blocks(name, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "instructrec" in words and "=" not in "".join(words[: words.index("instructrec")]):
                yield words[words.index("instructrec") + 1 :]


def generator() -> ModuleType:
    """docs/make_settings.py as a module."""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def messages() -> list[re.Pattern[str]]:
    """Every text of the package that could be a message, with `.+` where a value is put in."""
    found: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        inside = {part for node in joined for part in node.values}
        several = [node.values for node in joined]
        several += [[node] for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in inside]
        for parts in several:
            texts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in parts]
            if sum(map(str.isalpha, "".join(texts))) >= 8:  # `{a}: {b} (got {c}, want {d})` would match anything
                found.add("".join(re.escape(text) or ".+" for text in texts).removesuffix("\\\n"))
    return [re.compile(pattern) for pattern in found]


def quoted(name: str) -> list[str]:
    """The messages that the last section of a tutorial explains."""
    section = re.split(r"^## ", text_of(name), flags=re.M)[-1]
    return [first or second for first, second in re.findall(r"^- (?:``(.+?)``|`(.+?)`)[:：]", section, flags=re.M)]


def test_the_page_of_settings_is_fresh() -> None:
    assert text_of("docs/settings.md") == generator().page(), "run `make docs`"


def test_the_page_of_settings_has_every_option() -> None:
    page = text_of("docs/settings.md")
    for verb, entry in cli.VERBS.items():
        assert f"## {verb}\n" in page
        for leaf in cli._leaves(entry) if entry.settings else ():
            assert f"| `{leaf.key}` | `--{leaf.key.replace('.', '-').replace('_', '-')}" in page


def test_the_page_of_settings_has_every_name_of_other_programs() -> None:
    from instructrec.synonyms import NAMES

    page = text_of("docs/settings.md").partition("## Names of other programs")[2]
    assert [name for name in sorted(NAMES) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_in_a_document_parses(name: str) -> None:
    found = list(commands(name))
    assert found or name not in TWINS
    for words in found:
        arguments, _ = cli._arguments(words)
        action = cli._parse(arguments)  # raises InputError for an unknown verb or option
        given = action.keywords
        entry = cli.VERBS[arguments[0]]
        items = [item for item in given.get("items") or () if not item.endswith(".yaml")]
        if entry.settings:
            cli._resolved(entry.settings, items, given.get("flags", ()))  # raises DataError for an unknown setting
        assert all(re.search(r"(^data|\.(tsv|csv|jsonl|parquet)(:[0-9]+)?)$", item) or "=" in item for item in items)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(InputError, match="no such option"):
        cli._parse(["tune", "rows.tsv", "--lerning-rate", "1"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_local_links_resolve(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        document = folder / path if path else ROOT / name
        assert document.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], target


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_the_same_examples_and_headings(english: str, chinese: str) -> None:
    assert blocks(english) == blocks(chinese) != []
    levels = [[len(mark) for mark in re.findall(r"^(#+) ", prose(name), flags=re.M)] for name in (english, chinese)]
    assert levels[0] == levels[1]
    assert len(re.findall("[\u4e00-\u9fff]", prose(chinese))) > 500


def prose(name: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(name), flags=re.M | re.S)


def test_the_messages_explained_are_messages_of_the_program() -> None:
    english, chinese = quoted("docs/tutorial.md"), quoted("docs/tutorial.zh-CN.md")
    assert english == chinese and len(english) > 20
    unknown = [text for text in english if not any(pattern.fullmatch(text) for pattern in messages())]
    assert unknown == []
    slip = "wrong number of tab-seperated fields (got 1, want 2)"
    assert not any(pattern.fullmatch(slip) for pattern in messages())


@pytest.mark.parametrize("name", [*DOCUMENTS, "LICENSE", "docs/make_settings.py"])
def test_no_document_names_a_machine_or_a_registry(name: str) -> None:
    assert PRIVATE.findall(text_of(name)) == []


@pytest.mark.parametrize("name", TWINS)
def test_python_in_documents_imports_what_is_there(name: str) -> None:
    found = blocks(name, "python")
    assert found
    for block in found:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "instructrec"
                assert {alias.name for alias in node.names} <= set(instructrec.__all__)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                classes: dict[str, type[config.Settings]] = {"tune": TuneSettings, "evaluate": EvaluateSettings}
                known = classes.get(node.func.id)
                assert known is None or {str(word.arg) for word in node.keywords} <= set(known.model_fields)


def test_the_rows_in_the_readme_are_read(tmp_path: Path) -> None:
    table = tmp_path / "rows.tsv"
    table.write_text(blocks("README.md", "text")[0], encoding="utf-8")
    assert [(row.instruction, row.answer) for row in read(table)] == [("Translate to French: house", "maison")]
    lines = blocks("README.md", "json")[0].splitlines()
    assert [read([json.loads(line)])[0].answer for line in lines] == ["maison"] * 4


@pytest.mark.parametrize("name", ["docs/data.md", "docs/data.zh-CN.md"])
def test_the_sources_in_the_page_of_data_are_accepted(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(blocks(name, "yaml")[0], encoding="utf-8")
    sources = resolve(TuneSettings, file, []).data
    assert [(source.path, source.weight) for source in sources] == [("ours.jsonl", 3), ("reviews.csv", 1)]


def test_the_settings_file_of_the_tutorial_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(blocks("docs/tutorial.md", "yaml")[0], encoding="utf-8")
    resolved = resolve(TuneSettings, file, [])
    assert resolved.data == ("rows.tsv",)
    assert resolved.settings == TuneSettings(out="runs/mine", epochs=6, learning_rate=5e-4, lora={"rank": 8})
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["lora"] == {"rank": 8}


def test_the_template_of_the_tutorial_renders(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(blocks("docs/tutorial.md", "jinja")[0], encoding="utf-8")
    tokens = tiny.tokenizer("gpt2")
    row = make_renderer(tokens, str(file)).render(Record.of("Hello?", "Yes."))
    assert tokens.decode(row.ids[: row.prompt_end]) == "Question:\nHello?\nAnswer:\n"
    assert tokens.decode(row.ids[row.prompt_end :]) == f"Yes.{tokens.eos_token}"
    assert row.supervised == [place >= row.prompt_end for place in range(len(row.ids))]
