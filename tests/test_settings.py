"""Settings from a file and the command line: values, origins, and what every fault is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instructrec.config import AnswerSettings, EvaluateSettings, TuneSettings
from instructrec.errors import InputError
from instructrec.settings import ELSEWHERE, Resolved, checked, leaves_of, resolve, shown, values_of
from instructrec.yamlfile import MAX_BYTES


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def given(text: str | bytes, *overrides: tuple[str, str]) -> Resolved[TuneSettings]:
    Path("config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return resolve(TuneSettings, Path("config.yaml"), overrides)


def refused(text: str | bytes, *overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(InputError) as caught:
        given(text, *overrides)
    return str(caught.value).splitlines()


def test_command_line_wins_over_file_over_default() -> None:
    resolved = given("epochs: 2\nseed: 7\n", ("seed", "9"))
    assert (resolved.settings.epochs, resolved.settings.seed, resolved.settings.clip) == (2.0, 9, 1.0)
    origins = {key: resolved.origins[key] for key in ("epochs", "seed", "clip")}
    assert origins == {"epochs": "config.yaml:1", "seed": "command line", "clip": "default"}
    assert list(resolved.origins) == list(leaves_of(TuneSettings)) == list(values_of(resolved.settings))


def test_no_file_and_no_override_is_all_defaults() -> None:
    resolved = resolve(TuneSettings, None, [])
    assert resolved.settings == TuneSettings() and set(resolved.origins.values()) == {"default"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "lora:\n", "---\n"])
def test_a_file_may_say_nothing(text: str) -> None:
    assert given(text).settings == TuneSettings()


@pytest.mark.parametrize("written", ["1e-4", "'1e-4'", '"1e-4"', "0.0001", "1.0E-04"])
def test_numbers_that_yaml_would_read_as_text(written: str) -> None:
    assert given(f"learning_rate: {written}").settings.learning_rate == 1e-4


def test_text_that_yaml_would_not_read_as_text() -> None:
    settings = given(
        "system: no\nmodel: 010\ntemplate: 2024-01-01\nvalidation: 'none'\nheld_out: none\nout: ~\n"
    ).settings
    assert (settings.system, settings.model, settings.template) == ("no", "010", "2024-01-01")
    assert (settings.validation, settings.held_out, settings.out) == ("none", "none", None)


@pytest.mark.parametrize("text", ["lora: {rank: 8}", "lora:\n  rank: 8", "lora.rank: 8", '{"lora": {"rank": 8}}'])
def test_sections_and_dotted_keys(text: str) -> None:
    assert given(text).settings.lora.rank == 8


@pytest.mark.parametrize("key", ["lora.rank", "lora-rank", "lora_rank"])
def test_overrides_are_spelled_with_dots_dashes_or_underscores(key: str) -> None:
    resolved = given("lora: {rank: 8, alpha: 4}", (key, "2"), ("max-steps", "5"))
    assert (resolved.settings.lora.rank, resolved.settings.lora.alpha, resolved.settings.max_steps) == (2, 4.0, 5)
    assert resolved.origins["lora.rank"] == "command line"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("max_steps", "none", None),
        ("max_steps", "null", None),
        ("max_steps", "1e3", 1000),
        ("deep", "no", False),
        ("resume", "yes", True),
        ("resume", "latest-valid", "latest-valid"),
        ("deep", "False", False),
        ("columns", "instruction=text,answer=label", {"instruction": "text", "answer": "label"}),
        ("precision", "bf16", "bf16"),
        ("system", "", ""),
    ],
)
def test_overrides_are_read_by_the_type_of_the_field(key: str, text: str, value: object) -> None:
    assert values_of(resolve(TuneSettings, None, [(key, text)]).settings)[key] == value


def test_columns_as_a_section() -> None:
    resolved = given("columns:\n  instruction: text\n  answer: 2\n")
    assert resolved.settings.columns == {"instruction": "text", "answer": "2"}
    assert resolved.origins["columns"] == "config.yaml:1"


@pytest.mark.parametrize(
    ("text", "files"), [("data: a.tsv", ("a.tsv",)), ("data: [a.tsv, b c.tsv]", ("a.tsv", "b c.tsv"))]
)
def test_rows_files_named_in_the_file(text: str, files: tuple[str, ...]) -> None:
    resolved = given(text)
    assert resolved.data == files and resolved.origins["data"] == "config.yaml:1"
    assert given(text, ("data", "c.tsv")).data == ("c.tsv",)


def test_every_problem_at_once_each_with_its_line() -> None:
    text = "lerning_rate: 1\nbatch_tokens: 0\nlora:\n  rank: -1\nepochs: soon\n"
    assert refused(text, ("precision", "bf61"), ("deep", "maybe")) == [
        "config.yaml:1: lerning_rate: unknown setting, did you mean 'learning_rate'?",
        "config.yaml:2: batch_tokens: out of range (got 0, want a whole number from 1 upwards)",
        "config.yaml:4: lora.rank: out of range (got -1, want a whole number from 1 upwards)",
        "config.yaml:5: epochs: not the right kind (got soon, want a number above 0)",
        "command line: precision: unknown value (got bf61, want auto, bf16 or fp32)",
        "command line: deep: not the right kind (got maybe, want true or false)",
    ]


# FAULTS, input 15
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch_tokens: 0", "batch_tokens: out of range (got 0, want a whole number from 1 upwards)"),
        ("batch_rows: 0", "batch_rows: out of range (got 0, want a whole number from 1 upwards or none)"),
        ("accumulation: 0", "accumulation: out of range (got 0, want a whole number from 1 upwards)"),
        ("lora.rank: -4", "lora.rank: out of range (got -4, want a whole number from 1 upwards)"),
        ("lora.rank: 1.5", "lora.rank: not the right kind (got 1.5, want a whole number from 1 upwards)"),
        ("lora: {alpha: 0}", "lora.alpha: out of range (got 0, want a number above 0)"),
        ("lora: {dropout: 1}", "lora.dropout: out of range (got 1, want a number from 0 to below 1)"),
        ("learning_rate: .nan", "learning_rate: not a finite number (got .nan, want a number above 0 or none)"),
        ("learning_rate: nan", "learning_rate: not a finite number (got nan, want a number above 0 or none)"),
        ("learning_rate: inf", "learning_rate: not a finite number (got inf, want a number above 0 or none)"),
        ("learning_rate: 1e400", "learning_rate: not a finite number (got 1e400, want a number above 0 or none)"),
        ("learning_rate: 0", "learning_rate: out of range (got 0, want a number above 0 or none)"),
        ("learning_rate: -1e-4", "learning_rate: out of range (got -1e-4, want a number above 0 or none)"),
        ("learning_rate: true", "learning_rate: not the right kind (got true, want a number above 0 or none)"),
        ("epochs: 0", "epochs: out of range (got 0, want a number above 0)"),
        ("unseen_weight: 1.1", "unseen_weight: out of range (got 1.1, want a number from 0 to 1)"),
        ("weight_decay: -1", "weight_decay: out of range (got -1, want a number from 0 upwards)"),
        ("seed: 2147483648", "seed: out of range (got 2147483648, want a whole number from 0 to 2147483647)"),
        ("max_steps: ''", "max_steps: not the right kind (got '', want a whole number from 1 upwards or none)"),
        ("threads: [1]", "threads: not the right kind (got a list, want a whole number from 0 upwards)"),
        ("system: {a: b}", "system: not the right kind (got a section, want text)"),
        ("epochs:", "epochs: has no value (want a number above 0)"),
        ("columns: text", "columns: not the right kind (got text, want pairs such as instruction=text,answer=label)"),
        ("schedule: cosin", "schedule: unknown value (got cosin, want cosine, linear or constant)"),
        (
            "lora: 8",
            "lora: is a section (want it to hold some of lora.rank, lora.alpha, lora.dropout, lora.target, lora.dora, lora.rslora)",
        ),
        ("data: {a: b}", "data[0].a: unknown setting ('instructrec config show' lists all)"),
        ("data: []", "data: is empty (want file names)"),
        ("data: [[a]]", "data[0]: a list inside the list (want a file name or path:)"),
        (
            "data: [a.tsv, {path: b.tsv, weight: 0}]",
            "data[1].weight: out of range (got 0, want a number above 0 or none)",
        ),
        ("data: [{path: b.tsv, wieght: 1}]", "data[0].wieght: unknown setting, did you mean 'weight'?"),
        ("data: [{weight: 1}]", "data[0].path: is empty (want a name or path)"),
        (
            "data: [{path: b.tsv, columns: x}]",
            "data[0].columns: not the right kind (got x, want pairs such as instruction=text,answer=label or none)",
        ),
    ],
)
def test_values_out_of_range_or_of_the_wrong_kind(line: str, message: str) -> None:
    assert refused(f"# a comment\n{line}\n") == [f"config.yaml:2: {message}"]


def test_very_long_values_are_cut_in_the_message_and_cannot_stall() -> None:
    (line,) = refused("max_steps: " + "9" * 5000)
    assert line.endswith("9…, want a whole number from 1 upwards or none)") and len(line) < 160


# FAULTS, input 14
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1e-4", "1: lr: unknown setting, did you mean 'learning_rate'?"),
        ("micro_batch_size: 4", "1: micro_batch_size: unknown setting, did you mean 'batch_rows'?"),
        ("rank: 4", "1: rank: unknown setting, did you mean 'lora.rank'?"),
        ("lora:\n  rnk: 4", "2: lora.rnk: unknown setting, did you mean 'lora.rank'?"),
        ("xyzzy: 4", "1: xyzzy: unknown setting ('instructrec config show' lists all)"),
        ("seed: 1\nlora:\n\trank: 8", "3: tab in the indentation (want spaces)"),
        ("epochs: 1\nseed:\t1", "2: tab before a value (want a space)"),
        ("seed: 1\nepochs: 1\nseed: 2", "3: seed: given twice (first in line 1)"),
        ("lora: {rank: 1}\nlora: {alpha: 1}", "2: lora: given twice (first in line 1)"),
        ("{seed: 1, seed: 1}", "1: seed: given twice (first in line 1)"),
        ("lora: {rank: 1}\nlora.rank: 2", "2: lora.rank: given twice (first in line 1)"),
        ("columns: {a: b, a: c}", "1: columns.a: given twice"),
        ("seed: 1\n- 2", "2: not YAML: expected <block end>, but found '-'"),
        ("- seed", "1: not settings (got a list, want lines such as learning_rate: 1e-4)"),
        ("seed", "1: not settings (got text, want lines such as learning_rate: 1e-4)"),
        ("seed: 1\n---\nseed: 2", "2: not YAML: but found another document"),
        ("? [a]\n: 1", "1: a list or section cannot be the name of a setting"),
        (
            "seed: 1\nx: !!python/object/apply:os.system [id]",
            "2: tags (!) are not allowed; quote the text if it starts like one",
        ),
        ("seed: 1\nsystem: a\0b", "2: character U+0000 is not allowed"),
        (b"seed: 1\nsystem: \xff\n", "2: not UTF-8, byte 0xff at 16"),
        ("x: " + "[" * 100_000, "1: nested too deep (want at most 16 levels)"),
    ],
)
def test_files_that_are_not_as_they_should_be(text: str | bytes, message: str) -> None:
    assert refused(text) == [f"config.yaml:{message}"]


def test_anchor_bomb_is_refused_at_its_first_anchor() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    reason = "anchors (&) and aliases (*) are not allowed; quote the text if it starts like one"
    assert refused("seed: 1\n" + "\n".join(lines)) == [f"config.yaml:2: {reason}"]


def test_bom_and_crlf_are_accepted() -> None:
    assert given(b"\xef\xbb\xbfseed: 3\r\nepochs: 2\r\n").settings.seed == 3


def test_tabs_in_quoted_text_are_accepted() -> None:
    assert given("system: 'a\tb'\n").settings.system == "a\tb"


def test_paths_that_are_no_settings_file() -> None:
    Path("rnu.yaml").write_text("seed: 1")
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    Path("big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    cases = {
        "run.yaml": "run.yaml: no such file, did you mean 'rnu.yaml'?",
        "folder.yaml": "folder.yaml: is a folder",
        "pipe.yaml": "pipe.yaml: not a file",
        "big.yaml": "big.yaml: too large for settings (got 1048577 bytes, want at most 1048576)",
    }
    for name, message in cases.items():
        with pytest.raises(InputError) as caught:
            resolve(TuneSettings, Path(name), [])
        assert str(caught.value) == message and caught.value.exit_code == 2


def test_one_setting_twice_on_the_command_line() -> None:
    assert refused("", ("seed", "1"), ("seed", "2")) == ["command line: seed: given twice"]
    assert given("", ("seed", "1"), ("seed", "1")).settings.seed == 1


def test_every_default_can_be_given_as_it_is_shown() -> None:
    for cls in (TuneSettings, EvaluateSettings, AnswerSettings):
        texts = [(key, shown(leaf.default)) for key, leaf in leaves_of(cls).items()]
        texts = [
            (key, "" if text == "''" or (key in ("columns", "labels") and text == "none") else text)
            for key, text in texts
        ]
        assert len(texts) >= 8 and resolve(cls, None, texts).settings == cls()


def test_names_from_elsewhere_lead_to_settings() -> None:
    known = leaves_of(TuneSettings)
    assert set(ELSEWHERE.values()) <= set(known) and not set(ELSEWHERE) & set(known)


def test_every_setting_is_described_and_has_a_group() -> None:
    for cls in (TuneSettings, EvaluateSettings, AnswerSettings):
        for key, leaf in leaves_of(cls).items():
            assert leaf.description and leaf.group != "Settings", key


# -- keyword arguments of Python -------------------------------------------------------------------------------------


def test_keyword_arguments_are_checked_like_a_file() -> None:
    assert checked(TuneSettings, {"epochs": 2, "lora": {"rank": 8}}).lora.rank == 8
    assert checked(EvaluateSettings, {}) == EvaluateSettings()


def test_every_problem_of_keyword_arguments_at_once() -> None:
    values = {
        "lerning_rate": 1,
        "batch_tokens": 0,
        "lora": {"rank": -1, "rnak": 2},
        "lora_alfa": 2,
        "full": 3,
        "precision": "bf61",
        "columns": {"answer": 2},
        "clip": float("nan"),
        "lr": 1e-4,
        "xyzzy": "red",
    }
    with pytest.raises(InputError) as caught:
        checked(TuneSettings, values)
    assert sorted(str(caught.value).splitlines()) == [
        "batch_tokens: out of range (got 0, want a whole number from 1 upwards)",
        "clip: not a finite number (got nan, want a number above 0)",
        "columns: not the right kind (got 2, want pairs such as instruction=text,answer=label)",
        "full: is a section (got 3, want a dict)",
        "lerning_rate: unknown setting, did you mean 'learning_rate'?",
        "lora.rank: out of range (got -1, want a whole number from 1 upwards)",
        "lora.rnak: unknown setting, did you mean 'lora.rank'?",
        "lora_alfa: unknown setting, did you mean 'lora.alpha'?",
        "lr: unknown setting, did you mean 'learning_rate'?",
        "precision: unknown value (got 'bf61', want auto, bf16 or fp32)",
        "xyzzy: unknown setting ('instructrec config show' lists all)",
    ]
    with pytest.raises(InputError) as caught:
        checked(EvaluateSettings, {"row": 5})
    assert str(caught.value) == "row: unknown setting, did you mean 'rows'?"
