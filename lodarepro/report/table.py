"""A filled table as Markdown, LaTeX, CSV and JSON.

A row of a paper's table takes several lines: ours, print, the difference, what others measured, and on demand the
verdict. A table that no paper printed has one line a row.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lodarepro.records import Record
from lodarepro.report.aggregate import ENOUGH_SEEDS, Cell, FilledRow, FilledTable
from lodarepro.report.summary import counted
from lodarepro.report.summary import markdown as markdown_rows
from lodarepro.tables import row_key
from lodarepro.units import Column

NOT_RUN, FAILED = "not run", "failed"
UNREADABLE = "illegible"
TIED = "≈"
PAGE = 60  # lines that fit a page, beside the notes
FITTING = 3  # columns of figures that fit a page's width as they are

BEST = f"Bold: the best mean of a group of rows, of at least {ENOUGH_SEEDS} seeds each."
TESTED = f"{TIED}: the paired bootstrap over segments does not tell it from the best (two-sided p >= 0.05)."
FEW = f"Fewer than {ENOUGH_SEEDS} seeds (n): the bare mean, without spread, best and significance."
SPREAD = "±: sample standard deviation over n seeds."
VERDICTS = (
    "Verdict: within print if |ours - print| <= 2 sqrt(s_ours^2 / n + s_print^2) + half the last printed digit, with a "
    "spread of 0 where there is none; else within reruns if inside the range of what others published; else outside."
)


@dataclass(frozen=True)
class Line:
    """A line of the printed table.

    Attributes:
        texts: one a column, the lines of a head or a title included.
        kind: `head`, `group`, `ours`, or what stands below ours.
        strong: places of the texts in bold.
    """

    texts: tuple[str, ...]
    kind: str
    strong: frozenset[int] = field(default_factory=frozenset)


def markdown(filled: FilledTable, *, check: bool = False) -> str:
    """The table with its notes as Markdown.

    Args:
        filled: what is known.
        check: with a line of verdicts for each row.
    """
    lines, notes = lines_of(filled, check=check)

    def text(line: Line) -> list[str]:
        return [f"**{t}**" if i in line.strong or (line.kind == "group" and t) else t for i, t in enumerate(line.texts)]

    head = f"## {titled(filled)}"
    below = [f"[{mark}] {note}" for mark, note in notes.items()]
    parts = [
        head,
        markdown_rows([text(line) for line in lines], texts=_texts(filled)),
        *(["\n".join(_items(below))] if below else []),
    ]
    about = _items(explanations(filled, check=check))
    return "\n\n".join([*parts, *(["\n".join(about)] if about else [])]) + "\n"


def _items(texts: Sequence[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def latex(filled: FilledTable, *, check: bool = False) -> str:
    """The table with its notes for LaTeX with booktabs: a float, or where it is too long for a page, a longtable."""
    lines, notes = lines_of(filled, check=check)
    width, texts = len(lines[0].texts), _texts(filled)
    body: list[str] = []
    before = ""
    for line in lines:
        if line.kind == "ours" and filled.table.printed and before not in ("head", "group"):
            body.append(r"\addlinespace")
        if line.kind == "group":
            body += [r"\midrule"] if before != "head" else []
            body.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_tex(line.texts[0])}}}}} \\")
        else:
            cells = [
                rf"\textbf{{{_tex(text)}}}" if place in line.strong else _tex(text)
                for place, text in enumerate(line.texts)
            ]
            body.append(" & ".join(cells) + r" \\")
        if line.kind == "head":
            body.append(r"\midrule")
        before = line.kind
    below = [f"[{mark}] {note}" for mark, note in notes.items()] + explanations(filled, check=check)
    paragraphs = [rf"\par\footnotesize\raggedright {_tex(text)}" for text in below]
    columns = f"{'l' * texts}{'r' * (width - texts)}"
    caption, label = rf"\caption{{{_tex(titled(filled))}}}", rf"\label{{tab:{filled.table.name}}}"
    if len(lines) > PAGE:
        return "\n".join(
            [
                r"% needs \usepackage{booktabs,longtable}",
                r"{\footnotesize",
                rf"\begin{{longtable}}{{{columns}}}",
                rf"{caption}{label} \\",
                r"\toprule",
                body[0],
                body[1],
                r"\endhead",
                *body[2:],
                r"\bottomrule",
                r"\end{longtable}",
                *paragraphs,
                "}",
                "",
            ]
        )
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\small",
            caption,
            label,
            r"\resizebox{\textwidth}{!}{%" if len(filled.columns) > FITTING else "{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            *paragraphs,
            r"\end{table}",
            "",
        ]
    )


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\u2212": r"$-$",
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)


# lines ------------------------------------------------------------------------------------------


def titled(filled: FilledTable) -> str:
    """Its title and source."""
    return filled.table.title + (f": {filled.table.source}" if filled.table.source else "")


def _texts(filled: FilledTable) -> int:
    """Columns that hold no numbers."""
    return 2 if filled.table.printed else 1


def lines_of(filled: FilledTable, *, check: bool) -> tuple[list[Line], dict[str, str]]:
    """All lines, the head first, and the notes by the marks that stand for them."""
    table = filled.table
    macs = any(row.macs for row in filled.rows)
    left = [*(["", "trainable"] if table.printed else ["trainable"]), *(["q/k/v MACs"] if macs else []), "n"]
    lines = [Line(("method", *left, *(column.title for column in filled.columns)), "head")]
    marks: dict[str, str] = {}  # note to mark
    for group in filled.groups:
        if group.title:
            lines.append(Line((group.title, *("" for _ in lines[0].texts[1:])), "group"))
        for row in group.rows:
            for note in row.notes:
                marks.setdefault(note, _mark(len(marks)))
            noted = "".join(f"[{marks[note]}]" for note in dict.fromkeys(row.notes))
            lines += _row_lines(filled, row, noted, macs=macs, check=check, group=group.title)
    return lines, {mark: note for note, mark in marks.items()}


def _mark(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord("a") + place) + letters
    return letters


def _row_lines(
    filled: FilledTable, row: FilledRow, noted: str, *, macs: bool, check: bool, group: str | None
) -> Iterator[Line]:
    n = max((cell.n for cell in row.cells), default=0)
    label = f"{row.row.label} {noted}".strip()
    counted = [" / ".join(f"{count:,}" for count in row.macs or ())] if macs else []
    offset = len(filled.table.columns)

    def line(kind: str, left: Sequence[str], texts: Sequence[str], strong: frozenset[int] = frozenset()) -> Line:
        whole = (*left, *texts)
        return Line(whole, kind, frozenset(len(whole) - offset + place for place in strong))

    ours = [_ours(row, cell, column) for cell, column in zip(row.cells, filled.columns, strict=True)]
    strong = frozenset(place for place, cell in enumerate(row.cells) if cell.best)
    if not row.row.printed:
        blank = [""] if filled.table.printed else []
        yield line("ours", [label, *blank, f"{row.trainable:,}", *counted, str(n)], ours, strong)
        return
    yield line("ours", [label, "ours", f"{row.trainable:,}", *counted, str(n)], ours, strong)
    printed_macs = [row.row.macs or ""] if macs else []
    printed = [UNREADABLE if cell.printed is None else cell.printed.text for cell in row.cells]
    yield line("print", ["", "print", row.row.params or "", *printed_macs, ""], printed)
    pairs = list(zip(row.cells, filled.columns, strict=True))
    empty = [""] * (1 + macs)
    if n:
        yield line("difference", ["", "difference", *empty, ""], [_difference(cell, column) for cell, column in pairs])
    if around := filled.reruns.get(row_key(group, row.row)):
        ranges = [_around(cell, column) for cell, column in pairs]
        yield line("reruns", ["", "reruns", *empty, str(len(around))], ranges)
    if check and n:
        yield line("verdict", ["", "verdict", *empty, ""], [cell.verdict or "" for cell in row.cells])


def _state(row: FilledRow, cell: Cell) -> str | None:
    """The verdict, or why there is none; None: nothing is printed to compare with."""
    if cell.mean is None:
        return FAILED if row.failures else NOT_RUN
    return cell.verdict


def _ours(row: FilledRow, cell: Cell, column: Column) -> str:
    if cell.mean is None:
        return str(_state(row, cell))
    spread = "" if cell.std is None else f" ± {cell.std:.{column.decimals}f}"
    return f"{cell.mean:.{column.decimals}f}{spread}" + (f" {TIED}" if cell.tied else "")


def _difference(cell: Cell, column: Column) -> str:
    # Adding 0 makes a rounded -0 a 0.
    return "" if cell.difference is None else f"{round(cell.difference, column.decimals) + 0.0:+.{column.decimals}f}"


def _around(cell: Cell, column: Column) -> str:
    if cell.reruns is None:
        return ""
    # As finely as they were published at most.
    decimals = min(column.decimals, cell.reruns.decimals)
    low, high = (f"{value:.{decimals}f}" for value in (cell.reruns.low, cell.reruns.high))
    return low if low == high else f"{low} to {high}"


# what stands below ------------------------------------------------------------------------------


def explanations(filled: FilledTable, *, check: bool) -> list[str]:
    """Lines about the whole table: how to read it, who published reruns, where the numbers come from."""
    cells = [cell for row in filled.rows for cell in row.cells]
    lines = list(filled.notes)
    if any(cell.std is not None for cell in cells):
        lines.append(SPREAD)
    if any(cell.best for cell in cells):
        lines.append(BEST)
    if any(cell.tied is not None for cell in cells):
        lines.append(TESTED)
    if any(0 < cell.n < ENOUGH_SEEDS for cell in cells):
        lines.append(FEW)
    if check:
        lines.append(VERDICTS)
    for key, reruns in filled.reruns.items():
        cited = "; ".join(f"{rerun.source} ({rerun.note})" if rerun.note else rerun.source for rerun in reruns)
        lines.append(f"Reruns of {key}: {cited}.")
    if filled.reruns:
        lines.append(filled.about_reruns)
    records = [record for row in filled.rows for record in row.records]
    if records:
        lines.append(_provenance(records))
    lines += [signature for signatures in filled.signatures.values() for signature in signatures]
    return lines


def _provenance(records: Sequence[Record]) -> str:
    """One line: how many runs, of which code, on which hardware, of which data."""

    def each(text: Callable[[Record], str]) -> str:
        return ", ".join(sorted({text(record) for record in records}))

    def hardware(record: Record) -> str:
        device = record.provenance["device"]
        return record.provenance["machine"]["processor"] if device == "cpu" else device

    def code(record: Record) -> str:
        version = record.provenance["code"]
        commit = f" ({version['commit'][:12]})" if version["commit"] else ""
        return f"{version['version']}{commit}"

    return (
        f"From {counted(len(records), 'run')} by lodarepro {each(code)}, "
        f"torch {each(lambda r: str(r.provenance['packages']['torch']))}, on "
        f"{each(hardware)}; test data sha256 {each(lambda r: r.identity['checksums']['test'][:12])}, weights "
        f"{each(lambda r: r.identity['checksums']['model'][:12])}. Their ids are in the JSON and CSV files."
    )


# data -------------------------------------------------------------------------------------------


def as_json(filled: FilledTable) -> str:
    """What `as_tree` gives, as text."""
    return json.dumps(as_tree(filled), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_tree(filled: FilledTable) -> dict[str, Any]:
    """Everything, each figure at full precision with the ids of its runs."""
    table = filled.table
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "seeds": table.seeds,
        "columns": [{"key": column.key, "unit": column.unit} for column in table.columns],
        "groups": [
            {"title": group.title, "rows": [_row_tree(filled, row, group.title) for row in group.rows]}
            for group in filled.groups
        ],
        "notes": filled.notes,
        "signatures": filled.signatures,
    }


def _row_tree(filled: FilledTable, row: FilledRow, group: str | None) -> dict[str, Any]:
    return {
        "label": row.row.label,
        "overrides": row.row.overrides,
        "trainable": row.trainable,
        "printed_trainable": row.row.params,
        "million": row.row.million,
        **({"qkv_macs_per_token": row.macs, "printed_qkv_macs_per_token": row.row.macs} if row.macs else {}),
        "runs": [record.id for record in row.records],
        "hypotheses": row.texts,
        "failures": row.failures,
        "notes": row.notes,
        "reruns": [
            {"source": rerun.source, "note": rerun.note, **{key: f.text for key, (f, _) in rerun.figures.items()}}
            for rerun in filled.reruns.get(row_key(group, row.row), ())
        ],
        "cells": {
            column.key: _cell_tree(row, cell) for column, cell in zip(filled.table.columns, row.cells, strict=True)
        },
    }


def _cell_tree(row: FilledRow, cell: Cell) -> dict[str, Any]:
    return {
        "values": cell.values,
        "n": cell.n,
        "mean": cell.mean,
        "std": cell.std,
        "best": cell.best,
        "tied_with_best": cell.tied,
        "print": None if cell.printed is None else cell.printed.text,
        "difference": cell.difference,
        "reruns": None if cell.reruns is None else [cell.reruns.low, cell.reruns.high],
        "verdict": _state(row, cell),
        "signature": cell.signature,
    }


CSV_COLUMNS = (
    *("table", "group", "method", "overrides", "trainable", "printed_trainable", "macs", "printed_macs"),
    *("metric", "subset", "unit", "n", "mean", "std", "print", "print_std", "difference", "reruns_low", "reruns_high"),
    *("verdict", "best", "tied_with_best", "signature", "runs"),
)


def as_csv(filled: FilledTable) -> str:
    """One line for each figure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for group in filled.groups:
        for row in group.rows:
            for column, cell in zip(filled.table.columns, row.cells, strict=True):
                figure, around = cell.printed, cell.reruns
                values = [
                    filled.table.name,
                    group.title,
                    row.row.label,
                    " ".join(row.row.overrides),
                    row.trainable,
                    row.row.params,
                    " / ".join(map(str, row.macs or ())),
                    row.row.macs,
                    column.metric,
                    column.subset,
                    column.unit,
                    cell.n,
                    cell.mean,
                    cell.std,
                    *("" if figure is None else figure.text).partition(" ± ")[::2],
                    cell.difference,
                    None if around is None else around.low,
                    None if around is None else around.high,
                    _state(row, cell),
                    "yes" if cell.best else None,
                    "yes" if cell.tied else None,
                    cell.signature,
                    " ".join(record.id for record in row.records),
                ]
                writer.writerow("" if value is None else value for value in values)
    return out.getvalue()


def verdicts(filled: FilledTable) -> dict[str, int]:
    """How many of the cells that have a printed figure have each verdict."""
    found = {"within print": 0, "within reruns": 0, "outside": 0, NOT_RUN: 0, FAILED: 0}
    for row in filled.rows:
        for cell in row.cells:
            if cell.printed is not None:
                found[_state(row, cell) or NOT_RUN] += 1
    return found
