"""The bootstrap, on a suite of numbers: known distributions, what is paired, what is refused."""

import math
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from lodarepro.errors import BadInput
from lodarepro.metrics import SUITES, Measurement, bootstrap, compare, intervals, measure, suites
from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures
from lodarepro.scores import Comparison

Values = Sequence[float] | np.ndarray


@pytest.fixture(autouse=True)
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite whose hypotheses are numbers: their mean, ten times their mean, and what they are to the references."""

    def mean(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([float(text) for text in segments.hypotheses], groups)

    def tenfold(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([10 * float(text) for text in segments.hypotheses], groups)

    def ratio(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        rows = np.array(
            [
                [float(text), float(texts[0])]
                for text, texts in zip(segments.hypotheses, segments.references, strict=True)
            ]
        )
        return [Figure(rows[list(g)], lambda sums: sums[..., 0] / sums[..., 1], ("own", "reference")) for g in groups]

    metrics = tuple(
        suites.Metric(key, "points", "raw", compute, lambda: "version:1", higher_is_better=key != "tenfold")
        for key, compute in (("mean", mean), ("tenfold", tenfold), ("ratio", ratio))
    )
    for name in ("numbers", "others"):
        monkeypatch.setitem(SUITES, name, suites.Suite(lambda raw: {"raw": raw}, metrics))


def measured(values: Values, references: Values | None = None, **options: Any) -> Measurement:
    texts = [[repr(float(value))] for value in (references if references is not None else [1.0] * len(values))]
    return measure([repr(float(value)) for value in values], texts, **{"suite": "numbers", **options})


def compared(a: Values, b: Values, **options: Any) -> Comparison:
    return compare(measured(a), measured(b), **options)["all"]["mean"]


def normal(size: int, seed: int = 0) -> np.ndarray:
    """Values with mean 0 and standard deviation 1, to the last bit but few."""
    values = np.random.default_rng(seed).normal(size=size)
    return (values - values.mean()) / values.std()


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    low, high = intervals(measured(3 + 2 * normal(400)), samples=4000)["all"]["mean"]
    width = 1.96 * 2 / math.sqrt(400)
    assert low == pytest.approx(3 - width, abs=0.05 * width)
    assert high == pytest.approx(3 + width, abs=0.05 * width)


def test_a_ratio_is_taken_of_sums_not_a_mean_of_ratios():
    references = 100 + 10 * normal(400, seed=1)
    own = 0.5 * references + 5 * normal(400, seed=2)
    low, high = intervals(measured(own, references), samples=4000)["all"]["ratio"]
    ratio = own.sum() / references.sum()
    # The delta method.
    width = 1.96 * (own - ratio * references).std() / references.mean() / math.sqrt(400)
    assert (low, high) == pytest.approx((ratio - width, ratio + width), abs=0.05 * width)


def test_every_outcome_of_two_segments():
    found = bootstrap._resampled([measured([0, 1]).figures["all"]["mean"]], 4000, seed=1)[0]
    outcomes, counts = np.unique(found, return_counts=True)
    assert outcomes.tolist() == [0, 0.5, 1]
    assert (counts / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_resample_has_as_many_segments_as_there_are():
    weights = np.concatenate(list(bootstrap._weights(30, 250, seed=3)))
    assert weights.shape == (250, 30)  # not a whole number of blocks
    assert (weights.sum(axis=1) == 30).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(30), abs=0.3)
    assert weights.var() == pytest.approx(1 - 1 / 30, abs=0.05)
    assert len(np.unique(weights, axis=0)) == 250


def test_one_segment_has_one_outcome():
    assert intervals(measured([0.7]), samples=10)["all"]["mean"] == (0.7, 0.7)


def test_the_metrics_see_the_same_resamples():
    found = intervals(measured([1, 2, 4, 8, 16, 32], [1] * 6), samples=200)["all"]
    assert found["tenfold"] == pytest.approx([10 * bound for bound in found["mean"]], rel=1e-12)
    assert found["ratio"] == pytest.approx(found["mean"], rel=1e-12)


def test_a_seed_is_a_drawing():
    one = measured(normal(50))
    assert intervals(one, samples=100, seed=7) == intervals(one, samples=100, seed=7)
    assert intervals(one, samples=100, seed=7) != intervals(one, samples=100, seed=8)
    other = measured(normal(50) + normal(50, seed=1))
    assert compare(one, other, samples=100, seed=7) == compare(one, other, samples=100, seed=7)
    assert compare(one, other, samples=100, seed=7) != compare(one, other, samples=100, seed=8)


def test_the_seed_and_the_number_of_resamples_that_are_documented():
    one = measured(normal(20))
    assert intervals(one) == intervals(one, samples=1000, seed=12345)
    found = compared(normal(20), normal(20, seed=1))
    assert (found.samples, found.seed) == (1000, 12345)


def test_a_subset_is_resampled_alone():
    values, references = normal(40), 5 + normal(40, seed=1)
    labels = ["seen" if i % 3 else None for i in range(40)]
    seen = [i for i, label in enumerate(labels) if label]
    both = intervals(measured(values, references, subsets=labels), samples=100)
    assert list(both) == ["all", "seen"]
    assert both["all"] == intervals(measured(values, references), samples=100)["all"]
    assert both["seen"] == intervals(measured(values[seen], references[seen]), samples=100)["all"]


def test_a_system_does_not_differ_from_itself():
    found = compared(normal(30), normal(30), samples=50)
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)


@pytest.mark.parametrize("samples", [1, 99, 250])
def test_a_difference_that_every_segment_has_is_as_sure_as_the_resamples_allow(samples: int):
    values = normal(30)
    found = compared(values, values + 0.25, samples=samples)
    assert found.p == 1 / (samples + 1)
    assert found.difference == pytest.approx(0.25)
    assert found.interval == pytest.approx((0.25, 0.25))


def test_the_difference_is_of_the_second_to_the_first_whatever_is_better():
    a, b = measured([1, 2, 3]), measured([3, 4, 5])
    found = compare(a, b, samples=20)["all"]
    assert {key: one.difference for key, one in found.items()} == {"mean": 2, "tenfold": 20, "ratio": 2}
    assert (found["mean"].a.value, found["mean"].b.value) == (2, 4)
    assert not found["tenfold"].a.higher_is_better
    turned = compare(b, a, samples=20)["all"]["mean"]
    assert (turned.difference, turned.p) == (-2, found["mean"].p)
    assert turned.interval == pytest.approx((-2, -2))


def test_no_difference_on_the_whole_is_none():
    found = compared([0] * 20, [1, -1] * 10, samples=200)
    assert (found.difference, found.p) == (0, 1)
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize("errors", [0.5, 1.5, 2.5, -1.5])
def test_the_p_value_is_that_of_the_normal_approximation(errors: float):
    difference = errors / math.sqrt(400) + normal(400)
    found = compared([0] * 400, difference, samples=4000)
    assert found.p == pytest.approx(2 * NormalDist().cdf(-abs(errors)), abs=0.025)
    width = 1.96 / math.sqrt(400)
    expected = (found.difference - width, found.difference + width)
    assert found.interval == pytest.approx(expected, abs=0.06 * width)


def test_what_the_segments_have_in_common_counts_for_nothing():
    """Segments that are hard for both systems hide no difference, as they would if each drew its own."""
    hard = 10 * normal(100)
    better = hard + 0.2 + 0.1 * normal(100, seed=1)
    paired = compared(hard, better, samples=500)
    assert paired.p == 1 / 501
    assert paired.interval == pytest.approx((0.18, 0.22), abs=0.01)
    shuffled = compared(hard, np.random.default_rng(2).permutation(better), samples=500)
    assert shuffled.difference == pytest.approx(paired.difference)
    assert shuffled.p > 0.5


def test_the_subsets_are_compared_too():
    labels = ["seen", "seen", "unseen", "unseen"]
    a, b = (measured(values, subsets=labels) for values in ([1, 2, 3, 4], [2, 3, 3, 4]))
    found = compare(a, b, samples=99)
    assert {group: (one["mean"].difference, one["mean"].p) for group, one in found.items()} == {
        "all": (0.5, found["all"]["mean"].p),
        "seen": (1, 0.01),
        "unseen": (0, 1),
    }
    assert (found["seen"]["mean"].a.value, found["seen"]["mean"].b.value) == (1.5, 2.5)
    assert 0.01 < found["all"]["mean"].p < 1


@pytest.mark.parametrize(
    "other",
    [
        {"values": [1, 2], "suite": "others"},
        {"values": [1, 2, 3]},
        {"values": [1, 2], "subsets": ["seen", None]},
    ],
    ids=["suite", "segments", "subsets"],
)
def test_what_was_not_measured_alike_is_not_compared(other: dict[str, Any]):
    message = (
        "the two sets of hypotheses were not measured alike (suite, segments, subsets or references differ); "
        "compare them on the same segments"
    )
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        compare(measured([1, 2]), measured(**other))


def test_nor_with_other_numbers_of_references():
    one, two = (measure(["1"], [["1"] * count], suite="numbers") for count in (1, 2))
    with pytest.raises(BadInput, match="not measured alike"):
        compare(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "0 resamples: give at least 1, and 1000 or more for figures to rely on"),
        ({"samples": -5}, "-5 resamples: give at least 1, and 1000 or more for figures to rely on"),
        ({"seed": -1}, "seed -1: give 0 or more"),
    ],
)
def test_a_drawing_that_can_not_be(options: dict[str, int], message: str):
    for call in (lambda: intervals(measured([1]), **options), lambda: compared([1], [2], **options)):
        with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
            call()
