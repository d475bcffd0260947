"""Each verb hands what was typed to its room."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec import cli
from instructrec.config import AnswerSettings, EvaluateSettings, TuneSettings
from instructrec.errors import EnvironmentFault, InputError
from instructrec.settings import leaves_of

Command = Callable[..., Any]


def test_tune_with_file_assignments_and_flags(command: Command, calls: dict[str, Any]) -> None:
    Path("run.yaml").write_text("epochs: 2\nseed: 1\nlora: {rank: 4}\ndata: unused.tsv\n")
    arguments = (
        "tune run.yaml a.tsv learning_rate=1e-4 --seed 3 --lora.alpha=8 --max_steps 7 b.tsv --resume --no-tensorboard"
    )
    assert command(*arguments.split()) == (0, "", "")
    (files, settings, origins), _ = calls["tune"]
    assert files == ["a.tsv", "b.tsv"]
    expected = {"epochs": 2, "seed": 3, "lora": {"rank": 4, "alpha": 8}, "learning_rate": 1e-4, "max_steps": 7}
    assert settings == TuneSettings.model_validate(expected | {"resume": True, "trackers": "none"})
    assert (origins["epochs"], origins["seed"], origins["clip"]) == ("run.yaml:1", "command line", "default")


def test_tune_takes_the_rows_that_the_file_names(command: Command, calls: dict[str, Any]) -> None:
    Path("run.yml").write_text("data: [a.tsv, b.tsv]\n")
    assert command("tune", "run.yml").code == 0
    assert calls["tune"][0][0] == ["a.tsv", "b.tsv"]


def test_tune_reports_all_settings_problems_before_its_room_is_imported(command: Command) -> None:
    Path("run.yaml").write_text("lerning_rate: 1\nbatch_tokens: 0\n")
    ended = command("tune", "run.yaml", "rows.tsv", "rank=8", "--epochs", "0")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "run.yaml:1: lerning_rate: unknown setting, did you mean 'learning_rate'?",
        "run.yaml:2: batch_tokens: out of range (got 0, want a whole number from 1 upwards)",
        "command line: rank: unknown setting, did you mean 'lora.rank'?",
        "command line: epochs: out of range (got 0, want a number above 0)",
    ]


def test_check(command: Command, calls: dict[str, Any]) -> None:
    arguments = "check a.tsv b.tsv --test t.tsv --test u.tsv --show 3 --show-damaged 2 --max-length 64 --on-long drop --columns answer=label"
    assert command(*arguments.split()).code == 0
    (files, tests, settings), keyword = calls["check"]
    assert (files, tests, keyword) == (["a.tsv", "b.tsv"], ["t.tsv", "u.tsv"], {"show": 3, "damaged": 2})
    assert settings == TuneSettings(max_length=64, on_long="drop", columns={"answer": "label"})


def test_evaluate(command: Command, calls: dict[str, Any]) -> None:
    assert command("evaluate", "runs/mine", "test.tsv", "--arms", "base,tuned", "--rows", "9", "system=a b").code == 0
    (target, files, settings, line), _ = calls["evaluate"]
    assert (target, files) == ("runs/mine", ["test.tsv"])
    assert settings == EvaluateSettings(arms="base,tuned", rows=9, system="a b")
    assert line == "instructrec evaluate runs/mine test.tsv --arms base,tuned --rows 9 'system=a b'"


def test_run_writes_the_answer_alone_to_stdout(command: Command, calls: dict[str, Any]) -> None:
    ended = command("run", "runs/mine", "Translate: house", "--temperature", "0.5", "--input", "x", "--offline")
    assert ended == (0, "Bonjour\x1b[31m\n", "")
    assert calls["stream"] == ("Translate: house", "x")
    target, options = calls["assistant"]
    expected = AnswerSettings(temperature=0.5, offline=True).model_dump()
    assert target == "runs/mine" and {**options, "threads": 0} == expected


def test_run_reads_stdin(command: Command, calls: dict[str, Any]) -> None:
    assert command("run", "runs/mine", "-", stdin="你好\n").code == 0
    assert calls["stream"] == ("你好", "")
    assert command("run", "runs/mine", "-", stdin=" \n") == (2, "", "run: TEXT: is empty (want an instruction)\n")


def test_chat_remembers_forgets_and_leaves(command: Command, calls: dict[str, Any]) -> None:
    ended = command("chat", "runs/mine", stdin="one\n\ntwo\n/reset\n/qit\nthree\n/quit\nfour\n")
    assert ended == (0, "ab\nab\nab\n", "forgotten\n/qit: no such command, did you mean '/quit'?\n")
    one, answer = ("user", "one"), ("assistant", "ab")
    assert calls["chats"] == [[one], [one, answer, ("user", "two")], [("user", "three")]]


def test_chat_ctrl_c_keeps_what_was_said(command: Command, calls: dict[str, Any]) -> None:
    assert command("chat", "runs/mine", stdin="interrupt\nnext\n") == (0, "a\nab\n", "")
    assert calls["chats"][1] == [("user", "interrupt"), ("assistant", "a"), ("user", "next")]


@pytest.mark.parametrize(
    ("typed", "chats", "left"),
    [
        (["interrupt", KeyboardInterrupt(), "x"], 1, ["x"]),
        ([KeyboardInterrupt(), KeyboardInterrupt(), "x"], 0, ["x"]),
        ([KeyboardInterrupt(), "one", KeyboardInterrupt(), "two", "/quit"], 2, []),
    ],
)
def test_chat_two_ctrl_c_in_a_row_leave(
    command: Command,
    calls: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    typed: list[Any],
    chats: int,
    left: list[str],
) -> None:
    lines = iter(typed)

    def read(prompt: str) -> str:
        item = next(lines)
        if isinstance(item, BaseException):
            raise item
        return str(item)

    monkeypatch.setattr("builtins.input", read)
    assert command("chat", "runs/mine").code == 0
    assert (len(calls["chats"]), list(lines)) == (chats, left)


def test_config_show(command: Command) -> None:
    Path("run.yaml").write_text("\nepochs: 2\ndata: a.tsv\n")
    ended = command("config", "show", "run.yaml", "lora.rank=4", "--columns", "answer=label")
    rows = [re.split(r"  +", line) for line in ended.out.splitlines()]
    assert rows[0] == ["setting", "value", "from"]
    for row in (
        ["data", "a.tsv", "run.yaml:3"],
        ["epochs", "2.0", "run.yaml:2"],
        ["lora.rank", "4", "command line"],
        ["columns", "answer=label", "command line"],
        ["max_steps", "none", "default"],
        ["resume", "false", "default"],
    ):
        assert row in rows
    assert len(rows) == 2 + len(leaves_of(TuneSettings))


def test_names_of_other_programs_are_said_once(command: Command, calls: dict[str, Any]) -> None:
    Path("run.yaml").write_text("num_train_epochs: 2\nlogging_steps: 5\n")
    arguments = (
        "tune run.yaml a.tsv --per_device_train_batch_size 4 --gradient-checkpointing --cutoff_len=64 --no-packing"
    )
    ended = command(*arguments.split())
    assert (ended.code, ended.out) == (0, "")
    settings = calls["tune"][0][1]
    assert settings == TuneSettings(epochs=2, batch_rows=4, batch_tokens=256, checkpointing=True, max_length=64)
    honoured, left, silent = ended.err.splitlines()
    assert honoured == (
        "run.yaml: settings by other names: num_train_epochs as epochs, per_device_train_batch_size as batch_rows 4, "
        "batch_tokens 256, gradient_checkpointing as checkpointing, cutoff_len as max_length"
    )
    assert (
        left == "run.yaml: not needed here: logging_steps (each step is logged), packing (rows are not packed anyway)"
    )
    assert silent.startswith("run.yaml: not said, so our defaults hold: learning_rate none, schedule cosine, ")


def test_config_show_tells_what_names_of_other_programs_come_to(command: Command) -> None:
    Path("run.yaml").write_text("num_train_epochs: 2\nlogging_steps: 5\n")
    ended = command("config", "show", "run.yaml")
    rows = [re.split(r"  +", line) for line in ended.out.splitlines()]
    assert ["epochs", "2.0", "run.yaml:1 as num_train_epochs"] in rows
    assert rows[-3:] == [
        ["name", "value", "from", "here"],
        ["num_train_epochs", "2", "run.yaml:1", "honoured", "as epochs"],
        ["logging_steps", "5", "run.yaml:2", "not needed", "each step is logged"],
    ]
    Path("run.yaml").write_text("num_train_epochs: 2\nuse_galore: true\n")
    ended = command("config", "show", "run.yaml")
    assert ended.code == 2 and ended.out.splitlines()[1:] == [
        "num_train_epochs  2      run.yaml:1  honoured  as epochs",
        "use_galore        true   run.yaml:2  refused   the optimizer is AdamW",
    ]
    assert ended.err.splitlines() == [
        "run.yaml:2: use_galore: the optimizer is AdamW (got true)",
        "--ignore use_galore leaves these out, with another result",
    ]


def test_config_show_as_json(command: Command) -> None:
    listed = json.loads(command("config", "show", "--json", "lora.rank=4").out)
    assert listed["lora.rank"] == {"value": 4, "origin": "command line"}
    assert list(listed) == list(leaves_of(TuneSettings))
    assert command("config", "shwo").err == "config: unknown action 'shwo' (want show)\n"


def test_models(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from instructrec.models import embedded

    monkeypatch.setattr(embedded, "cached", lambda name: name == "smollm2-135m")
    rows = [re.split(r"  +", line) for line in command("models").out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [("smollm2-135m", "yes"), ("gemma-3-270m", "no")]
    monkeypatch.setattr(embedded, "fetch", lambda name: Path("/cache", name))
    assert command("models", "fetch", "gemma-3-270m").out == "/cache/gemma-3-270m\n"
    assert command("models", "fetch").err == "models: fetch: not understood (want list or fetch NAME)\n"


def test_env_is_markdown_with_versions(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = command("env").out
    assert out.startswith("```text\ninstructrec ") and out.endswith("\n```\n")
    for line in (r"python +3\.\d+\.\d+", r"torch +\d+\.\d+", r"HF_HUB_OFFLINE +1", r"memory +\d+\.\d GiB", r"cache +/"):
        assert re.search(rf"^{line}", out, re.MULTILINE), line


def test_version(command: Command) -> None:
    first = command("version").out
    assert first.startswith("instructrec ") and first == command("--version").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tun"], "tun: no such command, did you mean 'tune'?"),
        (["zzz"], "zzz: no such command, known: chat, check, compare, config, env, estimate, evaluate, export, models, prompt, run, tune, version"),
        (["tune", "--lerning-rate", "1"], "tune: --lerning-rate: no such option, did you mean '--learning-rate'?"),
        (["tune", "--zzz"], "tune: --zzz: no such option, 'instructrec tune --help' lists all"),
        (["--zzz"], "--zzz: no such option, 'instructrec --help' lists all"),
        (["tune"], "no rows were named (want a file: instructrec tune rows.tsv)"),
        (["evaluate", "runs/a"], "no rows were named (want a file: instructrec evaluate runs/a rows.tsv)"),
        (["tune", "a.yaml", "b.yaml"], "b.yaml: a second settings file (want one; the first is a.yaml)"),
        (["tune", "a.yaml"], "a.yaml: no such file"),
        (["tune", "a.tsv", "--seed", "x"], "command line: seed: not the right kind "
         "(got x, want a whole number from 0 to 2147483647)"),
        (["tune", "a.tsv", "seed=1", "--seed", "2"], "command line: seed: given twice"),
        (["run", "a", "b", "--temperature", "-1"], "command line: temperature: out of range "
         "(got -1, want a number from 0 upwards)"),
    ],
)  # fmt: skip
def test_what_users_mistype(command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == (2, "", message + "\n")


@pytest.mark.parametrize(("arguments", "word"), [(["run", "a"], "TEXT"), (["tune", "--seed"], "--seed")])
def test_missing_arguments_name_verb_and_argument(command: Command, arguments: list[str], word: str) -> None:
    ended = command(*arguments)
    assert ended.code == 2 and ended.err.startswith(f"{arguments[0]}: ") and word in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("rows.tsv:3: answer: is empty"), 2, "rows.tsv:3: answer: is empty\n"),
        (EnvironmentFault("no room"), 3, "no room\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "/x"), 3, "/x: Permission denied\n"),
        (ModuleNotFoundError("no", name="tensorboard.x"), 3,
         "package 'tensorboard' is missing (pip install it into this environment)\n"),
        (RuntimeError("first\nsecond"), 1, "this is a bug in instructrec: RuntimeError: first\n"
         "--debug shows where; please report it with what 'instructrec env' prints\n"),
        (InputError("a row with \x1b]0;title\x07"), 2, "a row with \\x1b]0;title\\x07\n"),
    ],
)  # fmt: skip
def test_exit_codes_and_messages(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def broken(with_torch: bool) -> str:
        raise error

    monkeypatch.setattr("instructrec.environment.describe", broken)
    assert command("env") == (code, "", message)
    for arguments in (("--debug", "env"), ("env", "--debug")):
        ended = command(*arguments)
        assert ended.code == code and "Traceback (most recent call last)" in ended.err


@pytest.mark.parametrize(
    ("words", "resume", "files"),
    [
        ("--resume rows.tsv", True, ["rows.tsv"]),
        ("rows.tsv --resume", True, ["rows.tsv"]),
        ("rows.tsv --no-resume", False, ["rows.tsv"]),
        ("rows.tsv --resume --no-resume", False, ["rows.tsv"]),
        ("--resume latest-valid rows.tsv", "latest-valid", ["rows.tsv"]),
        ("rows.tsv --resume=latest-valid", "latest-valid", ["rows.tsv"]),
        ("rows.tsv resume=yes", True, ["rows.tsv"]),
    ],
)
def test_resume_is_a_switch_that_takes_a_value_too(
    command: Command, calls: dict[str, Any], words: str, resume: Any, files: list[str]
) -> None:
    assert command("tune", *words.split()).code == 0
    (given, settings, _), _ = calls["tune"]
    assert (settings.resume, given) == (resume, files)


def test_resume_with_another_value_is_refused(command: Command, calls: dict[str, Any]) -> None:
    ended = command("tune", "rows.tsv", "--resume=newest")
    want = "command line: resume: unknown value (got newest, want false, true or latest-valid)"
    assert (ended.code, ended.err.split("error: ")[-1].strip()) == (2, want)


def test_every_setting_of_tune_is_an_option_in_its_group(command: Command) -> None:
    ended = command("tune", "--help")
    assert ended.code == 0
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", ended.out)
    for leaf in leaves_of(TuneSettings).values():
        assert "--" + re.sub("[._]", "-", leaf.key) + " " in text, leaf.key
        assert f" {leaf.group} " in text, leaf.group
    for shown in (
        "[default: 512]",
        "--no-deep",
        "false|true|latest-valid",
        "cosine|linear|constant",
        "[default: smollm2-135m]",
        "default: 2 an epoch",
    ):
        assert shown in text


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(command: Command, verb: str) -> None:
    ended = command(verb, "--help")
    assert (ended.code, ended.err) == (0, "") and f"Usage: instructrec {verb}" in ended.out
    assert str(cli.VERBS[verb].function.__doc__).split(";")[0][:40] in ended.out


def test_no_arguments_show_the_help(command: Command) -> None:
    assert command() == command("--help")


def test_rooms_take_what_the_verbs_give() -> None:
    from instructrec.inference.assistant import Assistant
    from instructrec.recipes.check import check
    from instructrec.recipes.measure import evaluate_files
    from instructrec.recipes.tune import tune_files

    options = {name: None for name in AnswerSettings.model_fields if name != "threads"}
    inspect.signature(check).bind([], [], TuneSettings(), show=1)
    inspect.signature(tune_files).bind([], TuneSettings(), {})
    inspect.signature(evaluate_files).bind("", [], EvaluateSettings(), "")
    inspect.signature(Assistant).bind("", **options)
    inspect.signature(Assistant.stream).bind(None, "", input="")
    inspect.signature(Assistant.chat).bind(None, [])


def test_running_out_of_memory_is_the_machines_fault(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):  # named like torch's
        pass

    def full(*_: object) -> str:
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("instructrec.environment.describe", full)
    ended = command("env")
    assert ended.code == 3
    assert ended.err.startswith("out of memory on the device (smaller: --batch-tokens")
