"""What an analysis leaves: figures in tables, and what is drawn of them, as data that need no model to be shown.

An analysis computes; `report/analyses.py` writes its Markdown, CSV and pictures, and puts it into the report page.
Below a results folder it has a folder of its own:

    analyses/<name>/analysis.json      everything below
    analyses/<name>/<grid>.csv         a table with all digits
    analyses/<name>/analysis.md        the tables as they are printed
    analyses/<name>/<plot>.png, .svg   what is drawn
    analyses/<name>/<file>             what can be used further, such as settings for `lodarepro run`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lodarepro.errors import BadInput
from lodarepro.files import write_atomically
from lodarepro.provenance import canonical_json, gather
from lodarepro.records import Record, method_of

FOLDER, FILE = "analyses", "analysis.json"
LONGEST = 80  # characters of what names the runs in a folder's name
SCHEMA = 1
"""Raised when a reader of old findings would misread new ones."""

Value = str | int | float | None
"""of a cell; None: there is none"""


@dataclass(frozen=True)
class Column:
    """A column of a grid.

    Attributes:
        key: in CSV and JSON; with its unit, where it has one.
        title: as shown.
        decimals: digits shown after a number's point; whole numbers and texts are shown as they are.
    """

    key: str
    title: str
    decimals: int = 2


@dataclass(frozen=True)
class Grid:
    """A table of figures.

    Attributes:
        key: name of its CSV file, without the ending.
        title: what stands above it.
        columns: in their order; the first says what a row is.
        rows: one value a column each.
        shown: whether it is printed, or kept as a file alone for its length.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    shown: bool = True


@dataclass(frozen=True)
class Panel:
    """One map among those of a heat map.

    Attributes:
        title: what it is of.
        x, y: labels of its columns and rows; the first row is drawn on top.
        values: a list for each row; None: not measured.
    """

    title: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class HeatMap:
    """Maps of one colour scale, in rows.

    Attributes:
        key: name of its files, without the ending.
        title, caption: what it shows; how to read it.
        x_title, y_title, value_title: of the axes and the scale, with units.
        panels: rows of maps.
        low, high: ends of the scale; None: as the values have it.
        decimals: digits after the point, where the numbers are written into the maps.
        kind: for the reader's program.
    """

    key: str
    title: str
    caption: str
    x_title: str
    y_title: str
    value_title: str
    panels: tuple[tuple[Panel, ...], ...]
    low: float | None = None
    high: float | None = None
    decimals: int = 2
    kind: Literal["heat-map"] = "heat-map"


@dataclass(frozen=True)
class Line:
    """Points of one thing.

    Attributes:
        label: its name.
        x, y: as many of each.
        spread: of each y, drawn as a bar up and down; empty: none.
        joined: whether a line goes through the points; else they are marked.
        role: `ours`; `print` for what a paper has; `baseline` for what it is compared with.
        notes: of each point, shown where it is pointed at; empty: none.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    joined: bool = True
    role: Literal["ours", "print", "baseline"] = "ours"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curves:
    """Lines and points over one pair of axes.

    Attributes:
        key: name of its files, without the ending.
        title, caption: what it shows; how to read it.
        x_title, y_title: of the axes, with units.
        lines: what is drawn.
        log_x, log_y: whether an axis is logarithmic.
        kind: for the reader's program.
    """

    key: str
    title: str
    caption: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    kind: Literal["curves"] = "curves"


@dataclass(frozen=True)
class Findings:
    """What an analysis found.

    Attributes:
        analysis: which one.
        name: of its folder.
        title: what it is of.
        source: the figures and tables of papers that it is after.
        settings: all that decides the figures: models, runs, checksums, options.
        provenance: code, packages, machine; where time is measured, the device.
        grids: tables, the first the one to look at.
        plots: what is drawn.
        notes: what has to be known to read the figures.
        files: name to text of files that can be used further.
        schema: of this file.
    """

    analysis: str
    name: str
    title: str
    source: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    grids: tuple[Grid, ...]
    plots: tuple[HeatMap | Curves, ...]
    notes: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


_FINDINGS = TypeAdapter(Findings)


def named(analysis: str, readable: str, settings: Mapping[str, Any]) -> str:
    """The name of an analysis's folder: the same for the same settings, so that doing it again replaces it."""
    digest = hashlib.sha256(canonical_json(settings).encode()).hexdigest()
    return f"{analysis}_{readable}_{digest[:12]}"


def labels(records: Sequence[Record]) -> list[str]:
    """A short name for each run, all different: method and rank, and what else tells them apart."""
    names = [method_of(record) for record in records]
    for more in (
        [f"s{record.config['seed']}" for record in records],
        [record.config["dataset"]["name"] for record in records],
        [record.id[-12:] for record in records],
        [str(number) for number in range(1, len(records) + 1)],  # a run that is named twice
    ):
        if len(set(names)) == len(names):
            break
        if len(set(more)) > 1:
            names = [f"{name} {part}" for name, part in zip(names, more, strict=True)]
    return names


def readable(records: Sequence[Record]) -> str:
    """Runs as part of a folder's name."""
    config = records[0].config
    whole = "-".join([config["dataset"]["name"], config["model"]["name"], *labels(records)])
    return whole.replace(" ", "-").replace("=", "")[:LONGEST]


def provenance(**more: Any) -> dict[str, Any]:
    """Code, packages and machine, and what else is given."""
    return {**gather(), **more}


def folder_of(root: Path, findings: Findings) -> Path:
    """The folder of an analysis below a results folder."""
    return root / FOLDER / findings.name


def write(root: Path, findings: Findings) -> None:
    """Write `analysis.json` into the analysis's folder, which is there."""
    text = json.dumps(asdict(findings), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(folder_of(root, findings) / FILE, f"{text}\n".encode(errors="replace"))


def read(path: Path) -> Findings:
    """Read what `write` wrote.

    Raises:
        BadInput: it is corrupt, or of another schema.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["schema"] != SCHEMA:
            raise BadInput(
                f"{path} has schema {tree['schema']}, this version reads {SCHEMA}; do the analysis again or delete it"
            )
        return _FINDINGS.validate_python(tree)
    except OSError as e:
        raise BadInput(f"{path}: can't be used ({e.strerror}); check the path") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path} is not an analysis ({where}: {first['msg']}); delete its folder") from None
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{path} is not an analysis ({e}); delete its folder") from None


def all_below(root: Path) -> list[Findings]:
    """The analyses below a results folder, in the order of their names."""
    return [read(path) for path in sorted((root / FOLDER).glob(f"*/{FILE}"))]
