"""The test texts of several runs side by side, with each segment's figures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lodarepro import records, units
from lodarepro.errors import BadInput
from lodarepro.provenance import canonical_json
from lodarepro.records import Decoded, Record, method_of
from lodarepro.report.aggregate import FilledTable
from lodarepro.rescore import segment_values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A run whose texts are to be shown.

    Attributes:
        label: of the row that it stands for, unlike all others'.
        record: of the run.
        file: of the hypotheses in its folder.
    """

    label: str
    record: Record
    file: str


@dataclass(frozen=True)
class System:
    """One run's texts for a test set.

    Attributes:
        label: as in `Chosen`.
        run: its id.
        hypotheses: one a segment.
        unfinished: segments whose hypothesis was cut at the greatest length.
        values: metric to each segment's figure, in the unit of `SideBySide.columns`.
    """

    label: str
    run: str
    hypotheses: tuple[str, ...]
    unfinished: tuple[int, ...]
    values: dict[str, list[float]]


@dataclass(frozen=True)
class SideBySide:
    """The contexts and references of a test file, and what was decoded for them.

    Attributes:
        name: of the dataset.
        suite: of metrics.
        columns: metrics that have a figure for each segment, to how they are shown.
        contexts: one a segment.
        references: one or more a segment.
        subsets: `seen`, `unseen` or None, one a segment.
        systems: in the order of the tables' rows.
    """

    name: str
    suite: str
    columns: dict[str, units.Column]
    contexts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    subsets: tuple[str | None, ...]
    systems: tuple[System, ...]


def choose(filled: Sequence[FilledTable], finished: Iterable[Record]) -> list[Chosen]:
    """The runs whose texts stand side by side: for each row of the tables, and each other cell, its first seed."""
    found: dict[tuple[str, str], Chosen] = {}  # by run and file, as tables share rows
    origins: dict[tuple[str, str], str] = {}
    known = {record.id for table in filled for row in table.rows for record in row.records}

    def add(label: str, record: Record, file: str, origin: str | None) -> None:
        found.setdefault((record.id, file), Chosen(label, record, file))
        origins.setdefault((record.id, file), origin or record.config["model"]["name"])

    for table in filled:
        for group in table.groups:
            for row in group.rows:
                if row.records:
                    first = min(range(len(row.records)), key=lambda i: row.records[i].config["seed"])
                    add(row.row.label, row.records[first], row.texts[first], group.title)
    cells = {_cell(one.record) for one in found.values()}
    for record in sorted(finished, key=lambda record: record.config["seed"]):
        if record.id not in known and (cell := _cell(record)) not in cells:
            cells.add(cell)
            add(method_of(record), record, record.evaluations[0].hypotheses, None)
    chosen = list(found.values())
    hashes = [one.record.id.rpartition("_")[2] for one in chosen]
    for more in (list(origins.values()), hashes, [Path(one.file).stem for one in chosen]):
        chosen = _told_apart(chosen, more)
    return chosen


def _test(record: Record) -> tuple[str, str]:
    """What texts stand side by side by: the test file, and what they are scored with."""
    return record.identity["checksums"]["test"], record.config["dataset"]["suite"]


def _cell(record: Record) -> str:
    """All that decides a run's numbers but for the seed."""
    return canonical_json({key: value for key, value in record.identity.items() if key != "seed"})


def _told_apart(chosen: Sequence[Chosen], more: Sequence[str]) -> list[Chosen]:
    """The same with more in the labels of those that would look alike beside each other."""
    keys = [(*_test(one.record), one.label) for one in chosen]
    counts = Counter(keys)
    return [
        one if counts[key] == 1 else replace(one, label=f"{one.label} ({text})")
        for one, key, text in zip(chosen, keys, more, strict=True)
    ]


def side_by_side(chosen: Sequence[Chosen], root: Path) -> list[SideBySide]:
    """The texts of runs, side by side for each test file, and each segment's figures, measured where they are not kept.

    What can't be shown is told in the log: texts that are damaged, or of other segments than the first run's.

    Args:
        chosen: the runs; those without their texts are left out.
        root: the results folder that they are in.
    """
    of: dict[tuple[str, str], list[Chosen]] = {}
    for one in chosen:
        if (root / records.RUNS / one.record.id / one.file).exists():
            of.setdefault(_test(one.record), []).append(one)
    found = [_of_one_test(runs, root) for runs in of.values()]
    return [test for test in found if test is not None]


def _of_one_test(runs: Sequence[Chosen], root: Path) -> SideBySide | None:
    first: list[Decoded] = []
    systems: list[System] = []
    suite = runs[0].record.config["dataset"]["suite"]
    columns: dict[str, units.Column] = {}
    for one in runs:
        folder = root / records.RUNS / one.record.id
        try:
            decoded = records.read_decoded(folder / one.file)
            values = segment_values(folder, one.record, one.file)
        except BadInput as e:
            logger.warning("%s; its texts are left out of the report", e)
            continue
        first = first or decoded
        if [(d.context, d.references) for d in decoded] != [(d.context, d.references) for d in first]:
            logger.warning("%s: its segments are not those of other runs; left out of the report", folder / one.file)
            continue
        whole = one.record.evaluation_of(one.file).scores
        columns |= {key: units.COLUMNS[suite][key] for key in values}
        systems.append(
            System(
                label=one.label,
                run=one.record.id,
                hypotheses=tuple(d.hypothesis for d in decoded),
                unfinished=tuple(i for i, d in enumerate(decoded) if not d.finished),
                values={
                    key: [units.in_unit(v, whole[key].unit, columns[key].unit, metric=key) for v in found]
                    for key, found in values.items()
                },
            )
        )
    if not systems:
        return None
    return SideBySide(
        name=runs[0].record.config["dataset"]["name"],
        suite=suite,
        columns=columns,
        contexts=tuple(d.context for d in first),
        references=tuple(d.references for d in first),
        subsets=tuple(d.subset for d in first),
        systems=tuple(systems),
    )
