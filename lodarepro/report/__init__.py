"""Tables and the report page, made from records alone; no torch, no numbers of its own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lodarepro import records
from lodarepro.errors import BadInput
from lodarepro.files import write_atomically
from lodarepro.report.summary import counted

if TYPE_CHECKING:
    from lodarepro.archive import Archive
    from lodarepro.findings import Findings
    from lodarepro.report.aggregate import FilledTable

logger = logging.getLogger(__name__)

FOLDER, PAGE, FIGURES = "report", "index.html", "figures"


def write(filled: Sequence[FilledTable], archive: Archive, analyses: Sequence[Findings], root: Path) -> Path:
    """Write the report page of a results folder, and its figures as files.

    Args:
        filled: the tables that it shows.
        archive: the runs.
        analyses: what they found; their figures are files of theirs already.
        root: the results folder that they are in, and that the report goes to.

    Returns:
        The page: one file that needs no other.

    Raises:
        BadInput: it can't be written, or two tables have the same name.
    """
    from lodarepro.report import figures, html, plots, texts

    names = Counter(figures.file_name(table) for table in filled)
    if twice := [name for name, count in names.items() if count > 1]:
        raise BadInput(f"{counted(names[twice[0]], 'table')} would share the name {twice[0]}; name each once")
    drawn = [figures.of_table(table, root) for table in filled]
    chosen = texts.choose(filled, archive.finished)
    side_by_side = texts.side_by_side(chosen, root)
    if lacking := len(chosen) - sum(len(test.systems) for test in side_by_side):
        logger.info("%d of %d runs have no texts here to show", lacking, len(chosen))
    contents = html.Contents(
        root.resolve().name,
        filled,
        drawn,
        archive.finished,
        archive.failures,
        side_by_side,
        analyses,
        [plots.of_analysis(found) for found in analyses],
    )
    page = root / FOLDER / PAGE
    with records.disk_faults(page.parent):
        (page.parent / FIGURES).mkdir(parents=True, exist_ok=True)
        for figure in (figure for of_one in drawn for figure in of_one):
            write_atomically(page.parent / FIGURES / f"{figure.name}.svg", figure.svg)
            write_atomically(page.parent / FIGURES / f"{figure.name}.png", figure.png)
        # A text may hold half a surrogate pair, which no encoding has.
        write_atomically(page, html.render(contents).encode(errors="replace"))
    return page
