"""BLEU of both scorers: hand-counted n-grams, and sacrebleu."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import sacrebleu

from lodarepro.metrics.bleu import mteval_bleu, multi_bleu_detok
from lodarepro.metrics.mteval import tokenize
from lodarepro.metrics.segments import Segments

HYPOTHESES = (
    "The Blue Kiwi is a cheap pub near the river, isn't it?",
    "Café Zoë serves food for £20-25 and costs 3.5 stars.",
    "A completely different sentence about nothing at all.",
)
REFERENCES = (
    ("The Blue Kiwi is a cheap riverside pub.", "Near the river is a cheap pub, isn't it? The Blue Kiwi."),
    ("CAFÉ ZOË serves food for £20-25.",),
    ("The hotel has 3.5 stars.", "It is a hotel about 3.5 stars.", "A hotel: nothing at all to see."),
)


def mteval(hypotheses: Sequence[str], references: Iterable[Iterable[str]]) -> float:
    segments = Segments(tuple(hypotheses), tuple(map(tuple, references)))
    return mteval_bleu(segments.map(tokenize), [range(len(hypotheses))])[0].value


def detok(hypotheses: Sequence[str], references: Iterable[Iterable[str]]) -> float:
    segments = Segments(tuple(hypotheses), tuple(map(tuple, references)))
    return multi_bleu_detok(segments, [range(len(hypotheses))])[0].value


def test_mteval_hand_counted() -> None:
    # 4 of 5 words, 3 of 4 pairs, 2 of 3, 1 of 2; case does not count.
    assert mteval(["a B c d e"], [["a b c D x"]]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # All right, but five words for six.
    assert mteval(["a b c d e"], [["a b c d e f"]]) == pytest.approx(math.exp(1 - 6 / 5))
    # Of two references as close, the shorter sets the length: no penalty here.
    assert mteval(["a b c d e"], [["a b c d e f", "a b c d"]]) == pytest.approx(1.0)


def test_mteval_is_sacrebleus_with_missing_references_as_none() -> None:
    streams: Any = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(3)]
    expected = sacrebleu.corpus_bleu(HYPOTHESES, streams, lowercase=True, smooth_method="none").score
    assert mteval(HYPOTHESES, REFERENCES) == pytest.approx(expected / 100, abs=1e-12)
    assert 0.2 < expected / 100 < 0.8


def test_mteval_empty_and_short_hypotheses() -> None:
    # An empty text counts as one word, wrong; it takes from the count of long n-grams, whose precision is
    # held at 1, where the official arithmetic gives 4/3 and 3/1.
    assert mteval(["", "a b c d e f"], [["x"], ["a b c d e f"]]) == pytest.approx((6 / 7) ** 0.25)
    assert mteval([""], [["a b c d"]]) < 1e-6
    assert mteval(["a"], [["a"]]) <= 1.0  # not 1e9, as hits over no n-grams would be


def test_statistics() -> None:
    figure = mteval_bleu(Segments(("a b c", ""), (("a b d e", "b c"), ("x",))), [[0, 1]])[0]
    rows = [dict(zip(figure.columns, row, strict=True)) for row in figure.statistics]
    assert rows[0] == {
        "length": 3,
        "reference_length": 2,  # of 2 and 4, which are as close, the shorter
        **{"hits_1": 3, "hits_2": 2, "hits_3": 0, "hits_4": 0},
        **{"totals_1": 3, "totals_2": 2, "totals_3": 1, "totals_4": 0},
    }
    assert list(rows[1].values()) == [1, 1, 0, 0, 0, 0, 1, 0, -1, -2]
    cased = multi_bleu_detok(Segments(("A b. A", ""), (("a b.",), ("x",))), [[0, 1]])[0]
    assert cased.columns == figure.columns
    assert cased.statistics.tolist() == [[4, 3, 2, 1, 0, 0, 4, 3, 2, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]


def test_groups() -> None:
    segments = Segments(HYPOTHESES, REFERENCES)
    whole, part = mteval_bleu(segments.map(tokenize), [range(3), [1]])
    assert part.value == mteval(HYPOTHESES[1:2], REFERENCES[1:2]) != whole.value
    assert whole.segments is None


def test_multi_bleu_hand_counted() -> None:
    partial = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert detok(["a b c d e"], [["a b c d x"]]) == pytest.approx(partial)
    assert detok(["A b c d e"], [["a b c d e"]]) == pytest.approx(partial)  # case counts
    assert detok(["a b c d e"], [["a b c d e f"]]) == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_multi_bleu_is_not_smoothed() -> None:
    assert detok(["a b c"], [["a b c"]]) == 0.0  # no n-gram of four words
    assert detok(["a b c x d e f"], [["a b c d e f"]]) == 0.0
    assert detok([""], [["a b c d"]]) == 0.0


def test_multi_bleu_with_a_varying_number_of_references() -> None:
    streams: Any = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(3)]
    expected = sacrebleu.corpus_bleu(HYPOTHESES, streams, smooth_method="none", force=True).score
    assert detok(HYPOTHESES, REFERENCES) == pytest.approx(expected, abs=1e-12)
    assert 20 < expected < 80
    assert detok(HYPOTHESES, [texts + texts[:1] * 3 for texts in REFERENCES]) == detok(HYPOTHESES, REFERENCES)


def test_multi_bleu_hyphen_at_the_end() -> None:
    # White space at the end goes first: only inside the text does a line break take the hyphen along.
    assert detok(["a b c d-\n"], [["a b c d-"]]) == pytest.approx(100)
    assert detok(["a b c d-\ne"], [["a b c de"]]) == pytest.approx(100)


def test_multi_bleu_groups() -> None:
    segments = Segments(("a b c d", "a b c x e"), (("a b c d",), ("a b c d e",)))
    whole, first = multi_bleu_detok(segments, [[0, 1], [0]])
    assert first.value == pytest.approx(100)
    assert whole.value == pytest.approx(100 * (8 / 9 * 5 / 7 * 3 / 5 * 1 / 3) ** 0.25)
    assert whole.segments is None
