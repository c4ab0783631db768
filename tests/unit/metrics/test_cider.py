"""CIDEr worked out by hand."""

from math import exp, log, sqrt

import pytest

from lodarepro.metrics.cider import cider
from lodarepro.metrics.segments import Segments


def test_identical_and_disjoint() -> None:
    segments = Segments(("a b c d", "x y"), (("a b c d",), ("e f g h",)))
    figure = cider(segments, [[0, 1]])[0]
    assert figure.segments == (pytest.approx(10.0), 0.0)
    assert figure.value == pytest.approx(5.0)


def test_weights_and_length() -> None:
    # Words and pairs that stand in one of the two segments weigh log 2, "a" stands in both and weighs 0.
    figure = cider(Segments(("a b", "x"), (("a b c",), ("a d",))), [[0, 1]])[0]
    weight = log(2)
    gauss = exp(-1 / (2 * 6**2))  # one pair fewer than the reference
    words = weight**2 / (weight * sqrt(2 * weight**2))
    pairs = weight**2 / (weight * sqrt(2 * weight**2))
    assert figure.segments == pytest.approx((10 * gauss * (words + pairs) / 4, 0.0))


def test_mean_over_references() -> None:
    segments = Segments(("a b c d", "x"), (("a b c d", "e f g h"), ("i j",)))
    assert cider(segments, [[0, 1]])[0].segments == pytest.approx((5.0, 0.0))


def test_empty_texts_and_lone_segments() -> None:
    segments = Segments(("", "a b c d", "a"), (("a b c d",), ("a b c d",), ("",)))
    whole, lone, blank = cider(segments, [[0, 1, 2], [1], [2]])
    empty, full, _ = whole.segments or ()
    assert empty == 0.0 < full
    assert lone.value == 0.0  # what stands in every segment weighs nothing
    assert (blank.value, blank.segments) == (0.0, (0.0,))


def test_tokens_are_split_at_any_white_space() -> None:
    segments = Segments(("a\u00a0b c d", "x"), (("a b c d",), ("y",)))
    assert cider(segments, [[0, 1]])[0].segments == pytest.approx((10.0, 0.0))


def test_a_segment_counts_as_often_as_the_group_has_it() -> None:
    segments = Segments(("a b c d", "e f g h"), (("a b c d",), ("e f g h i",)))
    twice, once = cider(segments, [[0, 0, 1], [0, 1]])
    assert twice.segments == pytest.approx((10.0, 10.0, (once.segments or ())[1]))
    assert twice.value == pytest.approx(sum(twice.segments or ()) / 3)
    # All of its n-grams stand in every segment of the group.
    assert cider(segments, [[0, 0]])[0].value == 0.0
