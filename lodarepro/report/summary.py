"""The table that a command prints at its end: a row for each evaluation of each run."""

from __future__ import annotations

from collections.abc import Sequence

from lodarepro.records import Evaluation, Record
from lodarepro.report.units import COLUMNS, printed


def summary(found: Sequence[Record]) -> str:
    """Markdown tables of runs, one for each suite of metrics, in the order of the runs."""
    tables = []
    for suite in dict.fromkeys(record.config["dataset"]["suite"] for record in found):
        columns = COLUMNS[suite]
        head = ["dataset", "model", "method", "trainable", "seed", "val loss"]
        rows = [[*head, *(column.title for column in columns.values())]]
        rows += [
            _row(record, evaluation, suite)
            for record in found
            if record.config["dataset"]["suite"] == suite
            for evaluation in record.evaluations
        ]
        tables.append(markdown(rows))
    return "\n\n".join(tables)


def _row(record: Record, evaluation: Evaluation, suite: str) -> list[str]:
    described = record.config
    subset = "" if evaluation.subset == "all" else f" ({evaluation.subset})"
    rank = described["method"].get("rank")
    return [
        described["dataset"]["name"] + subset,
        described["model"]["name"],
        described["method"]["name"] + ("" if rank is None else f" r={rank}"),
        f"{record.parameters['trainable']:,}",
        str(described["seed"]),
        f"{evaluation.val_loss:.3f}",
        *(printed(evaluation.scores[key], column) for key, column in COLUMNS[suite].items()),
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the head first, as an aligned Markdown table; columns of numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
