"""ROUGE-L (Lin, 2004) of the COCO caption tools."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures

BETA = 1.2


def rouge_l(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """ROUGE-L of each group, a fraction: the mean over its segments, which are given too.

    A segment's F (beta 1.2) takes the best precision and the best recall over its references. The text is
    expected in PTB tokens, joined by single spaces; an empty text has one empty token. Source: `pycocoevalcap`,
    whose formula is that of `tuetschek/e2e-metrics` at 1b9c4d87.
    """
    # Split at the space alone, as the COCO tools do here (but not for CIDEr).
    values = [
        _f(hypothesis.split(" "), [text.split(" ") for text in dict.fromkeys(references)])
        for hypothesis, references in zip(segments.hypotheses, segments.references, strict=True)
    ]
    return mean_figures(values, groups)


def _f(hypothesis: list[str], references: list[list[str]]) -> float:
    """F of one segment."""
    bits: dict[str, int] = defaultdict(int)  # bit i is set where the token stands at place i
    for place, token in enumerate(hypothesis):
        bits[token] |= 1 << place
    common = [_common(len(hypothesis), bits, reference) for reference in references]
    precision = max(common) / len(hypothesis)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if precision == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(length: int, bits: Mapping[str, int], tokens: list[str]) -> int:
    """Length of the longest common subsequence of tokens and a hypothesis of `length` tokens, given as bits.

    A whole column of the table in a few operations on integers: Hyyrö (2004), "Bit-parallel LCS-length
    computation revisited".
    """
    everything = (1 << length) - 1
    # Bit i is cleared where one more token of the hypothesis, the i-th, makes the subsequence longer.
    flat = everything
    for token in tokens:
        if token in bits:
            equal = flat & bits[token]
            flat = (flat + equal) | (flat - equal)
    # The additions carried past the last token: never used, and cut here.
    return length - (flat & everything).bit_count()
