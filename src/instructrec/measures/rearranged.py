"""What a row asks, said in another arrangement or with more around it, so that the right answer stays right.

Each function is given what a row asks, a strength and a random generator, and returns the same kind of thing; the row
itself where it can't be had of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from .edits import count
from .kept import Said
from .words import words

Arrangement = Callable[[Said, float, Random], Said]

LONGEST = 300  # characters of an instruction that runs on into its text: more is a text itself
MOST = 5  # sentences of distraction at strength 1
_ENDED = re.compile(r"[.!?。！？]['\")”’）]?\s*$")
_BESIDE = (  # what points to where the text stands
    (r"\bbelow\b", "above"), (r"\bBelow\b", "Above"), (r"\b([Tt]he|[Tt]his) following\b", r"\1 above"),
    ("下面", "上面"), ("以下", "以上"), ("下列", "上列"), ("下方", "上方"), ("如下", "如上"),
)  # fmt: skip
_ITEM = re.compile(
    r"^(?P<mark>[ \t]*(?:(?:[Oo]ption|[Cc]hoice|选项) ?)?"
    r"(?:\(?(?P<name>[A-Ha-h]|\d{1,2}|[一二三四五六])[.):：、．）]|[-*•])[ \t]*)"
    r"(?P<text>\S.*?)[ \t]*$",
    re.M,
)
_AND = r"(?:\s*,\s*or\s+|\s*,\s*and\s+|\s+or\s+|\s+and\s+|\s*,\s*|\s*/\s*|、|，|还是|或者|或|和)"


def distractor_before(said: Said, strength: float, draw: Random) -> Said:
    """Sentences that have nothing to do with the row stand before its instruction."""
    extra, gap = _distraction(said, strength, draw)
    return replace(said, instruction=gap.join([*extra, said.instruction]))


def distractor_after(said: Said, strength: float, draw: Random) -> Said:
    """Such sentences follow the instruction, before the input. Not where the instruction ends with a colon or goes over
    into what it is about: they would become part of that."""
    extra, gap = _distraction(said, strength, draw)
    head = said.instruction.rstrip()
    if said.split()[1] or head.endswith((":", "：", ",", "，")):
        return said
    if not _ENDED.search(head):
        head += "。" if said.chinese else "."
    return replace(said, instruction=gap.join([head, *extra]))


def text_first(said: Said, strength: float, draw: Random) -> Said:
    """The text comes first and the instruction after it, "below" becoming "above"."""
    head, rest = (said.instruction, said.input) if said.input else said.split()
    head = head.strip().removesuffix(":").removesuffix("：")
    if not rest.strip() or not head or len(head) > LONGEST:
        return said
    for pattern, new in _BESIDE:
        head = re.sub(pattern, new, head)
    return replace(said, instruction=f"{rest.strip()}\n\n{head}", input="")


def options(said: Said, strength: float, draw: Random) -> Said:
    """Listed options come in another order: lines with a letter, number or dash, of which the answer is one, or labels
    in a sentence ("positive, negative or neutral"). Where the answer is a letter, letters go with their texts."""
    changed = replace(said, instruction=_reordered(said.instruction, said, draw))
    return changed if changed != said else replace(said, input=_reordered(said.input, said, draw))


def paraphrase(said: Said, strength: float, draw: Random) -> Said:
    """The instruction in another wording that the rows have for the same task."""
    others = sorted({*said.wordings} - {said.instruction})
    return replace(said, instruction=draw.choice(others)) if others and said.input else said


def _distraction(said: Said, strength: float, draw: Random) -> tuple[list[str], str]:
    """Sentences, and what stands between them."""
    known = words("zh" if said.chinese else "en")["distractors"]
    first = draw.randrange(len(known))
    chosen = [known[(first + number) % len(known)] for number in range(count(strength, MOST))]
    return chosen, "" if said.chinese else " "


def _reordered(text: str, said: Said, draw: Random) -> str:
    return _lines(text, said, draw) or _inline(text, said, draw) or text


def _lines(text: str, said: Said, draw: Random) -> str:
    """Options that stand on lines of their own, reordered; '' where there are none."""
    items = list(_ITEM.finditer(text))
    answers = {answer.strip().casefold() for answer in said.answers}
    texts = [item["text"] for item in items]
    named = {item["name"].casefold() for item in items if item["name"]}
    by_name = bool(answers & named)
    if len({*texts}) < 2 or not (by_name or answers & {one.casefold() for one in texts}):
        return ""
    shown = [item[0].rstrip() if by_name else item["text"] for item in items]
    for item, new in reversed(list(zip(items, _shuffled(shown, draw), strict=True))):
        text = text[: item.start()] + (new if by_name else item["mark"] + new) + text[item.end() :]
    return text


def _inline(text: str, said: Said, draw: Random) -> str:
    """The first list of labels (of words, one of which is the answer, where there are no labels) in a sentence."""
    known = [re.escape(label.strip()) for label in sorted(said.labels, key=len, reverse=True) if label.strip()]
    one = f"(?:{'|'.join(known)})" if known else r"\w[\w-]*"
    edge = (r"(?<!\w)", r"(?!\w)") if not said.chinese else ("", "")
    for found in re.finditer(f"{edge[0]}{one}(?:{_AND}{one})+{edge[1]}", text, re.IGNORECASE):
        parts = re.split(f"({_AND})", found[0])
        items, gaps = parts[::2], parts[1::2]
        folded = [item.casefold() for item in items]
        right = {answer.strip().casefold() for answer in said.answers}
        if (
            len({*folded}) < len(items)
            or not (known or right & {*folded})
            or not re.search("or|或|还是|/", "".join(gaps))
        ):
            continue
        mixed = _shuffled(items, draw)
        new = "".join(item + gap for item, gap in zip(mixed, [*gaps, ""], strict=True))
        return text[: found.start()] + new + text[found.end() :]
    return ""


def _shuffled(items: Sequence[str], draw: Random) -> list[str]:
    """Another order of items, of which two differ at least."""
    while True:
        mixed = draw.sample(list(items), len(items))
        if mixed != list(items):
            return mixed
