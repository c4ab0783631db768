"""Figures of a filled table: print against ours, rank and size against score, losses.

Each is drawn once, by matplotlib, for three uses: PNG and SVG files for papers, and an SVG in the report page, whose
colours follow the page's theme. Rows are told apart by marker, line style and label as well as by colour.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lodarepro import records
from lodarepro.errors import BadInput
from lodarepro.report import units
from lodarepro.report.aggregate import Cell, FilledRow, FilledTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

logger = logging.getLogger(__name__)

WIDTH = 5.2  # inches: legible in a column of a paper and on a phone
HEIGHT = 3.3
DPI = 200
ROW = 0.21  # inches a row of print against ours
LABEL = 0.135  # inches a label at the end of a line
LONGEST = 32  # characters of a label; the whole of it is shown where its point is pointed at
POINTS = 120  # of a training curve
STRAY = 6.0  # ranges between the quartiles
FEWEST_RANKS = 3
"""ranks from which a method has a curve over them"""

INK, FAINT, PAPER, RERUNS = "#1c1e21", "#d9dce1", "#ffffff", "#8d959e"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a8548c", "#b8860b", "#4d4d9f", "#5f6b73")
"""after Okabe and Ito's palette for all kinds of colour vision"""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
THEMED = {INK: "var(--ink)", FAINT: "var(--line)", PAPER: "var(--card)", RERUNS: "var(--reruns)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(COLOURS)
}
"""the colours that a page's theme gives"""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "lodarepro",  # the same figure is the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a label's dollars are dollars
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        name: of its files, without their endings.
        kind: what it shows; figures of one kind and table differ in the metric.
        metric: column that it is of; None: of losses.
        caption: how to read it.
        svg: as a file has it.
        png: the same.
        inline: the SVG for a page: its colours are the page's variables, its points have titles.
    """

    name: str
    kind: str
    metric: str | None
    caption: str
    svg: bytes
    png: bytes
    inline: str


def of_table(filled: FilledTable, root: Path) -> list[Figure]:
    """All figures that a table has data for, in the order in which they are looked at.

    Args:
        filled: the table.
        root: the results folder of its runs, for their losses.
    """
    import matplotlib

    drawn = []
    rows = _named(filled)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that its font lacks; a browser has others for the SVG
        for draw in (_against_print, _ranks, _sizes):
            for place in range(len(filled.columns)):
                if (sketch := draw(filled, rows, place)) is not None:
                    drawn.append(_finished(sketch, filled))
        for sketch in (_training(rows, root), _validation(rows)):
            if sketch is not None:
                drawn.append(_finished(sketch, filled))
    return drawn


def file_name(filled: FilledTable) -> str:
    """The start of the names of a table's figures: its own, without what a file's name or a page's id can't hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", filled.table.name)


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


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@dataclass
class _Sketch:
    """A figure that is being drawn."""

    kind: str
    title: str
    caption: str
    column: str | None
    canvas: Canvas
    axes: Axes
    tips: dict[str, str] = field(default_factory=dict)

    def tip(self, text: str) -> str:
        """The id of an artist that shows a text when it is pointed at."""
        key = f"tip{len(self.tips)}"
        self.tips[key] = text
        return key


def _sketch(kind: str, title: str, caption: str, column: str | None = None, *, height: float = HEIGHT) -> _Sketch:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    return _Sketch(kind, title, caption, column, canvas, canvas.add_subplot())


def _finished(sketch: _Sketch, filled: FilledTable) -> Figure:
    sketch.axes.set_title(sketch.title, loc="left", fontsize=8.5, fontweight="bold")
    sketch.canvas.draw_without_rendering()
    sketch.canvas.set_layout_engine("none")  # laid out now, for both files
    files = {}
    for form in ("svg", "png"):
        file = io.BytesIO()
        # Without the date, the same figure is the same bytes.
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        sketch.canvas.savefig(file, format=form, dpi=DPI, metadata=metadata)
        files[form] = file.getvalue()
    metric = None if sketch.column is None else sketch.column.replace("/", "-")
    name = "-".join(filter(None, (file_name(filled), sketch.kind, metric)))
    inline = _inline(files["svg"].decode(), name, f"{sketch.title}. {sketch.caption}", sketch.tips)
    return Figure(name, sketch.kind, sketch.column, sketch.caption, files["svg"], files["png"], inline)


def _inline(svg: str, name: str, described: str, tips: Mapping[str, str]) -> str:
    """An SVG file's content as part of a page: ids of its own, the page's colours, titles on its points."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="|url\(#|xlink:href="#', lambda match: f"{match[0]}{name}-", svg)
    svg = re.sub("|".join(THEMED), lambda match: THEMED[match[0]], svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(described)}" ', 1)
    for key, text in tips.items():
        svg = svg.replace(f'<g id="{name}-{key}">', f'<g class="tip"><title>{escape(text)}</title>')
    return svg


# what is drawn ----------------------------------------------------------------------------------


def _against_print(filled: FilledTable, rows: Sequence[_Named], place: int) -> _Sketch | None:
    """Ours and print side by side, a row each, with the range of what others measured."""
    shown = [
        (one, one.row.cells[place], printed)
        for one in rows
        if one.row.row.printed and (printed := one.row.cells[place].printed) is not None
    ]
    if not any(cell.n for _, cell, _ in shown):
        return None
    column = filled.columns[place]
    sketch = _sketch(
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
        _point(sketch, printed.value, y + 0.17, printed.spread, COLOURS[1], "D", tip, hollow=True, horizontal=True)
        if cell.mean is not None:
            _point(sketch, cell.mean, y - 0.17, cell.std, COLOURS[0], "o", tip, horizontal=True)
    axes.set_yticks(range(len(shown)), [_short(one.name) for one, _, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_axis(column))
    _legend(axes, reruns=any(cell.reruns for _, cell, _ in shown), plain=True)
    return sketch


def _without_strays(values: Sequence[float]) -> tuple[float, float]:
    """Bounds beyond which a value lies so far off that the others would shrink to a point beside it."""
    lower, upper = np.quantile(values, [0.25, 0.75])
    reach = STRAY * max(upper - lower, 1e-3 * abs(upper))
    return lower - reach, upper + reach


def _ranks(filled: FilledTable, rows: Sequence[_Named], place: int) -> _Sketch | None:
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
    sketch = _sketch(
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
                _point(sketch, rank, cell.printed.value, cell.printed.spread, colour, marker, tip, hollow=True)
            if cell.mean is not None:
                _point(sketch, rank, cell.mean, cell.std, colour, marker, tip)
        ends += [(name, x, y, colour) for x, y in (ours or theirs)[-1:]]
    axes.set_xscale("log", base=2)
    ranks = sorted({rank for ones in curves.values() for rank in ones})
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("rank r")
    axes.set_ylabel(_axis(column))
    _end_labels(sketch, ends)
    if printed:
        _legend(axes)
    return sketch


def _sizes(filled: FilledTable, rows: Sequence[_Named], place: int) -> _Sketch | None:
    """Trainable parameters against score."""
    shown = [one for one in rows if one.row.trainable and (one.row.cells[place].n or one.row.cells[place].printed)]
    if len(shown) < 2 or not any(one.row.cells[place].n for one in shown):
        return None
    from matplotlib.ticker import EngFormatter

    column = filled.columns[place]
    printed = any(one.row.cells[place].printed for one in shown)
    sketch = _sketch(
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
            _point(sketch, x, cell.printed.value, cell.printed.spread, one.colour, one.marker, tip, hollow=True)
            taken.append((x, cell.printed.value))
        if cell.mean is not None:
            _point(sketch, x, cell.mean, cell.std, one.colour, one.marker, tip)
            taken.append((x, cell.mean))
        points.setdefault(one.series, []).append((one.name, *taken[-1], one.colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(_axis(column))
    axes.margins(x=0.12, y=0.12)
    if printed:
        _legend(axes)
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
    _beside_points(sketch, labelled, taken)
    return sketch


def _training(rows: Sequence[_Named], root: Path) -> _Sketch | None:
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
    sketch = _sketch(
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


def _validation(rows: Sequence[_Named]) -> _Sketch | None:
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
    sketch = _sketch(
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


def _losses(sketch: _Sketch, curves: Sequence[_Curve], *, x_title: str, markers: bool) -> None:
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
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low > 3 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7))
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(x_title)
    axes.set_ylabel("loss (nats a token)")
    _end_labels(sketch, ends)


def _point(
    sketch: _Sketch,
    x: float,
    y: float,
    spread: float | None,
    colour: str,
    marker: str,
    tip: str,
    *,
    hollow: bool = False,
    horizontal: bool = False,
) -> None:
    """A figure with its spread."""
    if spread:
        along, across = (spread, None) if horizontal else (None, spread)
        sketch.axes.errorbar(x, y, across, along, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, zorder=3)
    fill = PAPER if hollow else colour
    (line,) = sketch.axes.plot([x], [y], marker, color=colour, markerfacecolor=fill, markeredgewidth=1.1, zorder=4)
    line.set_gid(sketch.tip(tip))


def _end_labels(sketch: _Sketch, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Labels to the right of the axes, each beside the end of its line, moved apart where they would meet."""
    axes, height = sketch.axes, sketch.canvas.get_figheight()
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"

    def share(y: float) -> float:  # of the axes' height
        return float(np.log(y / low) / np.log(high / low)) if log else (y - low) / (high - low)

    axes.set_ylim(low, high)  # labels don't move it
    gap = LABEL / (height - 0.8)
    ordered = sorted(ends, key=lambda end: share(end[2]))
    places = _spread_out([share(end[2]) for end in ordered], gap)
    right = max((end[1] for end in ordered), default=0)
    for (label, x, y, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            _short(label),
            xy=(x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            ha="left",
            fontsize=7,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0 if x == right else 2,
                "alpha": 0.7,
            },
        )


def _spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as needed, by least squares, to be a gap apart; within 0 to 1 if they fit."""
    # Less what each is to be above the first, they need only ascend: neighbours that don't take their mean together.
    groups: list[tuple[float, int]] = []  # mean, size
    for i, place in enumerate(places):
        mean, size = place - i * gap, 1
        while groups and groups[-1][0] >= mean:
            before, more = groups.pop()
            mean, size = (before * more + mean * size) / (more + size), size + more
        groups.append((mean, size))
    firsts = [mean for mean, size in groups for _ in range(size)]
    top = max(1 - (len(places) - 1) * gap, 0)
    return [min(max(first, 0), top) + i * gap for i, first in enumerate(firsts)]


def _beside_points(
    sketch: _Sketch, points: Sequence[tuple[str, float, float, str]], taken: Sequence[tuple[float, float]]
) -> None:
    """Labels beside their points, where they cover neither points nor each other."""
    axes, canvas = sketch.axes, sketch.canvas
    canvas.draw_without_rendering()  # the layout decides how far labels are from each other
    inside = axes.get_window_extent()
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in axes.transData.transform(np.array(taken))]
    scale = canvas.dpi / 72
    for whole, x, y, colour in points:
        label = _short(whole)
        at_x, at_y = axes.transData.transform((x, y))
        wide, high = 3.9 * scale * len(label), 7.5 * scale
        for dx, dy in _around_a_point():
            left = at_x + dx * scale - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            low = at_y + dy * scale - high / 2
            box = (left, low, left + wide, low + high)
            within = box[0] >= inside.x0 and box[2] <= inside.x1 and box[1] >= inside.y0 and box[3] <= inside.y1
            if within and not any(_meet(box, other) for other in boxes):
                break
        boxes.append(box)
        far = dx * dx + dy * dy > 12**2
        axes.annotate(
            label,
            xy=(x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="right" if dx < 0 else "center" if dx == 0 else "left",
            va="center",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            if far
            else None,
        )


def _around_a_point() -> Iterator[tuple[float, float]]:
    """Places for a label, in points of 1/72 inch from what it names, the nearest first."""
    for distance in (7, 13, 20, 28, 38, 50):
        for x, y in ((1, 0), (-1, 0), (0, 1.2), (0, -1.2), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8)):
            yield x * distance, y * distance


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(axes: Axes, *, reruns: bool = False, plain: bool = False) -> None:
    """What the fillings of points mean."""
    from matplotlib.lines import Line2D

    ours, printed = (COLOURS[0], COLOURS[1]) if plain else (INK, INK)
    marks = [
        Line2D([], [], linestyle="", marker="o", color=ours, markeredgecolor=ours, label="ours"),
        Line2D([], [], linestyle="", marker="D" if plain else "o", color=printed, markerfacecolor=PAPER, label="print"),
    ]
    if reruns:
        marks.append(Line2D([], [], color=RERUNS, linewidth=4, label="reruns"))
    axes.figure.legend(
        handles=marks,
        loc="outside upper right",
        ncols=len(marks),
        fontsize=7,
        handlelength=1.2,
        handletextpad=0.6,
        columnspacing=1.2,
    )


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
