"""Which column is what: from a row's keys and values to a `Record`.

The first row in which every required role is found decides for the whole file; each later row is held to that,
so that a row which lacks a column is named and not read in some other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError, did_you_mean, nearest
from .records import ROLES as SPEAKERS
from .records import Origin, Record, Turn

ROLES = ("instruction", "input", "answer", "system", "history", "task", "group", "alternatives", "messages")
# Names that are guessed, the surest first. `input` and `text` are instructions only where nothing better is there.
INSTRUCTION = ("instruction", "prompt", "query", "question", "指令", "问题", "input", "输入", "text")
INPUT = ("input", "context", "输入")
ANSWER = ("answer", "output", "response", "completion", "target", "label", "回答", "答案", "输出")
USUAL = {"instruction": INSTRUCTION, "answer": ANSWER}
PLANS = 1000  # different sets of keys remembered; more are worked out again


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


def _wrong_type(field: str, value: Any, want: str = "text") -> RowError:
    return RowError(field, f"wrong type (got {kind(value)}, want {want})")


def _nonempty(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(field, value)
    if not value or value.isspace():
        raise RowError(field, f"{'only white space' if value else 'empty'} (want text)")
    return value


def _optional(row: Mapping[str, Any], column: str | None) -> str:
    """Text of a column that may be absent, null or blank (then '')."""
    value = row[column] if column is not None else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(str(column), value)
    return "" if value.isspace() else value


def _name(row: Mapping[str, Any], column: str) -> str | None:
    """A task or group: text, or a whole number taken as text."""
    if isinstance(row[column], int) and not isinstance(row[column], bool):
        return str(row[column])
    return _optional(row, column).strip() or None


def _alternatives(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    value = row[column]
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(str(column), value, "a list of texts")
    return tuple(_nonempty(f"{column}[{index}]", text) for index, text in enumerate(value))


def _history(row: Mapping[str, Any], column: str) -> list[Turn]:
    """Earlier turns, [[user, assistant], …]; their answers are learned too, as those of `messages` are."""
    value = row[column]
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(str(column), value, "a list of pairs")
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            got = f"a list of {len(pair)}" if isinstance(pair, (list, tuple)) else kind(pair)
            raise RowError(f"{column}[{index}]", f"not a pair (got {got}, want [user, assistant])")
        turns.append(Turn("user", _nonempty(f"{column}[{index}][0]", pair[0])))
        turns.append(Turn("assistant", _nonempty(f"{column}[{index}][1]", pair[1]), supervised=True))
    return turns


def _supervised(place: str, message: Mapping[str, Any]) -> bool:
    """Whether a message is learned: assistant's, and neither `loss` nor `weight` is 0 or false."""
    learned = message["role"] == "assistant"
    if "loss" not in message and "weight" not in message:
        return bool(learned)
    for key in ("loss", "weight"):
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # False and True are 0 and 1
            raise RowError(f"{place}.{key}", f"neither 0 nor 1 (got {shown(repr(value))}, want 0, 1, false or true)")
        if value and message["role"] != "assistant":
            raise RowError(f"{place}.{key}", f"only assistant turns are learned (got {value} on {message['role']})")
        learned = learned and bool(value)
    return learned


def _messages(column: str, value: Any, system: str) -> tuple[Turn, ...]:
    """Turns of [{role, content}, …]: a system message first if any, then user and assistant by turns."""
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(column, value, "a list of messages")
    turns: list[Turn] = [Turn("system", system)] if system else []
    for index, message in enumerate(value):
        place = f"{column}[{index}]"
        if not isinstance(message, (dict, Mapping)):  # a dict is told much faster than a Mapping
            raise _wrong_type(place, message, "an object with role and content")
        for key in ("role", "content"):
            if key not in message:
                near = nearest(key, [name for name in message if isinstance(name, str)])
                raise RowError(f"{place}.{key}", f"missing (got '{shown(near)}', want '{key}')" if near else "missing")
        role = message["role"]
        if not isinstance(role, str):
            raise _wrong_type(f"{place}.role", role)
        if role not in SPEAKERS:
            raise RowError(f"{place}.role", f"unknown role '{shown(role)}', {did_you_mean(role, SPEAKERS)}")
        if role == "system" and not index and message["content"] in ("", None):
            continue
        _in_order(place, role, turns)
        turns.append(Turn(role, _nonempty(f"{place}.content", message["content"]), _supervised(place, message)))
    if not turns or turns[-1].role != "assistant":
        last = f"{column}[{len(value) - 1}]" if len(value) else column
        got = f"a {turns[-1].role} turn" if turns else "no turns"
        raise RowError(last, f"no assistant turn at the end (got {got}, want an answer)")
    if not any(turn.supervised for turn in turns):
        raise RowError(column, "every assistant turn is switched off (want one with loss)")
    return tuple(turns)


def _in_order(place: str, role: str, before: list[Turn]) -> None:
    previous = before[-1].role if before else ""
    want = "assistant" if previous == "user" else "user"
    if role == "system" and before:
        raise RowError(place, f"system turn not at the start (got it after {previous}, want {want})")
    if role not in ("system", want):
        after = f" after {previous}" if previous else " first"
        raise RowError(place, f"role order (got {role}{after}, want {want})")


class Columns:
    """Turns rows into records, with what the user said about columns and what is guessed from their names."""

    def __init__(self, given: Mapping[str, Any] | None = None, instruction: str = "") -> None:
        self.given = check_columns(given or {}, instruction)
        self.fixed = instruction
        self.roles: dict[str, str] = {}  # role -> column, once the first good row has decided it
        self._seen: dict[str, None] = {}  # an ordered set of the columns met
        self._plans: dict[tuple[str, ...], tuple[dict[str, str], tuple[str, ...]]] = {}

    def record(self, row: Mapping[str, Any], origin: Origin) -> Record:
        """The record of one row; raises `RowError`."""
        keys = tuple(row)
        plan = self._plans.get(keys)
        if plan is None:
            plan = self.settle(keys)
        present, extras = plan
        system = _optional(row, present["system"]) if "system" in present else ""
        if "messages" in present:
            turns = _messages(present["messages"], row[present["messages"]], system)
        else:
            turns = self._turns(row, present, system)
        return Record(
            turns,
            _name(row, present["task"]) if "task" in present else None,
            _name(row, present["group"]) if "group" in present else None,
            _alternatives(row, present["alternatives"]) if "alternatives" in present else (),
            (),
            origin,
            {key: row[key] for key in extras},
        )

    def _turns(self, row: Mapping[str, Any], present: Mapping[str, str], system: str) -> tuple[Turn, ...]:
        if self.fixed:
            user = Turn("user", self.fixed, input=_nonempty(present["input"], row[present["input"]]))
        else:
            text = _nonempty(present["instruction"], row[present["instruction"]])
            user = Turn("user", text, input=_optional(row, present.get("input")))
        answer = Turn("assistant", _nonempty(present["answer"], row[present["answer"]]), supervised=True)
        history = _history(row, present["history"]) if "history" in present else []
        return (*([Turn("system", system)] if system else []), *history, user, answer)

    def settle(self, keys: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Role -> column for a row with these keys, and the keys that are kept as metadata."""
        roles = self.roles or self._guess(keys)
        for role in self._required(roles):
            if roles[role] not in keys:
                others = [key for key in keys if key not in roles.values()]
                raise _missing(roles[role], USUAL.get(role, ()), others, want=roles[role])
        for role, names in USUAL.items():
            # A first row without its `instruction` would make a lesser column the instruction of the whole file.
            chosen = roles.get(role, "")
            if role not in self.given and chosen.strip().lower() in names:
                for better in names[: names.index(chosen.strip().lower())]:
                    if better in keys and better not in roles.values():
                        why = f"not in the rows before, which have '{chosen}' as {role} (want a column mapping)"
                        raise RowError(better, why)
        self.roles = roles
        present = {role: column for role, column in roles.items() if column in keys}
        used = set(present.values())
        extras = tuple(key for key in keys if key not in used)
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[keys] = present, extras
        self._seen.update(dict.fromkeys(keys))
        return present, extras

    def _required(self, roles: Mapping[str, str]) -> tuple[str, ...]:
        if "messages" in roles:
            return ("messages",)
        return ("input" if self.fixed else "instruction", "answer")

    def _guess(self, keys: Iterable[str]) -> dict[str, str]:
        roles = dict(self.given)
        free = {key.strip().lower(): key for key in keys if key not in roles.values()}
        free |= {key: key for key in keys if key not in roles.values()}

        def guess(role: str, names: tuple[str, ...], *, needed: bool = False) -> None:
            options = [free[name] for name in names if name in free]
            options += [] if needed else names  # a column that this row lacks may be in later ones
            column = next((option for option in options if option not in roles.values()), None)
            if role not in roles and column is not None:
                roles[role] = column
            if role not in roles and needed:
                raise _missing(role, names, free.values())

        if "messages" in free and not roles.keys() & {"instruction", "input", "answer"}:
            roles.setdefault("messages", free["messages"])
        if "messages" in roles:
            if self.fixed:
                raise InputError("instruction: rows of messages bring their own (got a fixed one as well)")
        else:
            if not self.fixed:
                guess("instruction", INSTRUCTION, needed=True)
            elif "instruction" in roles:
                roles["input"] = roles.pop("instruction")
            else:
                guess("input", ("input", *INSTRUCTION), needed=True)
            guess("answer", ANSWER, needed=True)
            guess("input", INPUT)
            if roles.get("instruction", "").strip().lower() == "instruction":
                guess("history", ("history",))
        for role in ("system", "task", "group", "alternatives"):
            guess(role, (role,))
        return roles

    def to_json(self) -> dict[str, Any]:
        """What decides how a row is read, as plain values."""
        return {"given": self.given, "instruction": self.fixed, "roles": self.roles}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Columns:
        """Columns that read rows as those did that `to_json` was asked of."""
        columns = cls(known["given"], known["instruction"])
        columns.roles = dict(known["roles"])
        return columns

    def unseen(self) -> str:
        """What is wrong with the mapping when a column the user named is in no row at all, else ''."""
        for role, column in self.given.items():
            if column not in self._seen:
                return f"{role}: no row has '{shown(column)}', {did_you_mean(column, map(shown, self._seen))}"
        return ""

    def describe(self) -> str:
        """What was guessed: `text -> instruction, label -> answer; kept as metadata: source`."""
        used = {self.roles[role]: role for role in ROLES if self.roles.get(role) in self._seen}
        text = ", ".join(f"{shown(column)} -> {role}" for column, role in used.items())
        extras = [shown(column) for column in self._seen if column not in used]
        if extras:
            more = f" and {len(extras) - 20} more" if len(extras) > 20 else ""
            text += f"; kept as metadata: {', '.join(extras[:20])}{more}"
        return text

    @property
    def shape(self) -> str:
        """The name of the layout: messages, alpaca, prompt/completion or columns."""
        if "messages" in self.roles:
            return "messages"
        pair = self.roles.get("instruction"), self.roles.get("answer")
        return {("instruction", "output"): "alpaca", ("prompt", "completion"): "prompt/completion"}.get(
            (str(pair[0]), str(pair[1])), "columns"
        )


def _missing(field: str, usual: Iterable[str], keys: Iterable[str], want: str = "") -> RowError:
    """The error of a row without a required column, with the key that looks like a slip of it (`reponse`)."""
    names, keys = list(usual), list(keys)
    for key in keys:
        match = nearest(key, [want, *names], cutoff=0.75)
        if match:
            return RowError(shown(field), f"missing (got '{shown(key)}', want '{shown(want or match)}')")
    got = ", ".join(shown(key) for key in keys[:8]) or "nothing else"
    offer = "" if want else f"; want {', '.join(names[:6])} or a column mapping"
    return RowError(shown(field), f"missing (got {got}{offer})")


def check_columns(given: Mapping[str, Any], instruction: str) -> dict[str, str]:
    """The user's mapping, checked: known roles, one column each. Raises `InputError`."""
    for role, column in given.items():
        if role not in ROLES:
            raise InputError(f"columns: unknown role '{role}', {did_you_mean(str(role), ROLES)}")
        if isinstance(column, bool) or not isinstance(column, (str, int)) or column == "":
            raise InputError(f"columns: {role}: not a column (got {column!r}, want a name, or a number in TSV)")
    columns = {role: str(column) for role, column in given.items()}
    for column in columns.values():
        twice = [role for role in columns if columns[role] == column]
        if len(twice) > 1:
            raise InputError(f"columns: '{column}' is given twice (got {' and '.join(twice)}, want one role)")
    if "messages" in columns and columns.keys() & {"instruction", "input", "answer", "history"}:
        raise InputError("columns: messages hold instruction and answer already (got both, want one of them)")
    if instruction and {"instruction", "input"} <= columns.keys():
        raise InputError("columns: instruction: given as a column and as a fixed text (want one of them)")
    return columns
