"""Figures of a filled table: print against ours, rank and size against score, losses.

A row has the same colour and marker in all figures of its table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from lodarepro import records, units
from lodarepro.errors import BadInput
from lodarepro.report.aggregate import Cell, FilledRow, FilledTable
from lodarepro.report.drawing import (
    COLOURS,
    DASHES,
    HEIGHT,
    LABEL,
    MARKERS,
    RERUNS,
    Figure,
    Sketch,
    begun,
    beside_points,
    end_labels,
    finished,
    legend,
    log_steps,
    plain_name,
    point,
    short,
    styled,
)

logger = logging.getLogger(__name__)

ROW = 0.21  # inches a row of print against ours
POINTS = 120  # of a training curve
STRAY = 6.0  # ranges between the quartiles
FEWEST_RANKS = 3
"""ranks from which a method has a curve over them"""


def of_table(filled: FilledTable, root: Path) -> list[Figure]:
    """All figures that a table has data for, in the order in which they are looked at.

    Args:
        filled: the table.
        root: the results folder of its runs, for their losses.
    """
    drawn = []
    rows = _named(filled)
    start = file_name(filled)
    with styled():
        for draw in (_against_print, _ranks, _sizes):
            for place in range(len(filled.columns)):
                if (sketch := draw(filled, rows, place)) is not None:
                    drawn.append(finished(sketch, start))
        for sketch in (_training(rows, root), _validation(rows)):
            if sketch is not None:
                drawn.append(finished(sketch, start))
    return drawn


def file_name(filled: FilledTable) -> str:
    """The start of the names of a table's figures: its own, without what a file's name or a page's id can't hold."""
    return plain_name(filled.table.name)


@dataclass(frozen=True)
class _Named:
    """A row as figures show it.

    Attributes:
        row: with its cells.
        name: its label, with its group's title where another group has the same.
        series: what rows that differ in rank alone have in common: `LoRA r=4` is one of `LoRA`.
        colour, marker: of the series, the same in all figures of a table.
    """

    row: FilledRow
    name: str
    series: str
    colour: str
    marker: str


def _named(filled: FilledTable) -> list[_Named]:
    pairs = [(group.title, row) for group in filled.groups for row in group.rows]

    def told_apart(texts: Sequence[str]) -> list[str]:
        groups: dict[str, set[str | None]] = {}
        for (title, _), text in zip(pairs, texts, strict=True):
            groups.setdefault(text, set()).add(title)
        return [
            f"{title}: {text}" if title and len(groups[text]) > 1 else text
            for (title, _), text in zip(pairs, texts, strict=True)
        ]

    names = told_apart([row.row.label for _, row in pairs])
    series = told_apart([re.sub(r" r=\d+", "", row.row.label) for _, row in pairs])
    places = {name: i for i, name in enumerate(dict.fromkeys(series))}
    return [
        _Named(row, name, one, COLOURS[places[one] % len(COLOURS)], MARKERS[places[one] % len(MARKERS)])
        for (_, row), name, one in zip(pairs, names, series, strict=True)
    ]


# what is drawn ----------------------------------------------------------------------------------


def _against_print(filled: FilledTable, rows: Sequence[_Named], place: int) -> Sketch | None:
    """Ours and print side by side, a row each, with the range of what others measured."""
    shown = [
        (one, one.row.cells[place], printed)
        for one in rows
        if one.row.row.printed and (printed := one.row.cells[place].printed) is not None
    ]
    if not any(cell.n for _, cell, _ in shown):
        return None
    column = filled.columns[place]
    sketch = begun(
        "print",
        f"{column.title}: print against ours",
        "Filled: ours, the mean over seeds ± standard deviation. Hollow: as printed. Grey: the range of published "
        "reruns.",
        filled.table.columns[place].key,
        height=0.9 + ROW * len(shown),
    )
    axes = sketch.axes
    low, high = _without_strays(
        [cell.mean for _, cell, _ in shown if cell.mean is not None] + [printed.value for _, _, printed in shown]
    )
    for y, (one, cell, printed) in enumerate(shown):
        tip = f"{one.name}: {_told(cell, column)}"
        if any(value is not None and not low <= value <= high for value in (cell.mean, printed.value)):
            text = f"off the axis: {_told(cell, column)}"
            axes.annotate(text, (0.01, y), xycoords=("axes fraction", "data"), fontsize=6.5, va="center")
            continue
        if cell.reruns is not None:
            ends = [cell.reruns.low, cell.reruns.high]
            axes.plot(ends, [y, y], color=RERUNS, linewidth=4, solid_capstyle="round", zorder=1)
        point(sketch, printed.value, y + 0.17, printed.spread, COLOURS[1], "D", tip, hollow=True, horizontal=True)
        if cell.mean is not None:
            point(sketch, cell.mean, y - 0.17, cell.std, COLOURS[0], "o", tip, horizontal=True)
    axes.set_yticks(range(len(shown)), [short(one.name) for one, _, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_axis(column))
    legend(axes, reruns=any(cell.reruns for _, cell, _ in shown), plain=True)
    return sketch


def _without_strays(values: Sequence[float]) -> tuple[float, float]:
    """Bounds beyond which a value lies so far off that the others would shrink to a point beside it."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = STRAY * max(upper - lower, 1e-3 * abs(upper))
    return lower - reach, upper + reach


def _ranks(filled: FilledTable, rows: Sequence[_Named], place: int) -> Sketch | None:
    """A curve over ranks for each method that has several, with the paper's."""
    series: dict[str, dict[int, _Named]] = {}
    for one in rows:
        rank = getattr(one.row.row.run.method, "rank", None)
        if rank is not None:
            series.setdefault(one.series, {})[rank] = one
    curves = {name: dict(sorted(ones.items())) for name, ones in series.items() if len(ones) >= FEWEST_RANKS}
    cells = [one.row.cells[place] for ones in curves.values() for one in ones.values()]
    if not any(cell.n for cell in cells):
        return None
    column = filled.columns[place]
    printed = any(cell.printed for cell in cells)
    sketch = begun(
        "rank",
        f"{column.title} over rank",
        "Ours: the mean over seeds ± standard deviation." + (" Hollow, dotted: as printed." if printed else ""),
        filled.table.columns[place].key,
    )
    axes = sketch.axes
    ends = []
    for name, ones in curves.items():
        colour, marker = (first := next(iter(ones.values()))).colour, first.marker
        ours = [(rank, mean) for rank, one in ones.items() if (mean := one.row.cells[place].mean) is not None]
        theirs = [(rank, figure.value) for rank, one in ones.items() if (figure := one.row.cells[place].printed)]
        for points, style, width in ((theirs, DASHES[2], 1.0), (ours, DASHES[0], 1.3)):
            axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linestyle=style, linewidth=width)
        for rank, one in ones.items():
            cell = one.row.cells[place]
            tip = f"{one.name}: {_told(cell, column)}"
            if cell.printed is not None:
                point(sketch, rank, cell.printed.value, cell.printed.spread, colour, marker, tip, hollow=True)
            if cell.mean is not None:
                point(sketch, rank, cell.mean, cell.std, colour, marker, tip)
        ends += [(name, x, y, colour) for x, y in (ours or theirs)[-1:]]
    axes.set_xscale("log", base=2)
    ranks = sorted({rank for ones in curves.values() for rank in ones})
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("rank r")
    axes.set_ylabel(_axis(column))
    end_labels(sketch, ends)
    if printed:
        legend(axes)
    return sketch


def _sizes(filled: FilledTable, rows: Sequence[_Named], place: int) -> Sketch | None:
    """Trainable parameters against score."""
    shown = [one for one in rows if one.row.trainable and (one.row.cells[place].n or one.row.cells[place].printed)]
    if len(shown) < 2 or not any(one.row.cells[place].n for one in shown):
        return None
    from matplotlib.ticker import EngFormatter

    column = filled.columns[place]
    printed = any(one.row.cells[place].printed for one in shown)
    sketch = begun(
        "size",
        f"{column.title} over trainable parameters",
        "Ours: the mean over seeds ± standard deviation."
        + (" Hollow: as printed, at the counted number of parameters." if printed else "")
        + (" Rows that train nothing have no place here." if any(not one.row.trainable for one in rows) else ""),
        filled.table.columns[place].key,
        height=HEIGHT + 0.3,
    )
    axes = sketch.axes
    points: dict[str, list[tuple[str, float, float, str]]] = {}
    taken = []
    for one in shown:
        cell, x = one.row.cells[place], one.row.trainable
        tip = f"{one.name}: {x:,} parameters, {_told(cell, column)}"
        if cell.printed is not None:
            point(sketch, x, cell.printed.value, cell.printed.spread, one.colour, one.marker, tip, hollow=True)
            taken.append((x, cell.printed.value))
        if cell.mean is not None:
            point(sketch, x, cell.mean, cell.std, one.colour, one.marker, tip)
            taken.append((x, cell.mean))
        points.setdefault(one.series, []).append((one.name, *taken[-1], one.colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(_axis(column))
    axes.margins(x=0.12, y=0.12)
    if printed:
        legend(axes)
    labelled = []
    for name, of_series in points.items():
        if len(of_series) < FEWEST_RANKS:
            labelled += of_series
            continue
        of_series.sort(key=lambda point: point[1])
        axes.plot(
            [x for _, x, _, _ in of_series], [y for _, _, y, _ in of_series], color=of_series[0][3], linewidth=0.8
        )
        labelled.append((name, *of_series[-1][1:]))
    beside_points(sketch, labelled, taken)
    return sketch


def _training(rows: Sequence[_Named], root: Path) -> Sketch | None:
    """The training loss of each row: means over pieces of the training, then over seeds."""
    curves: list[_Curve] = []
    for one in rows:
        seeds = []
        for record in one.row.records:
            losses = np.array(_step_losses(root / records.RUNS / record.id / records.STEPS))
            if losses.size:
                pieces = np.array_split(losses, min(POINTS, losses.size))
                ends = np.cumsum([len(piece) for piece in pieces])
                seeds.append((ends, np.array([piece.mean() for piece in pieces])))
        if seeds:
            shortest = min(len(ends) for ends, _ in seeds)  # equal unless the seeds' data differ
            curves.append((one, seeds[0][0][:shortest], np.mean([values[:shortest] for _, values in seeds], axis=0)))
    if not curves:
        return None
    sketch = begun(
        "training",
        "Training loss",
        f"Nats a token, with label smoothing where the training has it; means over up to {POINTS} equal pieces of the "
        "training, then over seeds.",
        height=max(HEIGHT, 0.8 + LABEL * len(curves)),
    )
    _losses(sketch, curves, x_title="step", markers=False)
    return sketch


def _step_losses(path: Path) -> list[float]:
    """The losses of a run; none, with a warning, where its file is damaged: a report is not lost for it."""
    try:
        return records.read_steps(path)
    except BadInput as e:
        logger.warning("%s; the report is without its training loss", e)
        return []


def _validation(rows: Sequence[_Named]) -> Sketch | None:
    """The validation loss of each row after each epoch, the mean over seeds."""
    curves: list[_Curve] = []
    for one in rows:
        found: dict[int, list[float]] = {}
        for record in one.row.records:
            for epoch in record.training["epochs"]:
                found.setdefault(epoch["epoch"], []).append(epoch["val_loss"])
        if found:
            x = np.array(sorted(found))
            curves.append((one, x, np.array([fmean(found[int(epoch)]) for epoch in x])))
    if max((len(x) for _, x, _ in curves), default=0) < 2:  # no curve
        return None
    sketch = begun(
        "validation",
        "Validation loss",
        "Nats a token, without label smoothing, after each epoch; the mean over seeds.",
        height=max(HEIGHT, 0.8 + LABEL * len(curves)),
    )
    _losses(sketch, curves, x_title="epoch", markers=True)
    return sketch


# how it is drawn --------------------------------------------------------------------------------


_Curve = tuple[_Named, NDArray[np.integer], NDArray[np.floating]]
"""a row, where on the x axis, the losses"""


def _losses(sketch: Sketch, curves: Sequence[_Curve], *, x_title: str, markers: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes = sketch.axes
    ends = []
    for i, (one, x, y) in enumerate(curves):
        axes.plot(
            x,
            y,
            color=one.colour,
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.1,
            marker=one.marker if markers else None,
            gid=sketch.tip(f"{one.name}: {y[-1]:.3f} at {x_title} {x[-1]}"),
        )
        ends.append((one.name, float(x[-1]), float(y[-1]), one.colour))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=log_steps(high / low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x_title)
    axes.set_ylabel("loss (nats a token)")
    end_labels(sketch, ends)


def _axis(column: units.Column) -> str:
    unit = {"percent": " (%)", "nats": " (nats a token)"}.get(column.unit, "")
    return column.title + unit


def _told(cell: Cell, column: units.Column) -> str:
    """A cell in words, for who points at it."""
    parts = []
    if cell.mean is not None:
        spread = "" if cell.std is None else f" ± {cell.std:.{column.decimals}f}"
        parts.append(f"ours {cell.mean:.{column.decimals}f}{spread} (n={cell.n})")
    if cell.printed is not None:
        parts.append(f"print {cell.printed.text}")
    if cell.reruns is not None:
        parts.append(f"reruns {cell.reruns.low:g} to {cell.reruns.high:g}")
    return ", ".join(parts)
