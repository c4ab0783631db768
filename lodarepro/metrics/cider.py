"""CIDEr (Vedantam et al., 2015; its variant CIDEr-D) of the COCO caption tools."""

from __future__ import annotations

from collections.abc import Sequence

from lodarepro.metrics.segments import Figure, Group, Segments


def cider(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """CIDEr of each group, in points (0 to 10), with the values of its segments.

    N-grams are weighed by how many segments of the group hold them, so that a segment's value depends on its
    group, and a group of one segment has 0. The text is expected in PTB tokens. Source: `pycocoevalcap`,
    whose formula is that of `tuetschek/e2e-metrics` at 1b9c4d87.
    """
    from pycocoevalcap.cider.cider import Cider

    figures = []
    for group in groups:
        part = segments.select(group)
        if not any(reference.split() for references in part.references for reference in references):
            # No reference has a token: nothing can match, and the library fails on it.
            figures.append(Figure(0.0, (0.0,) * len(part)))
            continue
        references = {i: list(texts) for i, texts in enumerate(part.references)}
        hypotheses = {i: [text] for i, text in enumerate(part.hypotheses)}
        value, values = Cider().compute_score(references, hypotheses)
        figures.append(Figure(float(value), tuple(map(float, values))))
    return figures
