"""From a scorer's units to those that the papers print: the only place that converts."""

from __future__ import annotations

from dataclasses import dataclass

from lodarepro.scores import Score, Unit


@dataclass(frozen=True)
class Column:
    """How the papers print a metric.

    Attributes:
        title: head of the column; its arrow tells the direction.
        unit: `fraction`, `percent` or `points`.
        decimals: digits after the point, one more than the papers'.
    """

    title: str
    unit: Unit
    decimals: int


COLUMNS: dict[str, dict[str, Column]] = {
    # LoRA Table 3, LoDA Table 1
    "e2e": {
        "bleu": Column("BLEU ↑", "percent", 2),
        "nist": Column("NIST ↑", "points", 3),
        "meteor": Column("METEOR ↑", "percent", 2),
        "rouge_l": Column("ROUGE-L ↑", "percent", 2),
        "cider": Column("CIDEr ↑", "points", 3),
    },
    # LoRA Tables 13 and 14
    "dart": {
        "bleu": Column("BLEU ↑", "percent", 2),
        "meteor": Column("METEOR ↑", "fraction", 3),
        "ter": Column("TER ↓", "fraction", 3),
        "chrf_pp": Column("chrF++ ↑", "fraction", 3),
    },
}
COLUMNS["webnlg"] = COLUMNS["dart"]

FACTORS: dict[tuple[Unit, Unit], float] = {("fraction", "percent"): 100.0, ("percent", "fraction"): 0.01}


def printed(score: Score, column: Column) -> str:
    """A score as its column shows it.

    Raises:
        ValueError: the units have nothing to do with each other.
    """
    if score.unit == column.unit:
        value = score.value
    elif (score.unit, column.unit) in FACTORS:
        value = score.value * FACTORS[score.unit, column.unit]
    else:
        raise ValueError(f"{score.metric}: no conversion from {score.unit} to {column.unit}")
    return f"{value:.{column.decimals}f}"
