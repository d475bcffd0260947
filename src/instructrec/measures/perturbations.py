"""Perturbations: what happens to instructions in the wild, done on purpose. One dict, `PERTURBATIONS`, lists them.

A perturbation takes what a row asks, a strength from 0 (as it is) to 1 (all that can be damaged is) and a random
generator. Where it works unit by unit (`edits`), strength is the share of units, in the manner of CheckList (Ribeiro et
al. 2020) and PromptBench (arXiv 2306.04528); other than there, the same seed damages the same units at every strength,
and what the right answer hangs on is kept (`kept.py`). The answer itself is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from . import edits as by_unit
from . import rearranged as whole
from .edits import Edits, edited
from .kept import PARTS, Said, Span, kept
from .rearranged import Arrangement

KINDS = ("characters", "words", "format", "order", "paraphrase", "distractor", "chinese", "template", "adversarial")
TEMPLATE = "template"


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One way of damage: by `edits`, or of the row as a whole by `arrange`; with neither it is the prompt template that
    changes, which whoever renders the row has to do.

    strength: what it is tried at unless said.  dial: whether strength means anything but on and off.  unit: what
    strength is a share of.
    """

    name: str
    label: str
    kind: str
    strength: float = 1.0
    edits: Edits | None = None
    arrange: Arrangement | None = None
    unit: str = ""

    @property
    def dial(self) -> bool:
        """Whether strengths between 0 and 1 differ."""
        return bool(self.unit)

    def text(self, text: str, strength: float, draw: Random, spans: Sequence[Span] = ()) -> str:
        """A text damaged unit by unit, without regard to a row; `spans` of it are kept."""
        assert self.edits
        return edited(text, self.edits(text, spans, draw), strength, draw)


def _units(name: str, label: str, kind: str, edits: Edits, strength: float, unit: str) -> Perturbation:
    return Perturbation(name=name, label=label, kind=kind, edits=edits, strength=strength, unit=unit)


def _whole(name: str, label: str, kind: str, arrange: Arrangement | None, sentences: bool = False) -> Perturbation:
    strength, unit = (0.2, "five sentences") if sentences else (1.0, "")
    return Perturbation(name=name, label=label, kind=kind, arrange=arrange, strength=strength, unit=unit)


_ALL = (
    _units("typos", "Keyboard typos", "characters", by_unit.typos, 0.3, "words"),
    _units("swap_letters", "Letters swapped", "characters", by_unit.swap_letters, 0.3, "words"),
    _units("drop_letters", "Letters lost", "characters", by_unit.drop_letters, 0.3, "words"),
    _units("case", "Upper and lower case", "format", by_unit.case, 0.5, "words"),
    _units("punctuation", "Punctuation", "format", by_unit.punctuation, 0.3, "marks and gaps"),
    _units("spaces", "White space", "format", by_unit.spaces, 0.3, "gaps"),
    _units("drop_words", "Function words lost", "words", by_unit.drop_words, 0.5, "function words"),
    _units("swap_words", "Words swapped", "words", by_unit.swap_words, 0.3, "pairs of words"),
    _units("synonyms", "Synonyms", "words", by_unit.synonyms, 0.5, "words with a synonym"),
    _whole("paraphrase", "Other wording", "paraphrase", whole.paraphrase),
    _whole("distractor_before", "Distractor before", "distractor", whole.distractor_before, sentences=True),
    _whole("distractor_after", "Distractor after", "distractor", whole.distractor_after, sentences=True),
    _whole("text_first", "Text before instruction", "order", whole.text_first),
    _whole("options", "Order of options", "order", whole.options),
    _whole(TEMPLATE, "Another template", "template", None),
    _units("width", "Full and half width", "chinese", by_unit.width, 0.5, "letters and marks"),
    _units("homophones", "Homophones", "chinese", by_unit.homophone, 0.1, "characters"),
    _units("variants", "Traditional characters", "chinese", by_unit.variant, 0.5, "characters with two forms"),
)
PERTURBATIONS: Mapping[str, Perturbation] = {one.name: one for one in _ALL}


def draw_of(seed: int, key: str, name: str) -> Random:
    """The generator of one row's damage: by seed, the row's own key and the perturbation, so that neither the batch a
    row is in nor the rows before it change what happens to it."""
    return Random(f"{seed} {key} {name}")


def damage(said: Said, name: str, strength: float, draw: Random, parts: str = "instruction") -> Said:
    """What a row asks, damaged; equal to `said` where strength is 0 or there is nothing to damage.

    parts: what is damaged unit by unit: the instruction (where it runs on into its text, what stands before that), the
    input, or both. Raises ValueError for an unknown part or a strength out of range, KeyError for an unknown name.
    """
    if parts not in PARTS or not 0 <= strength <= 1:
        raise ValueError(f"want parts of {', '.join(PARTS)} and a strength from 0 to 1 (got {parts}, {strength})")
    way = PERTURBATIONS[name]
    if not strength:
        return said
    if way.arrange:
        return way.arrange(said, strength, draw)
    if not way.edits:
        return said
    head, rest = said.split()
    texts = {"instruction": head, "input": said.input or rest}
    for part in ("instruction", "input") if parts == "both" else (parts,):
        spans = kept(texts[part], said, part)
        if spans is not None:
            texts[part] = way.text(texts[part], strength, draw, spans)
    if said.input or not rest:
        return replace(said, instruction=texts["instruction"], input=texts["input"] if said.input else "")
    return replace(said, instruction=texts["instruction"] + texts["input"])
