"""The RRTransformer: reading an instruction more than once, with a memory of the earlier readings."""

from .attention import install
from .layout import Laid, Pass, cut, cuts, lay, repeat
from .plan import MOST_STROKES, ReadingPlan, parse_strokes
from .reader import Reading, logits_at

__all__ = [
    "MOST_STROKES",
    "Laid",
    "Pass",
    "Reading",
    "ReadingPlan",
    "cut",
    "cuts",
    "install",
    "lay",
    "logits_at",
    "parse_strokes",
    "repeat",
]
