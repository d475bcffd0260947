"""Several tunings of one backbone in one process: each is put in when it is its turn, and taken out for the next.

Nothing is asked of a tuning method. What it did to the modules of the backbone (replaced or added a submodule, a hook,
an attribute) is found by comparing them before and after; putting it in again sets references, which takes about a
millisecond for an adapter on every linear layer. The weights of the backbone are there once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..errors import InputError, did_you_mean

Turn = Callable[[], AbstractContextManager[Any]]
_GONE = object()  # an attribute that is not there


@dataclass(frozen=True)
class _Attribute:
    """An attribute of a module, and, where it is a dict (submodules, hooks, parameters), what was in it."""

    value: Any
    content: dict[Any, Any] | None

    @classmethod
    def of(cls, value: Any) -> _Attribute:
        return cls(value, dict(value) if isinstance(value, dict) else None)

    def same(self, other: _Attribute) -> bool:
        if self.value is not other.value or self.content is None or other.content is None:
            return self.value is other.value
        pairs = zip(self.content.items(), other.content.items(), strict=False)
        return len(self.content) == len(other.content) and all(a == c and b is d for (a, b), (c, d) in pairs)

    def put(self, module: nn.Module, name: str) -> None:
        if self.value is _GONE:
            vars(module).pop(name, None)
            return
        vars(module)[name] = self.value
        if self.content is not None:  # in place: the handle of a hook holds on to the very dict
            self.value.clear()
            self.value.update(self.content)


@dataclass(frozen=True)
class _Change:
    module: nn.Module
    name: str
    before: _Attribute
    after: _Attribute


@dataclass(frozen=True)
class _Tuning:
    """What a tuning changed, and which attention function it wants."""

    changes: tuple[_Change, ...]
    attention: str


class Sharing:
    """One backbone (a `transformers` model as it was loaded) and what is tuned on it, by name.

    Steps of different tunings may alternate, in any order and from several threads: whoever computes holds the lock.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._lock = threading.RLock()
        self._tunings: dict[str, _Tuning] = {}
        self._here = ""  # the tuning that is in, '' for none
        self._depth = 0  # turns that have begun and not ended, one inside the other
        self._attention = str(model.config._attn_implementation)

    @contextmanager
    def recording(self, name: str) -> Iterator[None]:
        """The block tunes the bare backbone; what it changes is kept under `name` and taken out again, also where the
        block fails. Raises InputError when it changes the backbone's weights themselves: they are everybody's."""
        with self._lock:
            self._put("")
            before = [(module, _attributes(module)) for module in self.model.modules()]
            weights = [(key, weight, weight._version) for key, weight in self.model.named_parameters()]
            attention = self._attention
            try:
                yield
                attention = str(self.model.config._attn_implementation)
            finally:
                changes = tuple(_changes(before))
                for change in changes:
                    change.before.put(change.module, change.name)
                self._attend(self._attention)
            for key, weight, version in weights:
                if weight._version != version:
                    raise InputError(f"'{name}' changes the backbone's own weights ({key}): it can't share them")
            self._tunings[name] = _Tuning(changes, attention)

    def forget(self, name: str) -> None:
        """Let go of a tuning."""
        with self._lock:
            self._put("")
            self._tunings.pop(name, None)

    def turn(self, name: str) -> Turn:
        """What gives, each time it is called, a block in which the backbone is tuned as `name` is."""
        return partial(self._turn, name)

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        with self._lock:
            outer = self._here
            self._put(name)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth:  # a turn within a turn of the same thread: the outer one goes on
                    self._put(outer)

    def _put(self, name: str) -> None:
        """Take out the tuning that is in and put in another; nothing is done where it is the same."""
        if name == self._here:
            return
        if name and name not in self._tunings:
            raise InputError(f"adapter: '{name}' is not loaded (any more), {did_you_mean(name, self._tunings)}")
        for change in reversed(self._tunings[self._here].changes if self._here else ()):
            change.before.put(change.module, change.name)
        for change in self._tunings[name].changes if name else ():
            change.after.put(change.module, change.name)
        self._here = name
        self._attend(self._tunings[name].attention if name else self._attention)

    def _attend(self, name: str) -> None:
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)


class Resident(nn.Module):
    """A decoder that shares its backbone: for those who ask a model what it is. Who computes with it takes its turn."""

    def __init__(self, model: Any, turn: Turn) -> None:
        super().__init__()
        self.model, self.turn = model, turn

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a model, its configuration for one, is the decoder's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, **inputs: Any) -> Any:
        """The decoder's own forward, in its turn."""
        with self.turn():
            return self.model(**inputs)


def turn_of(model: Any) -> AbstractContextManager[Any]:
    """A block in which `model` may compute: its turn where it shares a backbone, else any time."""
    turn: Turn = getattr(model, "turn", nullcontext)
    return turn()


def _attributes(module: nn.Module) -> dict[str, _Attribute]:
    return {name: _Attribute.of(value) for name, value in vars(module).items()}


def _changes(before: list[tuple[nn.Module, dict[str, _Attribute]]]) -> Iterator[_Change]:
    for module, old in before:
        new = _attributes(module)
        for name in [*old, *(name for name in new if name not in old)]:
            one, other = (side.get(name, _Attribute(_GONE, None)) for side in (old, new))
            if not one.same(other):
                yield _Change(module, name, one, other)
