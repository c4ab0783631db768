"""BLEU (Papineni et al., 2002) as the two official scorers compute it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lodarepro.metrics import mteval
from lodarepro.metrics.segments import Figure, Group, Segments

ORDERS = range(1, 5)
TINY_HITS = 1e-15  # stands for no match at all, so that the logarithm is defined
TINY_TOTAL = 1e-9


def mteval_bleu(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """BLEU of each group, a fraction, as `measure_scores.py -p` gives it: case-insensitive, 13a tokens.

    Source: `tuetschek/e2e-metrics` at 1b9c4d87, `metrics/pymteval.py`. A corpus figure: segments have none.
    """
    rows = [_counts(*segment) for segment in zip(segments.hypotheses, segments.references, strict=True)]
    figures = []
    for group in groups:
        length, closest, *counts = map(sum, zip(*(rows[i] for i in group), strict=True))
        hits, totals = counts[: len(ORDERS)], counts[len(ORDERS) :]
        # A text of k tokens counts k + 1 - n n-grams there, even below zero, so that texts shorter than four
        # tokens can push a precision past 1. Such a figure means nothing: it is held at 1.
        precisions = (
            min(max(hit, TINY_HITS) / max(total, TINY_TOTAL), 1.0) for hit, total in zip(hits, totals, strict=True)
        )
        brevity = math.exp(min(0.0, 1 - closest / length))
        figures.append(Figure(brevity * math.exp(sum(map(math.log, precisions)) / len(ORDERS))))
    return figures


def _counts(hypothesis: str, references: Sequence[str]) -> list[int]:
    """What a segment adds: its length, the closest reference's, then hits and totals of each order."""
    tokens = mteval.tokenize(hypothesis)
    others = [mteval.tokenize(reference) for reference in references]
    # The closest length; of two equally close ones the shorter.
    closest = min(map(len, others), key=lambda length: (abs(length - len(tokens)), length))
    hits = []
    for order in ORDERS:
        allowed = mteval.merged(mteval.ngrams(other, order) for other in others)
        hits.append((mteval.ngrams(tokens, order) & allowed).total())
    return [len(tokens), closest, *hits, *(len(tokens) + 1 - order for order in ORDERS)]


def multi_bleu_detok(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """BLEU of each group, in per cent, as Moses' `multi-bleu-detok.perl` gives it: cased, 13a tokens.

    The script is part of `WebNLG/GenerationEval` at 80678494; sacrebleu's figure is the same one, unrounded
    (without smoothing: the script gives 0 where an order has no match). A corpus figure: segments have none.
    Every segment must have the same number of references.
    """
    import sacrebleu

    figures = []
    for group in groups:
        part = segments.select(group)
        streams = [list(stream) for stream in zip(*part.references, strict=True)]
        # force: no warning that the text is tokenized, which it is meant to be.
        bleu = sacrebleu.corpus_bleu(list(part.hypotheses), streams, smooth_method="none", force=True)
        figures.append(Figure(bleu.score))
    return figures
