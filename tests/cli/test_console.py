"""What the terminal shows, and what a log gets where there is none."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from instructrec import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stdout and stderr one terminal; called in the test itself, since pytest sets both again after set-up."""

    def make() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return stream

    return make


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, to be set by the test."""
    time = [100.0]
    monkeypatch.setattr("instructrec.console.time.monotonic", lambda: time[0])
    return time


def test_results_go_to_stdout_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("[bold]result[/bold]", style="green")
    console.note("note")
    console.warn("odd")
    console.fail("bad")
    assert capsys.readouterr() == ("[bold]result[/bold]\n", "note\nwarning: odd\nbad\n")


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[2Jb\rc\td\n\x9be")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\rc\td\n\\x9be\n"


def test_colours_on_a_terminal_unless_refused(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal()
    console.say("[x] good", style="green")
    assert shown.getvalue() == "\x1b[32m[x] good\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    console.say("plain", style="green")
    assert shown.getvalue().endswith("\x1b[0m\nplain\n")


def test_a_terminal_gets_answers_with_visible_escapes(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    console.write("Bon\x1b[2J")
    assert shown.getvalue() == "Bon\\x1b[2J"


def test_table_counts_chinese_characters_as_two(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("task", "n"), [("翻译任务", 3), ("a", 12)], title="Rows")
    assert capsys.readouterr().out == "Rows\ntask      n\n翻译任务  3\na         12\n"


def test_plain_progress_is_a_line_every_ten_seconds(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(40, "Tuning", unit="steps") as bar:
        for _ in range(30):
            now[0] += 1
            bar.advance(loss=1.25, split="seen")
    assert capsys.readouterr().err.splitlines() == [
        "Tuning: 10/40 steps (25%), 1.0 steps/s, 0:10 elapsed, 0:30 left, loss 1.25, split seen",
        "Tuning: 20/40 steps (50%), 1.0 steps/s, 0:20 elapsed, 0:20 left, loss 1.25, split seen",
        "Tuning: 30/40 steps (75%), 1.0 steps/s, 0:30 elapsed, 0:10 left, loss 1.25, split seen",
        "Tuning: 30/40 steps (75%), 1.0 steps/s, 0:30 elapsed, loss 1.25, split seen, done",
    ]


def test_progress_of_a_resumed_job_counts_only_its_own_rate(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress(100, "Tuning", unit="steps", done=90) as bar:
        now[0] += 20
        bar.advance(5)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "Tuning: 95/100 steps (95%), 4.0 s for one of the steps, 0:20 elapsed, 0:20 left"
    assert last.endswith(", 0:20 elapsed, done")


def test_progress_says_when_a_job_was_stopped(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), console.progress(None, "Reading", unit="rows") as bar:
        now[0] += 2
        bar.advance(500)
        raise ValueError
    assert capsys.readouterr().err == "Reading: 500 rows, 250 rows/s, 0:02 elapsed, stopped\n"


def test_a_short_job_inside_another_leaves_no_line(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(1, "Outer") as bar:
        assert list(console.track([1, 2], "Inner")) == [1, 2]
        now[0] += 1
        bar.advance()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["Outer"]


def test_bars_on_a_terminal_nest_and_leave_one_line(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    with console.progress(2, "Tuning", unit="steps") as bar:
        bar.advance(loss=0.5)
        for _ in console.track(range(3), "Looking", unit="rows"):
            pass
        console.say("[said] meanwhile")
        bar.advance(loss=0.25)
    text = shown.getvalue()
    assert "[said] meanwhile" in text and "Looking" in text and "loss 0.25" in text
    assert text.count("Tuning: 2/2 steps (100%)") == 1 and "Looking: " not in text and console._live is None


def test_piped_results_stay_on_stdout_while_a_bar_is_shown(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal()
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with console.progress(1, "Tuning"):
        console.say("result")
    assert piped.getvalue() == "result\n" and "result" not in shown.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text
