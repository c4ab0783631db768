"""ROUGE-L worked out by hand."""

import pytest

from lodarepro.metrics.rouge_l import rouge_l
from lodarepro.metrics.segments import Segments


def of(hypothesis: str, *references: str) -> float:
    return rouge_l(Segments((hypothesis,), (references,)), [[0]])[0].value


def f12(precision: float, recall: float) -> float:
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def test_longest_common_subsequence() -> None:
    assert of("the cat sat down", "the black cat sat") == pytest.approx(f12(3 / 4, 3 / 4))
    assert of("cat the", "the cat is here") == pytest.approx(f12(1 / 2, 1 / 4))
    assert of("a b", "c d") == 0.0
    assert of("été à", "été à") == pytest.approx(1.0)


def test_best_precision_and_best_recall_may_come_from_two_references() -> None:
    assert of("a b c", "a b x y z w", "c") == pytest.approx(f12(2 / 3, 1 / 1))


def test_a_text_longer_than_a_machine_word() -> None:
    words = [f"w{i}" for i in range(200)]
    assert of(" ".join(words), " ".join(words[1::2] + ["x"] * 100)) == pytest.approx(f12(1 / 2, 1 / 2))
    assert of(" ".join(words), " ".join(reversed(words))) == pytest.approx(1 / 200)


def test_empty_texts() -> None:
    assert of("", "a b") == of("a b", "") == 0.0
    assert of("", "") == 1.0  # one empty token each, as the official scorer splits


def test_tokens_are_split_at_spaces_alone() -> None:
    assert of("1\u00a01/2 miles", "1 miles") == pytest.approx(1 / 2)


def test_groups() -> None:
    whole, part = rouge_l(Segments(("a", "b"), (("a",), ("c",))), [[0, 1], [1]])
    assert (whole.value, whole.segments) == (pytest.approx(0.5), (pytest.approx(1.0), 0.0))
    assert (part.value, part.segments) == (0.0, (0.0,))
