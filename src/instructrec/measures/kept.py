"""What may not be damaged, so that the right answer stays right.

Kept are: words of the answer and of the labels; numbers; what stands in quotes, brackets, braces or code; addresses;
words by which the instruction points into its input ("towards Nokia") and their counterparts there. Inputs stay whole
where the instruction is about letters, words or sounds, or where they have fewer than four words: "the plural of
house" has another answer for "horse".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .words import HAN_CHARACTER, WORD, words

Span = tuple[int, int]
PARTS = ("instruction", "input", "both")
SHORT = 4  # words, or twice as many Chinese characters: what is shorter is often all that the answer depends on
LONGEST = 80  # characters of an answer that is looked for as a whole

_LITERAL = re.compile(
    r"""\d+(?:[.,:/]\d+)*%?|`[^`]*`|"[^"\n]{1,80}"|“[^”\n]{1,80}”|「[^」\n]{1,80}」|《[^》\n]{1,80}》|"""
    r"""(?<!\w)['‘][^'’\n]{1,60}['’](?!\w)|\[[^\]\n]{0,60}\]|【[^】\n]{0,60}】|\{[^}\n]{0,60}\}|<[^<>\n]{1,60}>|"""
    r"""\(\s*\w\s*\)|\bhttps?://\S+|\S+@\S+\.\w+"""
)
_SPELLED = re.compile(
    r"\b(letters?|characters?|spell\w*|rhym\w*|alphabet\w*|capital\w*|(upper|lower)\s?case|vowels?|consonants?|"
    r"syllables?|singular|plural|prefix|suffix|(begin|start|end)(s|ing)?\s+with|how many words|count|palindrome|"
    r"reverse|pronounc\w*|punctuation|typos?|grammar)\b"
    r"|字母|拼写|拼音|押韵|声母|韵母|多少个?字|几个字|首字|标点|错别字|病句|歇后语|成语",
    re.IGNORECASE,
)
_INLINE = re.compile(r"：|:(?=\s)|\n\s*\n|\n(?=[^\W\d_]+ ?\d{0,2}[:：])")  # a colon, an empty line, a line "Text 1:"
_HEADING = re.compile(r"\s*[^\W\d_]+ ?\d{0,2}[:：]")
_WORDS = re.compile(WORD)
_HAN = re.compile(HAN_CHARACTER)


@dataclass(frozen=True, slots=True)
class Said:
    """What a row asks, with what its answer depends on.

    answers: all that count as right.  labels: the closed set they are from, if there is one.  wordings: other ways to
    say the instruction.
    """

    instruction: str
    input: str = ""
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    wordings: tuple[str, ...] = ()

    @property
    def chinese(self) -> bool:
        """Whether the instruction is written in Chinese characters, more or less."""
        return 4 * len(_HAN.findall(self.instruction)) >= len(self.instruction.replace(" ", ""))

    @property
    def spelled(self) -> bool:
        """Whether the instruction is about letters, words or sounds."""
        return bool(_SPELLED.search(self.instruction))

    def split(self) -> tuple[str, str]:
        """The instruction, and what it is about where both are one text: what follows the first colon, or empty
        line, or comes with a line that begins with a heading ("Translate into French: house"; all of "Text: …"). The
        two together are the text."""
        if self.input or _HEADING.match(self.instruction):
            return ("", self.instruction) if not self.input else (self.instruction, "")
        found = _INLINE.search(self.instruction)
        if found is None or not (self.instruction[found.end() :].strip() and self.instruction[: found.start()].strip()):
            return self.instruction, ""
        return self.instruction[: found.end()], self.instruction[found.end() :]


def kept(text: str, said: Said, part: str) -> list[Span] | None:
    """Spans of `text` that are not to be damaged; None where none of it may be. part: instruction or input."""
    about = said.input or said.split()[1]
    if said.spelled and (part == "input" or not about):
        return None
    if part == "input" and len(_WORDS.findall(text)) + len(_HAN.findall(text)) / 2 < SHORT:
        return None
    plain = words("en")["function"]
    needed = {word for answer in (*said.answers, *said.labels) for word in _bare(answer)}
    other = said.instruction if part == "input" else about
    shared = set(_bare(other)) - plain
    if part == "instruction":
        needed -= plain
    spans = [match.span() for match in _LITERAL.finditer(text)]
    spans += [match.span() for match in _WORDS.finditer(text) if match[0].casefold() in needed | shared]
    spans += _found(text, (*said.answers, *said.labels))
    return spans


def free(span: Span, spans: Sequence[Span]) -> bool:
    """Whether a span touches none of `spans`."""
    return all(span[1] <= start or span[0] >= end for start, end in spans)


def _bare(text: str) -> list[str]:
    return [word.casefold() for word in _WORDS.findall(text)]


def _found(text: str, phrases: Iterable[str]) -> list[Span]:
    """Where phrases stand; Latin ones as whole words."""
    spans: list[Span] = []
    for phrase in {phrase.strip() for phrase in phrases}:
        if not phrase or len(phrase) > LONGEST:
            continue
        left, right = (r"(?<!\w)" if phrase[0].isascii() else ""), (r"(?!\w)" if phrase[-1].isascii() else "")
        spans += [match.span() for match in re.finditer(left + re.escape(phrase) + right, text, re.IGNORECASE)]
    return spans


__all__ = ["PARTS", "Said", "Span", "free", "kept"]
