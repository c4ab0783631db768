"""Figures of an analysis: maps of one colour scale, and lines and points over one pair of axes.

Maps are laid out by hand, in pixels of the PNG: their cells begin and end at whole ones, and labels have the room that
they need, however many maps there are. Cells are drawn as shapes, not as a picture inside the SVG, which the page's
policy would not show and which viewers blur.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lodarepro.findings import Curves, Findings, HeatMap, Line, Panel
from lodarepro.report.drawing import (
    COLOURS,
    DASHES,
    DPI,
    HEIGHT,
    LABEL,
    MARKERS,
    PAPER,
    RERUNS,
    WIDTH,
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

COLOUR_MAP = "viridis"
"""uniform to the eye, with most kinds of colour vision and in grey"""
COLOUR_COUNT = 128
"""so that neighbours in it can't be told apart"""
DARK, LIGHT = "#010101", "#fefefe"
"""ink on cells: not the theme's, as the cells' colours stay what they are in every theme"""
ANNOTATED = 48
"""cells of a map, at most, that have their numbers written into them"""
MARKED = 40
"""points of a line, at most, that are marked"""
BESIDE = 16
"""points, at most, that have their names beside them; else there is a legend"""

TITLES, TICKS, NUMBERS = 7.5, 6.5, 6.5  # points: sizes of letters
AREA = 1.1  # inches: a map without numbers is as large as a square of this side
LONGEST_CELL = 3.0  # of its sides, the longer by the shorter
CELL = (3, 40)  # pixels: the least and, without numbers, the greatest side of a cell
WIDEST_CELL = 140  # pixels: of one with a number
NAMED_CELL = 90  # pixels: to which the name of its column widens one with a number; longer names stand upright
SHORTEST = 300  # pixels: of a line that a title is broken into
GAP = 26  # pixels between maps
PAD = 10  # pixels around labels and between tick and label
MARGIN = 16  # pixels around the figure
LINE = 26  # pixels: a line of text
BAR = (26, 200, 400)  # pixels: the colour bar's width, its least and its greatest height


def of_analysis(findings: Findings) -> list[Figure]:
    """The figures of an analysis in their order, each of the kind that its plot's key is."""
    with styled():
        return [
            finished(_heat_map(plot) if isinstance(plot, HeatMap) else _curves(plot), plain_name(findings.name))
            for plot in findings.plots
        ]


# maps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Which colour a value has.

    Attributes:
        low, high: its ends; what lies beyond has their colours.
        colours: from one to the other, as `#rrggbb`.
    """

    low: float
    high: float
    colours: Sequence[str]

    def level(self, value: float | None) -> int | None:
        """The place of its colour; None: there is no value."""
        if value is None:
            return None
        share = (value - self.low) / (self.high - self.low)
        return min(max(int(share * len(self.colours)), 0), len(self.colours) - 1)


@dataclass(frozen=True)
class _Map:
    """A map with what it takes, in pixels.

    Attributes:
        panel: what it shows.
        cell: width and height of its cells.
        numbers: what is written into them; None: nothing.
        labelled: whether its columns and its rows have labels, which a neighbour may have for them.
    """

    panel: Panel
    cell: tuple[int, int]
    numbers: Sequence[Sequence[str]] | None
    labelled: tuple[bool, bool]

    @property
    def width(self) -> int:
        """Of its cells."""
        return self.cell[0] * len(self.panel.x)

    @property
    def height(self) -> int:
        """Of its cells."""
        return self.cell[1] * len(self.panel.y)

    @property
    def title(self) -> str:
        """In lines as long as the map is wide, or a little longer."""
        return _wrapped(self.panel.title, max(self.width, SHORTEST))

    @property
    def upright(self) -> bool:
        """Whether the labels of columns are turned, which long names are rather than left out."""
        named = any(any(letter.isalpha() for letter in label) for label in self.panel.x)
        return named and LINE <= self.cell[0] < _widest(self.panel.x) + PAD

    @property
    def columns(self) -> Sequence[int]:
        """Those that have a label."""
        needed = LINE - 4 if self.upright else _widest(self.panel.x) + PAD
        return _thinned(self.panel.x, self.cell[0], needed) if self.labelled[0] else ()

    @property
    def rows(self) -> Sequence[int]:
        """Those that have a label."""
        return _thinned(self.panel.y, self.cell[1], LINE - 4) if self.labelled[1] else ()

    @property
    def left(self) -> int:
        """Room for the labels of rows, and for half of the first column's."""
        before = [_width(short(self.panel.y[i]), TICKS) + 2 * PAD for i in self.rows]
        over = [half - at for at, half in self._halves()]
        return round(max([0, *before, *over]))

    @property
    def right(self) -> int:
        """Room for what of its title and its columns' labels goes beyond its cells."""
        over = [at + half - self.width for at, half in self._halves()]
        lines = [_width(line, TITLES) - self.width for line in self.title.splitlines()]
        return round(max([0, *lines, *over]))

    def _halves(self) -> list[tuple[float, float]]:
        """Where the middle of each column's label is, and how far it reaches from there."""
        if self.upright:
            return []
        return [((i + 0.5) * self.cell[0], _width(short(self.panel.x[i]), TICKS) / 2) for i in self.columns]

    @property
    def top(self) -> int:
        """Room for its title."""
        return _lines(self.title) + PAD if self.title else 0

    @property
    def bottom(self) -> int:
        """Room for the labels of columns."""
        if not self.columns:
            return 0
        return PAD + (round(_widest(self.panel.x)) + PAD if self.upright else LINE)


def _heat_map(plot: HeatMap) -> Sketch:
    """Maps in rows and columns, a colour bar beside them."""
    from matplotlib.figure import Figure as Canvas

    scale = _scale(plot)
    rows = _maps(plot)
    columns = [[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows), default=0))]
    lefts = [max(one.left for one in column) for column in columns]
    widths = [max(one.width + one.right for one in column) for column in columns]
    y_title = _wrapped(plot.y_title, BAR[2])
    left = MARGIN + (_lines(y_title) + PAD if y_title else 0)
    xs = [left + sum(lefts[: i + 1]) + sum(widths[:i]) + GAP * i for i in range(len(columns))]
    right = max(xs[-1] + widths[-1] if xs else left, left + round(min(_width(plot.x_title, TITLES), SHORTEST)))

    value_title = _wrapped(plot.value_title, BAR[2])
    ticks = _ticks(scale)
    of_bar = BAR[0] + 2 * PAD + round(max((_width(_number(tick), TICKS) for tick in ticks), default=0))
    width = max(right + GAP + of_bar + PAD + _lines(value_title) + MARGIN, round(WIDTH * DPI))
    title = _wrapped(plot.title, width - 2 * MARGIN, 8.5 * 1.1)
    above = MARGIN + _lines(title) + 2 * PAD
    tops, bottom = [], above
    for row in rows:
        tops.append(bottom + max(one.top for one in row))
        bottom = tops[-1] + max(one.height + one.bottom for one in row) + GAP
    bottom -= GAP if rows else 0
    top = tops[0] if tops else above
    x_title = _wrapped(plot.x_title, right - left)
    below = max(bottom + (_lines(x_title) + PAD // 2 if x_title else 0), top + BAR[1])
    height = below + MARGIN

    canvas = Canvas(figsize=(width / DPI, height / DPI))

    def placed(x: float, y: float, wide: float, high: float) -> Axes:
        return canvas.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    frame = placed(MARGIN, above - PAD, width - 2 * MARGIN, height - above)
    frame.set_axis_off()
    sketch = Sketch(plot.key, title, plot.caption, None, canvas, frame)
    for row, y in zip(rows, tops, strict=True):
        for one, x in zip(row, xs, strict=False):  # the last row may be shorter
            _draw(placed(x, y, one.width, one.height), one, scale)
    x = right + GAP
    tall = min(max(bottom - top, BAR[1]), BAR[2])
    _draw_bar(placed(x, top, BAR[0], tall), scale, ticks)
    middle = 1 - (top + tall / 2) / height
    text: dict[str, Any] = {"fontsize": TITLES, "multialignment": "center"}
    canvas.text((x + of_bar + PAD) / width, middle, value_title, rotation=90, ha="left", va="center", **text)
    middle = 1 - ((top + bottom) / 2) / height
    canvas.text(MARGIN / width, middle, y_title, rotation=90, ha="left", va="center", **text)
    canvas.text((left + right) / 2 / width, 1 - (bottom + PAD // 2) / height, x_title, ha="center", va="top", **text)
    return sketch


def _scale(plot: HeatMap) -> _Scale:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    found = [value for row in plot.panels for panel in row for line in panel.values for value in line]
    values = [value for value in found if value is not None]
    low = plot.low if plot.low is not None else min(values, default=0.0)
    high = plot.high if plot.high is not None else max(values, default=1.0)
    if high <= low:  # all are equal
        high = low + (abs(low) or 1.0)
    colours = colormaps[COLOUR_MAP].resampled(COLOUR_COUNT)(range(COLOUR_COUNT))
    return _Scale(low, high, [to_hex(colour) for colour in colours])


def _maps(plot: HeatMap) -> list[list[_Map]]:
    """The maps; labels that the map to the left, or the one below, has at the same places are theirs alone."""
    sized = [[(panel, *_sized(panel, plot.decimals)) for panel in row] for row in plot.panels]
    found = []
    for i, row in enumerate(sized):
        maps = []
        for j, (panel, cell, numbers) in enumerate(row):
            before = row[j - 1] if j else None
            below = sized[i + 1][j] if i + 1 < len(sized) and j < len(sized[i + 1]) else None
            labelled = (
                below is None or (below[0].x, below[1][0]) != (panel.x, cell[0]),
                before is None or (before[0].y, before[1][1]) != (panel.y, cell[1]),
            )
            maps.append(_Map(panel, cell, numbers, labelled))
        found.append(maps)
    return found


def _sized(panel: Panel, decimals: int) -> tuple[tuple[int, int], Sequence[Sequence[str]] | None]:
    """Width and height of a map's cells, and the numbers that are in them."""
    across, down = max(len(panel.x), 1), max(len(panel.y), 1)
    if across * down <= ANNOTATED:
        numbers = [["" if value is None else f"{value:z.{decimals}f}" for value in line] for line in panel.values]
        widest = max((_width(number, NUMBERS) for line in numbers for number in line), default=0) + PAD
        if widest <= WIDEST_CELL:
            named, high = _widest(panel.x) + PAD, LINE + 2 * PAD
            return (round(max(widest, high, named if named <= NAMED_CELL else 0)), high), numbers
    # Of cells that are as near to a square as a map of AREA can have them.
    stretch = min(max((across / down) ** 0.5, 1 / LONGEST_CELL), LONGEST_CELL)
    side = AREA * DPI / (across * down) ** 0.5
    least, greatest = CELL
    width, height = (round(min(max(part, least), greatest)) for part in (side / stretch**0.5, side * stretch**0.5))
    return (width, height), None


def _draw(axes: Axes, one: _Map, scale: _Scale) -> None:
    """A map with its labels and numbers."""
    panel = one.panel
    _frame(axes, len(panel.x), len(panel.y))
    levels = [[scale.level(value) for value in line] for line in panel.values]
    _paint(axes, levels, scale)
    axes.set_title(one.title, loc="left", fontsize=TITLES, pad=4)
    turned = 90 if one.upright else 0
    axes.set_xticks([i + 0.5 for i in one.columns], [short(panel.x[i]) for i in one.columns], rotation=turned)
    axes.set_yticks([i + 0.5 for i in one.rows], [short(panel.y[i]) for i in one.rows])
    for y, line in enumerate(one.numbers or ()):
        for x, number in enumerate(line):
            if (level := levels[y][x]) is not None:
                ink = _ink(scale.colours[level])
                axes.text(x + 0.5, y + 0.5, number, color=ink, fontsize=NUMBERS, ha="center", va="center_baseline")


def _draw_bar(axes: Axes, scale: _Scale, ticks: Sequence[float]) -> None:
    count = len(scale.colours)
    _frame(axes, 1, count)
    axes.invert_yaxis()
    _paint(axes, [[level] for level in range(count)], scale)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    places = [(tick - scale.low) / (scale.high - scale.low) * count for tick in ticks]
    axes.set_yticks(places, [_number(tick) for tick in ticks])


def _frame(axes: Axes, across: int, down: int) -> None:
    """Axes of so many cells, numbered from the upper left corner."""
    axes.set_gid(f"crisp{axes.figure.axes.index(axes)}")
    axes.set_xlim(0, max(across, 1))
    axes.set_ylim(max(down, 1), 0)
    axes.grid(visible=False)
    axes.tick_params(labelsize=TICKS, length=2, width=0.5, pad=1.5)
    for spine in axes.spines.values():
        spine.set_visible(True)  # where cells are as dark or light as the page, this is their end


def _paint(axes: Axes, levels: Sequence[Sequence[int | None]], scale: _Scale) -> None:
    """Cells as shapes, one for all of a colour: a page of many maps stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    boxes: dict[int | None, list[tuple[int, int, int]]] = {}
    for y, line in enumerate(levels):
        x = 0
        for level, same in groupby(line):
            count = len(list(same))
            boxes.setdefault(level, []).append((x, x + count, y))
            x += count
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY]
    for level, found in boxes.items():
        corners = [[(x, y), (end, y), (end, y + 1), (x, y + 1), (x, y)] for x, end, y in found]
        outline = Outline(np.array(corners).reshape(-1, 2), codes * len(found))
        if level is None:
            axes.add_patch(PathPatch(outline, fill=False, edgecolor=RERUNS, hatch="//////", linewidth=0))
        else:
            colour = scale.colours[level]
            axes.add_patch(PathPatch(outline, facecolor=colour, linewidth=0))


def _ink(colour: str) -> str:
    """The ink that stands out from a colour the more, by the contrast of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return DARK if luminance > 0.179 else LIGHT


def _thinned(labels: Sequence[str], cell: int, needed: float) -> Sequence[int]:
    """The labels that have room, at equal distances; of numbers that count up, multiples of the distance."""
    step = 1
    while step * cell < needed and step < len(labels):
        step *= 2
    counting = all(label.isdecimal() for label in labels) and all(
        int(after) - int(before) == 1 for before, after in pairwise(labels)
    )
    first = -int(labels[0]) % step if counting and labels else 0
    return range(first if first < len(labels) else 0, len(labels), step)


def _ticks(scale: _Scale) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(scale.low, scale.high)
    slack = 1e-9 * (scale.high - scale.low)
    return [float(tick) for tick in ticks if scale.low - slack <= tick <= scale.high + slack]


@lru_cache(4096)
def _width(text: str, size: float) -> float:
    """What a text takes, in pixels; size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width * DPI / 72


def _widest(labels: Sequence[str]) -> float:
    """What the longest of some labels takes, in pixels."""
    return max((_width(short(label), TICKS) for label in labels), default=0)


def _wrapped(text: str, room: float, size: float = TITLES) -> str:
    """A text in lines that are about as long as there is room, in pixels."""
    letters = len(text) * room / max(_width(text, size), 1)
    return textwrap.fill(text, max(int(letters), 20)) if _width(text, size) > room else text


def _lines(text: str) -> int:
    """The height of a text's lines, in pixels."""
    return (LINE + 4) * (text.count("\n") + 1)


# lines and points -------------------------------------------------------------------------------


def _curves(plot: Curves) -> Sketch:
    """Lines and points; their names stand at ends and beside points where there is room, else in a legend."""
    names = list(dict.fromkeys(line.label for line in plot.lines if line.role != "baseline"))
    joined: dict[str, Line] = {}
    alone: dict[str, Line] = {}
    for line in plot.lines:
        if line.x:
            (joined if line.joined else alone).setdefault(line.label, line)
    alone = {label: line for label, line in alone.items() if label not in joined}
    ends = [(label, line.x[-1], line.y[-1], _look(line, names)[0]) for label, line in joined.items()]

    title = _wrapped(plot.title, (WIDTH - 0.8) * DPI, 8.5 * 1.1)
    sketch = begun(plot.key, title, plot.caption, height=max(HEIGHT, 0.8 + LABEL * len(ends)))
    axes = sketch.axes
    for line in plot.lines:
        _draw_line(sketch, line, *_look(line, names))
    if alone:
        axes.margins(x=0.12, y=0.12)
    for axis, log, values in (
        (axes.xaxis, plot.log_x, [x for line in plot.lines for x in line.x]),
        (axes.yaxis, plot.log_y, [y for line in plot.lines for y in line.y]),
    ):
        _scaled(axis, values, log=log)
    axes.set_xlabel(plot.x_title)
    axes.set_ylabel(plot.y_title)
    if {"ours", "print"} <= {line.role for line in plot.lines}:
        legend(axes)
    told: dict[str, Line] = {}
    if _apart(sketch, ends):
        end_labels(sketch, ends)
    else:
        told |= joined
    if len(alone) > BESIDE or any(len(line.x) > 1 for line in alone.values()):
        told |= alone
    elif alone:
        labels = [(label, line.x[0], line.y[0], _look(line, names)[0]) for label, line in alone.items()]
        beside_points(sketch, labels, [at for line in plot.lines for at in zip(line.x, line.y, strict=True)])
    if told:
        _names(sketch.canvas, told, names)
    return sketch


def _apart(sketch: Sketch, ends: Sequence[tuple[str, float, float, str]]) -> bool:
    """Whether lines end so far from each other that a label there tells whose end it is."""
    if len(ends) < 2:
        return True
    axes = sketch.axes
    places = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for _, x, y, _ in ends]))[:, 1]
    return float(np.ptp(places)) > LABEL / sketch.canvas.get_figheight() * (len(ends) - 1) / 2


def _look(line: Line, names: Sequence[str]) -> tuple[str, str, Any]:
    """Colour, marker and dashes: of lines of one name the same but for the dashes of print."""
    if line.role == "baseline":
        return RERUNS, MARKERS[0], DASHES[1]
    place = names.index(line.label)
    dashes = DASHES[2] if line.role == "print" else DASHES[::3][place % 2]
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], dashes


def _draw_line(sketch: Sketch, line: Line, colour: str, marker: str, dashes: Any) -> None:
    if line.joined:
        width = 1.3 if line.role == "ours" else 1.0
        gid = sketch.tip(line.label)
        sketch.axes.plot(line.x, line.y, color=colour, linestyle=dashes, linewidth=width, gid=gid)
    if _is_marked(line):
        notes = [f"{line.label}: {note}" if note else line.label for note in line.notes] or [line.label] * len(line.x)
        for x, y, spread, note in zip(line.x, line.y, line.spread or [None] * len(line.x), notes, strict=True):
            point(sketch, x, y, spread, colour, marker, note, hollow=line.role == "print")


def _is_marked(line: Line) -> bool:
    if not line.joined or line.notes or line.spread:
        return True
    return line.role != "baseline" and len(line.x) <= MARKED


def _scaled(axis: Axis, values: Sequence[float], *, log: bool) -> None:
    """The scale of an axis, with ticks that are numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes: Any = axis.axes
    if log:
        doubling = sorted({value for value in values if value > 0 and np.log2(value).is_integer()})
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        low, high = axis.get_view_interval()
        if len(doubling) == len(set(values)) <= 12:
            axis.set_ticks(doubling)
            axes.tick_params(axis="x" if axis is axes.xaxis else "y", which="minor", length=0)
        else:
            axis.set_major_locator(LogLocator(subs=log_steps(high / low)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=all(float(v).is_integer() for v in values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _number(value: float) -> str:
    """A number at a tick: `0.05`, `1,024`, `20k`, `3M`."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")(value) if abs(value) >= 10_000 else f"{value:z,.6g}"


def _names(canvas: Canvas, lines: dict[str, Line], names: Sequence[str]) -> None:
    """A legend below the axes."""
    from matplotlib.lines import Line2D

    marks = []
    for label, line in lines.items():
        colour, marker, dashes = _look(line, names)
        mark = Line2D([], [], color=colour, label=short(label), linewidth=1.3, linestyle=dashes if line.joined else "")
        if _is_marked(line):
            mark.set_marker(marker)
            mark.set_markerfacecolor(PAPER if line.role == "print" else colour)
        marks.append(mark)
    length = 2.4 if any(line.joined for line in lines.values()) else 1.2
    canvas.legend(handles=marks, loc="outside lower left", ncols=3, fontsize=7, handlelength=length, handletextpad=0.5)
