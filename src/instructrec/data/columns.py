"""Which column is what: from a row's keys and values to a `Record`.

The first row in which every required role is found decides for the whole file; each later row is held to that,
so that a row which lacks a column is named and not read in some other way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError, did_you_mean, nearest
from .records import Media, Origin, Record, Turn
from .turns import TALKS, RowError, history, messages, nonempty, shown, tools_in, wrong_type

MEDIA = ("image", "audio", "video")
_MEDIA = frozenset(MEDIA)
ROLES = ("instruction", "input", "answer", "system", "history", "task", "group", "alternatives", "messages", *MEDIA)
# Names that are guessed, the surest first. `input` and `text` are instructions only where nothing better is there.
INSTRUCTION = ("instruction", "prompt", "query", "question", "指令", "问题", "input", "输入", "text")
INPUT = ("input", "context", "输入")
ANSWER = ("answer", "output", "response", "completion", "target", "label", "回答", "答案", "输出")
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}\"\n]{1,60})\}")  # {column} in an instruction; {{ and }} are braces
USUAL = {"instruction": INSTRUCTION, "answer": ANSWER}
PLANS = 1000  # different sets of keys remembered; more are worked out again


def _optional(row: Mapping[str, Any], column: str | None) -> str:
    """Text of a column that may be absent, null or blank (then '')."""
    value = row[column] if column is not None else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong_type(str(column), value)
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
        raise wrong_type(str(column), value, "a list of texts")
    return tuple(nonempty(f"{column}[{index}]", text) for index, text in enumerate(value))


def _media(role: str, column: str, value: Any) -> tuple[Media, ...] | None:
    """Where the pictures of one column are: paths, bytes, {path, bytes}, or a list of these; None if it is no media."""
    if isinstance(value, (list, tuple)):
        parts = [_media(role, f"{column}[{index}]", item) for index, item in enumerate(value)]
        return None if None in parts else tuple(one for part in parts for one in part or ())
    if isinstance(value, Mapping) and value.keys() & {"path", "bytes"}:
        value = value.get("path") or b""
    if isinstance(value, (bytes, bytearray)):
        return (Media(role, "", column),)
    if isinstance(value, str):
        return (Media(role, value, column),) if value else ()
    return () if value is None else None


def _plain(value: Any) -> str:
    """A value in the spelling that a mapping of labels uses: 3.0, which pandas makes of 3, is 3."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def places(instruction: str) -> tuple[str, ...]:
    """The columns named in an instruction: `Which mood? {text}`."""
    return tuple(dict.fromkeys(name for name in _PLACE.findall(instruction) if name))


class Columns:
    """Turns rows into records, with what the user said about columns and what is guessed from their names.

    instruction: for all rows; with `{column}` in it, it is filled from each row, else the row's text is its input.
    labels: value of the answer's column -> the answer.
    """

    def __init__(
        self, given: Mapping[str, Any] | None = None, instruction: str = "", labels: Mapping[str, str] | None = None
    ) -> None:
        self.given = check_columns(given or {}, instruction)
        self.fixed = instruction
        self.places = places(instruction)
        self.labels = dict(labels or {})
        self.roles: dict[str, str] = {}  # role -> column, once the first good row has decided it
        self.met: Counter[str] = Counter()  # rows with media of a kind, or with turns of tools
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
            talk = row[present["messages"]]
            turns = messages(present["messages"], talk, system)
            if tools_in(talk):
                self.met["tools"] += 1
        else:
            turns = self._turns(row, present, system)
        metadata = {key: row[key] for key in extras} if extras else {}
        return Record(
            turns,
            _name(row, present["task"]) if "task" in present else None,
            _name(row, present["group"]) if "group" in present else None,
            _alternatives(row, present["alternatives"]) if "alternatives" in present else (),
            self._media(row, present, metadata) if not _MEDIA.isdisjoint(present) else (),
            origin,
            metadata,
        )

    def _media(self, row: Mapping[str, Any], present: Mapping[str, str], metadata: dict[str, Any]) -> tuple[Media, ...]:
        found: list[Media] = []
        for role in MEDIA:
            if role not in present:
                continue
            column = present[role]
            some = _media(role, column, row[column])
            if some is None:  # a column that only has such a name
                metadata[column] = row[column]
            else:
                found += some
                self.met[role] += bool(some)
        return tuple(found)

    def _turns(self, row: Mapping[str, Any], present: Mapping[str, str], system: str) -> tuple[Turn, ...]:
        if self.places:
            user = Turn("user", self._filled(row))
        elif self.fixed:
            user = Turn("user", self.fixed, input=nonempty(present["input"], row[present["input"]]))
        else:
            text = nonempty(present["instruction"], row[present["instruction"]])
            user = Turn("user", text, input=_optional(row, present.get("input")))
        answer = Turn("assistant", self._answer(present["answer"], row[present["answer"]]), supervised=True)
        if not system and "history" not in present:
            return user, answer
        earlier = history(row, present["history"]) if "history" in present else []
        return (*([Turn("system", system)] if system else []), *earlier, user, answer)

    def _filled(self, row: Mapping[str, Any]) -> str:
        """The instruction with the row's values in its places; a number or truth value is written out."""

        def fill(match: re.Match[str]) -> str:
            column = match[1]
            if column is None:
                return match[0][0]
            value = row[column]
            return _plain(value) if isinstance(value, (int, float)) else nonempty(column, value)

        return _PLACE.sub(fill, self.fixed)

    def _answer(self, column: str, value: Any) -> str:
        if not self.labels or not isinstance(value, (str, int, float)):
            return nonempty(column, value)
        name = self.labels.get(_plain(value).strip())
        if name is None:
            raise RowError(column, f"no label for '{shown(_plain(value))}', {did_you_mean(_plain(value), self.labels)}")
        return name

    def settle(self, keys: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Role -> column for a row with these keys, and the keys that are kept as metadata."""
        roles = self.roles or self._guess(keys)
        for role in self._required(roles):
            column = roles.get(role, role)  # a column named in the instruction stands for itself
            if column not in keys:
                others = [key for key in keys if key not in roles.values()]
                raise _missing(column, USUAL.get(role, ()), others, want=column)
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
        used = {*present.values(), *self.places}
        extras = tuple(key for key in keys if key not in used)
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[keys] = present, extras
        self._seen.update(dict.fromkeys(keys))
        return present, extras

    def _required(self, roles: Mapping[str, str]) -> tuple[str, ...]:
        if "messages" in roles:
            return ("messages",)
        if self.places:
            return (*self.places, "answer")
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

        talk = next((free[name] for name in TALKS if name in free), None)
        if talk and not roles.keys() & {"instruction", "input", "answer"}:
            roles.setdefault("messages", talk)
        if "messages" in roles:
            if self.fixed:
                raise InputError("instruction: rows of messages bring their own (got a fixed one as well)")
        elif self.places:
            guess("answer", tuple(name for name in ANSWER if free.get(name) not in self.places), needed=True)
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
        for role in MEDIA:
            guess(role, (role, f"{role}s"))
        return {role: column for role, column in roles.items() if column not in self.places or role == "answer"}

    def to_json(self) -> dict[str, Any]:
        """What decides how a row is read, as plain values."""
        known: dict[str, Any] = {"given": self.given, "instruction": self.fixed}
        return known | {"labels": self.labels, "roles": self.roles}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Columns:
        """Columns that read rows as those did that `to_json` was asked of."""
        columns = cls(known["given"], known["instruction"], known["labels"])
        columns.roles = dict(known["roles"])
        return columns

    def met_in_rows(self) -> dict[str, Any]:
        """What was met in rows, as plain values; `meet` adds it to that of other rows."""
        return {"met": dict(self.met), "columns": list(self._seen)}

    def meet(self, told: Mapping[str, Any]) -> None:
        """What `met_in_rows` said of rows that come after those of these columns."""
        self.met.update(told["met"])
        self._seen.update(dict.fromkeys(told["columns"]))

    def unseen(self) -> str:
        """What is wrong with the mapping when a column the user named is in no row at all, else ''."""
        for role, column in self.given.items():
            if column not in self._seen:
                return f"{role}: no row has '{shown(column)}', {did_you_mean(column, map(shown, self._seen))}"
        return ""

    def notes(self) -> list[str]:
        """What was met in the rows that users should know of."""
        media = [f"{self.met[role]:,} with {role}" for role in MEDIA if self.met[role]]
        found = [f"media are kept but not learned from (rows: {', '.join(media)})"] if media else []
        if tools := self.met["tools"]:
            how = "function_call is learned as the assistant's, what a tool replies is given as the user's"
            found.append(f"{tools:,} conversations with tools: {how}")
        return found

    def describe(self) -> str:
        """What was guessed: `text -> instruction, label -> answer; kept as metadata: source`."""
        used = {column: "instruction" for column in self.places if column in self._seen}
        used |= {self.roles[role]: role for role in ROLES if self.roles.get(role) in self._seen}
        text = ", ".join(f"{shown(column)} -> {role}" for column, role in used.items())
        extras = [shown(column) for column in self._seen if column not in used]
        if extras:
            more = f" and {len(extras) - 20} more" if len(extras) > 20 else ""
            text += f"; kept as metadata: {', '.join(extras[:20])}{more}"
        return text

    @property
    def shape(self) -> str:
        """The name of the layout: messages, sharegpt, alpaca, prompt/completion or columns."""
        if "messages" in self.roles:
            return "sharegpt" if self.roles["messages"] in TALKS[1:] else "messages"
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
    if places(instruction) and columns.keys() & {"instruction", "input"}:
        raise InputError(
            "columns: instruction: its text names its columns itself (want no instruction or input column)"
        )
    if instruction and {"instruction", "input"} <= columns.keys():
        raise InputError("columns: instruction: given as a column and as a fixed text (want one of them)")
    return columns
