"""chrF++: hand-counted n-grams, the tool's peculiarities, and sacrebleu nearby."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import sacrebleu

from lodarepro.metrics.chrf_pp import _words, chrf_pp
from lodarepro.metrics.segments import Figure, Segments


def figure(hypotheses: Sequence[str], references: Iterable[Iterable[str]]) -> Figure:
    segments = Segments(tuple(hypotheses), tuple(map(tuple, references)))
    return chrf_pp(segments, [range(len(hypotheses))])[0]


def of(hypothesis: str, *references: str) -> float:
    return figure([hypothesis], [references]).value


def f2(precision: Any, recall: Any) -> Any:
    return 5 * precision * recall / (4 * precision + recall)


def test_hand_counted() -> None:
    # "thecat" against "thecatsat": all of the hypothesis' n-grams match.
    characters = [f2(Fraction(1), Fraction(6 - n, 9 - n)) for n in range(6)]
    words = [f2(Fraction(1), Fraction(2, 3)), f2(Fraction(1), Fraction(1, 2))]
    expected = float(sum(characters + words) / 8)
    found = figure(["the cat"], [["the cat sat"]])
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.segments == pytest.approx([expected], abs=1e-12)


def test_identical() -> None:
    assert of("the cat sat", "the cat sat") == pytest.approx(1.0)
    assert of("Ünïcödé 東京", "Ünïcödé 東京") == pytest.approx(1.0)


def test_orders_that_no_text_has_count_nothing() -> None:
    # Two characters, one word: three orders of eight.
    assert of("ab", "ab") == pytest.approx(3 / 8)


def test_orders_that_the_reference_lacks_do_not_lower_precision() -> None:
    # "a" has no pairs, so those of "abc" are not counted: one of one pair is right, not one of three.
    value = figure(["abc", "xy"], [["a"], ["xy"]]).value
    characters = [f2(3 / 5, 1), 1]
    words = [f2(1 / 2, 1 / 2)]
    assert value == pytest.approx(sum(characters + words) / 8)


def test_one_mark_is_split_off_a_word() -> None:
    assert _words("b_ _b _b_ _ b_c __") == ["b", "_", "_", "b", "_b", "_", "_", "b_c", "_", "_"]


def test_the_best_reference_counts() -> None:
    many = figure(["the cat sat"], [["a dog ran", "the cat sat", "the cat"]])
    assert (many.value, many.segments) == (pytest.approx(1.0), (pytest.approx(1.0),))
    assert of("the cat sat", "the cat", "", " ") == of("the cat sat", "the cat")


def test_empty() -> None:
    assert of("", "the cat sat") == pytest.approx(0.0, abs=1e-12)
    assert figure(["", "the cat"], [["x"], ["the cat"]]).segments == (0.0, pytest.approx(7 / 8 + 0.125))


def test_a_segment_with_blank_references_alone_is_left_out() -> None:
    with_blank = figure(["x y z", "the cat"], [["", " "], ["the cat sat"]])
    assert with_blank.value == of("the cat", "the cat sat")
    assert with_blank.segments == (0.0, pytest.approx(of("the cat", "the cat sat")))


def test_groups_and_sacrebleu() -> None:
    hypotheses = ["the blue kiwi is a cheap pub near the river .", "it serves food , and it isn't cheap ."]
    references = [
        ["the blue kiwi is a cheap riverside pub .", "near the river is a cheap pub , the blue kiwi ."],
        ["it isn't cheap but it serves food .", "food is served , and it isn't cheap ."],
    ]
    segments = Segments(tuple(hypotheses), tuple(map(tuple, references)))
    whole, second = chrf_pp(segments, [[0, 1], [1]])
    streams = [list(stream) for stream in zip(*references, strict=True)]
    expected = sacrebleu.corpus_chrf(hypotheses, streams, word_order=2).score / 100
    assert whole.value == pytest.approx(expected, abs=1e-3)
    assert second.value == of(hypotheses[1], *references[1])
    assert whole.segments == pytest.approx([of(*each) for each in zip(hypotheses, *streams, strict=True)])
