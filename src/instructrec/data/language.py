"""Which script a text is written in: enough to see that an answer is in another language than the rest."""

from __future__ import annotations

import re

SAMPLE = 2000  # characters looked at
_RANGES = {
    "Latin": r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": r"\u0400-\u052f",
    "Armenian": r"\u0531-\u0587",
    "Hebrew": r"\u05d0-\u05ea",
    "Arabic": r"\u0620-\u064a\u066e-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "Devanagari": r"\u0900-\u097f",
    "Bengali": r"\u0980-\u09ff",
    "Tamil": r"\u0b80-\u0bff",
    "Thai": r"\u0e01-\u0e4f",
    "Georgian": r"\u10a0-\u10ff",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3",
    "Kana": r"\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f",
    "Han": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
}
SCRIPTS = (None, *_RANGES)  # `script_number` counts in it
_LETTERS = {script: re.compile(f"[{ranges}]") for script, ranges in _RANGES.items()}
_LATIN = _LETTERS["Latin"].search
_ANY = re.compile(f"[{''.join(_RANGES.values())}]")
# One of these letters holds about as much as three of an alphabet: "请用WhatsApp联系" is Chinese.
_WEIGHT = {"Han": 3, "Kana": 3, "Hangul": 3}


def scripts_in(text: str) -> dict[str, float]:
    """Script -> its share of the letters in `text` (its first 2,000 characters); {} where there are no letters.

    Chinese characters are counted as kana as soon as a tenth of these letters is kana: that is Japanese.
    """
    text = text[:SAMPLE]
    if text.isascii():
        return {"Latin": 1.0} if _LETTERS["Latin"].search(text) else {}
    counts: dict[str, int] = {}
    while first := _ANY.search(text):
        # Take out one script at a time: few texts have more than two.
        script = next(name for name, letters in _LETTERS.items() if letters.match(first[0]))
        text, number = _LETTERS[script].subn("", text)
        counts[script] = number * _WEIGHT.get(script, 1)
    if counts.get("Kana", 0) * 9 >= counts.get("Han", 0) > 0:
        counts["Kana"] += counts.pop("Han")
    total = sum(counts.values())
    return {script: count / total for script, count in counts.items()}


def script_of(text: str) -> str | None:
    """The script of most letters, or None where there are no letters."""
    shares = scripts_in(text)
    return max(shares, key=lambda script: shares[script]) if shares else None


def script_number(text: str) -> int:
    """The place of `script_of(text)` in `SCRIPTS`: 0 where there are no letters."""
    if text.isascii():
        return 1 if _LATIN(text[:SAMPLE]) else 0
    return SCRIPTS.index(script_of(text))
