"""ROUGE-L (Lin, 2004) of the COCO caption tools."""

from __future__ import annotations

from collections.abc import Sequence

from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures


def rouge_l(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """ROUGE-L of each group, a fraction: the mean over its segments, which are given too.

    A segment's F (beta 1.2) takes the best precision and the best recall over its references. The text is
    expected in PTB tokens. Source: `pycocoevalcap`, whose formula is that of `tuetschek/e2e-metrics` at
    1b9c4d87.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    values = [
        float(scorer.calc_score([hypothesis], list(dict.fromkeys(references))))
        for hypothesis, references in zip(segments.hypotheses, segments.references, strict=True)
    ]
    return mean_figures(values, groups)
