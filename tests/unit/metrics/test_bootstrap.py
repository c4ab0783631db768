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
from lodarepro.metrics.bootstrap import compare_means
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


# means of several systems -----------------------------------------------------------------------


def test_one_system_of_each_method_is_the_comparison_of_two():
    labels = ["seen" if i % 3 else "unseen" for i in range(40)]
    a, b = (measured(normal(40, seed), 5 + normal(40, seed=9), subsets=labels) for seed in (0, 1))
    assert compare_means([a], [b], samples=250, seed=3) == compare(a, b, samples=250, seed=3)


def test_scores_are_the_arithmetic_means_of_the_systems():
    a = [measured([1, 2, 3]), measured([4, 5, 9])]  # means 2 and 6
    b = [measured([0, 0, 3]), measured([3, 3, 3]), measured([9, 10, 11])]  # means 1, 3 and 10
    found = compare_means(a, b, samples=50)["all"]
    assert (found["mean"].a.value, found["mean"].b.value) == pytest.approx((4, 14 / 3), rel=1e-12)
    assert (found["tenfold"].a.value, found["tenfold"].b.value) == pytest.approx((40, 140 / 3), rel=1e-12)
    assert found["mean"].difference == pytest.approx(14 / 3 - 4, rel=1e-12)
    assert (found["mean"].samples, found["mean"].seed) == (50, bootstrap.SEED)
    assert found["mean"].a.signature == a[0].scores().scores["mean"].signature
    assert not found["tenfold"].a.higher_is_better


def test_the_mean_of_systems_is_as_a_system_of_mean_values():
    """For a metric that is a mean over segments both are the same, whatever the resample."""
    a, b = [normal(60, seed) for seed in range(3)], [0.3 + normal(60, seed) for seed in range(3, 5)]
    several = compare_means([measured(v) for v in a], [measured(v) for v in b], samples=300)["all"]["mean"]
    one = compared(np.mean(a, axis=0), np.mean(b, axis=0), samples=300)
    assert (several.p, several.samples) == (one.p, one.samples)
    assert several.difference == pytest.approx(one.difference, rel=1e-9)
    assert several.interval == pytest.approx(one.interval, rel=1e-9)


def test_a_mean_of_ratios_is_not_the_ratio_of_the_means_sums():
    """Each system's figure is taken first, then their mean."""
    references = [1.0, 2.0, 5.0]
    a = [measured([1, 2, 5], references), measured([2, 4, 10], references)]  # ratios 1 and 2
    b = [measured([8, 0, 0], references)]
    found = compare_means(a, b, samples=20)["all"]["ratio"]
    assert (found.a.value, found.b.value) == pytest.approx((1.5, 1))


def test_two_equal_methods_do_not_differ():
    systems = [measured(normal(30, seed)) for seed in range(3)]
    found = compare_means(systems, systems, samples=99)["all"]["mean"]
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)


def test_the_order_of_the_seeds_does_not_matter():
    a, b = (
        [measured(shift + normal(30, seed)) for seed in seeds] for shift, seeds in ((0, range(3)), (0.2, range(3, 6)))
    )
    found = compare_means(a, b, samples=300)["all"]["mean"]
    turned = compare_means(a[::-1], [b[1], b[2], b[0]], samples=300)["all"]["mean"]
    assert turned.p == found.p and 0 < found.p < 1
    assert (turned.a.value, turned.b.value) == pytest.approx((found.a.value, found.b.value), abs=1e-12)
    assert turned.interval == pytest.approx(found.interval, abs=1e-12)


def test_more_systems_that_agree_make_a_difference_surer():
    """Errors of single systems that cancel out in the mean are no errors of the mean."""
    errors = normal(100, seed=1)
    a = [measured([0] * 100)]
    up, down = measured(0.05 + errors), measured(0.05 - errors)
    assert compare_means(a, [up], samples=400)["all"]["mean"].p > 0.3
    assert compare_means(a, [up, down], samples=400)["all"]["mean"].p == pytest.approx(1 / 401)


@pytest.mark.parametrize("place", ["first of a", "last of a", "last of b"])
@pytest.mark.parametrize(
    "other",
    [{"values": [1, 2, 3]}, {"values": [1, 2], "suite": "others"}, {"values": [1, 2], "subsets": ["seen", None]}],
    ids=["segments", "suite", "subsets"],
)
def test_systems_that_were_not_measured_alike_are_not_averaged(place: str, other: dict[str, Any]):
    odd, same = measured(**other), measured([1, 2])
    a, b = {
        "first of a": ([odd, same], [same]),
        "last of a": ([same, odd], [same]),
        "last of b": ([same], [same, odd]),
    }[place]
    with pytest.raises(BadInput, match=r"^the two sets of hypotheses were not measured alike"):
        compare_means(a, b)
