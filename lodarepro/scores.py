"""A score is a value plus the choices that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["fraction", "percent", "points", "nats"]

Interval = tuple[float, float]
"""Lower and upper bound."""


@dataclass(frozen=True)
class Score:
    """One metric of one set of hypotheses.

    Attributes:
        metric: key of the metric: bleu, nist, meteor, rouge_l, cider, ter, chrf_pp.
        value: the figure as the official scorer gives it, in `unit`.
        unit: `fraction` (0 to 1), `percent` (0 to 100) or `points` (unbounded: NIST, CIDEr).
        higher_is_better: the direction (False for TER).
        signature: metric, version, tokenizer and references, as `key:value|key:value`; two scores
            may be compared or averaged only if their signatures are equal.
        segments: the value of each segment, in the order of the hypotheses, where the metric
            has one and it was asked for.
        interval: the bootstrap confidence interval of the value, in `unit`, where it was asked for.
    """

    metric: str
    value: float
    unit: Unit
    higher_is_better: bool
    signature: str
    segments: tuple[float, ...] | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class SuiteScores:
    """All scores of one set of hypotheses under one suite of metrics.

    Attributes:
        suite: `e2e`, `webnlg` or `dart`.
        segments: number of segments scored.
        scores: metric key to score, over all segments, in the suite's order.
        subsets: subset label (`seen`, `unseen`) to the same over its segments alone.
        subset_segments: subset label to its number of segments.
    """

    suite: str
    segments: int
    scores: dict[str, Score]
    subsets: dict[str, dict[str, Score]]
    subset_segments: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """One metric of two systems on the same segments, tested by the paired bootstrap.

    Attributes:
        a: the score of the one system, the baseline.
        b: the score of the other.
        difference: b - a, in the unit of the scores.
        interval: the 95 % confidence interval of the difference.
        p: two-sided p-value of the hypothesis that there is none.
        samples: number of resamples.
        seed: of their drawing.
    """

    a: Score
    b: Score
    difference: float
    interval: Interval
    p: float
    samples: int
    seed: int
