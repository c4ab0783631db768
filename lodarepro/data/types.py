"""The words of the data: example, segment, split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One training pair.

    Attributes:
        context: the linearised input, without separator.
        completion: one text for it, without leading space or end mark.
        subset: `seen` or `unseen` where the dataset knows (WebNLG), else None.
    """

    context: str
    completion: str
    subset: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One distinct context with all its references: the unit of decoding and scoring."""

    context: str
    references: tuple[str, ...]
    subset: str | None = None


def segments(examples: Iterable[Example]) -> list[Segment]:
    """Group examples by context, in order of first appearance (protocol section 4).

    The original decodes every line and keeps the last prediction of equal contexts; they are
    equal, so one segment a context gives the same files.
    """
    grouped: dict[str, list[str]] = {}
    subset: dict[str, str | None] = {}
    for example in examples:
        grouped.setdefault(example.context, []).append(example.completion.strip())
        subset.setdefault(example.context, example.subset)
    return [Segment(c, tuple(references), subset[c]) for c, references in grouped.items()]
