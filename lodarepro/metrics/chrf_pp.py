"""chrF++ (Popović, 2017) as `WebNLG/GenerationEval` computes it (80678494, `metrics/chrF.py`).

sacrebleu's chrF++ differs from it in the fifth decimal: in how an order without matches counts.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics import ngrams
from lodarepro.metrics.segments import Figure, Group, Segments

VERSION = "GenerationEval-8067849"

CHARACTER_ORDERS = 6
WORD_ORDERS = 2
BETA = 2
NOTHING = 1e-16  # stands for precision or recall without any n-gram, and for the F score without any match

# Those of characters, then those of words.
ORDERS = (
    *(f"characters_{order}" for order in range(1, CHARACTER_ORDERS + 1)),
    *(f"words_{order}" for order in range(1, WORD_ORDERS + 1)),
)
COLUMNS = tuple(f"{what}_{order}" for what in ("matches", "reference", "hypothesis") for order in ORDERS)


def chrf_pp(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """chrF++ of each group, a fraction: the figure that the official tool prints, from all segments' n-grams.

    Each segment counts with its best reference: n-grams that match, those of the reference, those of the
    hypothesis. Its own value is that reference's chrF++ (the mean over the segments, which the tool also
    computes, is another figure). Blank references are left out; a segment with no other has the value 0 and
    adds nothing to the group's figure.
    """
    # Repeated references change nothing but the time it takes.
    used = Segments(
        segments.hypotheses,
        tuple(tuple(dict.fromkeys(text for text in texts if text.strip())) for texts in segments.references),
    )
    overlaps = np.concatenate(
        [_overlaps(used, _characters, CHARACTER_ORDERS), _overlaps(used, _words, WORD_ORDERS)], axis=-1
    )
    # An order without matches counts 0 in a segment, but NOTHING in a group.
    values = _mean(np.where(overlaps[:, 0] > 0, _f_scores(overlaps), 0))

    # Each segment's references by value, of equals the first one first: then each segment's first is its best.
    owners = np.repeat(np.arange(len(used)), [len(texts) for texts in used.references])
    ranking = np.lexsort((-values, owners))
    present, firsts = np.unique(owners, return_index=True)
    best = ranking[firsts]
    statistics = np.zeros((len(used), len(COLUMNS)))
    statistics[present] = overlaps[best].reshape(-1, len(COLUMNS))
    of_segments = np.zeros(len(used))
    of_segments[present] = values[best]

    figures = []
    for group in groups:
        indices = np.asarray(group)
        figures.append(Figure(statistics[indices], _of_sums, COLUMNS, tuple(of_segments[indices].tolist())))
    return figures


def _of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _mean(_f_scores(sums.reshape(*sums.shape[:-1], 3, len(ORDERS))))


def _mean(orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the orders, (..., orders) -> (...)."""
    # Summed in the tool's order, so that references that it finds equal are equal here to the last bit.
    each = list(np.moveaxis(orders, -1, 0))
    total: NDArray[np.float64] = sum(each[1:CHARACTER_ORDERS], each[0]) + sum(
        each[CHARACTER_ORDERS + 1 :], each[CHARACTER_ORDERS]
    )
    return total / len(ORDERS)


def _f_scores(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """F score of each order from the n-grams that match, those of reference and hypothesis, (..., 3, n) -> (..., n)."""
    matches, reference, hypothesis = np.moveaxis(overlaps, -2, 0)
    precision, recall = _ratio(matches, hypothesis), _ratio(matches, reference)
    return _ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, NOTHING), where=whole > 0)


def _overlaps(segments: Segments, split: Callable[[str], list[str]], orders: int) -> NDArray[np.float64]:
    """N-grams that match, those of the reference, those of the hypothesis: of each reference, (references, 3, orders).

    References are numbered through all segments.
    """
    corpus = ngrams.count(segments, split, orders)
    overlaps = np.zeros((len(corpus.owners), 3, orders))
    for i, order in enumerate(corpus.orders):
        in_reference, in_hypothesis = order.shared
        counts = np.minimum(order.references.counts[in_reference], order.hypotheses.counts[in_hypothesis])
        reference = np.maximum(corpus.reference_lengths - i, 0)
        hypothesis = np.maximum(corpus.hypothesis_lengths - i, 0)[corpus.owners]
        overlaps[:, 0, i] = np.bincount(order.references.texts[in_reference], counts, len(overlaps))
        overlaps[:, 1, i] = reference
        # The tool leaves them out where the reference is too short to have any of that order.
        overlaps[:, 2, i] = np.where(reference > 0, hypothesis, 0)
    return overlaps


def _characters(text: str) -> list[str]:
    return list(text.strip().replace(" ", ""))


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
