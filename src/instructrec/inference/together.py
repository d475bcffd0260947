"""Several run folders over one backbone in one process: loaded once, answering side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..models import backbone as backbones
from ..models import methods
from ..models.backbone import Backbone
from ..models.choosing import Chooser
from ..models.methods import Method
from ..models.reading import Reading
from ..models.sharing import Resident, Sharing
from .loading import Loaded, fingerprint, head_of, is_run, open_target, run_of

Place = str | os.PathLike[str]


class Together:
    """What is loaded, by name. Options are those of `open_target`, for all of them.

    Raises InputError for runs that can't live together: on different backbones, or tuned in whole.
    """

    def __init__(self, targets: Sequence[Place] | Mapping[str, Place], options: Mapping[str, Any]) -> None:
        places = targets if isinstance(targets, Mapping) else named(targets)
        if not places:
            raise InputError("Assistant: no run was named (want run folders over one backbone)")
        self.options = dict(options)
        self.loaded: dict[str, Loaded] = {}
        self._targets: dict[str, str] = {}
        self._base: Backbone | None = None
        chosen = {str(name): os.fspath(place) for name, place in places.items()}
        for target in chosen.values():  # before the backbone is loaded, which takes longest
            _shareable(target)
        for name, target in chosen.items():
            self.load(name, target)

    def load(self, name: str, target: str) -> Loaded:
        """One more. Raises InputError, those that are loaded staying as they are, where it can't be had."""
        if name in self.loaded:
            raise InputError(f"adapter: '{name}' is loaded already ({self._targets[name]}); want another name")
        _shareable(target)
        base = self._backbone(target)
        with self._sharing.recording(name):
            alone = open_target(target, base=base, **self.options)
        turn = self._sharing.turn(name)
        if isinstance(alone.model, (Reading, Chooser)):
            alone.model.turn = turn
            self.loaded[name] = alone
        else:
            self.loaded[name] = replace(alone, model=Resident(alone.model, turn).eval())
        self._targets[name] = target
        return self.loaded[name]

    def unload(self, name: str) -> None:
        """One less: its weights are let go of."""
        self.find(name)
        if len(self.loaded) == 1:
            raise InputError(f"adapter: '{name}' is the last one (want one more loaded before)")
        self._sharing.forget(name)
        del self.loaded[name], self._targets[name]

    def find(self, name: str) -> Loaded:
        """What is loaded as `name`. Raises InputError naming the nearest."""
        if name not in self.loaded:
            raise InputError(f"adapter: none is called '{name}', {did_you_mean(name, self.loaded)}")
        return self.loaded[name]

    def _backbone(self, target: str) -> Backbone:
        """The backbone, loaded for the first; for the others, after making sure that it is theirs too."""
        offline = bool(self.options.get("offline", False))
        about = run_of(Path(target))["backbone"] if is_run(target) else {"name": target, "fingerprint": ""}
        if self._base is None:
            dtype = backbones.compute_dtype(self.options.get("precision", "auto"))
            head = head_of(Path(target))
            self._base = backbones.load(about["name"], dtype=dtype, offline=offline, head=head)
            self._sharing = Sharing(self._base.model)
            return self._base
        if about["name"] == self._base.name:
            return self._base
        found = about["fingerprint"] or fingerprint(backbones.find(about["name"], offline))
        if not found or found != fingerprint(self._base.folder):
            first = next(iter(self._targets.values()))
            raise InputError(
                f"{target}: its backbone is '{about['name']}', that of {first} '{self._base.name}': "
                "those on another backbone want an Assistant of their own"
            )
        return self._base


def named(targets: Sequence[Place]) -> dict[str, str]:
    """Name -> target, the name being the last part of the path. Raises InputError where two would have the same."""
    found: dict[str, str] = {}
    for target in [os.fspath(target) for target in targets]:
        name = Path(target).name or target
        if name in found:
            raise InputError(
                f"Assistant: two are called '{name}' ({found[name]}, {target}); "
                f"want names for them: {{'one': '{found[name]}', 'other': '{target}'}}"
            )
        found[name] = target
    return found


def check_shareable(method: Method, target: str) -> None:
    """Raises InputError for a method that changes the weights of the backbone: they are everybody's."""
    if not method.switchable:
        raise InputError(
            f"{target}: method '{method.name}' tuned the whole model, which can't share a backbone: "
            "it wants an Assistant of its own"
        )


def _shareable(target: str) -> None:
    if is_run(target):
        check_shareable(methods.get(run_of(Path(target))["method"]), target)
