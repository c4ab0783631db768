"""The bootstrap over segments: confidence intervals, and paired tests between two systems.

A resample draws as many segments as there are, with replacement, and takes a metric from their statistics. What a
metric takes from all references at once stays as it is for the whole set: document frequencies (CIDEr) and the
worth of n-grams (NIST).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lodarepro.errors import BadInput
from lodarepro.metrics.segments import Figure
from lodarepro.metrics.suites import ALL, Measurement
from lodarepro.scores import Comparison, Interval, Score

SAMPLES, SEED = 1000, 12345  # sacrebleu's defaults
LEVEL = 0.95

_BLOCK = 100  # resamples worked on at once


def check(samples: int, seed: int) -> None:
    """Whether resamples can be drawn so; BadInput if not."""
    if samples < 1:
        raise BadInput(f"{samples} resamples: give at least 1, and 1000 or more for figures to rely on")
    if seed < 0:
        raise BadInput(f"seed {seed}: give 0 or more")


def intervals(measurement: Measurement, *, samples: int = SAMPLES, seed: int = SEED) -> dict[str, dict[str, Interval]]:
    """Confidence intervals of a measurement's figures, by the percentiles of the resampled ones.

    Args:
        measurement: what was measured.
        samples: number of resamples.
        seed: of the drawing; every metric of a group sees the same resamples.

    Returns:
        Group to metric key to lower and upper bound at the 95 % level, in the unit of the metric.

    Raises:
        BadInput: fewer than one resample, or a negative seed.
    """
    found = {}
    for group, figures in measurement.figures.items():
        values = _resampled([*figures.values()], samples, seed)
        found[group] = {key: _interval(row) for key, row in zip(figures, values, strict=True)}
    return found


def compare(
    a: Measurement, b: Measurement, *, samples: int = SAMPLES, seed: int = SEED
) -> dict[str, dict[str, Comparison]]:
    """Paired bootstrap test (Koehn, 2004) between two systems on the same segments, for each metric.

    The p-value is two-sided: how often a difference that is zero in truth is at least as far from zero as the
    one found, the resampled differences moved to have their mean at zero (Riezler and Maxwell, 2005; so does
    sacrebleu).

    Args:
        a: one system, the baseline.
        b: the other, with the same suite, references and subsets.
        samples: number of resamples.
        seed: of the drawing.

    Returns:
        Group to metric key to comparison.

    Raises:
        BadInput: the two do not belong together, fewer than one resample, or a negative seed.
    """
    return compare_means([a], [b], samples=samples, seed=seed)


def compare_means(
    a: Sequence[Measurement], b: Sequence[Measurement], *, samples: int = SAMPLES, seed: int = SEED
) -> dict[str, dict[str, Comparison]]:
    """The test of `compare` between the means of two methods, each trained with one or more seeds.

    Every resample of the segments is the same for all; what it says of the seeds is nothing: they are taken as they
    are.

    Args:
        a: the systems of one method, the baseline.
        b: those of the other.
        samples: number of resamples.
        seed: of the drawing.

    Returns:
        Group to metric key to comparison, whose scores are means.

    Raises:
        BadInput: as `compare`.
    """
    every = [*a, *b]
    first = every[0]
    if any(
        (m.suite, m.groups, m.signatures, m.references)
        != (first.suite, first.groups, first.signatures, first.references)
        for m in every
    ):
        raise BadInput(
            "the two sets of hypotheses were not measured alike (suite, segments, subsets or references differ); "
            "compare them on the same segments"
        )
    found: dict[str, dict[str, Comparison]] = {}
    for group, figures in first.figures.items():
        resampled = _resampled([m.figures[group][key] for m in every for key in figures], samples, seed)
        values = resampled.reshape(len(every), len(figures), -1)  # (systems, metrics, samples)
        differences = values[len(a) :].mean(axis=0) - values[: len(a)].mean(axis=0)  # (metrics, samples)
        of_a, of_b = _mean_scores(a, group), _mean_scores(b, group)
        found[group] = {}
        for key, moved in zip(figures, differences, strict=True):
            difference = of_b[key].value - of_a[key].value
            as_far = np.abs(moved - moved.mean()) >= abs(difference)
            found[group][key] = Comparison(
                a=of_a[key],
                b=of_b[key],
                difference=difference,
                interval=_interval(moved),
                p=float((as_far.sum() + 1) / (samples + 1)),
                samples=samples,
                seed=seed,
            )
    return found


def _mean_scores(systems: Sequence[Measurement], group: str) -> dict[str, Score]:
    scores = [m.scores() for m in systems]
    of_group = [s.scores if group == ALL else s.subsets[group] for s in scores]
    return {
        key: replace(score, value=sum(of[key].value for of in of_group) / len(systems))
        for key, score in of_group[0].items()
    }


def _resampled(figures: Sequence[Figure], samples: int, seed: int) -> NDArray[np.float64]:
    """Figures of one group on the same resamples, (figures, samples)."""
    check(samples, seed)
    blocks = [
        [figure.of_sums(weights @ figure.statistics) for figure in figures]
        for weights in _weights(len(figures[0].statistics), samples, seed)
    ]
    return np.concatenate(blocks, axis=1)


def _weights(segments: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each segment is drawn in each resample, (resamples, segments), some resamples at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, _BLOCK):
        drawn = generator.integers(segments, size=(min(_BLOCK, samples - start), segments))
        flat = drawn + np.arange(len(drawn))[:, None] * segments
        yield np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
