"""Options of a command line that go by the names of other programs."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ..errors import InputError
from . import NAMES, SWITCHES
from .given import TRUTHS


def as_assignments(arguments: Sequence[str], known: Container[str]) -> list[str]:
    """`--num-train-epochs 3` as `num_train_epochs=3`; `--bf16` as `bf16=true`, `--no-packing` as `packing=false`.

    known: the options that are there as such.  Raises InputError for an option at the end that wants a value.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words, result = list(arguments[:end]), list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        positive = name.removeprefix("no_")
        if not flag.startswith("--") or flag in known or not {name, positive} & NAMES:
            result.append(word)
            continue
        if name not in NAMES:
            value = "false"
        elif not equals:
            switch = name in SWITCHES and (not words or words[0].lower() not in TRUTHS)
            if not switch and not words:
                raise InputError(f"{flag}: has no value")
            value = "true" if switch else words.pop(0)
        result.append(f"{name if name in NAMES else positive}={value}")
    return [*result, *arguments[end:]]
