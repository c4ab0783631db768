"""chrF++ (Popović, 2017) as `WebNLG/GenerationEval` computes it (80678494, `metrics/chrF.py`).

sacrebleu's chrF++ differs from it in the fifth decimal: in how an order without matches counts.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from lodarepro.metrics.segments import Figure, Group, Segments

VERSION = "GenerationEval-8067849"

CHARACTER_ORDERS = 6
WORD_ORDERS = 2
BETA = 2
NOTHING = 1e-16  # stands for precision or recall without any n-gram


@dataclass(frozen=True)
class _Overlap:
    """N-grams of one order: those that match, those of the reference, those of the hypothesis."""

    matches: int
    reference: int
    hypothesis: int

    def f_score(self) -> float:
        precision = self.matches / self.hypothesis if self.hypothesis else NOTHING
        recall = self.matches / self.reference if self.reference else NOTHING
        weighted = BETA**2 * precision + recall
        return (1 + BETA**2) * precision * recall / weighted if weighted else NOTHING


# One for each order: those of characters, then those of words.
_Overlaps = list[_Overlap]
_Counts = Counter[Hashable]  # of the n-grams of one order


def chrf_pp(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """chrF++ of each group, a fraction: the figure that the official tool prints, from all segments' n-grams.

    Each segment counts with its best reference. Its own value is that reference's chrF++ (the mean over the
    segments, which the tool also computes, is another figure). Blank references are left out; a segment with
    no other has the value 0 and is left out of the group's figure.
    """
    best = [_best(*segment) for segment in zip(segments.hypotheses, segments.references, strict=True)]
    figures = []
    for group in groups:
        found = [best[i] for i in group]
        counted = [overlaps for _, overlaps in found if overlaps]
        totals = [
            _Overlap(
                sum(overlap.matches for overlap in order),
                sum(overlap.reference for overlap in order),
                sum(overlap.hypothesis for overlap in order),
            )
            for order in zip(*counted, strict=True)
        ]
        figures.append(Figure(_mean_f(overlap.f_score() for overlap in totals), tuple(value for value, _ in found)))
    return figures


def _best(hypothesis: str, references: Sequence[str]) -> tuple[float, _Overlaps]:
    """A segment's chrF++ and its counts with the best of its references (the first of equals)."""
    mine = _ngrams(hypothesis)
    best, kept = -1.0, []
    for reference in dict.fromkeys(text for text in references if text.strip()):
        overlaps = [_overlap(*order) for order in zip(mine, _ngrams(reference), strict=True)]
        # An order without matches counts 0 in a segment, but NOTHING in a group.
        value = _mean_f(overlap.f_score() if overlap.matches else 0.0 for overlap in overlaps)
        if value > best:
            best, kept = value, overlaps
    return max(best, 0.0), kept


def _mean_f(values: Iterable[float]) -> float:
    # Summed in the tool's order, so that references that it finds equal are equal here to the last bit.
    orders = list(values)
    return (sum(orders[:CHARACTER_ORDERS]) + sum(orders[CHARACTER_ORDERS:])) / (CHARACTER_ORDERS + WORD_ORDERS)


def _overlap(hypothesis: _Counts, reference: _Counts) -> _Overlap:
    # The tool leaves the hypothesis' n-grams out where the reference is too short to have any of that order.
    of_hypothesis = hypothesis.total() if reference else 0
    return _Overlap((hypothesis & reference).total(), reference.total(), of_hypothesis)


def _ngrams(text: str) -> list[_Counts]:
    """Counts of the n-grams of each order: those of characters (as strings), then those of words."""
    characters = text.strip().replace(" ", "")
    words = _words(text)
    of_characters: list[_Counts] = [
        Counter(characters[i : i + n] for i in range(len(characters) + 1 - n)) for n in range(1, CHARACTER_ORDERS + 1)
    ]
    of_words: list[_Counts] = [
        Counter(tuple(words[i : i + n]) for i in range(len(words) + 1 - n)) for n in range(1, WORD_ORDERS + 1)
    ]
    return of_characters + of_words


def _words(text: str) -> list[str]:
    """Words with one mark of punctuation split off each: the last character if it is one, else the first."""
    words = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            words += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            words += [word[0], word[1:]]
        else:
            words.append(word)
    return words
