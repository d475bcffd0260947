"""Conversations as rows hold them: messages (role, content), sharegpt (from, value), history; and what a bad row is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import did_you_mean, nearest
from .records import ROLES as SPEAKERS
from .records import Turn

TALKS = ("messages", "conversations")  # columns that hold one
# What a tool is asked is written by the model and learned; what it replies is shown to the model and not learned.
TOOLS = {"function_call": "assistant", "observation": "user", "tool": "user"}
ROLES = {role: role for role in SPEAKERS} | TOOLS
FROM = ROLES | {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
SPELLINGS = (("role", "content", ROLES), ("from", "value", FROM))


class RowError(Exception):
    """One row cannot be used: the field at fault ('' for the whole line) and why."""

    def __init__(self, field: str, reason: str, below: int = 0) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.below = below  # lines below the row's first one


def kind(value: Any) -> str:
    """The type of a value in the words of JSON."""
    if value is None:
        return "null"
    for types, name in ((bool, "boolean"), ((int, float), "number"), (str, "text"), ((list, tuple), "list")):
        if isinstance(value, types):  # bool before int: True is an int
            return name
    return "object" if isinstance(value, Mapping) else type(value).__name__


def shown(name: str) -> str:
    """A column name that is safe to print: control characters escaped, 60 characters at most."""
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= 60 else name[:59] + "…"


def wrong_type(field: str, value: Any, want: str = "text") -> RowError:
    """The error of a value of another type."""
    return RowError(field, f"wrong type (got {kind(value)}, want {want})")


def nonempty(field: str, value: Any) -> str:
    """Text that is not blank; raises `RowError`."""
    if not isinstance(value, str):
        raise wrong_type(field, value)
    if not value or value.isspace():
        raise RowError(field, f"{'only white space' if value else 'empty'} (want text)")
    return value


def history(row: Mapping[str, Any], column: str) -> list[Turn]:
    """Earlier turns, [[user, assistant], …]; their answers are learned too, as those of `messages` are."""
    value = row[column]
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise wrong_type(str(column), value, "a list of pairs")
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            got = f"a list of {len(pair)}" if isinstance(pair, (list, tuple)) else kind(pair)
            raise RowError(f"{column}[{index}]", f"not a pair (got {got}, want [user, assistant])")
        turns.append(Turn("user", nonempty(f"{column}[{index}][0]", pair[0])))
        turns.append(Turn("assistant", nonempty(f"{column}[{index}][1]", pair[1]), supervised=True))
    return turns


def _supervised(place: str, message: Mapping[str, Any], spoken: str, role: str) -> bool:
    """Whether a message is learned: assistant's, and neither `loss` nor `weight` is 0 or false."""
    learned = role == "assistant"
    if "loss" not in message and "weight" not in message:
        return learned
    for key in ("loss", "weight"):
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # False and True are 0 and 1
            raise RowError(f"{place}.{key}", f"neither 0 nor 1 (got {shown(repr(value))}, want 0, 1, false or true)")
        if value and role != "assistant":
            raise RowError(f"{place}.{key}", f"only assistant turns are learned (got {value} on {spoken})")
        learned = learned and bool(value)
    return learned


def messages(column: str, value: Any, system: str) -> tuple[Turn, ...]:
    """Turns of [{role, content}, …] or [{from, value}, …]: a system message first if any, then user and assistant."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(column, value, "a list of messages")
    turns: list[Turn] = [Turn("system", system)] if system else []
    for index, message in enumerate(value):
        place = f"{column}[{index}]"
        if not isinstance(message, (dict, Mapping)):  # a dict is told much faster than a Mapping
            raise wrong_type(place, message, "an object with role and content")
        speaker, content, known = SPELLINGS["from" in message and "role" not in message]
        for key in (speaker, content):
            if key not in message:
                near = nearest(key, [name for name in message if isinstance(name, str)])
                raise RowError(f"{place}.{key}", f"missing (got '{shown(near)}', want '{key}')" if near else "missing")
        spoken = message[speaker]
        if not isinstance(spoken, str):
            raise wrong_type(f"{place}.{speaker}", spoken)
        role = known.get(spoken)
        if role is None:
            raise RowError(f"{place}.{speaker}", f"unknown role '{shown(spoken)}', {did_you_mean(spoken, known)}")
        if role == "system" and not index and message[content] in ("", None):
            continue
        _in_order(place, role, turns, spoken)
        text = nonempty(f"{place}.{content}", message[content])
        turns.append(Turn(role, text, _supervised(place, message, spoken, role)))
    if not turns or turns[-1].role != "assistant":
        last = f"{column}[{len(value) - 1}]" if len(value) else column
        got = f"a {turns[-1].role} turn" if turns else "no turns"
        raise RowError(last, f"no assistant turn at the end (got {got}, want an answer)")
    if not any(turn.supervised for turn in turns):
        raise RowError(column, "every assistant turn is switched off (want one with loss)")
    return tuple(turns)


def _in_order(place: str, role: str, before: list[Turn], spoken: str) -> None:
    previous = before[-1].role if before else ""
    want = "assistant" if previous == "user" else "user"
    got = role if spoken == role else f"{role} ({spoken})"
    if role == "system" and before:
        raise RowError(place, f"system turn not at the start (got it after {previous}, want {want})")
    if role not in ("system", want):
        after = f" after {previous}" if previous else " first"
        raise RowError(place, f"role order (got {got}{after}, want {want})")


def tools_in(value: Any) -> bool:
    """Whether a conversation has turns of tools."""
    return any((message.get("from") or message.get("role")) in TOOLS for message in value)
