"""From a scorer's units to those that the papers print: the only place that converts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lodarepro.scores import Score, Unit


@dataclass(frozen=True)
class Column:
    """How the papers print a metric.

    Attributes:
        title: head of the column; its arrow tells the direction.
        unit: `fraction`, `percent`, `points` or `nats`.
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

SUBSETS = ("seen", "unseen")
"""parts of a test set that are scored apart too, where a dataset has them (WebNLG)"""

FACTORS: dict[tuple[Unit, Unit], float] = {("fraction", "percent"): 100.0, ("percent", "fraction"): 0.01}

VAL_LOSS = "val_loss"
"""key of the validation loss among the columns of a table"""
VAL_LOSS_COLUMN = Column("val loss ↓", "nats", 3)


def in_unit(value: float, unit: Unit, wanted: Unit, *, metric: str) -> float:
    """A value in another unit.

    Raises:
        ValueError: the units have nothing to do with each other.
    """
    if unit == wanted:
        return value
    if (unit, wanted) not in FACTORS:
        raise ValueError(f"{metric}: no conversion from {unit} to {wanted}")
    return value * FACTORS[unit, wanted]


def higher_is_better(suite: str, metric: str) -> bool:
    """The direction of a column."""
    column = VAL_LOSS_COLUMN if metric == VAL_LOSS else COLUMNS[suite][metric]
    return column.title.endswith("↑")


def column_in(suite: str, metric: str, unit: Unit) -> Column:
    """The column of a metric in the unit that a table of a paper has, with as many digits as in its own.

    Raises:
        ValueError: the metric is not one of the suite, or has nothing to do with the unit.
    """
    own = VAL_LOSS_COLUMN if metric == VAL_LOSS else COLUMNS[suite].get(metric)
    if own is None:
        known = ", ".join((*COLUMNS[suite], VAL_LOSS))
        raise ValueError(f"{metric} is no metric of the suite {suite}, which has {known}")
    factor = in_unit(1.0, own.unit, unit, metric=metric)
    return Column(own.title, unit, own.decimals - round(math.log10(factor)))


def printed(score: Score, column: Column) -> str:
    """A score as its column shows it.

    Raises:
        ValueError: the units have nothing to do with each other.
    """
    return f"{in_unit(score.value, score.unit, column.unit, metric=score.metric):.{column.decimals}f}"
