"""N-grams in arrays, against counters of tuples."""

from collections import Counter

import numpy as np
import pytest

from lodarepro.metrics import ngrams
from lodarepro.metrics.segments import Segments

SEGMENTS = Segments(
    ("a b a b", "", "c a b x", "z"),
    (("b a b a b", "a b"), ("", "a"), ("c a b", "x c a", "a a a b b"), ("y",)),
)
ORDERS = 5


def counters(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def test_counts_hits_and_prefixes() -> None:
    corpus = ngrams.count(SEGMENTS, str.split, ORDERS)
    assert corpus.hypothesis_lengths.tolist() == [4, 0, 4, 1]
    assert corpus.reference_lengths.tolist() == [5, 2, 0, 1, 3, 3, 5, 1]
    assert corpus.owners.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    references = [text for texts in SEGMENTS.references for text in texts]
    # What each number stands for follows from its prefix and the texts; here only that it is one n-gram.
    for n, order in enumerate(corpus.orders, start=1):
        for counted, texts in ((order.hypotheses, SEGMENTS.hypotheses), (order.references, references)):
            assert counted.texts.tolist() == sorted(counted.texts)
            for i, text in enumerate(texts):
                assert sorted(counted.counts[counted.texts == i]) == sorted(counters(text, n).values())
        hits = np.bincount(order.hypotheses.texts, order.hits(), len(SEGMENTS))
        for i, (hypothesis, others) in enumerate(zip(SEGMENTS.hypotheses, SEGMENTS.references, strict=True)):
            highest: Counter[tuple[str, ...]] = Counter()
            for other in others:
                highest |= counters(other, n)
            assert hits[i] == (counters(hypothesis, n) & highest).total()
        every = {ngram for text in SEGMENTS.texts() for ngram in counters(text, n)}
        continuations = Counter(Counter(ngram[:-1] for ngram in every).values())
        assert len(order.prefixes) == len(every)
        assert Counter(Counter(order.prefixes.tolist()).values()) == continuations
    assert len(corpus.orders) == ORDERS


def test_shared_ngrams_are_those_of_the_same_segment() -> None:
    # The second segment's words are in a reference, but in the first segment's.
    corpus = ngrams.count(Segments(("a b", "c a"), (("c a", "b a b"), ("d",))), str.split, 2)
    words, pairs = corpus.orders
    shared = [
        (words.references.texts[i], words.hypotheses.texts[j], words.references.ngrams[i] == words.hypotheses.ngrams[j])
        for i, j in words.shared.T
    ]
    assert shared == [(0, 0, True), (1, 0, True), (1, 0, True)]
    assert pairs.hits().tolist() == [1, 0]


def test_closest_lengths() -> None:
    segments = Segments(("a b c", "a", ""), (("a b c d", "a b", "a b c d e"), ("a b c", "a"), ("a b",)))
    corpus = ngrams.count(segments, str.split, 1)
    assert corpus.closest_lengths().tolist() == [2, 1, 2]  # of 4 and 2, as close to 3, the shorter


@pytest.mark.parametrize("texts", [("", ("",)), ("a", ("",)), ("", ("a",))])
def test_texts_without_tokens(texts: tuple[str, tuple[str, ...]]) -> None:
    corpus = ngrams.count(Segments((texts[0],), (texts[1],)), str.split, 2)
    for order in corpus.orders:
        assert order.hits().sum() == order.shared.size == 0
    assert corpus.closest_lengths().tolist() == [len(texts[1][0])]
