"""Text as the metrics see it: one normal form, one way of cutting into tokens, for every language."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Written without spaces: every character is a token. Han with its extensions, then Hiragana and Katakana.
HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
KANA = ((0x3041, 0x30FF), (0x31F0, 0x31FF))


def normalise(text: str) -> str:
    """What exact match compares: NFKC, case folded, whitespace collapsed and stripped, one trailing full stop
    (`.` or `。`) removed unless nothing else is left. Accents, other punctuation and word order all count."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split())
    return (text[:-1].rstrip() if text.endswith((".", "。")) else text) or text


def _within(char: str, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= ord(char) <= high for low, high in ranges)


@lru_cache(maxsize=65536)
def _kind(char: str) -> str:
    """'one' (a token by itself), 'word' (part of a word) or 'gap'."""
    if _within(char, HAN) or _within(char, KANA):
        return "one"
    # Marks belong to words: without them Hindi or Thai fall apart at every vowel sign (`\\w` of `re` drops them).
    return "word" if unicodedata.category(char)[0] in "LMN" else "gap"


def tokens(text: str) -> list[str]:
    """Words of alphabetic scripts, single characters of Han and Kana; case folded, punctuation dropped.

    Unlike SQuAD's normalisation no articles are removed (`a` is a word of other languages and an answer by itself),
    and a text of nothing but signs (`:-)`) gives its signs, so that two different ones do not look equal.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = []
    word = ""
    for char in text:
        kind = _kind(char)
        if kind == "word":
            word += char
            continue
        if word:
            found.append(word)
            word = ""
        if kind == "one":
            found.append(char)
    if word:
        found.append(word)
    return found or [char for char in text if not char.isspace()]


def writing(texts: Sequence[str]) -> str:
    """The writing most of the texts are in: 'han', 'kana' (Japanese: Han with more than a tenth Kana) or 'other'."""
    counts = {"han": 0, "kana": 0, "other": 0}
    for text in texts:
        letters = [char for char in text if char.isalpha()]
        kana = sum(_within(char, KANA) for char in letters)
        han = sum(_within(char, HAN) for char in letters)
        if 2 * (han + kana) <= len(letters):
            counts["other"] += 1
        else:
            counts["kana" if 10 * kana > len(letters) else "han"] += 1
    return max(("other", "han", "kana"), key=counts.__getitem__)
