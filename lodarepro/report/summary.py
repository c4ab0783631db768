"""The table that a command prints at its end: a row for each evaluation of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lodarepro.records import Evaluation, Record, method_of
from lodarepro.units import COLUMNS, printed

SHOWN = ("model.", "dataset.name", "method.name", "method.rank", "seed", "checksums.")
"""parts of a run's identity that have a column, or that follow from one"""
MISSING = "–"
"""instead of a number that there is not"""


def summary(found: Sequence[Record]) -> str:
    """Markdown tables of runs, one for each suite of metrics, in the order of the runs.

    A setting in which rows differ otherwise (a swept learning rate, another decoding) gets a column,
    so that no two rows look alike.
    """
    tables = []
    for suite in dict.fromkeys(record.config["dataset"]["suite"] for record in found):
        lines = [
            (record, evaluation)
            for record in found
            if record.config["dataset"]["suite"] == suite
            for evaluation in _one_a_text(record.evaluations)
        ]
        settings = [_settings(record, evaluation) for record, evaluation in lines]
        differing = sorted(
            key
            for key in {key for one in settings for key in one}
            # A method lacks another's options: a key counts where rows that have it differ.
            if len({str(one[key]) for one in settings if key in one}) > 1
        )
        head = ["dataset", "model", "method", "trainable", "seed", *differing, "val loss"]
        rows = [[*head, *(column.title for column in COLUMNS[suite].values())]]
        rows += [
            _row(record, evaluation, [str(one.get(key, "")) for key in differing])
            for (record, evaluation), one in zip(lines, settings, strict=True)
        ]
        tables.append(markdown(rows))
    return "\n\n".join(tables)


def _one_a_text(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations, as one where the same texts are those of several checkpoints (the last epoch is the best)."""
    of: dict[tuple[str, str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        of.setdefault((evaluation.hypotheses, evaluation.subset, str(evaluation.decode)), []).append(evaluation)
    return [replace(same[0], checkpoint=" = ".join(e.checkpoint for e in same)) for same in of.values()]


def _settings(record: Record, evaluation: Evaluation) -> dict[str, Any]:
    tree = {**record.identity, "decode": evaluation.decode, "checkpoint": evaluation.checkpoint}
    return {key: value for key, value in _flat(tree).items() if not key.startswith(SHOWN)}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def _row(record: Record, evaluation: Evaluation, differing: Sequence[str]) -> list[str]:
    described = record.config
    subset = "" if evaluation.subset == "all" else f" ({evaluation.subset})"
    columns = COLUMNS[described["dataset"]["suite"]]
    return [
        described["dataset"]["name"] + subset,
        described["model"]["name"],
        method_of(record),
        f"{record.parameters['trainable']:,}",
        str(described["seed"]),
        *differing,
        f"{evaluation.val_loss:.3f}",
        *(printed(evaluation.scores[key], column) for key, column in columns.items()),
    ]


def counted(n: int, thing: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def duration(seconds: float) -> str:
    """A time for people: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def markdown(rows: Sequence[Sequence[str]], *, texts: int | None = None) -> str:
    """Rows, the head first, as an aligned Markdown table; columns of numbers to the right.

    Args:
        rows: of equal length.
        texts: how many columns are not numbers, the first ones; None: what holds nothing but numbers is.
    """
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]  # a bar begins a column
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(_is_number(row[i]) for row in rows[1:]) if texts is None else i >= texts for i in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def _is_number(text: str) -> bool:
    return text == MISSING or text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
