"""Translation edit rate (Snover et al., 2006) as the Python package `pyter` computes it.

The definition is pyter's (roy-ht/pyter at 857a1552, release 0.2.2.1), figure for figure; it is not tercom's,
whose shifts are restricted, nor sacrebleu's. Written anew to take seconds where pyter takes minutes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures

VERSION = "pyter-857a155"

_LANES = 256  # texts that are measured at a time: bounds the memory, and is far more than most segments need


def ter(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """TER of each group, a fraction (lower is better): the mean over its segments, which are given too.

    A segment's value is the least over its references. Words are what white space separates.
    """
    values = [
        _least(hypothesis.split(), [text.split() for text in dict.fromkeys(references)])
        for hypothesis, references in zip(segments.hypotheses, segments.references, strict=True)
    ]
    return mean_figures(values, groups)


def _least(words: list[str], references: list[list[str]]) -> float:
    """The least TER over the references."""
    # A character for each word makes a shift a matter of slices. They are in the order of the words, so that of
    # two texts the later one is still the later one.
    characters = {word: chr(i) for i, word in enumerate(sorted(set(words).union(*references)))}
    text = "".join(map(characters.__getitem__, words))
    found = [
        _Reference("".join(map(characters.__getitem__, reference)), len(characters))
        for reference in references
        if reference
    ]
    # The nearest reference first: a good value early spares the search for the others.
    starts = [(int(reference.distances([text])[0]), reference) for reference in found]
    starts.sort(key=lambda start: start[0] / start[1].length)
    # GenerationEval gives 1 for an empty reference.
    best = 1.0 if len(found) < len(references) else float("inf")
    for distance, reference in starts:
        best = min(best, reference.ter(text, distance, best))
    return best


class _Reference:
    """One reference, ready to be held against many texts; in all of them, a character stands for a word.

    Args:
        text: the reference, not empty.
        alphabet: how many characters there are: those of the code points below.
    """

    def __init__(self, text: str, alphabet: int) -> None:
        self.length = len(text)
        self._counts = Counter(text)
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(text):
            self._places[word].append(place)
        # Bytes of a column in `distances`: a bit for each word of the reference, and one to carry into.
        self._lane = self.length // 8 + 1
        # The lane of each character has bit i set where the reference has it at place i.
        equal = np.zeros((alphabet, 8 * self._lane), np.uint8)
        equal[_codes(text), np.arange(self.length)] = 1
        self._equal = np.packbits(equal, axis=1, bitorder="little").view(f"V{self._lane}")[:, 0]

    def ter(self, text: str, distance: int, limit: float) -> float:
        """TER of a text at an edit distance from here, or some value of at least `limit` if TER is not below it.

        Greedy: as long as a shift lowers the edit distance, the one that lowers it most is made and counts
        one edit. Among equals, the last text wins, as pyter sorts them.
        """
        # No order of the words has a smaller edit distance than this.
        floor = max(len(text), self.length) - (Counter(text) & self._counts).total()
        shifts = 0
        # With another shift it is shifts + 1 + floor edits at best: of use only if fewer than without it, and
        # than the limit.
        while shifts + 1 + floor < min(shifts + distance, limit * self.length):
            # There are some: with equal words at equal places alone, the distance were the floor.
            candidates = self._shifted(text)
            distances = self.distances(candidates)
            nearest = int(distances.min())
            if nearest >= distance:
                break
            text = max(candidates[i] for i in np.flatnonzero(distances == nearest))
            shifts, distance = shifts + 1, nearest
        return (shifts + distance) / self.length

    def _shifted(self, text: str) -> list[str]:
        """The distinct texts after one shift of a span that text and reference share, to its place there.

        A span goes from any pair of equal words at different places as far as the two agree: it is never a
        shorter part from its start.
        """
        shifted = []
        following: dict[int, int] = {}
        for start in reversed(range(len(text))):
            # Lengths of the spans from here on, by their place in the reference.
            spans = {target: following.get(target + 1, 0) + 1 for target in self._places.get(text[start], ())}
            for target, length in spans.items():
                # The span changes places with what lies between it and its target.
                if start < target:
                    left, middle, right = start, start + length, target + length
                elif target < start:
                    left, middle, right = target, start, start + length
                else:
                    continue
                shifted.append(text[:left] + text[middle:right] + text[left:middle] + text[right:])
            following = spans
        return list(dict.fromkeys(shifted))

    def distances(self, texts: list[str]) -> NDArray[np.intp]:
        """Levenshtein distances between the reference and each text. The texts, one or more, are of one length."""
        return np.concatenate([self._distances(texts[i : i + _LANES]) for i in range(0, len(texts), _LANES)])

    def _distances(self, texts: list[str]) -> NDArray[np.intp]:
        """Myers (1999) in the form of Hyyrö (2003), "A bit-vector algorithm for computing Levenshtein and
        Damerau edit distances": each text's table is filled column by column, a whole column in a few operations
        on integers of as many bits as the reference has words. Here, the columns of all texts lie side by side
        in one integer, each in its lane.
        """
        count, size = len(texts), len(texts[0])
        row = count * self._lane  # bytes of all lanes

        def in_each_lane(bits: int) -> int:
            return int.from_bytes(bits.to_bytes(self._lane, "little") * count, "little")

        first, everything = in_each_lane(1), in_each_lane((1 << self.length) - 1)
        # Bit i of up (down) is set where the entry of i+1 reference words is one more (less) than that of i.
        up, down = everything, 0
        # The lanes of all texts' first words, then those of their second words, ...
        words = self._equal[_codes("".join(texts)).reshape(count, size).T].tobytes()
        for start in range(0, len(words), row):
            equal = int.from_bytes(words[start : start + row], "little")
            # & everything cuts what addition and shift carried past the last word, which is less than a lane.
            diagonal = ((((equal & up) + up) ^ up) | equal | down) & everything
            # Entries that are one more (less) than their left neighbours, moved on by one word.
            right_up = ((down | (everything ^ (diagonal | up))) << 1 | first) & everything
            right_down = (up & diagonal) << 1 & everything
            up, down = right_down | (everything ^ (diagonal | right_up)), right_up & diagonal
        # A column begins with the number of words of the text so far.
        flags = np.frombuffer(up.to_bytes(row, "little") + down.to_bytes(row, "little"), np.uint8)
        ups, downs = np.unpackbits(flags).reshape(2, count, 8 * self._lane).sum(axis=2, dtype=np.intp)
        return size + ups - downs


def _codes(text: str) -> NDArray[np.uint32]:
    """The code points of a text's characters. Surrogates are characters like others here."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
