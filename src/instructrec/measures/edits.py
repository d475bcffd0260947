"""Damage to a text, unit by unit: for each way the places that can be changed, and what comes to stand there.

Each function is given a text, the spans to keep and a random generator, and returns edits (start, end, new text) that
do not overlap, one a unit. It draws what happens to *every* unit; `edited` then carries out a share of them. So the
same seed gives the same damage to a unit at every strength, and a higher strength only adds to what a lower one does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

from .kept import Span, free
from .words import HAN_CHARACTER, WORD, homophones, variants, words

Edit = tuple[int, int, str]
Edits = Callable[[str, Sequence[Span], Random], list[Edit]]

LETTERS = 4  # of a word before its letters are touched; its first letter never is: readers need it most
_WORD, _HAN_RUN = re.compile(WORD), re.compile(f"{HAN_CHARACTER}+")
_MARK = re.compile(r"(?<!\d)[,.;:!?](?!\d)|[，。；：！？、]")
_MARKS = {"latin": ",.;:!?", "han": "，。；：！？、"}
_NARROW = dict(zip("，。；：！？（）", ",.;:!?()", strict=True))
_NEAR = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        "qwsz vghn xdfv ersfcx wsdr rtgdvc tyfhvb yugjnb uojk uikhmn iojlm kop njk bhjm ipkl ol wa edft adwezx "
        "rygf yihj cfgb qase zsdc tugh asx".split(),
        strict=True,
    )
)  # the keys around each one on a QWERTY keyboard


def chosen(edits: Sequence[Edit], strength: float, draw: Random) -> list[Edit]:
    """A share `strength` of edits, rounded up: one at least where strength is above 0. The same draw at a higher
    strength gives the same ones and more."""
    return draw.sample(list(edits), len(edits))[: count(strength, len(edits))]


def edited(text: str, edits: Sequence[Edit], strength: float, draw: Random) -> str:
    """The text with a share of its edits carried out."""
    for start, end, new in sorted(chosen(edits, strength, draw), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def count(strength: float, units: int) -> int:
    """How many of so many units a strength means."""
    return math.ceil(round(strength * units, 9))


def typos(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """In each word a letter becomes one beside it on the keyboard."""
    found = []
    for match in _long(text, kept):
        places = [place for place in range(match.start() + 1, match.end()) if text[place].lower() in _NEAR]
        if places:
            place = draw.choice(places)
            found.append((place, place + 1, _like(draw.choice(_NEAR[text[place].lower()]), text[place])))
    return found


def swap_letters(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """In each word two neighbouring letters change places, and so do Chinese characters, in pairs."""
    found = []
    for match in _long(text, kept):
        places = [place for place in range(match.start() + 1, match.end() - 1) if text[place] != text[place + 1]]
        if places:
            place = draw.choice(places)
            found.append((place, place + 2, text[place + 1] + text[place]))
    stays = words("zh")["fixed"] | words("zh")["negations"]
    for match in _HAN_RUN.finditer(text):
        for place in range(match.start() + draw.randrange(2), match.end() - 1, 2):
            pair = text[place : place + 2]
            if pair[0] != pair[1] and not stays & {*pair} and free((place, place + 2), kept):
                found.append((place, place + 2, pair[::-1]))
    return found


def drop_letters(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """In each word one letter is lost. A Chinese character is a word or half of one: none are lost."""
    places = [draw.randrange(match.start() + 1, match.end()) for match in _long(text, kept)]
    return [(place, place + 1, "") for place in places]


def case(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Each word comes in capitals, without any, or begins with one, unless it does."""
    found = []
    for match in free_words(text, kept):
        others = sorted({match[0].upper(), match[0].lower(), match[0].capitalize()} - {match[0]})
        if others:
            found.append((*match.span(), draw.choice(others)))
    return found


def punctuation(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Each mark is lost, doubled or becomes another; a comma comes between two words that had none."""
    found = []
    for match in _MARK.finditer(text):
        if free(match.span(), kept):
            others = _MARKS["latin" if match[0].isascii() else "han"].replace(match[0], "")
            found.append((*match.span(), draw.choice(("", 2 * match[0], draw.choice(others)))))
    for match in re.finditer(r"(?<=[^\W\d_]) (?=[^\W\d_])", text):
        if free((match.start() - 1, match.end() + 1), kept):
            found.append((match.start(), match.start(), ","))
    return found


def spaces(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Each space is doubled, tripled or lost; one comes between two Chinese characters."""
    found = []
    for match in re.finditer(r"(?<=[^\W\d_]) (?=[^\W\d_])", text):
        new = draw.choice(("  ", "   ", ""))
        if free((match.start() - 1, match.end() + 1), kept):
            found.append((*match.span(), new))
    for match in _HAN_RUN.finditer(text):
        for place in range(match.start() + 1, match.end()):
            if free((place - 1, place + 1), kept):
                found.append((place, place, " "))
    return found


def drop_words(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Words are lost that carry no meaning of their own (`function` in the lists of words)."""
    found: list[Edit] = []
    plain, total = words("en")["function"], 0
    for match in _WORD.finditer(text):
        total += 1
        if match[0].lower() in plain and free(match.span(), kept):
            space = text[match.end() : match.end() + 1] == " "
            found.append((match.start(), match.end() + space, ""))
    plain = words("zh")["function"]
    for start, end in _listed(text, plain | words("zh")["whole"], kept):
        if text[start:end] in plain:
            found.append((start, end, ""))
    return found if len(found) < total + sum(len(run[0]) for run in _HAN_RUN.finditer(text)) else found[1:]


def swap_words(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Neighbouring words change places, in pairs; not those whose place decides what is meant (`fixed`)."""
    stays = words("en")["fixed"] | words("en")["negations"]
    found: list[Edit] = []
    last = None
    skip = draw.randrange(2)
    for match in _WORD.finditer(text):
        usable = (
            match[0].lower() not in stays
            and free(match.span(), kept)
            and text[match.start() - 1 : match.start()] != "'"
        )
        if last and usable and text[last.end() : match.start()] == " " and match[0].lower() != last[0].lower():
            if skip:
                skip = 0
            else:
                first, second = (match[0], last[0])
                if not last.start() and last[0].istitle():  # a sentence still begins with a capital
                    first, second = first[:1].upper() + first[1:], second.lower()
                found.append((last.start(), match.end(), f"{first} {second}"))
                last = None
                continue
        last = match if usable else None
    return found


def synonyms(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Words become others of the same meaning, out of our own list."""
    known, found = words("en")["synonyms"], []
    for match in free_words(text, kept):
        others = known.get(match[0].lower(), ())
        if re.search(r"\b[Aa]n? $", text[: match.start()]):  # "an object" is no "an thing"
            others = tuple(word for word in others if (word[0] in "aeiou") == (match[0][0].lower() in "aeiou"))
        if others:
            found.append((*match.span(), _like(draw.choice(others), match[0])))
    known = words("zh")["synonyms"]
    for start, end in _listed(text, known, kept):
        found.append((start, end, draw.choice(known[text[start:end]])))
    return found


def width(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """In Chinese text Latin letters and digits become full-width ones, and Chinese marks half-width ones."""
    if not _HAN_RUN.search(text):
        return []
    found = []
    for place, character in enumerate(text):
        wide = character.isascii() and character.isalnum()
        new = chr(ord(character) + 0xFEE0) if wide else _NARROW.get(character)
        if new and free((place, place + 1), kept):
            found.append((place, place + 1, new))
    return found


def homophone(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Chinese characters become others of the same sound but for the tone, as input methods offer them."""
    stays, sounds = words("zh")["fixed"] | words("zh")["negations"], homophones()
    return [
        (place, place + 1, draw.choice(sounds[character]))
        for place, character in enumerate(text)
        if character in sounds and character not in stays and free((place, place + 1), kept)
    ]


def variant(text: str, kept: Sequence[Span], draw: Random) -> list[Edit]:
    """Simplified Chinese characters become traditional ones, and the other way round."""
    known = variants()
    return [
        (place, place + 1, known[character])
        for place, character in enumerate(text)
        if character in known and free((place, place + 1), kept)
    ]


def free_words(text: str, kept: Sequence[Span]) -> Iterator[re.Match[str]]:
    """Words of alphabetic scripts that may be damaged."""
    return (match for match in _WORD.finditer(text) if free(match.span(), kept))


def _long(text: str, kept: Sequence[Span]) -> Iterator[re.Match[str]]:
    """Words long enough to be read with a wrong letter."""
    return (match for match in free_words(text, kept) if len(match[0]) >= LETTERS)


def _listed(text: str, known: Sequence[str] | frozenset[str] | dict[str, object], kept: Sequence[Span]) -> list[Span]:
    """Where Chinese words of a list stand, the longest first."""
    longest = max(map(len, known))
    found: list[Span] = []
    place = 0
    while place < len(text):
        sizes = range(min(longest, len(text) - place), 0, -1)
        size = next((size for size in sizes if text[place : place + size] in known), 0)
        if size and free((place, place + size), kept):
            found.append((place, place + size))
        place += size or 1
    return found


def _like(word: str, model: str) -> str:
    """The word in the case of another."""
    if model.isupper() and (len(model) > 1 or len(word) == 1):
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
