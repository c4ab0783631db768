"""Figures of a filled table: which there are, what is drawn in them, and the form in which a page takes them."""

import io
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.text import Annotation, Text
from PIL import Image

from lodarepro import compose, records, tables
from lodarepro.archive import Archive
from lodarepro.config import Run
from lodarepro.records import Evaluation, Record
from lodarepro.report import aggregate, drawing, figures
from lodarepro.report.aggregate import Cell, Counts, FilledRow, FilledTable, Range
from lodarepro.report.drawing import Figure
from lodarepro.report.figures import of_table
from lodarepro.scores import Score
from lodarepro.tables import Reruns

HOSTILE = """<b> & "q" 'a' </svg>"""
OWN = f"""\
title: Ours
source: Nobody 2020, Table 1
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {{bleu: percent, cider: points}}
groups:
  - rows:
      - {{label: FT, cell: [method=ft], print: [70.0 ± 0.5, 2.40]}}
      - {{label: '{HOSTILE.replace("'", "''")}', cell: [method=bitfit], print: ["?", 2.41]}}
      - {{label: One-shot, cell: [method=one-shot], print: [60.0, 2.31]}}
      - {{label: LoRA r=2, cell: [method=lora, method.rank=2], print: [68.0, 2.30]}}
      - {{label: LoRA r=4, cell: [method=lora, method.rank=4], print: [69.0, 2.35]}}
      - {{label: LoRA r=8, cell: [method=lora, method.rank=8], print: [69.5, 2.37]}}
      - {{label: LoRA r=16, cell: [method=lora, method.rank=16], print: [69.6, "?"]}}
      - {{label: Empty, cell: [method=adapter-l], print: ["?", "?"]}}
"""
RUN = ("FT", HOSTILE, "One-shot", "LoRA r=2", "LoRA r=4", "LoRA r=8")
"""labels of the rows that have runs"""
TRAINABLE = {"FT": 1_100_000, HOSTILE: 9_000, "One-shot": 0, "Empty": 50_000} | {
    f"LoRA r={rank}": 2_000 * rank for rank in (2, 4, 8, 16)
}


def record(run: Run, *, bleu: float, cider: float, val_losses: Sequence[float]) -> Record:
    scores = {
        "bleu": Score("bleu", bleu / 100, "fraction", True, "metric:bleu|version:1"),
        "cider": Score("cider", cider, "points", True, "metric:cider|version:1"),
    }
    decode = compose.plain(run)["decode"]
    return Record(
        id=f"{run.method.name}-{getattr(run.method, 'rank', 0)}_s{run.seed}",
        config=compose.plain(run),
        identity=compose.identity(run, {"test": "3" * 64, "model": "4" * 64}),
        provenance={
            "code": {"version": "0.1", "commit": None, "dirty": False},
            "data": {"test": {"file": "test.txt", "pinned": False}},
            "base_model": {"origin": "embedded"},
        },
        parameters={"trainable": 1, "total": 2},
        training={"epochs": [{"epoch": i, "val_loss": loss} for i, loss in enumerate(val_losses, 1)]},
        evaluations=(Evaluation("last", decode, "test", "all", "last.jsonl", 3, scores, val_losses[-1]),),
    )


@dataclass(frozen=True)
class Made:
    """A filled table and the results folder of its runs."""

    filled: FilledTable
    root: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("figures")
    path = root / "own.yaml"
    path.write_text(OWN, encoding="utf-8")
    table = tables.read(str(path))
    rng = random.Random(1)
    for place, row in enumerate(table.rows):
        if row.label not in RUN:
            continue
        printed = row.printed[0].value if row.printed[0] else 67.0
        for run in row.cells(table.seeds):
            noise = rng.gauss(0, 0.2)
            losses = [2.0 - 0.1 * place - 0.2 * epoch + noise / 10 for epoch in range(1 if not place else 4)]
            if row.label == "One-shot":
                losses = [2.5]
            one = record(run, bleu=printed + noise, cider=2.3 + 0.02 * place + noise / 10, val_losses=losses)
            folder = root / records.RUNS / one.id
            folder.mkdir(parents=True)
            records.write(folder, one)
            if row.label != "One-shot":
                steps = [3.0 / (1 + i / 50) + rng.random() for i in range(300)]
                records.write_steps(folder / records.STEPS, steps, steps)
    counts = {row.label: Counts(TRAINABLE[row.label], ()) for row in table.rows}
    return Made(aggregate.fill(table, Archive(root), counts, Reruns("", ())), root)


@pytest.fixture(scope="module")
def drawn(made: Made) -> list[Figure]:
    return of_table(made.filled, made.root)


@pytest.fixture
def kinds(made: Made, monkeypatch: pytest.MonkeyPatch) -> Callable[[FilledTable], list[tuple[str, str | None]]]:
    """Kind and metric of each figure of a table, which is sketched but not written."""

    def finished(sketch: drawing.Sketch, start: str) -> Figure:
        return Figure("", sketch.kind, sketch.column, "", b"", b"", "", 0)

    monkeypatch.setattr(figures, "finished", finished)
    return lambda filled: [(figure.kind, figure.metric) for figure in of_table(filled, made.root)]


def changed(filled: FilledTable, change: Callable[[FilledRow], FilledRow | None]) -> FilledTable:
    """The table with its rows changed; None: without the row."""
    groups = [
        replace(group, rows=tuple(new for row in group.rows if (new := change(row)) is not None))
        for group in filled.groups
    ]
    return replace(filled, groups=tuple(groups))


Draw = Callable[[FilledTable, Sequence[figures._Named], int], drawing.Sketch | None]


def sketched(draw: Draw, filled: FilledTable, place: int) -> drawing.Sketch | None:
    return draw(filled, figures._named(filled), place)


def with_cells(row: FilledRow, change: Callable[[Cell], Cell]) -> FilledRow:
    return replace(row, cells=tuple(change(cell) for cell in row.cells))


def without_runs(row: FilledRow) -> FilledRow:
    bare = with_cells(row, lambda cell: replace(cell, values=()))
    return replace(bare, records=(), texts=())


def without_print(row: FilledRow) -> FilledRow:
    bare = with_cells(row, lambda cell: replace(cell, printed=None))
    return replace(bare, row=replace(row.row, printed=()))


# which there are --------------------------------------------------------------------------------

ALL = [(kind, metric) for kind in ("print", "rank", "size") for metric in ("bleu", "cider")]
LOSSES: list[tuple[str, str | None]] = [("training", None), ("validation", None)]


def test_a_paper_table_with_runs_has_every_kind(drawn: list[Figure]):
    assert [(figure.kind, figure.metric) for figure in drawn] == [*ALL, *LOSSES]
    assert [figure.name for figure in drawn][::2] == [
        "own-print-bleu",
        "own-rank-bleu",
        "own-size-bleu",
        "own-training",
    ]
    assert len({figure.name for figure in drawn}) == len(drawn)


def test_a_column_of_a_subset_has_a_name_for_files(made: Made):
    first, second = made.filled.table.columns
    table = replace(made.filled.table, columns=(replace(first, subset="seen"), second))
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._ranks, replace(made.filled, table=table), 0)
        assert sketch is not None
        figure = drawing.finished(sketch, "own")
    assert (figure.name, figure.metric) == ("own-rank-bleu-seen", "bleu/seen")


def test_without_runs_there_is_none(made: Made, kinds):
    assert kinds(changed(made.filled, without_runs)) == []
    assert kinds(replace(made.filled, groups=())) == []


def test_without_print_there_is_nothing_to_hold_ours_against(made: Made, kinds):
    assert kinds(changed(made.filled, without_print)) == [*ALL[2:], *LOSSES]


def test_print_of_other_rows_than_those_that_ran_is_not_held_against_ours(made: Made, kinds):
    few = changed(made.filled, lambda row: without_print(row) if row.row.label in RUN else row)
    assert kinds(few) == [*ALL[2:], *LOSSES]


def test_fewer_than_three_ranks_make_no_curve(made: Made, kinds):
    two = changed(made.filled, lambda row: None if row.row.label in ("LoRA r=4", "LoRA r=16") else row)
    assert kinds(two) == [*ALL[:2], *ALL[4:], *LOSSES]
    other = changed(made.filled, lambda row: without_runs(row) if row.row.label.startswith("LoRA") else row)
    assert kinds(other) == [*ALL[:2], *ALL[4:], *LOSSES]


def test_one_row_that_trains_has_no_place_among_others(made: Made, kinds):
    one = changed(made.filled, lambda row: row if row.row.label in ("FT", "One-shot") else None)
    assert kinds(one) == [*ALL[:2], ("training", None)]


def test_a_metric_without_values_has_no_figures(made: Made, kinds):
    def change(row: FilledRow) -> FilledRow:
        first, second = row.cells
        return replace(row, cells=(first, replace(second, values=())))

    assert kinds(changed(made.filled, change)) == [*ALL[::2], *LOSSES]


def test_a_validation_loss_after_one_epoch_alone_is_no_curve(made: Made, kinds):
    def change(row: FilledRow) -> FilledRow:
        one = [replace(r, training={"epochs": r.training["epochs"][:1]}) for r in row.records]
        return replace(row, records=tuple(one))

    assert kinds(changed(made.filled, change)) == [*ALL, LOSSES[0]]


def test_runs_without_their_steps_have_no_training_loss(made: Made, tmp_path: Path, kinds):
    assert figures._training(figures._named(made.filled), tmp_path) is None
    assert figures._training(figures._named(made.filled), made.root) is not None


# what is in them --------------------------------------------------------------------------------


def of(drawn: Sequence[Figure], kind: str, metric: str | None = None) -> Figure:
    (found,) = [figure for figure in drawn if (figure.kind, figure.metric) == (kind, metric)]
    return found


def tips(figure: Figure) -> list[str]:
    """The titles of a figure's points."""
    root = ElementTree.fromstring(figure.inline)
    ns = "{http://www.w3.org/2000/svg}"
    points = [element for element in root.iter(f"{ns}g") if element.get("class") == "tip"]
    found = [element[0] for element in points]
    assert all(title.tag == f"{ns}title" for title in found)
    assert all(len(element) > 1 for element in points), "a title without anything to point at"
    return [title.text or "" for title in found]


@pytest.mark.parametrize(("place", "metric"), [(0, "bleu"), (1, "cider")])
@pytest.mark.parametrize("kind", ["print", "rank", "size"])
def test_every_cell_with_a_value_has_its_points(made: Made, drawn: list[Figure], kind: str, place: int, metric: str):
    def shown(row: FilledRow) -> bool:
        if kind == "print":
            return row.cells[place].printed is not None
        return row.row.label.startswith("LoRA") if kind == "rank" else row.trainable > 0

    cells = [(row.row.label, row.cells[place]) for row in made.filled.rows if shown(row)]
    expected = [label for label, cell in cells for _ in range((cell.printed is not None) + (cell.mean is not None))]
    found = tips(of(drawn, kind, metric))
    assert sorted(text.split(": ")[0] for text in found) == sorted(expected)
    column = made.filled.columns[place]
    for label, cell in cells:
        if cell.mean is not None:
            ours = f"ours {cell.mean:.{column.decimals}f} ± {cell.std:.{column.decimals}f} (n=3)"
            assert any(text.startswith(f"{label}: ") and ours in text for text in found)


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_every_row_that_trained_has_its_curve(drawn: list[Figure], kind: str):
    found = [text.split(": ")[0] for text in tips(of(drawn, kind))]
    assert sorted(found) == sorted(label for label in RUN if kind == "validation" or label != "One-shot")


def test_rows_of_one_label_in_two_groups_all_have_their_points(made: Made):
    (group,) = made.filled.groups
    lora = tuple(row for row in group.rows if row.row.label.startswith("LoRA"))
    two = replace(
        made.filled, groups=(replace(group, title="Medium", rows=lora), replace(group, title="Large", rows=lora))
    )
    with matplotlib.rc_context(drawing.STYLE):
        for draw in (figures._ranks, figures._sizes, figures._against_print):
            sketch = sketched(draw, two, 0)
            assert sketch is not None
            assert len(sketch.tips) == 2 * (4 + 3), sketch.kind


def test_rows_of_one_label_in_two_groups_are_told_apart(made: Made):
    (group,) = made.filled.groups
    first = group.rows[:1]
    two = replace(
        made.filled, groups=(replace(group, title="Medium", rows=first), replace(group, title="Large", rows=first))
    )
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._against_print, two, 0)
    assert sketch is not None
    labels = [label.get_text() for label in sketch.axes.get_yticklabels()]
    assert len(set(labels)) == 2, labels


def test_what_trains_nothing_is_absent_from_sizes_and_the_caption_says_so(made: Made, drawn: list[Figure]):
    size = of(drawn, "size", "bleu")
    assert "One-shot" not in size.svg.decode()
    assert size.caption.endswith("Rows that train nothing have no place here.")
    without = changed(made.filled, lambda row: row if row.trainable else None)
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._sizes, without, 0)
    assert sketch is not None and "train nothing" not in sketch.caption


def test_a_stray_value_is_told_as_text_and_the_axis_stays(made: Made):
    def change(row: FilledRow) -> FilledRow:
        stray = row.row.label == "FT"
        return with_cells(row, lambda cell: replace(cell, values=(1.0, 1.1, 1.2)) if stray else cell)

    with matplotlib.rc_context(drawing.STYLE):
        usual, odd = (
            sketched(figures._against_print, made.filled, 0),
            sketched(figures._against_print, changed(made.filled, change), 0),
        )
    assert usual is not None and odd is not None
    texts = [text.get_text() for text in odd.axes.texts]
    assert texts == ["off the axis: ours 1.10 ± 0.10 (n=3), print 70.0 ± 0.5"]
    assert [text.get_text() for text in usual.axes.texts] == []
    assert not any(tip.startswith("FT: ") for tip in odd.tips.values())
    low, high = odd.axes.get_xlim()
    assert 40 < low < 60 and 69.6 < high < 80
    assert odd.axes.get_yticklabels()[0].get_text() == "FT"


def test_equal_values_have_no_strays():
    low, high = figures._without_strays([70.0, 70.0, 70.0])
    assert low < 70 < high
    assert figures._without_strays([0.0, 0.0]) == (0, 0)


def test_the_range_of_reruns_is_drawn_and_in_the_legend(made: Made):
    around = Range(68.0, 71.0, 2, 0.05, 1)
    filled = changed(made.filled, lambda row: with_cells(row, lambda cell: replace(cell, reruns=around)))

    def legend(sketch: drawing.Sketch) -> list[str]:
        return [text.get_text() for found in sketch.canvas.legends for text in found.get_texts()]

    with matplotlib.rc_context(drawing.STYLE):
        without, with_ = sketched(figures._against_print, made.filled, 0), sketched(figures._against_print, filled, 0)
    assert without is not None and with_ is not None
    assert legend(without) == ["ours", "print"] and legend(with_) == ["ours", "print", "reruns"]
    assert all("reruns 68 to 71" in tip for tip in with_.tips.values())


def test_one_seed_has_no_spread(made: Made):
    filled = changed(made.filled, lambda row: with_cells(row, lambda cell: replace(cell, values=cell.values[:1])))
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._sizes, filled, 1)
    assert sketch is not None
    assert not any("±" in tip for tip in sketch.tips.values())
    assert sketch.axes.containers == []


# labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([], 0.1, []),
        ([0.5], 0.1, [0.5]),
        ([0.5, 0.5], 0.1, [0.45, 0.55]),
        ([0.1, 0.4, 0.9], 0.1, [0.1, 0.4, 0.9]),
        ([0.50, 0.51, 0.9], 0.1, [0.455, 0.555, 0.9]),
        ([0.5, 0.5, 0.5], 0.1, [0.4, 0.5, 0.6]),
        ([0.0, 0.0, 0.0], 0.1, [0.0, 0.1, 0.2]),
        ([1.0, 1.0], 0.1, [0.9, 1.0]),
        ([-0.2, 1.3], 0.1, [0.0, 1.0]),
        ([0.2, 0.3], 0.1, [0.2, 0.3]),
        ([0.5, 0.5, 0.5], 0.6, [0.0, 0.6, 1.2]),  # they don't fit: from the bottom on
    ],
)
def test_labels_are_spread_out(places: list[float], gap: float, expected: list[float]):
    assert drawing.spread_out(places, gap) == pytest.approx(expected)


def test_spread_out_labels_keep_order_gap_and_bounds_and_move_least():
    rng = random.Random(5)
    for _ in range(300):
        n = rng.randint(1, 12)
        gap = rng.uniform(0.01, 1 / n)
        places = sorted(rng.choice([rng.random(), 0.5, 1.0]) for _ in range(n))
        found = drawing.spread_out(places, gap)
        top = [b - a for a, b in pairwise(found)]
        assert len(found) == n and all(difference >= gap - 1e-9 for difference in top)
        assert found[0] >= -1e-9 and found[-1] <= 1 + 1e-9
        if all(b - a >= gap for a, b in pairwise(places)):
            assert found == pytest.approx(places)
        # Nothing else that fits is nearer: neither its neighbours nor anything between it and any other.
        moved = sum((a - b) ** 2 for a, b in zip(found, places, strict=True))
        slack = 1 - (n - 1) * gap
        for _ in range(20):
            above = sorted(rng.uniform(0, slack) for _ in range(n))
            share = rng.random() ** 4
            other = [f + share * (first + i * gap - f) for i, (f, first) in enumerate(zip(found, above, strict=True))]
            assert sum((a - b) ** 2 for a, b in zip(other, places, strict=True)) >= moved - 1e-9


def boxes(sketch: drawing.Sketch, texts: Sequence[Text]) -> list[tuple[str, tuple[float, float, float, float]]]:
    """What each text covers, in pixels, without its arrow."""
    sketch.canvas.draw_without_rendering()
    found = []
    for text in texts:
        extents = Text.get_window_extent(text)
        found.append((text.get_text(), (extents.x0, extents.y0, extents.x1, extents.y1)))
    return found


def overlapping(found: Sequence[tuple[str, tuple[float, float, float, float]]]) -> Iterator[tuple[str, str]]:
    for i, (one, a) in enumerate(found):
        for other, b in found[:i]:
            # A pixel of the 100 an inch: letters have room of their own in their boxes.
            if a[0] + 1 < b[2] and b[0] + 1 < a[2] and a[1] + 1 < b[3] and b[1] + 1 < a[3]:
                yield one, other


def crowded(filled: FilledTable, count: int) -> FilledTable:
    """So many rows near each other."""
    rng = random.Random(3)
    (group,) = filled.groups
    row = group.rows[0]
    rows = []
    for i in range(count):
        cells = tuple(replace(c, values=(68 + 0.4 * i / count + rng.gauss(0, 0.2),), printed=None) for c in row.cells)
        label = rng.choice(("PreLayer", "Adapter-L m=224", "S-LoDA+ s=0.4", "FT W_q,W_v", "FT")) + " " * i
        trainable = int(300_000 * (1 + rng.random() * 3))
        rows.append(replace(row, row=replace(row.row, label=label), cells=cells, trainable=trainable))
    return replace(filled, groups=(replace(group, rows=tuple(rows)),))


@pytest.mark.parametrize("count", [2, 6, 10, 14])
def test_labels_of_sizes_do_not_overlap(made: Made, count: int):
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._sizes, crowded(made.filled, count), 0)
        assert sketch is not None
        texts = [text for text in sketch.axes.texts if isinstance(text, Annotation)]
        assert len(texts) == count
        found = [(name.strip(), box) for name, box in boxes(sketch, texts)]
    assert list(overlapping(found)) == []
    inside = sketch.axes.get_window_extent()
    assert all(box[0] >= inside.x0 - 12 and box[2] <= inside.x1 + 12 for _, box in found)


def test_labels_at_the_ends_of_curves_do_not_overlap(made: Made):
    many = crowded(made.filled, 20)
    (group,) = many.groups
    first = made.filled.rows[0].records  # curves that all end at one place
    rows = tuple(replace(row, records=first) for row in group.rows)
    with matplotlib.rc_context(drawing.STYLE):
        sketch = figures._training(figures._named(replace(many, groups=(replace(group, rows=rows),))), made.root)
        assert sketch is not None
        texts = [text for text in sketch.axes.texts if isinstance(text, Annotation)]
        assert len(texts) == 20
        found = boxes(sketch, texts)
    assert list(overlapping(found)) == []
    width, height = sketch.canvas.bbox.width, sketch.canvas.bbox.height
    assert all(box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height for _, box in found)


# the files --------------------------------------------------------------------------------------

DRAW = """\
import pickle, sys
from pathlib import Path
from lodarepro.report import figures
filled, root = pickle.loads(Path(sys.argv[1]).read_bytes())
drawn = figures.of_table(filled, root)
assert "matplotlib.pyplot" not in sys.modules  # it would want a display
Path(sys.argv[1]).write_bytes(pickle.dumps([(f.name, f.svg, f.png, f.inline) for f in drawn]))
"""


def small(filled: FilledTable) -> FilledTable:
    """The table with its second column alone."""
    filled = changed(filled, lambda row: replace(row, cells=row.cells[1:]))
    return replace(filled, table=replace(filled.table, columns=filled.table.columns[1:]), columns=filled.columns[1:])


def test_the_same_records_are_the_same_bytes_in_another_process(made: Made, drawn: list[Figure], tmp_path: Path):
    file = tmp_path / "drawn"
    file.write_bytes(pickle.dumps((small(made.filled), made.root)))
    env = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    subprocess.run([sys.executable, "-c", DRAW, str(file)], env=env, check=True)
    found = pickle.loads(file.read_bytes())
    assert found == [(f.name, f.svg, f.png, f.inline) for f in drawn if f.metric != "bleu"]
    assert len(found) == 5


def test_drawing_again_gives_the_same_bytes_and_leaves_the_settings(made: Made, drawn: list[Figure]):
    before = dict(matplotlib.rcParams)
    few = changed(small(made.filled), lambda row: row if row.row.label in ("FT", HOSTILE) else None)
    first, second = (of_table(few, made.root) for _ in range(2))
    assert first == second and len(first) == 4
    assert dict(matplotlib.rcParams) == before


def test_files_are_whole_and_without_a_date(drawn: list[Figure]):
    for figure in drawn:
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<dc:date>" not in figure.svg
        with Image.open(io.BytesIO(figure.png)) as image:
            image.load()
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.width == pytest.approx(drawing.WIDTH * 200, abs=1)
            colours = image.convert("RGBA").getpixel((0, 0))
        assert colours == (255, 255, 255, 255)  # paper, not transparent


def test_svg_for_a_page_is_whole_and_has_ids_of_its_own(drawn: list[Figure]):
    ids: list[str] = []
    for figure in drawn:
        root = ElementTree.fromstring(figure.inline)
        of_one = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert of_one and all(id.startswith(f"{figure.name}-") for id in of_one)
        references = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', figure.inline)
        assert {a or b for a, b in references} <= set(of_one)
        assert "width" not in root.attrib and "height" not in root.attrib and "viewBox" in root.attrib
        assert root.get("role") == "img"
        assert root.get("aria-label", "").endswith(figure.caption)
        ids += of_one
    assert len(set(ids)) == len(ids)


def test_every_colour_in_a_page_is_the_themes(drawn: list[Figure]):
    for figure in drawn:
        # The ends of error bars are lines: matplotlib fills them in its own blue, where there is nothing to fill.
        seen = re.sub(r'style="fill: #1f77b4; stroke: var\(--', "", figure.inline)
        assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\"'])", seen) == []
        assert not [colour for colour in drawing.THEMED if colour in figure.inline]
        assert figure.inline.count("var(--ink)") and figure.inline.count("var(--series-")
        assert "var(--" not in figure.svg.decode()


def test_the_page_defines_every_colour_of_the_figures():
    style = (Path(figures.__file__).parent / "page" / "page.css").read_text(encoding="utf-8")
    themes = re.findall(r"\{([^{}]*--series-0:[^{}]*)\}", style)
    assert len(themes) == 4  # light, dark by choice, dark by preference, print
    wanted = {value.removeprefix("var(").removesuffix(")") for value in drawing.THEMED.values()}
    assert len(wanted) == len(drawing.THEMED)
    for theme in themes:
        assert wanted <= set(re.findall(r"(--[\w-]+):", theme))


def test_titles_and_labels_are_escaped(drawn: list[Figure]):
    for kind in ("print", "size", "training", "validation"):
        figure = of(drawn, kind, None if kind in ("training", "validation") else "cider")
        assert any(text.startswith(f"{HOSTILE}: ") for text in tips(figure))
        for svg in (figure.svg.decode(), figure.inline):
            assert "<b>" not in svg and "&lt;b&gt;" in svg
            assert HOSTILE in [
                text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
            ]


def test_a_dollar_in_a_label_is_text(made: Made):
    label = r"$\nosuch$ of 5"
    filled = changed(
        small(made.filled),
        lambda row: replace(row, row=replace(row.row, label=label)) if row.row.label == "FT" else row,
    )
    with matplotlib.rc_context(drawing.STYLE):
        sketch = sketched(figures._against_print, filled, 0)
        assert sketch is not None
        figure = drawing.finished(sketch, "own")
    assert label in [text.text for text in ElementTree.fromstring(figure.svg).iter("{http://www.w3.org/2000/svg}text")]
