"""Talking with a model in the terminal."""

from __future__ import annotations

import re
import sys

from .. import console
from ..errors import InputError, did_you_mean
from ..inference.assistant import Assistant


def converse(assistant: Assistant) -> None:
    """Ask, answer, remember. Ctrl-C stops an answer and keeps what was said; twice in a row it leaves."""
    if sys.stdin.isatty():
        console.note("/reset forgets what was said, /quit or Ctrl-D leaves, Ctrl-C stops an answer")
        if sys.platform != "win32":
            import readline  # noqa: F401 (gives input() line editing and history)
    prompt = "> " if sys.stdin.isatty() else ""
    messages: list[tuple[str, str]] = []
    interrupted = False
    while True:
        try:
            text = input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.note("")
            if interrupted:
                return
            interrupted = True
            console.note("Ctrl-C again, or /quit, leaves")
            continue
        interrupted = False
        if text == "/quit":
            return
        if text == "/reset":
            messages.clear()
            console.note("forgotten")
        elif re.fullmatch(r"/[a-z]+", text):
            console.note(f"{text}: no such command, {did_you_mean(text, ('/reset', '/quit'))}")
        elif text:
            interrupted = _answer(assistant, messages, text)


def _answer(assistant: Assistant, messages: list[tuple[str, str]], text: str) -> bool:
    """Stream the answer to `text` and remember both; True if Ctrl-C cut it short."""
    pieces: list[str] = []
    interrupted = False
    try:
        for piece in assistant.chat([*messages, ("user", text)]):
            pieces.append(piece)
            console.write(piece)
    except KeyboardInterrupt:
        interrupted = True
    except InputError as error:  # a talk that has become too long, say: the talk goes on without this turn
        console.fail(str(error))
        console.note("/reset forgets what was said before")
        return False
    console.write("\n")
    if pieces:
        messages += [("user", text), ("assistant", "".join(pieces))]
    return interrupted
