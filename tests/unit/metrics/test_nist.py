"""NIST: information weights and length penalty worked out by hand."""

from collections.abc import Iterable, Sequence
from math import exp, log, log2

import pytest

from lodarepro.metrics.mteval import tokenize
from lodarepro.metrics.nist import nist
from lodarepro.metrics.segments import Segments


def of(hypotheses: Sequence[str], references: Iterable[Iterable[str]]) -> float:
    segments = Segments(tuple(hypotheses), tuple(map(tuple, references)))
    return nist(segments.map(tokenize), [range(len(hypotheses))])[0].value


def test_one_segment() -> None:
    # Each of four words is worth log2(4 / 1); longer n-grams are certain once they have begun: log2(1) = 0.
    assert of(["a b c d e"], [["A b c e"]]) == pytest.approx(4 * log2(4) / 5)


def test_varying_number_of_references() -> None:
    # Nine words of references in all: a stands 3 times, b 2, so log2(9/3) and log2(9/2); the pair "a b" is
    # there 2 times for 3 a's: log2(3/2). The mean length is (2 + 3) / 2 + 4 = 6.5 for 5 words of hypotheses.
    value = of(["a b", "z z z"], [["a b", "a b c"], ["d a e f"]])
    words = (log2(9 / 3) + log2(9 / 2)) / 5
    pairs = log2(3 / 2) / 3
    beta = log(2) / log(3 / 2) ** 2
    assert value == pytest.approx((words + pairs) * exp(-beta * log(5 / 6.5) ** 2))


def test_two_thirds_of_the_length_halve_it() -> None:
    assert of(["a b"], [["a b c"]]) == pytest.approx(0.5 * log2(3))
    assert of(["a b c x"], [["a b c"]]) == pytest.approx(3 * log2(3) / 4)  # longer: no penalty


def test_matches_are_clipped_to_one_reference() -> None:
    assert of(["a a a a"], [["a b", "a a c d"]]) == pytest.approx(
        (2 * log2(6 / 3)) / 4 + log2(3 / 1) / 3  # two words, one pair "a a" after three a's
    )


def test_empty_hypotheses() -> None:
    assert of([""], [["a b c"]]) == 0.0
    assert 0 < of(["", "a b c"], [["x y"], ["a b c"]]) < of(["x y", "a b c"], [["x y"], ["a b c"]])


def test_orders_that_most_hypotheses_are_too_short_for_add_nothing() -> None:
    # "a b c" is worth log2(2 / 1), but texts of 3, 1 and 1 tokens count 5 - 2 * 3 < 0 triples.
    value = of(["a b c", "", ""], [["a b c"], ["a b"], ["c"]])
    words, pairs = 3 * log2(6 / 2), log2(2 / 1)
    assert value == pytest.approx((words / 5 + pairs / 2) * exp(-log(2) * (log(5 / 6) / log(3 / 2)) ** 2))


def test_information_comes_from_the_group() -> None:
    segments = Segments(("a b", "a c"), (("a b",), ("a c",)))
    whole, first = nist(segments, [[0, 1], [0]])
    assert first.value == pytest.approx(1.0)
    # a: log2(4/2) twice, b and c: log2(4/1); pairs: log2(2/1) twice.
    assert whole.value == pytest.approx((2 * 1 + 2 * 2) / 4 + 2 * 1 / 2)
    assert whole.segments is None


def test_statistics() -> None:
    figure = nist(Segments(("a b", ""), (("a b", "a b c"), ("d a e f",))), [[0, 1]])[0]
    rows = [dict(zip(figure.columns, row, strict=True)) for row in figure.statistics]
    first, empty = rows
    assert (first["length"], first["reference_length"]) == (2, 2.5)
    information = [first[f"information_{order}"] for order in range(1, 6)]
    assert information == pytest.approx([log2(9 / 3) + log2(9 / 2), log2(3 / 2), 0, 0, 0])
    assert [first[f"totals_{order}"] for order in range(1, 6)] == [2, 1, 0, -1, -2]
    assert list(empty.values()) == [1, 4, 0, 0, 0, 0, 0, 1, 0, -1, -2, -3]
