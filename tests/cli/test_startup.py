"""The help comes at once, and a broken pipe is no error: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pydantic",
    "yaml",
    "matplotlib",
    "sklearn",
    "sacrebleu",
    "numpy",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom instructrec.cli import main\nassert main(['--help']) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n" and "tune" in result.stdout


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "instructrec", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        seconds.append(spent)
    assert min(seconds) < 0.5


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "instructrec", "config", "show"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_debug_after_a_double_dash_is_text() -> None:
    command = [sys.executable, "-m", "instructrec", "models", "--", "--debug"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "models: --debug: not understood (want list or fetch NAME)\n")
