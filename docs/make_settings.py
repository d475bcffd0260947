"""Writes docs/settings.md: every argument and option of every verb, taken from the command line itself.

    python docs/make_settings.py

`tests/test_docs.py` compares the page with a fresh one, so a new option that is not on the page is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructrec import cli, config
from instructrec.settings import Leaf, leaves_of, shown
from instructrec.synonyms import convert, table
from instructrec.synonyms.templates import MARKS

PAGE = Path(__file__).with_name("settings.md")
PLAIN = {  # where a class is listed
    "TuneSettings": "tune",
    "EvaluateSettings": "evaluate",
    "CompareSettings": "compare",
    "PromptingSettings": "prompt",
    "AnswerSettings": "run",
    "ExportSettings": "export",
}
HEAD = """\
# Every command and every option

This page is generated (`make docs`); `instructrec COMMAND --help` shows the same in the terminal.

- A setting can be given as an option (`--learning-rate 1e-4`), as an assignment where a command takes rows
  (`learning_rate=1e-4`), or in a YAML file (`learning_rate: 1e-4`). The command line wins over the file, the file over
  the default. An unknown name is refused, and the nearest one is offered.
- Dots, dashes and underscores are alike on the command line: `--lora-rank`, `--lora.rank` and `lora_rank=8` mean
  `lora.rank`. In a file it is a key `rank` in a section `lora`.
- `none` takes back a value that a file gives to a setting whose default is "none".
- A settings file may also name the rows files, under the key `data`; rows named on the command line replace them.
- The names of transformers, TRL and LLaMA-Factory are understood too, in files, on the command line and in Python:
  [names of other programs](#names-of-other-programs).
- `--debug` anywhere shows where an error came from. `--version` is `instructrec version`.
- Exit codes: 0 all went well, 1 a fault of InstructRec or a loss that is not finite, 2 something is wrong with what was
  given, 3 something is wrong with the machine (disk, network, a missing package), 130 Ctrl-C, 143 SIGTERM.
"""
NAMES = """\
## Names of other programs

A settings file written for LLaMA-Factory, or for TRL's `--config`, can be given as it is; the same names work as
options (`--num_train_epochs 3`), assignments and keyword arguments of Python. How each was taken is said once a run,
and `instructrec config show FILE` lists it. Where a name can't be honoured and the result would depend on it, the run
is refused, with every such name at once; `--ignore NAME,NAME` leaves out those that it lists, nothing else. Two names
for one setting with different values are an error; the command line wins over the file, whatever the names. For what a
file does not say the defaults of this program hold, and those that shape a result are listed.

`dataset` is looked up in `dataset_info.json` in `dataset_dir` (default `data`, from the current folder or from beside
the settings file), or names files.
"""


def page() -> str:
    """The whole page as Markdown."""
    from typer.main import get_command

    sections = [HEAD]
    commands: dict[str, Any] = get_command(cli.application()).commands  # type: ignore[attr-defined]
    for name, verb in cli.VERBS.items():
        sections.append(_section(name, verb, commands[name].params))
    return "\n".join([*sections, _names()])


def _names() -> str:
    """The names of other programs, and what each comes to."""
    ours = {name: f"`{key}`" for name, key in table.SAME.items()} | convert.TARGETS
    left: dict[str, list[str]] = {}
    for name, why in (table.NOT_NEEDED | {f"{begin}…": why for begin, why in table.NOT_NEEDED_BEGIN.items()}).items():
        left.setdefault(why, []).append(f"`{name}`")
    refused: dict[str, list[str]] = {}
    for name, text in table.REFUSED.items():
        why, _, neutral = text.partition("|")
        refused.setdefault(why, []).append(f"`{name}`" + (f" (other than {neutral.split(',')[0]})" if neutral else ""))
    formats: dict[str, list[str]] = {}
    for name, mark in MARKS.items():
        formats.setdefault(mark, []).append(name)
    rows = sorted((f"`{name}`", text) for name, text in ours.items())
    parts = [NAMES, *_table(("name", "taken as"), rows)]
    parts += ["Not needed here, whatever the value:", ""]
    parts += _table(("names", "because"), [(", ".join(names), why) for why, names in left.items()])
    parts += ["Refused (without a remark: unless the value is nothing, false or 0):", ""]
    parts += _table(("names", "because"), [(", ".join(names), why) for why, names in refused.items()])
    parts += ["Chat formats that `template` takes by name, with the mark that the model's own template must have:", ""]
    return "\n".join([*parts, *(f"- `{mark}`: {', '.join(names)}" for mark, names in formats.items()), ""])


def _section(name: str, verb: cli.Verb, parameters: list[Any]) -> str:
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    words = [word.metavar if word.required else f"[{word.metavar}]" for word in arguments]
    words = [word + "…" * (argument.nargs < 0) for word, argument in zip(words, arguments, strict=True)]
    more = ["[OPTIONS]"] if options or verb.settings else []
    lines = [f"## {name}", "", str(verb.function.__doc__).strip(), ""]
    lines += ["```text", " ".join(["instructrec", name, *more, *words]), "```", ""]
    rows = [(word.metavar, word.help, "required" if word.required else "") for word in arguments]
    rows += [(_flag(word), word.help, "" if word.default in (None, False) else word.default) for word in options]
    lines += _table(("argument or option", "meaning", "default"), rows) if rows else []
    if not verb.settings:
        return "\n".join(lines)
    home = PLAIN[verb.settings]
    if home != name:
        only = ", ".join(f"`{key}`" for key in verb.only if key.islower())
        groups = ", ".join(key for key in verb.only if not key.islower())
        what = f"{groups}, {only}" if verb.only else "all"
        return "\n".join([*lines, f"Settings of [{home}](#{home}): {what}.", ""])
    leaves = leaves_of(getattr(config, verb.settings)).values()
    for group in dict.fromkeys(leaf.group for leaf in leaves):
        found = [leaf for leaf in leaves if leaf.group == group]
        lines += [f"### {name}: {group}", ""]
        lines += _table(("setting", "option", "meaning", "values", "default"), [_row(leaf) for leaf in found])
    return "\n".join(lines)


def _flag(option: Any) -> str:
    return " ".join(filter(None, [option.opts[0], option.metavar]))


def _row(leaf: Leaf) -> tuple[str, ...]:
    flag = "--" + leaf.key.replace(".", "-").replace("_", "-")
    if leaf.switch:
        flag += f", --no-{flag[2:]}"
    meaning, _, default = leaf.description.partition("; default: ")
    return f"`{leaf.key}`", f"`{flag}`", meaning, leaf.want, default or f"`{shown(leaf.default)}`"


def _table(headers: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [headers, ["---"] * len(headers), *rows]]
    return ["| " + " | ".join(row) + " |" for row in cells] + [""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
