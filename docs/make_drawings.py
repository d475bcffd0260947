"""Writes the drawings of docs/rrtransformer.md and of its Chinese version.

    python docs/make_drawings.py

Who sees whom is not drawn by hand: the squares are what `visible` says. Text is left to the fonts of the reader.
T tokens of a row with its slots, strokes and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch

from instructrec.files import write_text
from instructrec.models.reading.attention import Tags, visible
from instructrec.models.reading.plan import ReadingPlan

FOLDER = Path(__file__).parent
STYLE = """<style>
text { font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei",
sans-serif; font-size: 15px; fill: #1d2530; }
.small { font-size: 13px; fill: #4c5766; } .head { font-weight: 600; } .word { font-size: 16px; }
.page { fill: #ffffff; stroke: #d5dae1; } .line { fill: none; stroke: #4c5766; stroke-width: 1.6; }
.tip { fill: #4c5766; } .one { fill: #b5d4f3; stroke: #2f6ea8; } .two { fill: #a9dfcb; stroke: #00806a; }
.say { fill: #f7cb9b; stroke: #c25e00; } .slot { fill: #d3bdec; stroke: #7146a6; } .none { fill: #f1f3f5; }
.see { fill: none; stroke: #c25e00; stroke-width: 2.2; } .mark { stroke-width: 3; } .cell { stroke: #ffffff; }
@media (prefers-color-scheme: dark) {
text { fill: #e8ebef; } .small { fill: #b4bdc9; } .page { fill: #161b22; stroke: #39424e; }
.line { stroke: #b4bdc9; } .tip { fill: #b4bdc9; } .one { fill: #1d4468; stroke: #7db4e6; }
.two { fill: #0e4d40; stroke: #4fc4a8; } .say { fill: #6b3a0c; stroke: #f0a356; }
.slot { fill: #43296a; stroke: #b793e6; } .none { fill: #262d36; } .see { stroke: #f0a356; }
.cell { stroke: #161b22; } }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="12" markerHeight="12"
markerUnits="userSpaceOnUse" orient="auto">
<path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>"""

ENGLISH = {
    "words": "Rome|or Paris:|which is|in Italy?",
    "answer": "Rome",
    "header": "answer:",
    "one": "Stroke 1",
    "two": "Stroke 2",
    "say": "Answer",
    "sees": "in stroke 2 “Rome” sees all of stroke 1",
    "back": "back to the start",
    "one note": "“Rome” knows no question yet",
    "two note": "same weights, with M₁ in view",
    "say note": "one token a step",
    "memory one": "memory M₁: keys and values of stroke 1",
    "memory two": "memory M₂ = M₁ ⊕ keys and values of stroke 2",
    "title": "An instruction x read twice, then answered",
    "plans": "Who sees whom: each row is a token that looks, each column one that is looked at",
    "all": "memory=all",
    "sink": "memory=sink+last",
    "both": "direction=bidirectional",
    "gated": "mix=gated, bidirectional",
    "slots": "slots=2",
    "window": "a layer with a window of 4",
    "key one": "of stroke 1",
    "key two": "of stroke 2",
    "key say": "of the answer",
    "key slot": "slot",
    "key none": "not seen",
}
CHINESE = {
    "words": "罗马|和巴黎，|哪一个在|意大利？",
    "answer": "罗马",
    "header": "回答：",
    "one": "第 1 遍",
    "two": "第 2 遍",
    "say": "回答",
    "sees": "第 2 遍的“罗马”看得到第 1 遍的全部内容",
    "back": "回到开头",
    "one note": "读到“罗马”时还不知道问题",
    "two note": "同样的权重，能看到 M₁",
    "say note": "每步一个词元",
    "memory one": "记忆 M₁：第 1 遍的键和值",
    "memory two": "记忆 M₂ = M₁ ⊕ 第 2 遍的键和值",
    "title": "指令 x 读两遍，然后回答",
    "plans": "谁看得到谁：每一行是一个在看的词元，每一列是一个被看的词元",
    "all": "memory=all",
    "sink": "memory=sink+last",
    "both": "direction=bidirectional",
    "gated": "mix=gated, bidirectional",
    "slots": "slots=2",
    "window": "窗口为 4 的层",
    "key one": "属于第 1 遍",
    "key two": "属于第 2 遍",
    "key say": "属于回答",
    "key slot": "槽",
    "key none": "看不到",
}


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 5) -> str:
    """A rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'


def curve(path: str, kind: str = "line") -> str:
    """A line with a tip."""
    return f'<path d="{path}" class="{kind}" marker-end="url(#tip)"/>'


def framed(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole SVG file; the page behind it keeps it readable on any ground."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    page = box(0.5, 0.5, width - 1, height - 1, "page", 8)
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, page, *parts, "</svg>", ""])


def strokes(words: Mapping[str, str]) -> str:
    """Two strokes over x, the memory that is handed on, and the answer."""
    parts = [text(480, 34, words["title"], "head"), text(254, 66, words["sees"], "small")]
    tokens = words["words"].split("|")
    wide, gap, y, high, bar = 84, 6, 146, 38, 296
    starts = {"one": 24.0, "two": 400.0}
    middle = {"one": 201.0, "two": 577.0, "say": 856.0}
    for kind, start in starts.items():
        for place, token in enumerate(tokens):
            x = start + place * (wide + gap)
            parts += [box(x, y, wide, high, f"{kind} mark" if place == 0 else kind)]
            parts += [text(x + wide / 2, y + 25, token, "word")]
    parts += [box(774, y, 84, high, "say"), text(816, y + 25, words["header"], "word")]
    parts += [box(866, y, 72, high, "say"), text(902, y + 25, words["answer"], "word")]
    for kind, centre in middle.items():
        parts += [text(centre, y + 64, words[kind], "head"), text(centre, y + 86, words[f"{kind} note"], "small")]
    for place in range(len(tokens)):  # what the first word of stroke 2 sees of stroke 1
        x = starts["one"] + wide / 2 + place * (wide + gap)
        top = y - 36 - 0.14 * (442 - x)
        parts.append(curve(f"M442 {y - 3}C442 {top:g} {x:g} {top:g} {x:g} {y - 4}", "see"))
    parts += [curve(f"M336 {y + high}C336 {y + 66} 442 {y + 66} 442 {y + high + 4}")]
    parts += [text(389, y + 78, words["back"], "small")]
    parts += [box(24, bar, 354, 40, "one"), text(201, bar + 25, words["memory one"])]
    parts += [box(24, bar + 84, 730, 40, "two"), text(389, bar + 109, words["memory two"])]
    parts += [curve(f"M201 {y + 96}V{bar - 5}"), curve(f"M378 {bar + 20}H540V{y + 98}")]
    parts += [curve(f"M201 {bar + 40}V{bar + 79}"), curve(f"M614 {y + 96}V{bar + 79}")]
    parts += [curve(f"M754 {bar + 104}H856V{y + 98}")]
    return framed(960, 440, words["title"], parts)


def tags(plan: ReadingPlan, size: int, answer: int) -> Tags:
    """One row of two strokes over `size` tokens and `answer` tokens after them, [1, T]."""
    gated = plan.mix == "gated"
    rows = [(place, 0, False) for place in range(plan.slots)]
    for number in (1, 2):
        first = plan.slots + (0 if gated else (number - 1) * size)
        rows += [(first + place, number, False) for place in range(size)]
    first = plan.slots + (1 if gated else 2) * size
    rows += [(first + place, 2, True) for place in range(answer)]
    position, stroke, asked = (torch.tensor([column]) for column in zip(*rows, strict=True))
    return Tags(position, stroke, asked, torch.ones_like(asked))


def squares(plan: ReadingPlan, window: int | None, x: float, y: float, side: float) -> list[str]:
    """What each token sees, as coloured squares of the kind of token that is looked at."""
    row = tags(plan, 6, 3)
    seen = visible(plan, row, row, window)[0]
    kinds = [("say" if asked else ("slot", "one", "two")[stroke]) for stroke, asked in
             zip(row.stroke[0].tolist(), row.answer[0].tolist(), strict=True)]  # fmt: skip
    parts = []
    for place in range(plan.slots, len(kinds)):  # slots look at nothing
        for key, kind in enumerate(kinds):
            sees = bool(seen[place, key])
            parts.append(
                box(x + key * side, y + (place - plan.slots) * side, side, side, f"{kind if sees else 'none'} cell", 1)
            )
    return parts


def plans(words: Mapping[str, str]) -> str:
    """Who sees whom under six plans."""
    shown: list[tuple[str, ReadingPlan, int | None]] = [
        ("all", ReadingPlan(strokes=(2,)), None),
        ("sink", ReadingPlan(strokes=(2,), memory="sink+last"), None),
        ("both", ReadingPlan(strokes=(2,), direction="bidirectional"), None),
        ("gated", ReadingPlan(strokes=(2,), direction="bidirectional", mix="gated"), None),
        ("slots", ReadingPlan(strokes=(2,), slots=2), None),
        ("window", ReadingPlan(strokes=(2,)), 4),
    ]
    parts = [text(480, 34, words["plans"], "head")]
    for place, kind in enumerate(("one", "two", "say", "slot", "none")):
        x = 130 + place * 150
        parts += [box(x, 52, 16, 16, kind, 2), text(x + 24, 65, words[f"key {kind}"], "small", "start")]
    for place, (name, plan, window) in enumerate(shown):
        x, y = 40 + place % 3 * 310, 112 + place // 3 * 290
        parts += [text(x + 120, y - 12, words[name], "head"), *squares(plan, window, x, y, 240 / (15 + plan.slots))]
    return framed(960, 666, words["plans"], parts)


def drawings() -> dict[str, str]:
    """Name of the file -> what is in it."""
    return {
        f"{name}{ending}.svg": draw(words)
        for ending, words in (("", ENGLISH), (".zh-CN", CHINESE))
        for name, draw in (("rrtransformer", strokes), ("rrtransformer-plans", plans))
    }


if __name__ == "__main__":
    for name, content in drawings().items():
        write_text(FOLDER / name, content)
