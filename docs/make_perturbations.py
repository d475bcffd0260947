"""Prints what each perturbation makes of two rows, as docs/robustness.md shows it.

    python docs/make_perturbations.py

`tests/test_robustness_page.py` compares the page with what this prints.
"""

from __future__ import annotations

from collections.abc import Iterator

from instructrec.data.records import Record
from instructrec.measures.perturbations import PERTURBATIONS
from instructrec.recipes.damage import Damager

ENGLISH = Record.of(
    "Which mood does the following review express: positive, negative or neutral?",
    "positive",
    input="The film is long, but I liked it.",
    task="mood",
)
CHINESE = Record.of("请判断下面这条评论的情感是正面、负面还是中性。", "正面", input="物流很快，下次还买。", task="mood")
LABELS = {"positive": ("positive", "negative", "neutral"), "正面": ("正面", "负面", "中性")}
OTHERS = {
    ENGLISH.instruction: "Say if this review is positive, negative or neutral.",
    CHINESE.instruction: "说说这条评论是正面、负面还是中性。",
}


def samples() -> Iterator[str]:
    """A block for each row: the row, then each perturbation that changes it at its usual strength."""
    for row in (ENGLISH, CHINESE):
        ready = Damager(LABELS[row.answer], {"mood": (row.instruction, OTHERS[row.instruction])})
        lines = [f"{'':18}      {shown(row)}"]
        for way in PERTURBATIONS.values():
            after = ready.damaged(row, way.name, way.strength)
            if after is not row:
                lines.append(f"{way.name:18} {way.strength:<4g} {shown(after)}")
        yield "\n".join(lines) + "\n"


def shown(row: Record) -> str:
    """What is asked, on one line."""
    return row.last_user.content.replace("\n\n", " ⏎ ")


if __name__ == "__main__":
    print("\n".join(samples()), end="")
