"""TER: hand-counted edits, and a plain implementation of the definition."""

import itertools
import random

import numpy as np
import pytest

from lodarepro.metrics.segments import Segments
from lodarepro.metrics.ter import _Reference, ter


def of(hypothesis: str, *references: str) -> float:
    return ter(Segments((hypothesis,), (references,)), [[0]])[0].value


def levenshtein(left: list[str], right: list[str]) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def plain_ter(hypothesis: str, reference: str) -> float:
    """The definition word for word: each candidate shift is made and measured."""
    words, target, shifts = hypothesis.split(), reference.split(), 0
    while True:
        candidates = []
        for i, j in itertools.product(range(len(words)), range(len(target))):
            span = 0
            while i + span < len(words) and j + span < len(target) and words[i + span] == target[j + span]:
                span += 1
            if span and i != j:
                rest = words[:i] + words[i + span :]
                moved = rest[:j] + words[i : i + span] + rest[j:]
                candidates.append((-levenshtein(moved, target), moved))
        best = max(candidates, default=(-len(words) - len(target), words))
        if -best[0] >= levenshtein(words, target):
            return (shifts + levenshtein(words, target)) / len(target)
        shifts, words = shifts + 1, best[1]


@pytest.mark.parametrize(
    ("hypothesis", "reference", "edits", "length"),
    [
        ("the cat sat", "the cat sat", 0, 3),
        ("", "the cat sat", 3, 3),
        ("dog", "the cat sat", 3, 3),  # one substitution, two insertions
        ("the big cat sat", "the cat sat", 1, 3),
        ("cat the", "the cat", 1, 2),  # one shift instead of two substitutions
        ("c d a b", "a b c d", 1, 4),  # a span of two words shifted as one
        ("c d a x", "a b c d", 2, 4),  # that shift, then a substitution
        ("x y", "a b c", 3, 3),  # no word is shared: there is nothing to shift
        ("Großes Café", "großes Café", 1, 2),
        # Snover et al. (2006), section 3.1: two shifts and two edits of words against 13 words.
        (
            "THIS WEEK THE SAUDIS denied information published in the new york times",
            "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times",
            4,
            13,
        ),
    ],
)
def test_hand_counted(hypothesis: str, reference: str, edits: int, length: int) -> None:
    assert of(hypothesis, reference) == edits / length


@pytest.mark.parametrize(
    ("hypothesis", "reference", "edits"),
    [
        # Three shifts are equally good. The last of the texts that they give, "d b c a", leads no further.
        ("d a b c", "c b d a", 3),
        # "b b" is shifted whole: one "b" after the other would take an edit more.
        ("a a b b", "b b a", 2),
        # "a a" has its place after two words, of which one is left once it is taken out.
        ("a a c", "b c a a", 2),
    ],
)
def test_frozen_from_pyter(hypothesis: str, reference: str, edits: int) -> None:
    assert of(hypothesis, reference) == edits / len(reference.split())


def test_best_reference_counts_whatever_the_order() -> None:
    references = ["a b c d e f", "a x", "a b c", "a b c d"]
    for order in itertools.permutations(references):
        assert of("a b c x", *order) == 1 / 4


def test_a_repeated_reference_changes_nothing() -> None:
    assert of("a x", "a b c", "a b", "a b c", "a b c") == of("a x", "a b c", "a b") == 0.5


def test_an_empty_reference_counts_one() -> None:
    assert of("a b c", "") == 1.0
    assert of("a b c d e", "", "x") == 1.0
    assert of("a b c d", "", "a b c x") == 0.25


def test_mean_of_each_group() -> None:
    segments = Segments(("a b", "b a", ""), (("a b",), ("a b",), ("a",)))
    whole, part = ter(segments, [[0, 1, 2], [1]])
    assert (whole.value, whole.segments) == (0.5, (0.0, 0.5, 1.0))
    assert (part.value, part.segments) == (0.5, (0.5,))


def test_a_figure_is_a_function_of_sums() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcd", k=draw.randint(1, 6))) for _ in range(60)]
    segments = Segments(tuple(texts[:20]), tuple(zip(texts[20:40], texts[40:], strict=True)))
    groups = [range(20), [3, 7, 8, 19], [5]]
    for group, figure in zip(groups, ter(segments, groups), strict=True):
        assert figure.statistics.shape == (len(group), len(figure.columns))
        assert figure.value == pytest.approx(figure.of_sums(figure.statistics.sum(axis=0)), abs=1e-15)
        (alone,) = ter(segments.select(group), [range(len(group))])
        assert (figure.value, figure.segments) == (alone.value, alone.segments)


@pytest.mark.parametrize("lanes", [256, 3])
def test_against_the_definition(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lodarepro.metrics.ter._LANES", lanes)
    draw = random.Random(lanes)
    for _ in range(400):
        vocabulary = "a b c d e f g h"[: draw.choice([3, 5, 15])].split()
        reference = " ".join(draw.choices(vocabulary, k=draw.randint(1, 9)))
        other = " ".join(draw.choices(vocabulary, k=draw.randint(1, 9)))
        hypothesis = " ".join(draw.choices(vocabulary, k=draw.randint(0, 9)))
        assert of(hypothesis, reference) == plain_ter(hypothesis, reference), (hypothesis, reference)
        expected = min(plain_ter(hypothesis, reference), plain_ter(hypothesis, other))
        assert of(hypothesis, reference, other) == expected, (hypothesis, reference, other)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 31, 32, 63, 64, 65])
def test_distances_of_many_texts_at_once(length: int) -> None:
    draw = random.Random(length)
    reference = draw.choices("abc", k=length)
    # Near texts and far ones, whose columns carry past the last word and must not reach their neighbour's.
    for size in (0, 1, length, length + 5):
        far = [draw.choices("abcd", k=size) for _ in range(8)]
        near = [(reference[i:] + reference[:i] + ["d"] * size)[:size] for i in range(8)]
        texts = [*far, *near, ["a"] * size, ["d"] * size]
        found = _Reference("".join(reference), ord("d") + 1).distances(["".join(text) for text in texts])
        assert found.tolist() == [levenshtein(text, reference) for text in texts]


def test_words_without_a_character_of_their_own() -> None:
    # A character stands for each word, and the surrogates among them are none that text could hold.
    reference = _Reference("\ud800\udfff", 0xE000)
    np.testing.assert_array_equal(reference.distances(["\udfff\ud800", "\ud800\udfff"]), [2, 0])


def test_shifts_that_cannot_pay_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    shifted = _Reference._shifted

    def watched(reference: _Reference, text: str) -> list[str]:
        looked.append(text)
        return shifted(reference, text)

    monkeypatch.setattr(_Reference, "_shifted", watched)
    # The distance is two over what any order leaves: a shift may save an edit.
    assert (of("b a", "a b"), len(looked)) == (0.5, 1)
    # One over it: a shift costs the edit that it saves.
    assert (of("b a x", "a y x"), len(looked)) == (2 / 3, 1)
    assert (of("b a", "a y x"), len(looked)) == (1.0, 1)
    # Nothing over it.
    assert (of("a b x", "a b y"), len(looked)) == (1 / 3, 1)
    # Two over it, but another reference is nearer than a shift could bring this one.
    assert (of("b a c", "b a c", "a b c"), len(looked)) == (0.0, 1)


def test_longer_than_a_machine_word() -> None:
    reference = [f"w{i}" for i in range(90)]
    hypothesis = reference[50:] + reference[:40]
    # One shift, then ten words are missing.
    assert of(" ".join(hypothesis), " ".join(reference)) == 11 / 90
