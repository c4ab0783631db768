"""NIST (Doddington, 2002) as `tuetschek/e2e-metrics` computes it with `-p`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics import ngrams
from lodarepro.metrics.segments import Figure, Group, Segments

ORDERS = 5
# Chosen by NIST so that a hypothesis of two thirds of the references' length is halved.
BETA = math.log(2) / math.log(1.5) ** 2

COLUMNS = (
    "length",
    "reference_length",
    *(f"information_{order}" for order in range(1, ORDERS + 1)),
    *(f"totals_{order}" for order in range(1, ORDERS + 1)),
)


def nist(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """NIST of each group, in points (unbounded), case-insensitive, 13a tokens.

    An n-gram is worth log2 of how often its first n-1 words occur in the group's references over how often it
    does itself. The Perl mteval-v13a counts a varying number of references otherwise and gives more.
    The text is expected in the tokens of `mteval.tokenize`. A corpus figure: segments have none.

    What an n-gram is worth belongs to the group: a resample of its segments keeps it.

    Source: `tuetschek/e2e-metrics` at 1b9c4d87, `metrics/pymteval.py`.
    """
    corpus = ngrams.count(segments, lambda text: text.split(" "), ORDERS)
    lengths, references = corpus.hypothesis_lengths, np.bincount(corpus.owners)
    mean_lengths = np.bincount(corpus.owners, corpus.reference_lengths) / references
    # A text of k tokens counts k + 1 - n n-grams, even below zero, as in the official scorer.
    totals = lengths[:, np.newaxis] - np.arange(ORDERS)
    hits = [order.hits() for order in corpus.orders]
    figures = []
    for group in groups:
        information = _information(corpus, hits, np.bincount(np.asarray(group), minlength=len(segments)))
        statistics = np.column_stack([lengths, mean_lengths, information, totals])
        figures.append(Figure(statistics[np.asarray(group)], _of_sums, COLUMNS))
    return figures


def _information(corpus: ngrams.Corpus, hits: Sequence[ngrams.Integers], held: ngrams.Integers) -> NDArray[np.float64]:
    """The worth of each segment's matches of each order in a group, (segments, orders).

    Args:
        corpus: the n-grams.
        hits: the matches of each order.
        held: how often the group holds each segment, (segments,). Those that it does not hold get any value.
    """
    information = np.zeros((len(held), ORDERS))
    weights = held[corpus.owners]
    # How often each n-gram of the order before occurs: that of order 0 before every word.
    before = np.array([weights @ corpus.reference_lengths])
    for i, (order, matches) in enumerate(zip(corpus.orders, hits, strict=True)):
        counts = order.references.counts * weights[order.references.texts]
        seen = np.bincount(order.references.ngrams, counts, len(order.prefixes))
        # An n-gram without a place in the group's references has no match that counts: anything will do for it.
        worth = np.log2(np.maximum(before[order.prefixes], 1) / np.maximum(seen, 1))
        matched = order.hypotheses
        information[:, i] = np.bincount(matched.texts, matches * worth[matched.ngrams], len(held))
        before = seen
    return information


def _of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    length, reference_length = sums[..., 0], sums[..., 1]
    information, totals = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    # An order that the texts are too short for, so that its total is not above zero, adds nothing; the official
    # scorer divides by the total even so.
    score = (information / np.where(totals > 0, totals, np.inf)).sum(axis=-1)
    # Without a single token nothing matches, and the penalty is of no consequence.
    ratio = np.where(length > 0, length, 1) / np.where(length > 0, reference_length, 1)
    return score * np.exp(-BETA * np.log(np.minimum(ratio, 1)) ** 2)
