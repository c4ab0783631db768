"""Figures of analyses: what is drawn in them, that it can be read, and the form in which a page takes it."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import PathPatch
from matplotlib.text import Annotation, Text
from PIL import Image

from lodarepro.findings import Curves, Findings, HeatMap, Line, Panel
from lodarepro.report import drawing, plots
from lodarepro.report.drawing import Figure, Sketch

HOSTILE = """<b> & "q" </svg> $x$"""


def panel(across: int, down: int, title: str = "", **labels: tuple[str, ...]) -> Panel:
    values = tuple(tuple((x + 1) * (y + 1) / (across * down) for x in range(across)) for y in range(down))
    given = {"x": tuple(map(str, range(1, across + 1))), "y": tuple(map(str, range(1, down + 1)))} | labels
    return Panel(title, values=values, **given)


def heat_map(*rows: Sequence[Panel], **options: Any) -> HeatMap:
    return HeatMap("phi", "Title", "Caption.", "across", "down", "value, of all", tuple(map(tuple, rows)), **options)


def curves(*lines: Line, **options: Any) -> Curves:
    return Curves("lines", "Title", "Caption.", "across", "up", lines, **options)


def sketched(plot: HeatMap | Curves) -> Sketch:
    with drawing.styled():
        sketch = plots._heat_map(plot) if isinstance(plot, HeatMap) else plots._curves(plot)
        sketch.canvas.draw_without_rendering()
    return sketch


def drawn(*of: HeatMap | Curves) -> list[Figure]:
    return plots.of_analysis(Findings("a", "a_b c_0123", "A", "", {}, {}, (), of))


def maps(sketch: Sketch) -> list[Axes]:
    """The maps, without the frame around them and the colour bar after them."""
    return sketch.canvas.axes[1:-1]


def box(text: Text) -> tuple[float, float, float, float]:
    found = Text.get_window_extent(text)
    return found.x0, found.y0, found.x1, found.y1


def overlapping(texts: Sequence[Text]) -> Iterator[tuple[str, str]]:
    boxes = [(text.get_text(), box(text)) for text in texts if text.get_text()]
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[:i]:
            if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
                yield one, other


def labels(axes: Axes) -> list[Text]:
    return [text for text in (*axes.get_xticklabels(), *axes.get_yticklabels()) if text.get_text()]


def written(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# maps -------------------------------------------------------------------------------------------

MIXED = heat_map(
    [panel(64, 8, "A"), panel(64, 8, "B"), panel(8, 8, "C")],
    [panel(64, 8, "D"), panel(10, 1, "E"), panel(4, 6, "A title longer than its map, in lines")],
    low=0.0,
    high=1.0,
)


@pytest.fixture(scope="module")
def mixed() -> Sketch:
    return sketched(MIXED)


def test_every_panel_is_a_map_with_its_title(mixed: Sketch):
    titles = [axes.get_title(loc="left") for axes in maps(mixed)]
    assert titles == ["A", "B", "C", "D", "E", "A title longer than its map,\nin lines"]
    assert mixed.axes is mixed.canvas.axes[0]


def test_nothing_in_maps_overlaps_or_leaves_the_figure(mixed: Sketch):
    texts = [text for axes in mixed.canvas.axes[1:] for text in (*labels(axes), *axes.texts)]
    texts += [axes._left_title for axes in maps(mixed)]  # type: ignore[attr-defined]
    texts += mixed.canvas.texts
    assert len(texts) > 80
    assert list(overlapping(texts)) == []
    width, height = mixed.canvas.bbox.width, mixed.canvas.bbox.height
    for text in texts:
        x0, y0, x1, y1 = box(text)
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height, text.get_text()
    areas = [axes.get_window_extent() for axes in mixed.canvas.axes[1:]]
    for i, one in enumerate(areas):
        assert not any(one.overlaps(other) for other in areas[:i])


def test_maps_of_other_sizes_keep_their_proportions(mixed: Sketch):
    wide, _, square, _, line, _ = [axes.get_window_extent() for axes in maps(mixed)]
    assert square.width == pytest.approx(square.height)
    assert 1.5 < wide.width / wide.height < 8  # not the 8 of its cells' numbers, nor a square
    assert 0.3 < wide.width / line.width < 3


def test_cells_begin_and_end_at_pixels_of_the_png(mixed: Sketch):
    across, down = (round(size * drawing.DPI, 6) for size in mixed.canvas.get_size_inches())
    assert across == int(across) and down == int(down)
    for axes in maps(mixed):
        place = axes.get_position()
        for edge in (place.x0 * across, place.x1 * across, place.y0 * down, place.y1 * down):
            assert edge == pytest.approx(round(edge), abs=1e-6)


def test_labels_that_a_neighbour_has_are_left_out(mixed: Sketch):
    a, b, c, d, *_ = maps(mixed)
    assert a.get_yticklabels() and not b.get_yticklabels() and c.get_yticklabels()  # cells of C have another height
    assert not a.get_xticklabels() and d.get_xticklabels()


def test_only_small_maps_have_numbers(mixed: Sketch):
    a, _, c, _, e, f = maps(mixed)
    assert written(a) == written(c) == []
    assert written(e) == [f"{(x + 1) / 10:.2f}" for x in range(10)]
    assert len(written(f)) == 24
    inside = f.get_window_extent()
    for text in f.texts:
        x0, y0, x1, y1 = box(text)
        assert x1 - x0 < inside.width / 4 and y1 - y0 < inside.height / 6


@pytest.mark.parametrize(("across", "down", "numbers"), [(8, 6, 48), (7, 7, 0), (48, 1, 48)])
def test_the_most_cells_that_have_numbers(across: int, down: int, numbers: int):
    (axes,) = maps(sketched(heat_map([panel(across, down)])))
    assert len(written(axes)) == numbers


def test_numbers_too_long_for_a_cell_are_left_out():
    values = ((123456789.0, 2.0),)
    plot = heat_map([Panel("", ("a", "b"), ("c",), values)], decimals=4)
    assert written(maps(sketched(plot))[0]) == []


def test_cells_without_a_value_are_hatched_and_have_no_number():
    plot = heat_map([Panel("", ("a", "b"), ("c", "d"), ((0.0, None), (None, -0.001)))], decimals=1)
    (axes,) = maps(sketched(plot))
    assert written(axes) == ["0.0", "0.0"]  # no zero has a sign
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == 1 and not hatched[0].get_fill()
    assert to_hex(hatched[0].get_edgecolor()) == drawing.RERUNS
    assert len(axes.patches) == 3
    (figure,) = drawn(plot)
    assert "var(--reruns)" in figure.inline


def test_a_map_without_any_value_is_drawn():
    (axes,) = maps(sketched(heat_map([Panel("", ("a",), ("b",), ((None,),))])))
    assert written(axes) == [] and len(axes.patches) == 1


def test_one_scale_is_that_of_all_maps():
    def colours(plot: HeatMap) -> list[list[str]]:
        return [[to_hex(patch.get_facecolor()) for patch in axes.patches] for axes in maps(sketched(plot))]

    one = Panel("", ("a", "b"), ("c",), ((0.0, 1.0),))
    two = Panel("", ("a", "b"), ("c",), ((1.0, 2.0),))
    (low, middle), (same, high) = colours(heat_map([one, two]))
    assert middle == same and len({low, middle, high}) == 3
    assert luminance(low) < luminance(middle) < luminance(high)
    # Ends that are given hold, and what lies beyond them has their colours.
    assert colours(heat_map([one], [two], low=1, high=2)) == [[low], [low, high]]


def test_the_scale_rises_evenly_to_the_eye():
    scale = plots._scale(heat_map([panel(2, 2)]))
    lightness = [luminance(colour) ** (1 / 3) for colour in scale.colours]
    steps = [after - before for before, after in pairwise(lightness)]
    assert min(steps) > 0
    assert max(steps) < 4 * sum(steps) / len(steps)


def test_the_bar_tells_the_scale():
    bar = sketched(heat_map([panel(3, 3)], low=0, high=1)).canvas.axes[-1]
    found = {text.get_text(): at for text, at in zip(bar.get_yticklabels(), bar.get_yticks(), strict=True)}
    low, high = bar.get_ylim()
    assert found["0"] == pytest.approx(low) and found["1"] == pytest.approx(high) and low < high
    assert len(bar.patches) == plots.COLOUR_COUNT


def test_numbers_stand_out_from_their_cells():
    for colour in plots._scale(heat_map([panel(2, 2)])).colours:
        a, b = sorted((luminance(colour), luminance(plots._ink(colour))))
        assert (b + 0.05) / (a + 0.05) >= 4.5, colour
    assert not {plots.DARK, plots.LIGHT} & set(drawing.THEMED)
    (axes,) = maps(sketched(heat_map([panel(4, 4)])))
    assert {text.get_color() for text in axes.texts} == {plots.DARK, plots.LIGHT}


def test_long_names_of_columns_stand_upright():
    names = ("FT", "LoRA r=4", "Adapter-L m=48", "Prefix")
    (axes,) = maps(sketched(heat_map([panel(4, 8, x=names)])))
    found = axes.get_xticklabels()
    assert [text.get_text() for text in found] == list(names)
    assert {text.get_rotation() for text in found} == {90}
    assert list(overlapping(labels(axes))) == []


@pytest.mark.parametrize(
    ("names", "cell", "needed", "expected"),
    [
        ([str(i) for i in range(1, 9)], 10, 10, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([str(i) for i in range(1, 9)], 10, 11, [1, 3, 5, 7]),  # 2, 4, 6, 8
        ([str(i) for i in range(8)], 10, 35, [0, 4]),
        (["1", "2", "4", "8", "16"], 10, 15, [0, 2, 4]),
        (["a", "b", "c"], 10, 1000, [0]),
        (["7", "8"], 10, 1000, [1]),
        ([], 10, 10, []),
    ],
)
def test_labels_are_thinned(names: list[str], cell: int, needed: float, expected: list[int]):
    assert list(plots._thinned(names, cell, needed)) == expected


def test_two_rows_of_eight_stay_legible():
    row = [panel(64, 4, f"block {i}") for i in range(8)]
    sketch = sketched(heat_map(row, row))
    assert len(maps(sketch)) == 16
    assert all(axes.get_window_extent().width / sketch.canvas.dpi > 1 for axes in maps(sketch))  # inches
    texts = [axes._left_title for axes in maps(sketch)]  # type: ignore[attr-defined]
    assert list(overlapping([*texts, *(text for axes in maps(sketch) for text in labels(axes))])) == []


# lines and points -------------------------------------------------------------------------------


def ends_of(sketch: Sketch) -> list[str]:
    return [text.get_text() for text in sketch.axes.texts if isinstance(text, Annotation)]


def legends(sketch: Sketch) -> list[list[str]]:
    return [[text.get_text() for text in found.get_texts()] for found in sketch.canvas.legends]


def test_lines_have_their_names_at_their_ends():
    x = tuple(float(i) for i in range(50))
    sketch = sketched(curves(*(Line(f"line {k}", x, tuple(k * i for i in x)) for k in (1, 2, 3))))
    assert ends_of(sketch) == ["line 1", "line 2", "line 3"] and legends(sketch) == []
    assert list(overlapping(sketch.axes.texts)) == []
    assert {line.get_marker() for line in sketch.axes.lines} == {"None"}


def test_lines_that_end_together_have_a_legend():
    sketch = sketched(curves(*(Line(f"line {k}", (1.0, 2.0), (float(k), 100.0)) for k in range(4))))
    assert ends_of(sketch) == [] and legends(sketch) == [[f"line {k}" for k in range(4)]]


def test_print_and_baselines_are_told_from_ours():
    ours = Line("one", (1.0, 2.0), (1.0, 3.0))
    theirs = Line("one", (1.0, 2.0), (1.5, 3.5), joined=False, role="print")
    base = Line("chance", (1.0, 2.0), (0.0, 0.0), role="baseline")
    sketch = sketched(curves(ours, theirs, base))
    assert ends_of(sketch) == ["chance", "one"] and legends(sketch) == [["ours", "print"]]
    hollow = [line for line in sketch.axes.lines if line.get_markerfacecolor() == drawing.PAPER]
    assert len(hollow) == 2 and {line.get_color() for line in hollow} == {drawing.COLOURS[0]}
    (dashed,) = [line for line in sketch.axes.lines if line.get_color() == drawing.RERUNS]
    assert dashed.get_linestyle() == "--"


def test_points_have_their_names_beside_them_or_in_a_legend():
    few = [Line(f"m{i}", (float(i),), (float(i % 3),), joined=False) for i in range(5)]
    sketch = sketched(curves(*few))
    assert ends_of(sketch) == [f"m{i}" for i in range(5)] and legends(sketch) == []
    assert list(overlapping(sketch.axes.texts)) == []
    several = [Line(f"m{i}", (1.0, 2.0), (float(i), 1.0), joined=False) for i in range(3)]
    sketch = sketched(curves(*several))
    assert ends_of(sketch) == [] and legends(sketch) == [["m0", "m1", "m2"]]


def test_spread_is_drawn_as_bars():
    sketch = sketched(curves(Line("a", (1.0, 2.0), (1.0, 2.0), spread=(0.5, 0.25))))
    (first, second) = sketch.axes.containers
    heights = [abs(part[1][1] - part[0][1]) for bars in (first, second) for part in bars[2][0].get_segments()]
    assert heights == pytest.approx([1.0, 0.5])


def test_points_with_notes_have_titles():
    x = (1.0, 2.0, 3.0)
    (figure,) = drawn(curves(Line("a", x, x, joined=False, notes=("first", "", HOSTILE))))
    root = ElementTree.fromstring(figure.inline)
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [title for title in titles if title and title.startswith("a")] == ["a: first", "a", f"a: {HOSTILE}"]


@pytest.mark.parametrize(
    ("xs", "expected"),
    [
        ((1, 2, 4, 8, 16), ["1", "2", "4", "8", "16"]),
        (tuple(range(1, 1025)), ["1", "10", "100", "1,000"]),
        ((1_000, 50_000_000), ["1,000", "10k", "100k", "1M", "10M"]),
        ((3, 5, 7), ["3", "4", "5", "7"]),
    ],
)
def test_ticks_of_logarithmic_axes(xs: tuple[float, ...], expected: list[str]):
    sketch = sketched(curves(Line("a", tuple(map(float, xs)), tuple(map(float, xs))), log_x=True))
    axes = sketch.axes
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [text.get_text() for at, text in ticks if low <= at <= high] == expected


def test_ticks_of_other_axes_are_plain_numbers():
    axes = sketched(curves(Line("a", (1.0, 2.0, 3.0), (100_000.1, 100_000.2, 100_000.3)))).axes
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert all(math.isclose(at, round(at)) for at in axes.get_xticks())  # no half of a whole number


def test_nothing_to_draw_is_no_fault():
    assert [figure.kind for figure in drawn(heat_map(), curves(), curves(Line("a", (), ()), log_x=True))] == [
        "phi",
        "lines",
        "lines",
    ]


# the files --------------------------------------------------------------------------------------

SMALL = (heat_map([panel(3, 3, HOSTILE)]), curves(Line(HOSTILE, (1.0, 2.0), (1.0, 2.0))))


@pytest.fixture(scope="module")
def small() -> list[Figure]:
    return drawn(*SMALL)


def test_the_same_plots_are_the_same_bytes(small: list[Figure]):
    assert drawn(*SMALL) == small
    assert [(figure.name, figure.kind) for figure in small] == [
        ("a_b-c_0123-phi", "phi"),
        ("a_b-c_0123-lines", "lines"),
    ]


def test_files_are_whole_and_hold_no_picture(small: list[Figure]):
    for figure in small:
        for svg in (figure.svg.decode(), figure.inline):
            tree = ElementTree.fromstring(svg)
            assert "<image" not in svg and "data:" not in svg
            texts = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
            assert HOSTILE in texts
        with Image.open(io.BytesIO(figure.png)) as image:
            image.load()
            assert image.width == round(figure.width * drawing.DPI)


def test_a_map_has_its_cells_colours_and_no_other_between_them():
    plot = heat_map([panel(9, 9)])
    (figure,) = drawn(plot)
    sketch = sketched(plot)
    (axes,) = maps(sketch)
    expected = {to_hex(p.get_facecolor()) for p in axes.patches if isinstance(p, PathPatch)}
    with Image.open(io.BytesIO(figure.png)) as image:
        place = axes.get_position()
        w, h = image.size
        edges = (place.x0 * w + 4, (1 - place.y1) * h + 4, place.x1 * w - 4, (1 - place.y0) * h - 4)
        inside = image.convert("RGB").crop(tuple(map(round, edges)))
        counts = inside.getcolors(10_000)
    assert counts and {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in counts} == expected  # type: ignore[misc]


def test_edges_of_cells_are_not_smoothed_and_those_of_lines_are(small: list[Figure]):
    cells, lines = small
    assert cells.svg.count(b'shape-rendering="crispEdges"') == cells.inline.count("crispEdges") == 2  # map and bar
    assert b"crispEdges" not in lines.svg


def test_a_page_gives_lines_its_colours_and_cells_theirs(small: list[Figure]):
    cells, lines = small
    fixed = set(plots._scale(SMALL[0]).colours) | {plots.DARK, plots.LIGHT}
    left = set(re.findall(r"#[0-9a-f]{6}\b(?=[;\"'])", cells.inline))
    assert left and left <= fixed
    assert re.findall(r"#[0-9a-f]{6}\b(?=[;\"'])", lines.inline) == []
    assert "var(--series-0)" in lines.inline and "var(--ink)" in cells.inline
