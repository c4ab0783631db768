"""NIST (Doddington, 2002) as `tuetschek/e2e-metrics` computes it with `-p`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lodarepro.metrics import mteval
from lodarepro.metrics.segments import Figure, Group, Segments

ORDERS = range(1, 6)
# Chosen by NIST so that a hypothesis of two thirds of the references' length is halved.
BETA = math.log(2) / math.log(1.5) ** 2


def nist(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """NIST of each group, in points (unbounded), case-insensitive, 13a tokens.

    An n-gram is worth log2 of how often its first n-1 words occur in the group's references over how often it
    does itself. The Perl mteval-v13a counts a varying number of references otherwise and gives more.
    A corpus figure: segments have none.

    Source: `tuetschek/e2e-metrics` at 1b9c4d87, `metrics/pymteval.py`.
    """
    hypotheses = [mteval.tokenize(hypothesis) for hypothesis in segments.hypotheses]
    references = [[mteval.tokenize(text) for text in texts] for texts in segments.references]
    return [Figure(_nist([hypotheses[i] for i in group], [references[i] for i in group])) for group in groups]


def _nist(hypotheses: list[list[str]], references: list[list[list[str]]]) -> float:
    seen: list[Counter[mteval.Ngram]] = [Counter() for _ in (0, *ORDERS)]  # seen[n]: n-grams of all references
    hits: list[Counter[mteval.Ngram]] = [Counter() for _ in (0, *ORDERS)]  # hits[n]: clipped matches
    for hypothesis, others in zip(hypotheses, references, strict=True):
        seen[0][()] += sum(map(len, others))
        for order in ORDERS:
            counts = [mteval.ngrams(other, order) for other in others]
            for count in counts:
                seen[order].update(count)
            hits[order].update(mteval.ngrams(hypothesis, order) & mteval.merged(counts))

    length = sum(map(len, hypotheses))
    score = 0.0
    for order in ORDERS:
        information = math.fsum(
            count * math.log2(seen[order - 1][ngram[:-1]] / seen[order][ngram]) for ngram, count in hits[order].items()
        )
        # Below zero for a text shorter than its order, as in the official scorer, which divides by zero if
        # all texts are so short; no n-gram of that order exists then, and it adds nothing.
        total = length - (order - 1) * len(hypotheses)
        if total > 0:
            score += information / total
    mean_length = sum(sum(map(len, others)) / len(others) for others in references)
    ratio = min(length / mean_length, 1.0)
    return score * math.exp(-BETA * math.log(ratio) ** 2)
