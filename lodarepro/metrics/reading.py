"""Hypotheses, references and subset labels from files, in every form that the suites' official scorers take.

Files are UTF-8 whatever the locale. What can be wrong with a file is a line that names it and its place; the
official readers stop with a traceback there, or score shifted segments.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TypeVar

from lodarepro.errors import BadInput
from lodarepro.metrics.suites import REFERENCES, split_words

logger = logging.getLogger(__name__)

T = TypeVar("T")

BYTE_ORDER_MARK = "\ufeff"

REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))
"""Encoding faults of the E2E data and what stands for them, in this order, in tables only: tuetschek/e2e-metrics
at 1b9c4d87, measure_scores.py read_tsv."""

# What the headers that tuetschek/e2e-metrics at 1b9c4d87 knows begin with, in any case. It looks at no more either:
# "references (human)" and even "date" are headers to it.
SOURCE_HEADER = r"mr|src|source|meaning|da|dial(ogue)?[_ .-]act"
OUTPUT_HEADER = r"out|ref|sys"
REFERENCE_HEADER = r"trg|tgt|target|ref|human"


@dataclass(frozen=True)
class _Row:
    """A text with its place.

    Attributes:
        line: number of its line in the file, from 1.
        source: what it was generated from; empty in plain text, which has none.
        text: the text, which may be empty.
    """

    line: int
    source: str
    text: str


def read_e2e(hypotheses: Path, references: Path) -> tuple[list[str], list[list[str]]]:
    """Read what the official E2E scorer reads, in all its forms, into the segments that it scores.

    A file whose name ends in `.tsv` or `.csv` is a table, any other is plain text. Plain hypotheses: one a line,
    blank lines being empty hypotheses. Plain references: one a line, a blank line between segments; without any
    blank line each is a segment. Tables: a source column and a text column, found by their headers, or two columns
    without headers; cells are apart by tabs if the first line has one, else by commas, and quoted as in CSV. Empty
    lines are dropped, a byte order mark too, and known encoding faults are mended (`REPAIRS`).

    References in a table are those of each hypothesis' source, in the hypotheses' order; segments that only the
    references have are left out. If the hypotheses have no sources, consecutive rows with one source are a segment.

    Returns:
        One hypothesis and one or more references per segment, lines stripped.

    Raises:
        BadInput: a file can't be read, or not as text in one of these forms, or the two don't fit together.

    Source: tuetschek/e2e-metrics at 1b9c4d87, measure_scores.py load_data: the same texts wherever that gives any,
    but for three forms that it mistakes and which are errors here: a line break that few programs know (U+2028) in
    plain text counts as a segment more; a quoted cell over several lines loses its line breaks, and with a quote
    never closed all rows up to the next quote; two blank lines in a row make a segment without references. On the
    other hand tables without headers, on which it stops although they are meant to work, are read. As there,
    a byte order mark in plain text is part of the first text.
    """
    outputs, texts = _together(
        (partial(_rows, hypotheses, OUTPUT_HEADER, "output"), partial(_rows, references, REFERENCE_HEADER, "reference"))
    )
    if not _is_table(references):
        groups, parting = _blocks(references, texts)
    elif any(row.source for row in outputs):
        return [row.text for row in outputs], _by_source(hypotheses, outputs, references, texts)
    else:
        groups = [[row.text for row in rows] for _, rows in groupby(texts, key=lambda row: row.source)]
        parting = "consecutive rows with one source are a segment"
    if len(groups) != len(outputs):
        raise BadInput(
            f"{hypotheses} has {len(outputs)} hypotheses{_blank_end(outputs)} but {references} references for "
            f"{len(groups)} segments ({parting}): give one hypothesis for each segment"
        )
    return [row.text for row in outputs], groups


def read_parallel(hypotheses: Path, prefix: Path, count: int, *, raw: bool) -> tuple[list[str], list[list[str]]]:
    """Read what GenerationEval reads: hypotheses one a line, and files of references with the same lines.

    Lines end at newlines alone. The first file has the first reference of each segment, line by line. A blank line
    in a later one says that the segment has no reference there; in processed files, that it is empty. Blank
    hypotheses are empty ones. A newline at the end of a file adds no segment, which in GenerationEval it does.

    But for those blank lines, raw or processed makes no difference to `score`: splitting words anew changes nothing
    in text that is split already, and no metric changes with the first reference repeated once more.

    Args:
        hypotheses: the file of hypotheses.
        prefix: the files of references without their numbers: `references/reference` for `reference0`,
            `reference1`, ... A single one may be without its number, as in GenerationEval.
        count: the number of files of references.
        raw: the texts are as decoded. If not, they have to be as the LoRA paper's code prepares them: lower-cased,
            split at every non-word character, at most six references.

    Returns:
        One hypothesis and one or more references per segment, stripped.

    Raises:
        BadInput: a file can't be read, the numbers of lines differ, a first reference is blank, or texts that are
            not raw aren't processed either.

    Source: WebNLG/GenerationEval at 80678494, eval.py parse. It has no raw form: a blank line is an empty reference
    to its BLEU, METEOR and TER. So it is in processed files here, as the LoRA paper's code, which repeats the first
    reference where there are no more, writes one only for a reference that is empty in the data (DART has one).
    """
    if count < 1:
        raise BadInput(f"{count} files of references: give 1 or more")
    if not raw and count > REFERENCES:
        raise BadInput(
            f"{count} files of processed references, but the protocol has {REFERENCES} at most: "
            f"give the first {REFERENCES}, or raw texts"
        )
    paths = [hypotheses, *_reference_paths(prefix, count)]
    files = [text.split("\n") for text in _together(partial(_text, path) for path in paths)]
    # Files joined by newlines, without one at the end, may well end in an empty text. But no first reference is.
    if len({len(lines) for lines in files}) > 1 or not files[1][-1]:
        files = [lines if lines[-1] else lines[:-1] for lines in files]
    if len({len(lines) for lines in files}) > 1:
        listed = ", ".join(f"{path} has {len(lines)}" for path, lines in zip(paths, files, strict=True))
        raise BadInput(f"different numbers of lines: {listed}: give one line for each segment in every file")
    files = [[line.strip() for line in lines] for lines in files]
    if blank := [number for number, line in enumerate(files[1], start=1) if not line]:
        raise BadInput(
            f"{paths[1]}: {_named(blank)}: blank, but this file has the first reference of every segment: fill it in"
        )
    if not raw:
        _together(partial(_check_processed, path, lines) for path, lines in zip(paths, files, strict=True))
    return files[0], [[text for text in texts if text or not raw] for texts in zip(*files[1:], strict=True)]


def read_labels(path: Path) -> list[str | None]:
    """Read the subset of each segment, one a line (`seen`, `unseen`); a blank line: in no subset.

    Raises:
        BadInput: the file can't be read or isn't text, or a label is `all`, the name for all segments.
    """
    rows = _plain(path)
    labels = [row.text.removeprefix(BYTE_ORDER_MARK) for row in rows]
    if reserved := [row.line for row, label in zip(rows, labels, strict=True) if label == "all"]:
        raise BadInput(f"{path}: {_named(reserved)}: 'all' stands for all segments: give the subset another name")
    if odd := [row.line for row, label in zip(rows, labels, strict=True) if "\t" in label or "|" in label]:
        raise BadInput(f"{path}: {_named(odd)}: a tab or | in a label: give the subset a name that fits into a table")
    return [label or None for label in labels]


def _rows(path: Path, header: str, kind: str) -> list[_Row]:
    return _table(path, header, kind) if _is_table(path) else _plain(path)


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith((".csv", ".tsv"))


def _plain(path: Path) -> list[_Row]:
    """The lines of a plain text file, blank ones too."""
    text = _text(path)
    lines = _lines(text)
    newline = _newline(text)
    if odd := [(number, line[-1]) for number, line in lines[:-1] if not line.endswith(newline)]:
        raise BadInput(
            f"{path}: {_named(number for number, _ in odd)}: {odd[0][1]!r} would end the line there and so add a text: "
            "put a space in its place"
        )
    return [_Row(number, "", line.strip()) for number, line in lines]


def _table(path: Path, text_header: str, kind: str) -> list[_Row]:
    """The rows of a table but for its header; `kind` is how errors call the column whose header is given."""
    lines = [(number, line.strip()) for number, line in _lines(_text(path))]
    lines[0] = (lines[0][0], lines[0][1].replace(BYTE_ORDER_MARK, ""))
    lines = [(number, _repaired(line)) for number, line in lines if line]
    if not lines:
        raise BadInput(f"{path}: only blank lines: give a table with a source and a text column")
    delimiter = "\t" if "\t" in lines[0][1] else ","
    table = _cells(path, lines, delimiter)

    first, header = table[0]
    sources = [i for i, cell in enumerate(header) if re.match(SOURCE_HEADER, cell, re.IGNORECASE)]
    texts = [i for i, cell in enumerate(header) if re.match(text_header, cell, re.IGNORECASE)]
    if len(sources) == len(texts) == 1:
        source, text = sources[0], texts[0]
        table = table[1:]
        if not table:
            raise BadInput(f"{path}: line {first}: no rows below the header: give one for each text")
    elif not sources and not texts and len(header) == 2:
        source, text = 0, 1
    else:
        raise BadInput(
            f"{path}: line {first}: {len(sources)} of {len(header)} columns headed as source and {len(texts)} as "
            f"{kind}: head one as 'source' and one as '{kind}', or give two columns without headers"
        )
    if odd := [number for number, cells in table if len(cells) != len(header)]:
        hint = '; an empty cell at the start or end of a line needs quotes, ""' if delimiter == "\t" else ""
        raise BadInput(f"{path}: {_named(odd)}: not {len(header)} columns as in line {first}: mend the row{hint}")
    return [_Row(number, cells[source], cells[text]) for number, cells in table]


def _repaired(line: str) -> str:
    for fault, meant in REPAIRS:
        line = line.replace(fault, meant)
    return line


def _cells(path: Path, lines: Sequence[tuple[int, str]], delimiter: str) -> list[tuple[int, list[str]]]:
    """The numbered lines' cells."""
    table = []
    unclosed = []
    for number, line in lines:
        reader = csv.reader([line, ""], delimiter=delimiter)
        try:
            table.append((number, next(reader)))
        except csv.Error as error:
            raise BadInput(f"{path}: line {number}: {error}: shorten the cell") from error
        if reader.line_num == 2:  # a quoted cell took the empty line in, too
            unclosed.append(number)
    if unclosed:
        raise BadInput(
            f"{path}: {_named(unclosed)}: a quoted cell goes on past the end of the line: "
            "close its quotes, and write line breaks in cells as spaces"
        )
    return table


def _blocks(path: Path, rows: Sequence[_Row]) -> tuple[list[list[str]], str]:
    """The references of each segment of a plain text file, and in words what parts the segments."""
    last = max((i for i, row in enumerate(rows) if row.text), default=None)
    if last is None:
        raise BadInput(f"{path}: only blank lines: give one reference a line")
    rows = rows[: last + 1]
    if surplus := [row.line for before, row in pairwise([_Row(0, "", ""), *rows]) if not before.text and not row.text]:
        raise BadInput(
            f"{path}: {_named(surplus)}: a blank line with no reference before it makes a segment without references: "
            "delete it, one blank line parts two segments"
        )
    blocks = [[row.text for row in group] for blank, group in groupby(rows, key=lambda row: not row.text) if not blank]
    if len(blocks) == 1:
        return [[text] for text in blocks[0]], "each line is a segment, as there is no blank line"
    return blocks, "blank lines part the segments"


def _by_source(hypotheses: Path, outputs: Sequence[_Row], references: Path, rows: Sequence[_Row]) -> list[list[str]]:
    """The references with the source of each output."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.text)
    if lost := [row for row in outputs if row.source not in by_source]:
        raise BadInput(
            f"{hypotheses}: {_named(row.line for row in lost)}: source not in {references}: {lost[0].source!r}: "
            "spell sources as there"
        )
    if unused := len(by_source.keys() - {row.source for row in outputs}):
        logger.warning(
            "%s has no hypothesis for %d of the %d sources in %s, which are left out, as in the official scorer",
            hypotheses,
            unused,
            len(by_source),
            references,
        )
    return [list(by_source[row.source]) for row in outputs]


def _blank_end(rows: Sequence[_Row]) -> str:
    """How many of the rows are blank lines at the end, which is a likely mistake; nothing if none are."""
    count = next((i for i, row in enumerate(reversed(rows)) if row.text), len(rows))
    return f" ({count} of them blank at its end)" if count else ""


def _reference_paths(prefix: Path, count: int) -> list[Path]:
    numbered = [Path(f"{prefix}{i}") for i in range(count)]
    return [prefix] if count == 1 and (os.path.isfile(prefix) or not os.path.exists(numbered[0])) else numbered  # noqa: PTH110, PTH113 (pathlib's raise for names too long)


def _check_processed(path: Path, lines: Sequence[str]) -> None:
    if raw := [number for number, line in enumerate(lines, start=1) if line != split_words(line)]:
        raise BadInput(
            f"{path}: {_named(raw)}: not lower-cased and split at every non-word character: {lines[raw[0] - 1]!r}: "
            "process it so, or score the files as raw text"
        )


def _text(path: Path) -> str:
    """The text of a file, line ends and byte order mark as they are."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file: check the path") from error
    except IsADirectoryError as error:
        raise BadInput(f"{path}: a folder: name a file in it") from error
    except OSError as error:
        raise BadInput(f"{path}: can't be read ({error.strerror}): make it readable or give another") from error
    if not content:
        raise BadInput(f"{path}: an empty file: give one text a line")
    try:
        text = content.decode("utf-8")
        fault = content.find(b"\0")  # legal in UTF-8, but no text has one: UTF-16 does
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        line = content.count(b"\n", 0, fault) + 1
        raise BadInput(
            f"{path}: line {line}: not UTF-8 text: 0x{content[fault]:02x} at byte {fault}: convert it to UTF-8"
        )
    return text


def _newline(text: str) -> str:
    """What ends the lines: a newline, with a carriage return before it or not; in old files that alone."""
    return "\n" if "\n" in text else "\r"


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines with their ends, wherever Python ends one, as the official E2E reader has it; with their numbers.

    The numbers are those of an editor, which knows fewer line ends.
    """
    newline = _newline(text)
    lines = []
    number = 1
    for line in text.splitlines(keepends=True):
        lines.append((number, line))
        number += line.endswith(newline)
    return lines


def _named(numbers: Iterable[int]) -> str:
    """The numbers of lines in an error message: the first few, and how many more."""
    first, *more = numbers
    if not more:
        return f"line {first}"
    rest = f" and {len(more) - 2} more" if len(more) > 2 else ""
    return f"lines {', '.join(map(str, [first, *more[:2]]))}{rest}"


def _together(steps: Iterable[Callable[[], T]]) -> list[T]:
    """What each step gives, or BadInput with the faults of all."""
    results = []
    faults: list[str] = []
    for step in steps:
        try:
            results.append(step())
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(faults)
    return results
