"""What every metric takes and gives: segments of text, groups of them, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Group = Sequence[int]
"""Indices of the segments that are scored together: all of them, or those of a subset."""


@dataclass(frozen=True)
class Segments:
    """Hypotheses with their references, in one form of the text (raw, tokenized, ...).

    Attributes:
        hypotheses: one text per segment.
        references: the texts that each hypothesis is held against, one or more per segment.
    """

    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.hypotheses)

    def map(self, change: Callable[[str], str]) -> Segments:
        """The same segments with `change` applied to every text (once per distinct text)."""
        changed = {text: change(text) for text in self.texts()}
        return self.replace([changed[text] for text in self.texts()])

    def texts(self) -> list[str]:
        """All texts as one list: the references of every segment in turn, then the hypotheses."""
        return [text for references in self.references for text in references] + list(self.hypotheses)

    def replace(self, texts: Sequence[str]) -> Segments:
        """The same segments with other texts, in the order of `texts()`."""
        rest = iter(texts)
        references = tuple(tuple(next(rest) for _ in references) for references in self.references)
        return Segments(tuple(rest), references)

    def select(self, group: Group) -> Segments:
        """The segments of a group alone."""
        return Segments(tuple(self.hypotheses[i] for i in group), tuple(self.references[i] for i in group))


@dataclass(frozen=True)
class Figure:
    """What a metric gives for one group of segments.

    Attributes:
        value: the figure of the group, in the unit of the metric.
        segments: the figure of each segment, or None if the metric has none.
    """

    value: float
    segments: tuple[float, ...] | None = None


def mean_figures(values: Sequence[float], groups: Sequence[Group]) -> list[Figure]:
    """The figures of a metric that is the mean of its segments.

    Args:
        values: the figure of each segment.
        groups: the groups to average over, none of them empty.
    """
    figures = []
    for group in groups:
        segments = tuple(values[i] for i in group)
        figures.append(Figure(sum(segments) / len(segments), segments))
    return figures
