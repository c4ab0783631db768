"""Blocks as figures show them: a few of many, as the LoRA paper's figures do."""

from __future__ import annotations

SHOWN = 4


def chosen(blocks: int) -> list[int]:
    """The places of up to four blocks from the lowest to the highest, evenly spread (LoRA, Figures 6 and 7)."""
    if blocks <= SHOWN:
        return list(range(blocks))
    return [round(i * (blocks - 1) / (SHOWN - 1)) for i in range(SHOWN)]
