"""The papers' tables as lists of cells: `configs/table/<name>.yaml`, read and checked.

A table's scalars are kept as the text that the paper prints, since the number of its digits says how far it can be
trusted: 2.40 is not 2.4.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from lodarepro import compose, config, yaml_files
from lodarepro.errors import BadInput, nearest
from lodarepro.provenance import canonical_json
from lodarepro.scores import Unit

FOLDER = "table"
UNREADABLE = "?"  # stands for a printed figure that our copy of the paper does not show
MILLIONS = {"10**6": 10**6, "2**20": 2**20}
_FIGURE = re.compile(r"(\d+(?:\.(\d+))?)(?: ± (\d+(?:\.\d+)?))?")
_LABEL = re.compile(r"(\d+(?:\.(\d+))?)M")


@dataclass(frozen=True)
class Figure:
    """A printed figure.

    Attributes:
        text: as printed.
        value: before the sign ±.
        spread: after it; None: none is given.
        decimals: digits after the value's point.
    """

    text: str
    value: float
    spread: float | None
    decimals: int

    @property
    def half_digit(self) -> float:
        """Half the last printed digit: how far rounding may have moved it."""
        return 0.5 * 10.0**-self.decimals

    @classmethod
    def of(cls, text: str) -> Figure | None:
        """Read a figure such as `69.0 ± 0.7` or `68.2`; None: `?`.

        Raises:
            ValueError: it is neither.
        """
        if text == UNREADABLE:
            return None
        match = _FIGURE.fullmatch(text)
        if match is None:
            raise ValueError(f"'{text}' is no printed figure; write 69.0, 69.0 ± 0.7 or {UNREADABLE}")
        value, digits, spread = match.groups()
        return cls(text, float(value), None if spread is None else float(spread), len(digits or ""))


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        metric: key of a metric, or `val_loss`.
        subset: of the test set: `all`, `seen`, `unseen`.
        unit: as printed.
    """

    metric: str
    subset: str
    unit: Unit

    @property
    def key(self) -> str:
        """As in the file: `bleu`, `bleu/seen`."""
        return self.metric if self.subset == "all" else f"{self.metric}/{self.subset}"


@dataclass(frozen=True)
class Row:
    """A row: one cell for each seed.

    Attributes:
        label: as printed.
        overrides: of the cell, those of its table and group included, without a seed.
        run: what they compose to, with the table's first seed.
        params: the printed label of the number of trainable parameters, such as `0.38M`; None: none is printed.
        million: what M means in it.
        macs: the printed multiply-accumulates a token, where the table has them.
        printed: the printed figures, one a column; None: not readable.
        checkpoints: of which the one with the best test BLEU counts.
        notes: keys of the table's notes.
    """

    label: str
    overrides: tuple[str, ...]
    run: config.Run
    params: str | None
    million: int
    macs: str | None
    printed: tuple[Figure | None, ...]
    checkpoints: tuple[str, ...]
    notes: tuple[str, ...]

    def cells(self, seeds: Iterable[int]) -> list[config.Run]:
        """The row's runs, one a seed."""
        return [replace(self.run, seed=seed) for seed in seeds]

    def disagrees(self, trainable: int) -> bool:
        """Whether the printed label is not what a count rounds to."""
        match = _LABEL.fullmatch(self.params or "")
        if match is None:
            return False
        half_digit = 0.5 * 10.0 ** -len(match[2] or "")
        return abs(trainable / self.million - float(match[1])) > half_digit * (1 + 1e-9)


@dataclass(frozen=True)
class Group:
    """Rows whose best figures are judged among each other.

    Attributes:
        title: None: the table is not divided.
        rows: in the printed order.
    """

    title: str | None
    rows: tuple[Row, ...]


def row_key(group: str | None, row: Row) -> str:
    """A row's name within its table."""
    return f"{group}: {row.label}" if group else row.label


@dataclass(frozen=True)
class Table:
    """A table of a paper, or of ours.

    Attributes:
        name: of its file.
        title: what it shows.
        source: paper and number; None: it is not a paper's.
        paper: whose table it is, by which reruns know that they are its own figures.
        columns: in the printed order.
        seeds: one run each.
        notes: key to text.
        footnotes: keys of those that are about the whole table.
        groups: its rows.
    """

    name: str
    title: str
    source: str | None
    paper: str | None
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    notes: dict[str, str]
    footnotes: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[Row]:
        """All rows in order."""
        return [row for group in self.groups for row in group.rows]

    @property
    def keyed_rows(self) -> list[tuple[str, Row]]:
        """All rows in order, each with its name within the table."""
        return [(row_key(group.title, row), row) for group in self.groups for row in group.rows]

    @cached_property
    def suite(self) -> str:
        """The suite of metrics that all rows are scored with."""
        return str(self.rows[0].run.dataset.suite)

    @property
    def printed(self) -> bool:
        """Whether it has printed figures to stand beside."""
        return any(row.printed for row in self.rows)


# files ------------------------------------------------------------------------------------------

_CLOSED = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_CLOSED)
class _RowFile:
    label: str
    cell: list[str]
    params: str | None = None
    million: str | None = None
    macs: str | None = None
    print: list[str] = field(default_factory=list)
    checkpoints: list[str] | None = None
    notes: list[str] = field(default_factory=list)


@checked_dataclass(frozen=True, config=_CLOSED)
class _GroupFile:
    rows: list[_RowFile]
    title: str | None = None
    cell: list[str] = field(default_factory=list)


@checked_dataclass(frozen=True, config=_CLOSED)
class _TableFile:
    title: str
    cell: list[str]
    columns: dict[str, Unit]
    groups: list[_GroupFile]
    source: str | None = None
    paper: str | None = None
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    million: str = "10**6"
    checkpoints: list[str] = field(default_factory=lambda: ["last"])
    notes: dict[str, str] = field(default_factory=dict)
    footnotes: list[str] = field(default_factory=list)


def names() -> list[str]:
    """The tables that the project knows."""
    return sorted(path.stem for path in (compose.config_folder() / FOLDER).glob("*.yaml"))


def names_of(datasets: Container[str]) -> list[str]:
    """The tables that the project knows with a row on one of some datasets; quick, as nothing is composed."""
    found = []
    for name in names():
        file = _parsed(compose.config_folder() / FOLDER / f"{name}.yaml")
        cells = [file.cell, *(group.cell for group in file.groups), *(r.cell for g in file.groups for r in g.rows)]
        chosen = [text.partition("=") for cell in cells for text in cell]
        if any(key == "dataset" and value in datasets for key, _, value in chosen):
            found.append(name)
    return found


def read(
    name: str,
    *,
    places: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    own: compose.OwnMethod | None = None,
) -> Table:
    """Read a table and compose every row.

    Args:
        name: of a table of the project, or the path of a YAML file of the same form.
        places: overrides for all rows of what is no part of a run's identity: where things are on this machine.
        seeds: instead of the table's.
        own: a method of the user's, which rows of a table of theirs may name.

    Raises:
        BadInput: with every fault found, one line each.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else compose.config_folder() / FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise BadInput(f"{name}: no such table{nearest(name, names())}, nor a YAML file of one")
    if faults := _misplaced(places) + ([] if seeds is None else _unfit_seeds("--seeds", seeds)):
        raise BadInput(faults)
    file = _parsed(path)
    if faults := _unfit_seeds(f"table {path}: seeds", file.seeds):
        raise BadInput(faults)
    return _built(path, file, places, tuple(file.seeds if seeds is None else seeds), own)


def _unfit_seeds(where: str, seeds: Sequence[int]) -> list[str]:
    if seeds and len(set(seeds)) == len(seeds):
        return []
    return [f"{where} {','.join(map(str, seeds))}: name at least one seed, each once"]


def _misplaced(places: Sequence[str]) -> list[str]:
    """Overrides that would make other cells than the table's."""
    return [
        f"{text}: would make other cells than the table's; for all its rows only what is no part of a run's identity "
        "can be given: data.*, results.*, runtime.*, logger, logger.*, model.path, dataset.files.*, hydra/launcher, "
        "hydra.*"
        for text in places
        if not _is_place(text.partition("=")[0])
    ]


def _is_place(key: str) -> bool:
    section, _, rest = key.partition(".")
    if section in ("data", "results", "runtime", "logger", "hydra", "hydra/launcher"):
        return bool(rest) or section in ("logger", "hydra/launcher")
    return key == "model.path" or key.startswith("dataset.files.")


def _parsed(path: Path) -> _TableFile:
    return yaml_files.read(path, _TableFile, what="table", keys="title, cell, columns and groups")


def _built(
    path: Path, file: _TableFile, places: Sequence[str], seeds: tuple[int, ...], own: compose.OwnMethod | None
) -> Table:
    where = f"table {path}"
    columns = tuple(_column(key, unit) for key, unit in file.columns.items())
    groups = []
    faulty: list[tuple[str, str]] = []  # row and fault
    for group in file.groups:
        rows = []
        for row in group.rows:
            try:
                rows.append(_row(file, group, row, places, seeds, own))
            except BadInput as e:
                faulty += [(row.label, fault) for fault in e.faults]
        groups.append(Group(group.title, tuple(rows)))
    rows_with = Counter(fault for _, fault in faulty)
    count = sum(len(group.rows) for group in file.groups)
    faults = list(
        dict.fromkeys(
            f"{where}: {fault}" if rows_with[fault] == count > 1 else f"{where}, row '{label}': {fault}"
            for label, fault in faulty
        )
    )
    used = {*file.footnotes, *(key for group in file.groups for row in group.rows for key in row.notes)}
    faults += [f"{where}: note '{key}' is not among its notes" for key in sorted(used - file.notes.keys())]
    if not faults:
        table = Table(
            name=path.stem,
            title=file.title,
            source=file.source,
            paper=file.paper,
            columns=columns,
            seeds=seeds,
            notes=file.notes,
            footnotes=tuple(file.footnotes),
            groups=tuple(groups),
        )
        faults = [f"{where}: {fault}" for fault in _mixed(table)]
    if faults:
        raise BadInput(faults)
    return table


def _column(key: str, unit: Unit) -> Column:
    metric, _, subset = key.partition("/")
    return Column(metric, subset or "all", unit)


def _row(
    file: _TableFile,
    group: _GroupFile,
    row: _RowFile,
    places: Sequence[str],
    seeds: tuple[int, ...],
    own: compose.OwnMethod | None,
) -> Row:
    overrides = (*file.cell, *group.cell, *row.cell)
    faults = []
    checkpoints = file.checkpoints if row.checkpoints is None else row.checkpoints
    million = row.million or file.million
    if million not in MILLIONS:
        faults.append(f"million: {million} is none of {', '.join(MILLIONS)}")
    if row.print and len(row.print) != len(file.columns):
        faults.append(f"print: {len(row.print)} figures for {len(file.columns)} columns")
    if any(text.partition("=")[0] == "seed" for text in overrides):
        faults.append("cell: the seeds are the table's; leave seed out")
    faults += [
        f"cell: {text}: is no part of a cell; give it on the command line"
        for text in overrides
        if _is_place(text.partition("=")[0])
    ]
    faults += [
        f"checkpoints: {name} is none of last, best and epoch-N"
        for name in checkpoints
        if not re.fullmatch(config.CHECKPOINT, name)
    ]
    printed: list[Figure | None] = []
    for text in row.print:
        try:
            printed.append(Figure.of(text))
        except ValueError as e:
            faults.append(f"print: {e}")
    # Hydra's own settings are no part of a cell.
    local = [text for text in places if not text.startswith("hydra")]
    try:
        (cell,) = compose.cells([*overrides, *local, f"seed={seeds[0]}"], own=own)
    except BadInput as e:
        raise BadInput([*faults, *e.faults]) from None
    faults += [
        f"checkpoints: {name} is not among those that its cell keeps; add it to train.keep"
        for name in checkpoints
        if name not in cell.run.train.keep and re.fullmatch(config.CHECKPOINT, name)
    ]
    if faults:
        raise BadInput(faults)
    return Row(
        label=row.label,
        overrides=overrides,
        run=cell.run,
        params=row.params,
        million=MILLIONS[million],
        macs=row.macs,
        printed=tuple(printed),
        checkpoints=tuple(checkpoints),
        notes=tuple(row.notes),
    )


def _mixed(table: Table) -> list[str]:
    """What keeps rows from standing in one table."""
    if not table.rows:
        return ["it has no rows"]
    if not table.columns:
        return ["it has no columns"]
    faults = []
    if len(suites := sorted({row.run.dataset.suite for row in table.rows})) > 1:
        faults.append(f"its rows are scored by unlike suites ({', '.join(suites)}), which have no common columns")
    embedded = {row.run.model.name for row in table.rows if row.run.model.hub is None}
    others = {row.run.model.name for row in table.rows} - embedded
    if embedded and others:
        faults.append(
            f"figures of {', '.join(sorted(embedded))} show that the pipeline works and never share a table with those "
            f"of {', '.join(sorted(others))}"
        )
    keys = Counter(key for key, _ in table.keyed_rows)
    faults += [
        f"{count} rows are called '{key}'; give each a label of its own" for key, count in keys.items() if count > 1
    ]
    seen: dict[str, str] = {}
    for row in table.rows:
        key = canonical_json(compose.identity(row.run, {}))
        if key in seen:
            faults.append(f"rows '{seen[key]}' and '{row.label}' are the same cell")
        seen[key] = row.label
    return faults


# reruns -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rerun:
    """Figures that others published for a cell of the papers' tables.

    Attributes:
        cell: overrides that the cell must have.
        source: who, and where.
        note: under which circumstances; None: nothing is known.
        paper: whose table these figures are; None: no paper's of ours.
        figures: metric key to figure and its unit.
    """

    cell: tuple[str, ...]
    source: str
    note: str | None
    paper: str | None
    figures: dict[str, tuple[Figure, Unit]]

    def fits(self, run: config.Run) -> bool:
        """Whether a run is of this cell."""
        tree: Any = compose.plain(run)
        for text in self.cell:
            key, _, wanted = text.partition("=")
            value = tree
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if str(value["name"] if isinstance(value, dict) else value) != wanted:
                return False
        return True


@checked_dataclass(frozen=True, config=_CLOSED)
class _RerunFile:
    cell: list[str]
    source: str
    figures: list[str]
    note: str | None = None
    paper: str | None = None


@checked_dataclass(frozen=True, config=_CLOSED)
class _RerunsFile:
    about: str
    columns: dict[str, Unit]
    reruns: list[_RerunFile]
    others: list[_RerunFile]


@dataclass(frozen=True)
class Reruns:
    """What others measured.

    Attributes:
        about: what is true of all of them.
        rows: in the order of the file.
    """

    about: str
    rows: tuple[Rerun, ...]


def reruns_file() -> Path:
    """`results/reruns.yaml`: inside the package where it was installed, in the checkout else."""
    inside = Path(__file__).parent / "reruns.yaml"
    return inside if inside.is_file() else Path(__file__).parent.parent / "results" / "reruns.yaml"


def reruns() -> Reruns:
    """Read the figures that others published."""
    tree = yaml.load(reruns_file().read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    file = TypeAdapter(_RerunsFile).validate_python(tree)
    found = []
    for row in file.reruns:
        figures = [Figure.of(text) for text in row.figures]
        of_metric = {
            metric: (figure, unit)
            for (metric, unit), figure in zip(file.columns.items(), figures, strict=True)
            if figure is not None
        }
        found.append(Rerun(tuple(row.cell), row.source, row.note, row.paper, of_metric))
    return Reruns(file.about, tuple(found))
