"""chrF++: hand-counted n-grams, the tool's peculiarities, and sacrebleu nearby."""

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sacrebleu

from lodarepro.metrics.chrf_pp import COLUMNS, ORDERS, _words, chrf_pp
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


def statistics(found: Figure, segment: int) -> dict[str, list[float]]:
    """Matches, n-grams of the reference, n-grams of the hypothesis: of each order."""
    assert found.columns == COLUMNS
    rows = found.statistics[segment].reshape(3, len(ORDERS)).tolist()
    return dict(zip(("matches", "reference", "hypothesis"), rows, strict=True))


def test_statistics_of_the_best_reference() -> None:
    found = figure(["the cat.", "ab", "ab"], [["no", "the cat, sat"], ["abc", "x"], [" "]])
    # "thecat." and "thecat,sat"; "the cat ." and "the cat , sat".
    assert statistics(found, 0) == {
        "matches": [7 - 1, 5, 4, 3, 2, 1, 2, 1],
        "reference": [10, 9, 8, 7, 6, 5, 4, 3],
        "hypothesis": [7, 6, 5, 4, 3, 2, 3, 2],
    }
    assert statistics(found, 1) == {
        "matches": [2, 1, 0, 0, 0, 0, 0, 0],
        "reference": [3, 2, 1, 0, 0, 0, 1, 0],
        "hypothesis": [2, 1, 0, 0, 0, 0, 1, 0],
    }
    assert not found.statistics[2].any()  # without a reference
    assert (COLUMNS[0], COLUMNS[13], COLUMNS[-1]) == (
        "matches_characters_1",
        "reference_characters_6",
        "hypothesis_words_2",
    )


def test_of_equal_references_the_first_counts() -> None:
    # Neither shares a character, so that both give 0.
    assert statistics(figure(["ab"], [[" ", "xyz", "x"]]), 0)["reference"][:3] == [3, 2, 1]
    assert statistics(figure(["ab"], [["x", "xyz"]]), 0)["reference"][:3] == [1, 0, 0]


def test_repeated_ngrams_match_as_often_as_both_have_them() -> None:
    found = statistics(figure(["a a a b"], [["a a c a"]]), 0)
    assert found["matches"] == [3, 1, 0, 0, 0, 0, 3, 1]


def test_against_counters() -> None:
    draw = random.Random(0)

    def text() -> str:
        return " ".join("".join(draw.choices("abé.", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 6)))

    hypotheses, references = [text() for _ in range(40)], [text() for _ in range(40)]
    found = figure(hypotheses, [[reference] for reference in references])
    for i, (hypothesis, reference) in enumerate(zip(hypotheses, references, strict=True)):
        expected = []
        for split, highest in ((lambda text: list(text.replace(" ", "")), 6), (_words, 2)):
            for n in range(1, highest + 1):
                mine, other = (
                    Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) + 1 - n))
                    for tokens in (split(hypothesis), split(reference))
                )
                expected.append((mine & other).total())
        assert statistics(found, i)["matches"] == expected


def test_a_figure_is_a_function_of_sums() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices(["a", "bc", "d.", "efg"], k=draw.randint(0, 6))) for _ in range(60)]
    segments = Segments(tuple(texts[:20]), tuple(zip(texts[20:40], texts[40:], strict=True)))
    groups = [range(20), [3, 7, 8, 19], [5]]
    for group, found in zip(groups, chrf_pp(segments, groups), strict=True):
        assert found.value == found.of_sums(found.statistics.sum(axis=0))  # counts: exact in any order
        (alone,) = chrf_pp(segments.select(group), [range(len(group))])
        assert (found.value, found.segments) == (alone.value, alone.segments)
    # Weights stand for segments that are there more than once.
    whole = chrf_pp(segments, [range(20), [2, 2, 0]])
    weights = np.zeros((4, 5, 20))
    weights[..., 2], weights[..., 0] = 2, 1
    values = whole[0].of_sums(weights @ whole[0].statistics)
    assert values.shape == (4, 5)
    assert (values == whole[1].value).all()


def test_sums_of_any_kind_give_a_figure() -> None:
    (found,) = chrf_pp(Segments(("the cat",), (("the cat sat",),)), [[0]])
    sums = np.array(
        [
            np.zeros(24),
            [0] * 8 + [5] * 16,  # no order has matches
            [0] * 16 + [5] * 8,  # no order has n-grams of references
            [0] * 8 + [5] * 8 + [0] * 8,  # nor of hypotheses
            [2] * 8 + [5] * 8 + [4] * 8,
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = found.of_sums(sums.astype(float))
    # The tool's 1e-16 for a precision, a recall or an F score that is not defined; F is 0 if one of the two is.
    assert values.tolist() == pytest.approx([1e-16, 1e-16, 0.0, 0.0, float(f2(1 / 2, 2 / 5))], rel=1e-12, abs=1e-20)
