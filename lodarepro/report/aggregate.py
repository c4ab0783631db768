"""From records to a filled table: means over seeds, spreads, verdicts, and what must be said about them.

Nothing is averaged that was not measured alike: runs on other data or weights, of another protocol or scored by
another signature stand apart, and a note says so.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10, sqrt
from pathlib import Path
from typing import Literal

from lodarepro import units
from lodarepro.archive import Archive, Found
from lodarepro.errors import BadInput, nearest
from lodarepro.metrics import ALL, Measurement
from lodarepro.metrics.bootstrap import compare_means
from lodarepro.provenance import canonical_json
from lodarepro.records import RUNS, Evaluation, Record
from lodarepro.report.scores import TESTED_AT
from lodarepro.rescore import measure_file
from lodarepro.scores import Comparison, Unit
from lodarepro.tables import Column, Figure, Rerun, Reruns, Row, Table, row_key

ENOUGH_SEEDS = 3
"""seeds from which a spread, a best figure and a significance are given"""
CHOSEN_BY = "bleu"
"""metric of the test set by which the better of several checkpoints is taken, as the LoDA paper's section 4 does"""

Verdict = Literal["within print", "within reruns", "outside"]

_ROUNDING = 1e-9  # 0.05 as a difference of decimal figures is not 0.05 to the last bit


@dataclass(frozen=True)
class Range:
    """What others measured for a cell.

    Attributes:
        low, high: the lowest and the highest of their figures, in the column's unit.
        count: how many there are.
        tolerance: half the last digit of the coarsest of them.
        decimals: of the finest of them.
    """

    low: float
    high: float
    count: int
    tolerance: float
    decimals: int

    def holds(self, value: float) -> bool:
        """Whether a value is in the range, widened by the tolerance."""
        return self.low - self.tolerance - _ROUNDING <= value <= self.high + self.tolerance + _ROUNDING


@dataclass(frozen=True)
class Cell:
    """One figure of a filled table, in the column's unit.

    Attributes:
        values: one for each seed that has one.
        signature: of all of them; None: not run, or a validation loss.
        printed: the paper's figure; None: none, or not readable.
        reruns: what others measured; None: nothing known.
        best: whether its mean is the best of its group.
        tied: whether the test does not tell it from the best of its group; None: not tested.
    """

    values: tuple[float, ...]
    signature: str | None
    printed: Figure | None
    reruns: Range | None
    best: bool = False
    tied: bool | None = None

    @property
    def n(self) -> int:
        """Seeds."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Over seeds; None: not run."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None: of too few seeds."""
        return statistics.stdev(self.values) if self.n >= ENOUGH_SEEDS else None

    @property
    def difference(self) -> float | None:
        """Ours less print."""
        return None if self.mean is None or self.printed is None else self.mean - self.printed.value

    @property
    def verdict(self) -> Verdict | None:
        """Ours against print, then against the reruns; None: not run, or nothing is printed.

        Within print: |ours - print| <= 2 sqrt(s_ours^2 / n + s_print^2) + half the last printed digit, with a spread of
        0 where there is none. Within reruns: in their range, widened by half the last digit of what was published.
        """
        if self.mean is None or self.difference is None or self.printed is None:
            return None
        ours = (self.std or 0.0) ** 2 / self.n
        allowed = 2 * sqrt(ours + (self.printed.spread or 0.0) ** 2) + self.printed.half_digit
        if abs(self.difference) <= allowed + _ROUNDING:
            return "within print"
        return "within reruns" if self.reruns is not None and self.reruns.holds(self.mean) else "outside"


@dataclass(frozen=True)
class FilledRow:
    """A row with its cells.

    Attributes:
        row: what it is.
        cells: one a column.
        trainable: parameters that train, counted.
        macs: counted, with what merging gives where it can be; None: the table has none.
        records: the runs that its figures are from, in the order of the seeds.
        texts: file of the hypotheses in each of their folders.
        failures: seed to reason, of runs that failed.
        notes: texts about this row.
    """

    row: Row
    cells: tuple[Cell, ...]
    trainable: int
    macs: tuple[int, ...] | None
    records: tuple[Record, ...]
    texts: tuple[str, ...]
    failures: dict[int, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FilledGroup:
    """Rows whose best figures are judged among each other."""

    title: str | None
    rows: tuple[FilledRow, ...]


@dataclass(frozen=True)
class FilledTable:
    """A table with everything that is known of its cells.

    Attributes:
        table: what it is.
        groups: its rows.
        columns: how each column is shown.
        notes: texts about the whole table.
        signatures: of the scores, by metric, in the order of the columns.
        reruns: those that stand beside any of its cells, by row.
        about_reruns: what is true of all of them.
    """

    table: Table
    groups: tuple[FilledGroup, ...]
    columns: tuple[units.Column, ...]
    notes: tuple[str, ...]
    signatures: dict[str, tuple[str, ...]]
    reruns: dict[str, tuple[Rerun, ...]]
    about_reruns: str

    @property
    def rows(self) -> list[FilledRow]:
        """All rows in order."""
        return [row for group in self.groups for row in group.rows]


@dataclass(frozen=True)
class Counts:
    """What counting gives for a row.

    Attributes:
        trainable: parameters that train.
        macs: multiply-accumulates a token in the q/k/v projections; merged first where that can be.
    """

    trainable: int
    macs: tuple[int, ...]


def fill(table: Table, archive: Archive, counts: Mapping[str, Counts], reruns: Reruns) -> FilledTable:
    """Everything that the records say of a table.

    Args:
        table: what to fill.
        archive: the runs.
        counts: label of each row, with its group's title before it (`row_key`), to what counting gives.
        reruns: what others measured.

    Raises:
        BadInput: a column names no metric of the table's suite, or a unit that it can't have.
    """
    shown = columns(table)
    groups: list[FilledGroup] = []
    beside: dict[str, tuple[Rerun, ...]] = {}
    for group in table.groups:
        rows = []
        for row in group.rows:
            fitting = tuple(r for r in reruns.rows if r.fits(row.run) and (r.paper is None or r.paper != table.paper))
            if fitting and row.printed:
                beside[row_key(group.title, row)] = fitting
            rows.append(_filled(table, row, archive, counts[row_key(group.title, row)], fitting))
        groups.append(FilledGroup(group.title, _with_best(table, rows)))
    notes = [table.notes[key] for key in table.footnotes]
    signatures, notes_on_them = _signatures(table, [row for group in groups for row in group.rows])
    return FilledTable(
        table=table,
        groups=tuple(groups),
        columns=shown,
        notes=(*notes, *notes_on_them, *_unlike_files([row for group in groups for row in group.rows])),
        signatures=signatures,
        reruns=beside,
        about_reruns=reruns.about,
    )


def columns(table: Table) -> tuple[units.Column, ...]:
    """How the columns of a table are shown.

    Raises:
        BadInput: one names no metric of the table's suite, a unit that it can't have, or a subset that there is not.
    """
    found, faults = [], []
    for place, column in enumerate(table.columns):
        where = f"table {table.name}: column {column.key}"
        try:
            shown = units.column_in(table.suite, column.metric, column.unit)
        except ValueError as e:
            faults.append(f"{where}: {e}")
            continue
        subsets = (ALL, *units.SUBSETS)
        if column.subset not in subsets:
            faults.append(f"{where}: no such subset{nearest(column.subset, subsets)}")
        figures = [row.printed[place] for row in table.rows if row.printed]
        digits = max((figure.decimals for figure in figures if figure is not None), default=0)
        title = shown.title if column.subset == ALL else f"{shown.title} ({column.subset})"
        found.append(replace(shown, title=title, decimals=max(digits, shown.decimals)))
    if faults:
        raise BadInput(faults)
    return tuple(found)


def _filled(table: Table, row: Row, archive: Archive, counts: Counts, reruns: Sequence[Rerun]) -> FilledRow:
    notes = [table.notes[key] for key in row.notes]
    failures = {}
    found: dict[int, list[Found]] = {}
    for run in row.cells(table.seeds):
        if runs := archive.find(run):
            found[run.seed] = runs
        elif (failure := archive.failure(run)) is not None:
            failures[run.seed] = failure.faults[0]
    chosen, left_out = _alike(found)
    if left_out:
        notes.append(left_out)
    if odd := sorted({file for run in chosen.values() for file in _not_pinned(run.record)}):
        notes.append(f"Other bytes than the papers' in {', '.join(odd)}.")
    local = {run.record.identity["checksums"]["model"][:12] for run in chosen.values() if _local_weights(run.record)}
    if local:
        notes.append(f"Base weights from a local folder, not the pinned revision: sha256 {', '.join(sorted(local))}.")
    if dirty := sorted(seed for seed, run in chosen.items() if run.record.provenance["code"]["dirty"]):
        notes.append(f"Run with uncommitted changes to the code (seed {_listed(dirty)}).")
    if failures:
        notes.append("; ".join(f"Seed {seed} failed: {reason}" for seed, reason in failures.items()) + ".")
    taken = {seed: _checkpoint(run, row.checkpoints) for seed, run in chosen.items()}
    if len(row.checkpoints) > 1 and taken:
        notes.append(_which(taken, chosen, row.checkpoints))
    cells = []
    for place, column in enumerate(table.columns):
        values, signature, apart = _values(taken, column)
        if apart:
            notes.append(
                f"{column.key}: seed {_listed(apart)} left out, scored by another signature; `lodarepro score`."
            )
        figure = row.printed[place] if row.printed else None
        cells.append(Cell(values, signature, figure, _range(reruns, column)))
    if row.disagrees(counts.trainable):
        exact = f"{counts.trainable / row.million:.2f} x {'10^6' if row.million == 10**6 else '2^20'}"
        notes.append(f"Print has {row.params} trainable parameters; counting gives {counts.trainable:,} ({exact}).")
    return FilledRow(
        row=row,
        cells=tuple(cells),
        trainable=counts.trainable,
        macs=counts.macs if row.macs else None,
        records=tuple(chosen[seed].record for seed, evaluations in taken.items() if evaluations),
        texts=tuple(evaluations[0].hypotheses for evaluations in taken.values() if evaluations),
        failures=failures,
        notes=tuple(notes),
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _alike(found: Mapping[int, Sequence[Found]]) -> tuple[dict[int, Found], str | None]:
    """One run for each seed, all on the same data, weights and tokenizer; and what is said of those left out.

    Of several such sets the one with the papers' own files counts, then the one with the most seeds.
    """
    sets: dict[str, dict[int, Found]] = {}
    for seed, runs in found.items():
        for run in runs:
            sets.setdefault(canonical_json(run.record.identity["checksums"]), {}).setdefault(seed, run)
    if not sets:
        return {}, None

    def order(key: str) -> tuple[bool, int, str]:
        return any(_not_pinned(run.record) for run in sets[key].values()), -len(sets[key]), key

    best = min(sets, key=order)
    others = sum(len(runs) for key, runs in sets.items() if key != best)
    note = f"Runs of this cell on other data or weights, left out: {others}." if others else None
    return sets[best], note


def _not_pinned(record: Record) -> list[str]:
    """The files of a run that are not the papers' although the papers have some."""
    pins = record.config["dataset"].get("pins")
    data = record.provenance["data"]
    return [split["file"] for split in data.values() if pins and not split["pinned"]]


def _local_weights(record: Record) -> bool:
    return record.config["model"].get("hub") is not None and record.provenance["base_model"]["origin"] == "local"


def _checkpoint(run: Found, checkpoints: Sequence[str]) -> list[Evaluation]:
    """The evaluations of one checkpoint, one a subset: of those named, that with the best test BLEU."""
    of: dict[str, list[Evaluation]] = {}
    for evaluation in run.evaluations:
        if evaluation.split == "test" and evaluation.checkpoint in checkpoints:
            of.setdefault(evaluation.checkpoint, []).append(evaluation)
    if not of:
        return []
    if len(of) == 1:
        return next(iter(of.values()))
    whole = {name: next(e for e in found if e.subset == ALL) for name, found in of.items()}
    return of[max(whole, key=lambda name: whole[name].scores[CHOSEN_BY].value)]


def _which(taken: Mapping[int, Sequence[Evaluation]], chosen: Mapping[int, Found], checkpoints: Sequence[str]) -> str:
    names = Counter(found[0].checkpoint for found in taken.values() if found)
    text = "Taken: " + (", ".join(f"{name} ({count})" for name, count in sorted(names.items())) or "none") + "."
    lacking = sorted(
        {c for run in chosen.values() for c in checkpoints if c not in {e.checkpoint for e in run.evaluations}}
    )
    return text + (f" Not evaluated: {', '.join(lacking)}." if lacking else "")


def _values(
    taken: Mapping[int, Sequence[Evaluation]], column: Column
) -> tuple[tuple[float, ...], str | None, list[int]]:
    """The figures of a column, all of one signature, which comes with them; and the seeds whose figure has another."""
    found: dict[int, tuple[str | None, float]] = {}
    for seed, evaluations in taken.items():
        for evaluation in evaluations:
            if column.metric == units.VAL_LOSS:
                found[seed] = (None, evaluation.val_loss)
            elif evaluation.subset == column.subset and column.metric in evaluation.scores:
                score = evaluation.scores[column.metric]
                value = units.in_unit(score.value, score.unit, column.unit, metric=column.metric)
                found[seed] = (score.signature, value)
    counted = Counter(signature for signature, _ in found.values())
    if not counted:
        return (), None, []
    usual = min(counted, key=lambda signature: (-counted[signature], signature or ""))
    values = tuple(value for signature, value in found.values() if signature == usual)
    return values, usual, [seed for seed, (signature, _) in found.items() if signature != usual]


def _range(reruns: Sequence[Rerun], column: Column) -> Range | None:
    if column.subset != ALL:
        return None
    figures = [rerun.figures[column.metric] for rerun in reruns if column.metric in rerun.figures]
    if not figures:
        return None

    def here(value: float, unit: Unit) -> float:
        return units.in_unit(value, unit, column.unit, metric=column.metric)

    values = [here(figure.value, unit) for figure, unit in figures]
    halves = [here(figure.half_digit, unit) for figure, unit in figures]
    return Range(min(values), max(values), len(values), max(halves), decimals=round(-log10(2 * min(halves))))


def _with_best(table: Table, rows: Sequence[FilledRow]) -> tuple[FilledRow, ...]:
    """The rows of a group with the best mean of each column marked, among those of enough seeds.

    They compete with what was scored alike on the same test data: the most rows that were.
    """
    cells = [list(row.cells) for row in rows]
    for place, column in enumerate(table.columns):
        means = {i: row[place].mean for i, row in enumerate(cells) if row[place].n >= ENOUGH_SEEDS}
        alike = {i: (cells[i][place].signature, _test_data(rows[i])) for i in means}
        means = {i: mean for i, mean in means.items() if alike[i] == Counter(alike.values()).most_common(1)[0][0]}
        if len(means) < 2:
            continue
        sign = 1 if units.higher_is_better(table.suite, column.metric) else -1
        best = max(sign * mean for mean in means.values() if mean is not None)
        for i, mean in means.items():
            if mean is not None and sign * mean >= best - _ROUNDING:
                cells[i][place] = replace(cells[i][place], best=True)
    return tuple(replace(row, cells=tuple(found)) for row, found in zip(rows, cells, strict=True))


def _test_data(row: FilledRow) -> str | None:
    return row.records[0].identity["checksums"]["test"] if row.records else None


def _unlike_files(rows: Sequence[FilledRow]) -> list[str]:
    """A note for each dataset or model whose files are not the same in all rows."""
    seen: dict[str, set[str]] = {}
    for record in (record for row in rows for record in row.records):
        checksums = record.identity["checksums"]
        seen.setdefault(f"test data of {record.config['dataset']['name']}", set()).add(checksums["test"][:12])
        seen.setdefault(f"weights of {record.config['model']['name']}", set()).add(checksums["model"][:12])
    return [
        f"Rows don't compare: they have different {what} (sha256 {', '.join(sorted(found))})."
        for what, found in seen.items()
        if len(found) > 1
    ]


def _signatures(table: Table, rows: Sequence[FilledRow]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The signatures of the scores by metric, and a note where rows differ in one."""
    found: dict[str, dict[str, None]] = {}
    for place, column in enumerate(table.columns):
        for signature in filter(None, (row.cells[place].signature for row in rows)):
            found.setdefault(column.metric, {})[signature] = None
    unlike = [metric for metric, signatures in found.items() if len(signatures) > 1]
    note = (
        f"Rows are not all scored alike in {', '.join(unlike)}: see the signatures; `lodarepro score RUN` scores anew."
    )
    return {metric: tuple(signatures) for metric, signatures in found.items()}, [note] if unlike else []


def with_significance(filled: FilledTable, root: Path) -> FilledTable:
    """The table with a mark on each mean that the paired bootstrap doesn't tell from the best of its group.

    The scores' statistics are measured anew from the texts that the runs kept, a few seconds a run.

    Args:
        filled: the table.
        root: the results folder of its runs.

    Raises:
        BadInput: a run's texts are missing, or of other segments than the best's.
    """
    measured: dict[tuple[str, str], Measurement] = {}

    def of(row: FilledRow) -> list[Measurement]:
        texts = [(record, file) for record, file in zip(row.records, row.texts, strict=True)]
        for record, file in texts:
            if (record.id, file) not in measured:
                measured[record.id, file] = measure_file(root / RUNS / record.id, record, file)
        return [measured[record.id, file] for record, file in texts]

    groups = []
    for group in filled.groups:
        cells = [list(row.cells) for row in group.rows]
        compared: dict[tuple[int, int], dict[str, dict[str, Comparison]]] = {}
        for place, column in enumerate(filled.table.columns):
            best = next((i for i, row in enumerate(cells) if row[place].best), None)
            if best is None or column.metric == units.VAL_LOSS:
                continue
            for i, row in enumerate(cells):
                whole = row[place].n == len(group.rows[i].records)  # else the mean has left seeds out
                if row[place].n < ENOUGH_SEEDS or row[place].best or not whole:
                    continue
                if (best, i) not in compared:
                    compared[best, i] = compare_means(of(group.rows[best]), of(group.rows[i]))
                p = compared[best, i][column.subset][column.metric].p
                row[place] = replace(row[place], tied=p >= TESTED_AT)
        rows = tuple(replace(row, cells=tuple(found)) for row, found in zip(group.rows, cells, strict=True))
        groups.append(FilledGroup(group.title, rows))
    return replace(filled, groups=tuple(groups))
