"""What an analysis found, as files: Markdown, CSV, pictures, and what can be used further."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lodarepro import findings, records
from lodarepro.errors import BadInput
from lodarepro.files import write_atomically
from lodarepro.findings import Findings, Grid, Value
from lodarepro.report import plots
from lodarepro.report.summary import MISSING
from lodarepro.report.summary import markdown as table

MARKDOWN = "analysis.md"


def shown(value: Value, decimals: int) -> str:
    """A cell as it is printed, in one line."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return " ".join(value.split())
    return f"{value:,}" if isinstance(value, int) else f"{value:z.{decimals}f}"


def lines_of(grid: Grid) -> list[list[str]]:
    """A table as it is printed, its head first."""
    decimals = [column.decimals for column in grid.columns]
    rows = [list(map(shown, row, decimals)) for row in grid.rows]
    return [[shown(column.title, 0) for column in grid.columns], *rows]


def origin(found: Findings) -> str:
    """Where the figures come from, in a line: code, hardware, PyTorch."""
    code = found.provenance.get("code", {})
    machine = found.provenance.get("machine", {})
    torch = found.provenance.get("packages", {}).get("torch")
    parts = [
        f"lodarepro {code.get('version')}",
        code.get("commit") and f"commit {code['commit']}" + (" with uncommitted changes" if code.get("dirty") else ""),
        machine.get("processor"),
        found.provenance.get("device"),
        torch and f"torch {torch}",
    ]
    return ", ".join(str(part) for part in parts if part)


def markdown(found: Findings) -> str:
    """Title, source, the tables that are shown, notes and provenance."""
    parts = [f"# {shown(found.title, 0)}", shown(found.source, 0)]
    for grid in found.grids:
        if grid.shown:
            parts += [f"## {shown(grid.title, 0)}", table(lines_of(grid))]
    if found.notes:
        parts.append("\n".join(f"- {shown(note, 0)}" for note in found.notes))
    return "\n\n".join([*parts, origin(found)]) + "\n"


def as_csv(grid: Grid) -> str:
    """A table with all digits, its columns' keys as its head; nothing where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.key for column in grid.columns])
    writer.writerows(grid.rows)
    return file.getvalue()


def write(found: Findings, root: Path) -> Path:
    """Write all files of an analysis; those of an earlier one of the same name that it has not are removed.

    Args:
        found: what it found.
        root: the results folder.

    Returns:
        The analysis's folder.

    Raises:
        BadInput: it can't be written.
    """
    files = {MARKDOWN: markdown(found), **{f"{grid.key}.csv": as_csv(grid) for grid in found.grids}, **found.files}
    # A text may hold half a surrogate pair, which no encoding has.
    content = {name: text.encode(errors="replace") for name, text in files.items()}
    for plot, figure in zip(found.plots, plots.of_analysis(found), strict=True):
        content |= {f"{plot.key}.svg": figure.svg, f"{plot.key}.png": figure.png}
    folder = findings.folder_of(root, found)
    with records.disk_faults(folder):
        before = _files_of(folder)
        for name, part in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, part)
        findings.write(root, found)
        for name in before - content.keys():
            (folder / name).unlink(missing_ok=True)
    return folder


def _files_of(folder: Path) -> set[str]:
    """The files that the analysis in a folder wrote, as it says; none if there is none."""
    try:
        old = findings.read(folder / findings.FILE)
    except BadInput:
        return set()
    pictures = {f"{plot.key}.{ending}" for plot in old.plots for ending in ("svg", "png")}
    names = {f"{grid.key}.csv" for grid in old.grids} | pictures | old.files.keys()
    inside = folder.resolve()  # whatever a file that was edited by hand names
    return {name for name in names if (folder / name).resolve().is_relative_to(inside)}
