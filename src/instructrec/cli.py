"""The command line: one dict of verbs, each a thin call into the rooms.

Options that are settings are generated from the settings classes, and only for the verb that was typed: the rooms
behind a verb (and pydantic) are imported when that verb runs, so that `--help` comes at once. A verb checks what it
was given before it imports its room, which may bring torch: a typo is told at once.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .errors import EnvironmentFault, InputError, InstructRecError, did_you_mean, nearest
from .launch import launched
from .recipes.verbs import compare, models

if TYPE_CHECKING:
    from .config import AnswerSettings, Source
    from .inference.assistant import Assistant
    from .settings import Leaf, Resolved

Flags = Sequence[tuple[str, str]]
Target = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="run folder, built-in model, folder, GGUF or hub id")
]
Items = Annotated[
    list[str] | None,
    typer.Argument(metavar="ROWS|run.yaml|key=value", help="rows files, a settings file, settings"),
]

SMALLER = "smaller: --batch-tokens, --max-length, a smaller --model; --checkpointing trades time for memory"
EPILOG = (
    "Errors in what you give end with code 2, errors of the machine with 3, unmet requirements (evaluate --require) "
    "with 4. --debug shows where one came from."
)


def check(
    items: Items = None,
    test: Annotated[list[str] | None, typer.Option(metavar="FILE", help="test rows, to look for overlap")] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="print N rows as the model sees them")] = 0,
    damaged: Annotated[int, typer.Option("--show-damaged", min=0, metavar="N", help="print N rows, damaged")] = 0,
    flags: Flags = (),
) -> None:
    """Look at rows before they are used: faults, duplicates, contradictions, overlap, lengths."""
    resolved = _resolved("TuneSettings", items, flags)
    files = _rows_files(resolved.data, "check")
    from .recipes.check import check as check_files

    check_files(files, test or [], resolved.settings, show=show, damaged=damaged)


def tune(items: Items = None, flags: Flags = ()) -> None:
    """Tune a model on rows; every setting has a default that works."""
    resolved = _resolved("TuneSettings", items, flags)
    files = _rows_files(resolved.data, "tune")
    from .recipes.tune import tune_files

    tune_files(files, resolved.settings, resolved.origins)


def estimate(items: Items = None, flags: Flags = ()) -> None:
    """Say how much memory tuning will need, from the settings (and the lengths of rows, where they are given)."""
    resolved = _resolved("TuneSettings", items, flags)
    from .recipes.estimate import estimate as estimate_run

    estimate_run(resolved.data, resolved.settings)


def evaluate(target: Target, items: Items = None, flags: Flags = (), command: str = "") -> None:
    """Measure a model on held-out rows, beside the base model and the base model with examples."""
    resolved = _resolved("EvaluateSettings", items, flags)
    from .recipes.measure import evaluate_files

    evaluate_files(target, list(resolved.data), resolved.settings, command)


def prompt(
    task: Annotated[
        str, typer.Argument(metavar="TEMPLATE|list", help="name in the library, file, or text with {{ placeholders }}")
    ],
    items: Items = None,
    flags: Flags = (),
    command: str = "",
) -> None:
    """Ask a model through a task template, without tuning: labels by likelihood, few-shot, calibrated, searched."""
    if task == "list" and not items:
        from .recipes.prompting import list_templates

        return list_templates()
    resolved = _resolved("PromptingSettings", items, flags)
    files = _rows_files(resolved.data, f"prompt {task}")
    from .recipes.prompting import prompt_files

    prompt_files(task, files, resolved.settings, command)


def run(
    target: Target,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="the instruction; - reads it from stdin")],
    about: Annotated[str, typer.Option("--input", metavar="TEXT", help="what the instruction is about")] = "",
    flags: Flags = (),
) -> None:
    """Answer one instruction."""
    settings = _resolved("AnswerSettings", [], flags).settings
    instruction = _stdin() if text == "-" else text
    if not instruction.strip():
        raise InputError("run: TEXT: is empty (want an instruction)")
    assistant = _assistant(target, settings)
    for piece in assistant.stream(instruction, input=about) if about else assistant.stream(instruction):
        console.write(piece)
    console.write("\n")


def chat(target: Target, flags: Flags = ()) -> None:
    """Talk with a model."""
    assistant = _assistant(target, _resolved("AnswerSettings", [], flags).settings)
    from .recipes.conversation import converse

    converse(assistant)


def export(
    target: Annotated[str, typer.Argument(metavar="RUN", help="run folder")],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="where the model goes; must not exist")],
    flags: Flags = (),
) -> None:
    """Write a tuned model as an ordinary one, with a chat template that reads as often as it was tuned to."""
    settings = _resolved("ExportSettings", [], flags).settings
    from .export.merged import export_run

    export_run(target, out, settings)


def config(
    action: Annotated[str, typer.Argument(metavar="show", help="what to do")] = "show",
    items: Items = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    flags: Flags = (),
) -> None:
    """Show every setting of tune, and where its value comes from; for names of other programs, what they come to."""
    from .settings import SettingsError, fate_rows, shown, values_of

    if action != "show":
        raise InputError(f"config: unknown action '{action}' (want show)")
    try:
        resolved = _resolved("TuneSettings", items, flags, aloud=False)
    except SettingsError as error:
        if error.fates and not as_json:
            console.table(("name", "value", "from", "here", ""), fate_rows(error.fates))
        raise
    values = ({"data": list(map(str, resolved.data))} if resolved.data else {}) | values_of(resolved.settings)
    if as_json:
        listed = {key: {"value": value, "origin": resolved.origins[key]} for key, value in values.items()}
        console.say(json.dumps(listed, ensure_ascii=False, indent=1))
        return
    rows = [(key, shown(value), resolved.origins[key]) for key, value in values.items()]
    console.table(("setting", "value", "from"), rows)
    if resolved.fates:
        console.table(
            ("name", "value", "from", "here", ""), fate_rows(resolved.fates), title="\nNames of other programs"
        )


def env(
    with_torch: Annotated[bool, typer.Option("--torch", help="import torch too, to list its devices")] = False,
) -> None:
    """Print versions and machine, to paste into a bug report."""
    from .environment import describe

    console.say(describe(with_torch))


def version() -> None:
    """Print the version."""
    from .environment import commit, version_of

    console.say(" ".join(filter(None, ["instructrec", version_of("instructrec"), commit()])))


@dataclass(frozen=True, slots=True)
class Verb:
    """A function, and the settings class whose fields are its options (or `only` these groups and keys of it)."""

    function: Callable[..., None]
    settings: str = ""
    only: tuple[str, ...] = ()


VERBS: dict[str, Verb] = {
    "check": Verb(check, "TuneSettings", ("Data", "Prompt", "model", "offline")),
    "tune": Verb(tune, "TuneSettings"),
    "estimate": Verb(estimate, "TuneSettings"),
    "evaluate": Verb(evaluate, "EvaluateSettings"),
    "compare": Verb(compare, "CompareSettings"),
    "prompt": Verb(prompt, "PromptingSettings"),
    "run": Verb(run, "AnswerSettings"),
    "chat": Verb(chat, "AnswerSettings"),
    "export": Verb(export, "ExportSettings"),
    "config": Verb(config, "TuneSettings"),
    "models": Verb(models),
    "env": Verb(env),
    "version": Verb(version),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 (a bug of ours), 2 (bad input), 3 (the machine), 130 (Ctrl-C)."""
    # Threads that wait by spinning are two to eight times slower as soon as another program wants a core; those that
    # sleep at once are a tenth slower where none does; a thousand turns lose little in both (docs/decisions.md).
    # OpenMP reads this when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in large pages, where programs may choose
    arguments, debug = _arguments(sys.argv[1:] if argv is None else argv)
    try:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows what it can
        action = _parse(arguments)
        if callable(action):
            action()
        sys.stdout.flush()
        return action if isinstance(action, int) else 0
    except InstructRecError as error:
        console.fail(str(error))
        return _traced(error.exit_code, debug)
    except KeyboardInterrupt:
        console.fail("interrupted")
        return _traced(130, debug)
    except BrokenPipeError:
        # Whoever read our output has gone; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("instructrec"):
            return _bug(error, debug)
        console.fail(f"package '{error.name.partition('.')[0]}' is missing (pip install it into this environment)")
        return _traced(EnvironmentFault.exit_code, debug)
    except OSError as error:
        if error.errno is None:
            return _bug(error, debug)
        place = f"{error.filename}: " if error.filename else ""
        console.fail(f"{place}{error.strerror}")
        return _traced(EnvironmentFault.exit_code, debug)
    except MemoryError:
        console.fail(f"out of memory ({SMALLER})")
        return _traced(EnvironmentFault.exit_code, debug)
    except Exception as error:  # noqa: BLE001 (the last resort: one line instead of a page)
        if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch here would cost seconds
            console.fail(f"out of memory on the device ({SMALLER})")
            return _traced(EnvironmentFault.exit_code, debug)
        return _bug(error, debug)


def application(verb: str = "", command: str = "") -> typer.Typer:
    """The typer application; the options that are settings are there for one verb only.

    `command` is the line that was typed, for the reports that quote it.
    """
    app = typer.Typer(
        name="instructrec",
        help="From a file of instructions and a pretrained model to a small model that follows them, with proof.",
        epilog=EPILOG,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)
    for name, entry in VERBS.items():
        app.command(name, help=entry.function.__doc__)(_command(entry, name == verb, command))
    return app


def _arguments(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments with `--debug` taken out and option names in one spelling: `--lora.rank` is `--lora-rank`."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [item for item in argv[:end] if item != "--debug"]
    spelled = [
        re.sub(r"^--[a-z][\w.-]*", lambda match: re.sub(r"[_.]", "-", match[0]), item, flags=re.IGNORECASE)
        for item in options
    ]
    return [*spelled, *argv[end:]], len(options) < end


def _parse(arguments: list[str]) -> Any:
    """What to do: a call, or the exit code where typer has done it (help)."""
    verb = next((item for item in arguments if not item.startswith("-")), "")
    if "--version" in arguments[:1]:
        return version
    if verb and verb not in VERBS:
        raise InputError(f"{verb}: no such command, {did_you_mean(verb, VERBS)}")
    count = launched()[1]
    if count > 1 and verb not in ("", "tune"):
        raise InputError(f"{verb}: runs in one process (got {count} from a launcher, which only tune can use)")
    app = application(verb, shlex.join(["instructrec", *arguments]))
    if verb and VERBS[verb].settings:
        arguments = _with_synonyms(_with_values(arguments, VERBS[verb]), VERBS[verb])
    try:
        return app(arguments or ["--help"], prog_name="instructrec", standalone_mode=False)
    except Exception as error:  # no common class: typer's and click's differ between versions
        if not hasattr(error, "format_message"):
            raise
        raise InputError(_usage_problem(error, verb)) from error


def _with_values(arguments: list[str], entry: Verb) -> list[str]:
    """`--resume` as `--resume=true` and `--no-resume` as `--resume=false`: of a switch that can take a value too.

    Typer's options have a value always or never.
    """
    from .settings import shown

    switches = {
        f"--{leaf.key}": tuple(map(shown, leaf.base))
        for leaf in _leaves(entry)
        if leaf.switch and isinstance(leaf.base, tuple)
    }
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = arguments[:end]
    for place, word in enumerate(given):
        flag = re.sub("^--no-", "--", word)
        if flag in switches and (flag != word or [*given, ""][place + 1] not in switches[flag]):
            given[place] = f"{flag}={shown(flag == word)}"
    return [*given, *arguments[end:]]


def _with_synonyms(arguments: list[str], entry: Verb) -> list[str]:
    """Options that go by the names of other programs, as settings: `--num-train-epochs 3` as `num_train_epochs=3`."""
    from .synonyms.words import as_assignments

    if "items" not in inspect.signature(entry.function).parameters:
        return arguments
    return as_assignments(arguments, {f"--{re.sub('[._]', '-', leaf.key)}" for leaf in _leaves(entry)})


def _usage_problem(error: Any, verb: str) -> str:
    """`tune: --lerning-rate: no such option, did you mean '--learning-rate'?`, and typer's other complaints."""
    where = f"{verb}: " if verb else ""
    option = getattr(error, "option_name", "")
    if type(error).__name__ == "NoSuchOption":
        context = getattr(error, "ctx", None)
        known = [name for param in context.command.params for name in param.opts] if context else []
        match = nearest(option, [name for name in known if name.startswith("--")])
        hint = (
            f"did you mean '{match}'?" if match else f"'{shlex.join(['instructrec', *verb.split()])} --help' lists all"
        )
        return f"{where}{option}: no such option, {hint}"
    return f"{where}{error.format_message()}"


def _command(entry: Verb, with_settings: bool, command: str) -> Callable[..., Any]:
    """The function typer sees: the verb's own parameters and one option for each setting.

    It only returns the call to make: what happens while a verb runs is no business of the parser.
    """
    own = dict(inspect.signature(entry.function, eval_str=True).parameters)
    takes_flags = own.pop("flags", None) is not None
    known = {"command": command} if own.pop("command", None) else {}
    leaves = {_parameter_name(leaf.key): leaf for leaf in (_leaves(entry) if with_settings and entry.settings else ())}

    def call(**values: Any) -> Callable[[], None]:
        flags = [(leaf.key, shown(values[name])) for name, leaf in leaves.items() if values[name] is not None]
        extra = {"flags": flags} if takes_flags else {}
        return partial(entry.function, **{name: values[name] for name in own}, **known, **extra)

    def shown(value: bool | str) -> str:
        return str(value).lower() if isinstance(value, bool) else value

    parameters = [*own.values(), *(_option(leaf) for leaf in leaves.values())]
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    call.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return call


def _leaves(entry: Verb) -> list[Leaf]:
    """The settings that are options of a verb."""
    from . import config as classes
    from .settings import leaves_of

    leaves = leaves_of(getattr(classes, entry.settings)).values()
    return [leaf for leaf in leaves if not entry.only or leaf.group in entry.only or leaf.key in entry.only]


def _parameter_name(key: str) -> str:
    return key.replace(".", "_")


def _option(leaf: Leaf) -> inspect.Parameter:
    """A setting as an option; its text is read, and refused, by the same code as a settings file's."""
    from .settings import shown

    flag = "--" + re.sub("[._]", "-", leaf.key)
    default = "" if leaf.default is None and "default:" in leaf.description else f"default: {shown(leaf.default)}"
    words = f"{_escaped(leaf.description)} [dim]{_escaped(default and f'[{default}]')}[/dim]"
    common: dict[str, Any] = {"help": words, "rich_help_panel": leaf.group, "show_default": False}
    if leaf.base is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", **common)
        annotation: Any = Annotated[bool | None, option]
    else:
        names = {int: "N", float: "X", dict: "NAME=COLUMN,…"}
        metavar = "|".join(map(shown, leaf.base)) if isinstance(leaf.base, tuple) else names.get(leaf.base, "TEXT")
        annotation = Annotated[str | None, typer.Option(flag, metavar=metavar, **common)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(_parameter_name(leaf.key), kind, default=None, annotation=annotation)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


def _resolved(cls: str, items: Sequence[str] | None, flags: Flags, aloud: bool = True) -> Resolved[Any]:
    """Settings and rows files from what stands on the command line; rows named there replace the file's `data`."""
    from . import config as classes
    from .settings import COMMAND_LINE, foreign_notes, resolve
    from .synonyms import DATA

    assignments: list[tuple[str, str]] = []
    files: list[str] = []
    rows: list[str] = []
    for item in items or ():
        if re.match(r"[A-Za-z_][\w.-]*=", item):
            key, _, value = item.partition("=")
            assignments.append((key, value))
        else:
            (files if item.lower().endswith((".yaml", ".yml")) else rows).append(item)
    if len(files) > 1:
        raise InputError(f"{files[1]}: a second settings file (want one; the first is {files[0]})")
    resolved = resolve(getattr(classes, cls), Path(files[0]) if files else None, [*assignments, *flags])
    for note in foreign_notes(resolved) if aloud else ():
        console.note(note)
    if not rows:
        return resolved
    return replace(resolved, data=tuple(rows), origins={DATA: COMMAND_LINE} | resolved.origins)


def _rows_files(data: Sequence[str | Source], verb: str) -> list[str | Source]:
    if not data:
        raise InputError(f"no rows were named (want a file: instructrec {verb} rows.tsv)")
    return list(data)


def _assistant(target: str, settings: AnswerSettings) -> Assistant:
    from .inference.assistant import Assistant
    from .recipes.rows import announce

    announce(target)
    assistant = Assistant(target, **settings.model_dump())
    for note in assistant.loaded.notes:
        console.warn(note)
    return assistant


def _stdin() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8, byte 0x{error.object[error.start]:02x} at {error.start}") from error


def _traced(code: int, debug: bool) -> int:
    """The code; with --debug, after the traceback of the exception being handled."""
    if debug:
        traceback.print_exc()
    if launched()[0]:  # a launcher ends all processes when one has ended: the first shall have said why
        time.sleep(1)
    return code


def _bug(error: BaseException, debug: bool) -> int:
    first = (str(error).splitlines() or [""])[0]
    console.fail(f"this is a bug in instructrec: {type(error).__name__}: {first}".rstrip(": "))
    if not debug:
        console.note("--debug shows where; please report it with what 'instructrec env' prints")
    return _traced(1, debug)
