"""N-grams of segments, counted for all texts at once: as numbers, in arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics.segments import Segments

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """How often the n-grams of one order stand in each of some texts.

    One entry for each distinct n-gram of each text, ordered by text, then by n-gram.

    Attributes:
        texts: index of the text, (entries,).
        ngrams: number of the n-gram, (entries,).
        counts: how often the text has it, (entries,).
    """

    texts: Integers
    ngrams: Integers
    counts: Integers


@dataclass(frozen=True, eq=False)
class Order:
    """The n-grams of one order n, numbered from 0 over all texts.

    Attributes:
        hypotheses: their counts in the hypotheses.
        references: their counts in the references, which are numbered through all segments.
        prefixes: for each n-gram the number of its first n-1 tokens among those of order n-1, (n-grams,);
            order 0 has a single n-gram, number 0.
        shared: pairs of an entry of `references` and the entry of `hypotheses` that is the same n-gram of the
            same segment, all there are, as two rows, (2, pairs).
    """

    hypotheses: Counts
    references: Counts
    prefixes: Integers
    shared: Integers

    def hits(self) -> Integers:
        """Matches of each entry of `hypotheses`, (entries,): its count, at most the highest in any one reference."""
        in_reference, in_hypothesis = self.shared
        highest = np.zeros_like(self.hypotheses.counts)
        np.maximum.at(highest, in_hypothesis, self.references.counts[in_reference])
        return np.minimum(self.hypotheses.counts, highest)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Lengths and n-grams of segments.

    Attributes:
        hypothesis_lengths: in tokens, (segments,).
        reference_lengths: in tokens, of the references of every segment in turn, (references,).
        owners: index of the segment of each reference, (references,), ascending.
        orders: the n-grams of orders 1, 2, ...
    """

    hypothesis_lengths: Integers
    reference_lengths: Integers
    owners: Integers
    orders: tuple[Order, ...]

    def closest_lengths(self) -> Integers:
        """Length of each segment's reference of the closest length, of two as close the shorter, (segments,)."""
        distances = np.abs(self.reference_lengths - self.hypothesis_lengths[self.owners])
        ranking = np.lexsort((self.reference_lengths, distances, self.owners))
        # Still in the order of segments: each one's first place is its best.
        firsts = np.searchsorted(self.owners, np.arange(len(self.hypothesis_lengths)))
        return self.reference_lengths[ranking[firsts]]


def count(segments: Segments, split: Callable[[str], list[str]], orders: int) -> Corpus:
    """The n-grams of segments, from order 1 up to `orders`.

    Args:
        segments: the texts.
        split: gives the tokens of a text, none or more.
        orders: the highest order.
    """
    texts = [split(text) for text in segments.texts()]
    owners = np.repeat(np.arange(len(segments)), [len(references) for references in segments.references])
    lengths = np.array([len(tokens) for tokens in texts])
    numbers: dict[str, int] = {}
    tokens = np.array([numbers.setdefault(token, len(numbers)) for text in texts for token in text], dtype=np.int64)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    ends = lengths.cumsum()[text_of]

    # Each n-gram is known by its start and has the number of its first n-1 tokens before it gets its own.
    starts = np.arange(len(tokens))
    ngrams = np.zeros_like(tokens)
    counted = []
    for order in range(1, orders + 1):
        whole = starts + order <= ends[starts]
        starts = starts[whole]
        distinct, ngrams = np.unique(
            ngrams[whole] * len(numbers) + tokens[starts + order - 1],
            return_inverse=True,
        )
        entries, counts = np.unique(text_of[starts] * len(distinct) + ngrams, return_counts=True)
        all_texts = Counts(*np.divmod(entries, max(len(distinct), 1)), counts)
        counted.append(_order(all_texts, distinct // max(len(numbers), 1), owners))
    return Corpus(lengths[len(owners) :], lengths[: len(owners)], owners, tuple(counted))


def _order(counts: Counts, prefixes: Integers, owners: Integers) -> Order:
    """One order, from the counts in all texts: the references, then the hypotheses."""
    cut = int(np.searchsorted(counts.texts, len(owners)))
    references = Counts(counts.texts[:cut], counts.ngrams[:cut], counts.counts[:cut])
    hypotheses = Counts(counts.texts[cut:] - len(owners), counts.ngrams[cut:], counts.counts[cut:])
    wanted = owners[references.texts] * len(prefixes) + references.ngrams
    # Ascending, as hypotheses are in the order of segments; the last one is never wanted.
    present = np.append(hypotheses.texts * len(prefixes) + hypotheses.ngrams, np.iinfo(np.int64).max)
    places = np.searchsorted(present, wanted)
    (in_reference,) = np.nonzero(present[places] == wanted)
    return Order(hypotheses, references, prefixes, np.stack([in_reference, places[in_reference]]))
