"""BLEU (Papineni et al., 2002) as the two official scorers compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics import ngrams
from lodarepro.metrics.segments import Figure, Group, Segments

ORDERS = 4
TINY_HITS = 1e-15  # stands for no match at all, so that the logarithm is defined
TINY_TOTAL = 1e-9

COLUMNS = (
    "length",
    "reference_length",
    *(f"hits_{order}" for order in range(1, ORDERS + 1)),
    *(f"totals_{order}" for order in range(1, ORDERS + 1)),
)


def mteval_bleu(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """BLEU of each group, a fraction, as `measure_scores.py -p` gives it: case-insensitive, 13a tokens.

    The text is expected in the tokens of `mteval.tokenize`. A corpus figure: segments have none.

    Source: `tuetschek/e2e-metrics` at 1b9c4d87, `metrics/pymteval.py`.
    """
    statistics = _statistics(segments, lambda text: text.split(" "))
    # A text of k tokens counts k + 1 - n n-grams there, even below zero, so that texts shorter than four
    # tokens can push a precision past 1. Such a figure means nothing: it is held at 1.
    statistics[:, -ORDERS:] = statistics[:, :1] - np.arange(ORDERS)
    return [Figure(statistics[np.asarray(group)], _mteval_of_sums, COLUMNS) for group in groups]


def multi_bleu_detok(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """BLEU of each group, in per cent, as Moses' `multi-bleu-detok.perl` gives it: cased, 13a tokens.

    The script is part of `WebNLG/GenerationEval` at 80678494; sacrebleu's figure without smoothing is the same
    one, unrounded: 0 where an order has no match. A corpus figure: segments have none.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    # sacrebleu cuts white space at the end first, without which "-\n" would lose its hyphen there.
    statistics = _statistics(segments.map(lambda text: tokenizer(text.rstrip())), str.split)
    return [Figure(statistics[np.asarray(group)], _multi_bleu_of_sums, COLUMNS) for group in groups]


def _statistics(segments: Segments, split: Callable[[str], list[str]]) -> NDArray[np.float64]:
    """What each segment adds, (segments, columns); totals are the n-grams that its hypothesis has."""
    # Repeated references change nothing but the time it takes.
    distinct = Segments(segments.hypotheses, tuple(tuple(dict.fromkeys(texts)) for texts in segments.references))
    corpus = ngrams.count(distinct, split, ORDERS)
    hits, totals = [], []
    for order in corpus.orders:
        texts = order.hypotheses.texts
        hits.append(np.bincount(texts, order.hits(), len(segments)))
        totals.append(np.bincount(texts, order.hypotheses.counts, len(segments)))
    return np.stack([corpus.hypothesis_lengths, corpus.closest_lengths(), *hits, *totals], axis=-1)


def _parts(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Brevity penalty (...), hits (..., orders), totals (..., orders)."""
    length, reference_length = sums[..., 0], sums[..., 1]
    # Without a single token nothing matches, and the penalty is of no consequence.
    ratio = reference_length / np.where(length > 0, length, 1)
    return np.exp(np.minimum(0, 1 - ratio)), sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]


def _mteval_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    brevity, hits, totals = _parts(sums)
    precisions = np.minimum(np.maximum(hits, TINY_HITS) / np.maximum(totals, TINY_TOTAL), 1)
    return brevity * np.exp(np.log(precisions).mean(axis=-1))


def _multi_bleu_of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    brevity, hits, totals = _parts(sums)
    matched = hits > 0
    precisions = np.where(matched, 100 * hits, 1) / np.where(matched, totals, 1)
    return np.where(matched.all(axis=-1), brevity * np.exp(np.log(precisions).mean(axis=-1)), 0)
