"""Settings by the names that transformers, TRL and LLaMA-Factory give them.

`translate` takes what was written and gives what our settings are to be, with the fate of every name that is not ours:
honoured, not needed here, or refused because it would change the result. Nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .convert import SPECIAL
from .given import Given, Outcome, Value, number, word
from .table import NOT_NEEDED, NOT_NEEDED_BEGIN, REFUSED, SAME, SAME_IN_EVALUATE

DATA = "data"  # the one key of a file that is not a setting: the rows files
IGNORE = "ignore"
OLD = ("tensorboard",)  # names that were ours once: nothing is said about them
HONOURED, LEFT, REFUSED_HERE, IGNORED = "honoured", "not needed", "refused", "ignored"
# Names that are given without a value on a command line.
SWITCHES = frozenset(
    "bf16 fp16 tf32 use_peft packing do_train do_eval do_predict overwrite_output_dir overwrite_cache plot_loss "
    "gradient_checkpointing load_best_model_at_end trust_remote_code use_dora use_rslora train_on_prompt mask_history "
    "predict_with_generate push_to_hub load_in_4bit load_in_8bit neat_packing pure_bf16 tensorboard "
    "group_by_length completion_only_loss assistant_only_loss".split()
)
NAMES = frozenset([*SAME, *SPECIAL, *NOT_NEEDED, *REFUSED])


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one name. text: as what it was taken, or why it was not."""

    item: Given
    kind: str
    text: str


@dataclass(frozen=True)
class Translation:
    """given: values for our settings in the order of what was written; what nobody claimed comes last.

    taken: the names that were written and are not ours.
    """

    given: list[Given]
    fates: list[Fate]
    taken: frozenset[str]

    @property
    def refused(self) -> list[Fate]:
        """The names that can't be honoured."""
        return [fate for fate in self.fates if fate.kind == REFUSED_HERE]


def translate(items: Sequence[Given], known: Container[str], ignore: Iterable[str] = ()) -> Translation:
    """Our settings for what was written, in a file or on the command line.

    known: the keys of the settings class.  ignore: names to leave out although the result depends on them.
    An item whose key is neither ours nor known elsewhere is passed on as it is.
    """
    tune = "epochs" in known
    others = {item.key: item for item in items}  # the last one holds: the command line
    ignored = set(ignore) - {IGNORE}
    fates = [Fate(item, IGNORED, "left out as asked") for item in items if item.key in ignored]
    kept = [(item, outcome_of(item, others, known, tune)) for item in items if item.key not in ignored]
    given: list[Given] = []
    for item, outcome in kept:
        if outcome is None or outcome.sets == {item.key: item.value}:  # ours, or nobody's
            given.append(item)
        else:
            given += [replace(item, key=key, value=value, name=item.key) for key, value in outcome.sets.items()]
    claimed = {item.key for item in given}
    for item, outcome in kept:
        if outcome is None or outcome.sets == {item.key: item.value}:
            continue
        free = {key: value for key, value in outcome.unless.items() if key not in claimed}
        given += [replace(item, key=key, value=value, name=item.key) for key, value in free.items()]
        if item.key not in OLD or outcome.refused:
            fates.append(_fate(item, outcome, free))
    taken = {item.key for item, outcome in kept if outcome is not None and outcome.sets != {item.key: item.value}}
    return Translation(given, fates, frozenset(taken | ignored))


def outcome_of(item: Given, others: Mapping[str, Given], known: Container[str], tune: bool = True) -> Outcome | None:
    """What a name comes to; None for a name that is ours, or of nobody we know."""
    key = item.key
    if key in SPECIAL:
        special = SPECIAL[key](item, others)
        if tune or ((special.sets or special.unless) and all(one in known for one in (*special.sets, *special.unless))):
            return special
    if key in known or key == DATA:
        return None
    same = SAME if tune else SAME_IN_EVALUATE
    if same.get(key) in known:
        return Outcome({same[key]: item.value})
    if not tune:
        return None
    why = NOT_NEEDED.get(key) or next((why for begin, why in NOT_NEEDED_BEGIN.items() if key.startswith(begin)), "")
    if key in REFUSED:
        return _refusal(item.value, *REFUSED[key].partition("|"))
    return Outcome(left=why) if why else None


def _refusal(value: Value, reason: str, bar: str, neutral: str) -> Outcome:
    """Refused, unless the value asks for what holds here anyway: nothing, one of `neutral`, or off without a bar."""
    text, size = word(value), number(value)
    names = ["", *neutral.split(",")]
    same = text in names or (size is not None and size in map(number, names))
    off = not bar and (text in ("false", "no", "off") or size == 0)
    return Outcome(left="that is how it is here") if same or off else Outcome(refused=reason)


def _fate(item: Given, outcome: Outcome, free: Mapping[str, Value]) -> Fate:
    """free: what it sets because nobody else does."""
    if outcome.refused:
        return Fate(item, REFUSED_HERE, outcome.refused)
    settings = {**outcome.sets, **free}
    if not settings:
        return Fate(item, LEFT, outcome.left or "others say it")
    if list(settings.values()) == [item.value]:
        return Fate(item, HONOURED, f"as {next(iter(settings))}")
    return Fate(item, HONOURED, "as " + ", ".join(f"{key} {_text(value)}" for key, value in settings.items()))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={column}" for key, column in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def notes(fates: Sequence[Fate], source: str) -> list[str]:
    """What is to be said aloud: a line for what was honoured, one for what is not needed, one for what is left out."""
    titles = {
        HONOURED: "settings by other names",
        LEFT: "not needed here",
        IGNORED: "left out as asked, with another result",
    }
    lines = []
    for kind, title in titles.items():
        found = [fate for fate in fates if fate.kind == kind]
        texts = [f"{fate.item.key} {fate.text}" for fate in found]
        if kind == LEFT:  # many names share a reason
            reasons = dict.fromkeys(fate.text for fate in found)
            names = {why: [fate.item.key for fate in found if fate.text == why] for why in reasons}
            texts = [f"{', '.join(names[why])} ({why})" for why in reasons]
        if kind == IGNORED:
            texts = [fate.item.key for fate in found]
        lines += [f"{source}: {title}: {', '.join(texts)}"] if found else []
    return lines
