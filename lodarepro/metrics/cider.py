"""CIDEr (Vedantam et al., 2015; its variant CIDEr-D) of the COCO caption tools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics import ngrams
from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures

ORDERS = 4
SIGMA = 6.0


def cider(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """CIDEr of each group, in points (0 to 10): the mean over its segments, which are given too.

    N-grams are weighed by how many segments of the group hold them, so that a segment's value depends on its
    group, and a group of one segment has 0. A resample of the group's segments keeps these weights. The text
    is expected in PTB tokens. Source: `pycocoevalcap`, whose formula is that of `tuetschek/e2e-metrics` at
    1b9c4d87.
    """
    # Split at any white space, as the COCO tools do here (but not for ROUGE-L).
    corpus = ngrams.count(segments, str.split, ORDERS)
    figures = []
    for group in groups:
        held = np.bincount(np.asarray(group), minlength=len(segments))
        figures += mean_figures(_values(corpus, held).tolist(), [group])
    return figures


def _values(corpus: ngrams.Corpus, held: ngrams.Integers) -> NDArray[np.float64]:
    """The value of each segment in a group, (segments,).

    Args:
        corpus: the n-grams.
        held: how often the group holds each segment, (segments,). Those that it does not hold get any value.
    """
    similarity = np.zeros(len(corpus.owners))  # of each reference to its hypothesis: the sum over orders of cosines
    for order in corpus.orders:
        hypotheses, references = order.hypotheses, order.references
        weights = _weights(order, corpus.owners, held)
        in_reference, in_hypothesis = order.shared
        own = references.counts[in_reference]
        clipped = np.minimum(own, hypotheses.counts[in_hypothesis])
        products = clipped * own * weights[references.ngrams[in_reference]] ** 2
        norms = _norms(references, weights, len(similarity)) * _norms(hypotheses, weights, len(held))[corpus.owners]
        scalar_products = np.bincount(references.texts[in_reference], products, len(similarity))
        similarity += scalar_products / np.where(norms > 0, norms, 1)
    # The COCO tools compare numbers of pairs: the same difference, unless a text is empty and similar to none.
    differences = corpus.hypothesis_lengths[corpus.owners] - corpus.reference_lengths
    similarity *= np.exp(-(differences**2) / (2 * SIGMA**2))
    return 10 / ORDERS * np.bincount(corpus.owners, similarity) / np.bincount(corpus.owners)


def _weights(order: ngrams.Order, owners: ngrams.Integers, held: ngrams.Integers) -> NDArray[np.float64]:
    """Weight of each n-gram, (n-grams,): log of the group's size over its segments with the n-gram in a reference.

    One that no reference has weighs as if one segment had it.
    """
    distinct = len(order.prefixes)
    holders = np.unique(owners[order.references.texts] * distinct + order.references.ngrams)
    segments, ngrams_held = np.divmod(holders, max(distinct, 1))
    return np.log(held.sum()) - np.log(np.maximum(np.bincount(ngrams_held, held[segments], distinct), 1))


def _norms(counts: ngrams.Counts, weights: NDArray[np.float64], texts: int) -> NDArray[np.float64]:
    """Euclidean length of the vectors of weighted counts, (texts,)."""
    return np.sqrt(np.bincount(counts.texts, (counts.counts * weights[counts.ngrams]) ** 2, texts))
