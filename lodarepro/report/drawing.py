"""How figures are drawn, whatever they show: once, by matplotlib, for three uses.

These are PNG and SVG files for papers, and an SVG in the report page, whose colours follow the page's theme. What
belongs to different things is told apart by marker, line style and label as well as by colour.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 5.2  # inches: legible in a column of a paper and on a phone
HEIGHT = 3.3
DPI = 200
LABEL = 0.135  # inches a label at the end of a line
LONGEST = 32  # characters of a label; the whole of it is shown where its point is pointed at
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
        metric: column that it is of; None: of losses, or of an analysis.
        caption: how to read it.
        svg: as a file has it.
        png: the same.
        inline: the SVG for a page: its colours are the page's variables, its points have titles.
        width: in inches.
    """

    name: str
    kind: str
    metric: str | None
    caption: str
    svg: bytes
    png: bytes
    inline: str
    width: float


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the project's style, and leave matplotlib's settings as they were."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that its font lacks; a browser has others for the SVG
        yield


def plain_name(text: str) -> str:
    """A text without what a file's name or a page's id can't hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def short(text: str) -> str:
    """A label that has room."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@dataclass
class Sketch:
    """A figure that is being drawn.

    Attributes:
        kind, caption: as in `Figure`.
        title: stands above the axes.
        column: the figure's metric.
        canvas: the whole of it.
        axes: what is drawn in; of several maps the frame around them.
        tips: id of an artist to the text that it shows.

    An artist whose id (`gid`) begins with `crisp` has its edges drawn without smoothing.
    """

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


def begun(kind: str, title: str, caption: str, column: str | None = None, *, height: float = HEIGHT) -> Sketch:
    """A figure of one pair of axes; `height` in inches, the rest as in `Figure`."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    return Sketch(kind, title, caption, column, canvas, canvas.add_subplot())


def finished(sketch: Sketch, start: str) -> Figure:
    """The figure, laid out and written.

    Args:
        sketch: all of it but its title.
        start: of the name of its files, which its kind and metric follow.
    """
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
    # Where shapes touch, smoothed edges would let the page through.
    files["svg"] = files["svg"].replace(b'<g id="crisp', b'<g shape-rendering="crispEdges" id="crisp')
    metric = None if sketch.column is None else sketch.column.replace("/", "-")
    name = "-".join(filter(None, (start, sketch.kind, metric)))
    inline = _inline(files["svg"].decode(), name, f"{sketch.title}. {sketch.caption}", sketch.tips)
    width = float(sketch.canvas.get_figwidth())
    return Figure(name, sketch.kind, sketch.column, sketch.caption, files["svg"], files["png"], inline, width)


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


def log_steps(ratio: float) -> tuple[float, ...]:
    """Where each decade of a logarithmic axis has its labels, by the ratio of the axis's ends."""
    if ratio > 1000:
        return (1,)
    if ratio > 100:
        return (1, 2, 5)
    return (1, 1.5, 2, 3, 5, 7) if ratio > 3 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)


def point(
    sketch: Sketch,
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


def end_labels(sketch: Sketch, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Labels to the right of the axes, each beside the end of its line, moved apart where they would meet."""
    axes, height = sketch.axes, sketch.canvas.get_figheight()
    low, high = axes.get_ylim()
    log = axes.get_yscale() == "log"

    def share(y: float) -> float:  # of the axes' height
        return float(np.log(y / low) / np.log(high / low)) if log else (y - low) / (high - low)

    axes.set_ylim(low, high)  # labels don't move it
    gap = LABEL / (height - 0.8)
    ordered = sorted(ends, key=lambda end: share(end[2]))
    places = spread_out([share(end[2]) for end in ordered], gap)
    right = max((end[1] for end in ordered), default=0)
    for (label, x, y, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            short(label),
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


def spread_out(places: Sequence[float], gap: float) -> list[float]:
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


def beside_points(
    sketch: Sketch, points: Sequence[tuple[str, float, float, str]], taken: Sequence[tuple[float, float]]
) -> None:
    """Labels beside their points, where they cover neither points nor each other."""
    axes, canvas = sketch.axes, sketch.canvas
    canvas.draw_without_rendering()  # the layout decides how far labels are from each other
    inside = axes.get_window_extent()
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in axes.transData.transform(np.array(taken))]
    scale = canvas.dpi / 72
    for whole, x, y, colour in points:
        label = short(whole)
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


def legend(axes: Axes, *, reruns: bool = False, plain: bool = False) -> None:
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
