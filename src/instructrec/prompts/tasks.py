"""Task templates: what a row's columns become as an instruction, and where in the answer its label stands.

    instruction: Is the text below positive or negative?
    input: "{{ text }}"
    answer: "It is {{ answer }}"          # the answer's place; what stands before it is given, not asked for

A placeholder is a column of the row, or `labels`, the words of all labels. Values are data: braces in them are braces,
and what is rendered here goes through the one renderer (`template.py`) as the words of a turn, in which nothing can
become a control token. Templates run in the sandbox of `sandbox.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, meta

from ..data.columns import INPUT, INSTRUCTION
from ..data.records import Record, Turn
from ..errors import InputError, did_you_mean
from ..yamlfile import tree
from .sandbox import compile_template
from .verbalizer import Verbalizer

PLACE = "{{ answer }}"
ROW = "row"  # the template that leaves a row as it stands
TEXTS = ("instruction", "input", "system", "answer", "domain")
SHARED = ("about", "language", "defaults", "verbalizer")
CONTENT_FREE = {"en": ("N/A", "[MASK]", ""), "zh": ("无", "[MASK]", "")}  # arXiv 2102.09690 has the English ones
_GLOBALS = {"range", "namespace", "dict", "raise_exception", "true", "false", "none"}


@dataclass(frozen=True)
class Task:
    """One wording of a task.

    instruction, input, system: what is asked, Jinja over the row's columns.  answer: what is answered; ends with
    `{{ answer }}`.  domain: what is asked where nothing is known of a row, for PMI (the wording without a row, if
    empty).  defaults: values of placeholders that a row may lack.  verbalizer: words of the labels it is made for.
    """

    name: str
    instruction: str
    input: str = ""
    system: str = ""
    answer: str = PLACE
    domain: str = ""
    about: str = ""
    language: str = "en"
    defaults: Mapping[str, str] = field(default_factory=dict)
    verbalizer: Verbalizer | None = None

    def __post_init__(self) -> None:
        if not (self.instruction + self.input).strip():
            raise InputError(f"template '{self.name}': instruction: empty (want text with {{{{ placeholders }}}})")
        if self.language not in CONTENT_FREE:
            raise InputError(f"template '{self.name}': language: got '{self.language}', want en or zh")
        for part in TEXTS:
            self._run(part)
            if part != "answer" and "answer" in self._names(part):
                raise InputError(f"template '{self.name}': {part}: {PLACE} would show the right answer to the model")
        place = "\ue000place\ue000"
        if not self._run("answer")(**dict.fromkeys(self._names("answer"), "x") | {"answer": place}).endswith(place):
            raise InputError(f"template '{self.name}': answer: want {PLACE} at its end (what follows it is never read)")

    def _run(self, part: str) -> Callable[..., str]:
        try:
            return compile_template(getattr(self, part))
        except InputError as error:
            raise InputError(f"template '{self.name}': {part}: {error}") from error

    def _names(self, part: str) -> set[str]:
        """Placeholders of a part."""
        return meta.find_undeclared_variables(Environment().parse(getattr(self, part))) - _GLOBALS

    @property
    def shows_labels(self) -> bool:
        """Whether the prompt lists the words of the labels."""
        return any("labels" in self._names(part) for part in TEXTS)

    def ask(self, record: Record, labels: Sequence[str] = ()) -> Record:
        """The record as this template asks it, without an answer. Raises InputError for a column that is missing."""
        return self._asked(record, columns(record) | {"labels": list(labels)})

    def show(self, record: Record, answer: str, labels: Sequence[str] = ()) -> Record:
        """The record with `answer` at the answer's place: an example, or a candidate."""
        asked = self.ask(record, labels)
        answered = Turn("assistant", self.answered(record, answer), supervised=True)
        return replace(asked, turns=(*asked.turns, answered))

    def answered(self, record: Record, answer: str) -> str:
        """The answer's text with what stands before it."""
        return self._filled("answer", columns(record) | {"answer": answer}, str(record.origin))

    def content_free(self, record: Record, labels: Sequence[str] = ()) -> list[Record]:
        """The record with `N/A`, `[MASK]` and nothing in place of all that it says (arXiv 2102.09690)."""
        found = []
        for text in CONTENT_FREE[self.language]:
            values = {
                name: text if isinstance(value, str) and value else value for name, value in columns(record).items()
            }
            asked = self._asked(record, values | {"labels": list(labels)})
            if asked.last_user.content.strip():
                found.append(asked)
        return found

    def premise(self, record: Record, labels: Sequence[str] = ()) -> Record:
        """What is asked where nothing is known of a row (arXiv 2104.08315): `domain`, or the wording without a row."""
        values = _said(record, "") | {"labels": list(labels)}
        if self.domain:
            text = self._filled("domain", values, str(record.origin))
            return replace(record, turns=(Turn("user", text.strip() or "…"),))
        asked = self._asked(record, values)
        turn = asked.last_user
        return asked if turn.content.strip() else replace(asked, turns=(*asked.turns[:-1], replace(turn, text="…")))

    def _asked(self, record: Record, values: Mapping[str, Any]) -> Record:
        parts = {
            part: self._filled(part, values, str(record.origin)).strip() for part in ("instruction", "input", "system")
        }
        before = list(record.turns[: _last_user(record)])
        if parts["system"]:
            before = [Turn("system", parts["system"]), *(turn for turn in before if turn.role != "system")]
        text, about = parts["instruction"], parts["input"]
        user = Turn("user", text, input=about) if text else Turn("user", about)
        return replace(record, turns=(*before, user))

    def _filled(self, part: str, values: Mapping[str, Any], where: str) -> str:
        given = {**self.defaults, **values}
        for name in sorted(self._names(part) - given.keys()):
            known = did_you_mean(name, sorted({*values} - {"labels"}))
            raise InputError(f"{where}: template '{self.name}': {part}: no column '{name}', {known}")
        return self._run(part)(**given)


def columns(record: Record) -> dict[str, Any]:
    """What a template can show of a row: `text` (its input, or the instruction of a row without one), `instruction`
    and `input` with the other names that are usual for them, and every column that was kept as metadata. The answer
    is not among them."""
    turn = record.last_user
    values: dict[str, Any] = dict.fromkeys(INSTRUCTION, turn.text) | dict.fromkeys(INPUT, turn.input)
    values |= {"instruction": turn.text, "text": turn.input or turn.text}
    kept = {str(name): value for name, value in record.metadata.items() if value is not None}
    return {**values, **kept}


def _said(record: Record, text: str) -> dict[str, Any]:
    """The columns with `text` in place of all that is said in them."""
    return {name: text if isinstance(value, str) and value else value for name, value in columns(record).items()}


def _last_user(record: Record) -> int:
    return max(number for number, turn in enumerate(record.turns) if turn.role == "user")


AS_IT_STANDS = Task(ROW, "{{ instruction }}", "{{ input }}", about="the row as it stands: its instruction and input")


def library() -> dict[str, list[Task]]:
    """Our own templates: family (`classification-en`) -> its wordings."""
    folder = resources.files(__package__) / "library"
    found = {ROW: [AS_IT_STANDS]}
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        with resources.as_file(file) as path:
            if path.suffix == ".yaml":
                found[path.stem] = from_file(path, path.stem)
    return found


def find(name: str) -> list[Task]:
    """The wordings that `name` means: a family of the library (`qa-en`), one of its wordings (`qa-en/short`), a file
    (YAML with the fields of `Task`, or the instruction alone), or a template as it is, with its {{ placeholders }}.

    Raises InputError for anything else, naming the nearest.
    """
    if "{{" in name:
        return [Task("given", name)]
    known = library()
    every = {task.name: [task] for tasks in known.values() for task in tasks} | known
    if name in every:
        return every[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return from_file(path, path.stem)
    if path.is_file():
        try:
            return [Task(path.stem, path.read_text(encoding="utf-8-sig"))]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
    raise InputError(f"template: '{name}' is no template of the library and no file, {did_you_mean(name, every)}")


def from_file(path: Path, stem: str) -> list[Task]:
    """Wordings of a YAML file: `wordings: {name: {instruction: …}}`, or one wording's fields; what is given beside
    them (answer, domain, language, verbalizer …) holds for all."""
    value = tree(path, "a template")
    where = str(path)
    if not isinstance(value, dict):
        raise InputError(f"{where}: want lines such as instruction: …")
    wordings = value.pop("wordings", None)
    if wordings is None:
        return [_task(stem, value, {}, where)]
    if not isinstance(wordings, dict) or not wordings:
        raise InputError(f"{where}: wordings: want a section with a name for each wording")
    return [_task(f"{stem}/{name}", fields, value, f"{where}: wordings.{name}") for name, fields in wordings.items()]


def _task(name: str, own: Any, shared: Mapping[str, Any], where: str) -> Task:
    if not isinstance(own, (str, dict)):
        raise InputError(f"{where}: want an instruction, or lines such as instruction: …")
    given = {**shared, **({"instruction": own} if isinstance(own, str) else own)}
    for key, value in given.items():
        if key not in (*TEXTS, *SHARED):
            raise InputError(f"{where}: unknown field '{key}', {did_you_mean(key, (*TEXTS, *SHARED))}")
        if key not in ("defaults", "verbalizer") and not isinstance(value, str):
            raise InputError(f"{where}: {key}: want text")
    defaults = given.get("defaults", {})
    if not isinstance(defaults, dict) or not all(isinstance(value, str) for value in defaults.values()):
        raise InputError(f"{where}: defaults: want lines such as target: Chinese")
    if "instruction" not in given and "input" not in given:
        raise InputError(f"{where}: instruction: missing")
    words = Verbalizer.from_value(given["verbalizer"], f"{where}: verbalizer") if "verbalizer" in given else None
    fields = {"instruction": ""} | {key: given[key] for key in (*TEXTS, "about", "language") if key in given}
    try:
        return Task(name, **fields, defaults=defaults, verbalizer=words)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


__all__ = ["AS_IT_STANDS", "CONTENT_FREE", "Task", "columns", "find", "from_file", "library"]
