"""What every metric takes and gives: segments of text, groups of them, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, eq=False)
class Figure:
    """What a metric gives for one group of segments, in the form that it can be resampled in.

    A metric of a group is a function of sums over its segments: n-gram matches for BLEU, the values
    themselves for a mean. Bootstrap resampling then only weighs the segments anew and looks at no text.

    Attributes:
        statistics: what each segment adds to the sums, (segments, k).
        of_sums: the figure from the sums, (..., k) -> (...), in the unit of the metric.
        columns: names of the k statistics.
        segments: the figure of each segment, or None if the metric has none.
    """

    statistics: NDArray[np.float64]
    of_sums: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    columns: tuple[str, ...]
    segments: tuple[float, ...] | None = None

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of its segments' values."""
        return self.of_sums is _mean

    @property
    def value(self) -> float:
        """The figure of the group, in the unit of the metric."""
        # Summed from the first segment to the last, as the official scorers do, so that a mean has their last bit.
        return float(self.of_sums(self.statistics.cumsum(axis=0)[-1]))


def mean_figures(values: Sequence[float], groups: Sequence[Group]) -> list[Figure]:
    """The figures of a metric that is the mean of its segments.

    Args:
        values: the figure of each segment.
        groups: the groups to average over, none of them empty.
    """
    figures = []
    for group in groups:
        segments = tuple(values[i] for i in group)
        statistics = np.array([segments, (1.0,) * len(segments)]).T
        figures.append(Figure(statistics, _mean, ("value", "segments"), segments))
    return figures


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums[..., 0] / sums[..., 1]
