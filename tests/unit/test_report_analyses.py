"""The files of an analysis: Markdown, CSV, JSON and pictures, and what reading damaged ones says."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import findings
from lodarepro.errors import BadInput
from lodarepro.findings import Column, Curves, Findings, Grid, HeatMap, Line, Panel
from lodarepro.report import analyses

HOSTILE = 'a | b\n<script>x</script> , "q"'
GRID = Grid(
    "share",
    "Share of the energy",
    (Column("block", "block"), Column("parameters", "parameters"), Column("share_percent", "share (%)", 1)),
    (("first", 1_048_576, 12.345678901234567), ("second", None, -0.001), (HOSTILE, 7, None)),
)
PLOTS = (
    HeatMap("phi", "Map", "How.", "x", "y", "φ", ((Panel("one", ("1", "2"), ("a",), ((0.5, None),)),),), low=0, high=1),
    Curves("lines", "Lines", "How.", "x", "y", (Line("ours", (1.0, 2.0), (3.0, 4.0), (0.1, 0.2), notes=("", "two")),)),
)
FOUND = Findings(
    analysis="energy",
    name="energy_mini_0123456789ab",
    title="Energy of updates",
    source="LoDA, Figure 2",
    settings={"model": "gpt2-nano", "ranks": [1, 2]},
    provenance={
        "code": {"version": "0.1", "commit": "abc", "dirty": True},
        "machine": {"processor": "Some processor"},
        "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
        "device": "cpu",
    },
    grids=(GRID, Grid("all", "All", (Column("x", "x"),), ((0.1,), (1e-17,)), shown=False)),
    plots=PLOTS,
    notes=("One\nnote.", "Another."),
    files={"settings.yaml": "rank: 4\n"},
)
MARKDOWN = """\
# Energy of updates

LoDA, Figure 2

## Share of the energy

| block                              | parameters | share (%) |
|------------------------------------|-----------:|----------:|
| first                              |  1,048,576 |      12.3 |
| second                             |          – |       0.0 |
| a \\| b <script>x</script> , "q"    |          7 |         – |

- One note.
- Another.

lodarepro 0.1, commit abc with uncommitted changes, Some processor, cpu, torch 2.13.0
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return analyses.write(FOUND, tmp_path_factory.mktemp("results"))


# texts ------------------------------------------------------------------------------------------


def test_markdown_has_the_tables_that_are_shown():
    lines = [re.sub(r" +", " ", line) for line in analyses.markdown(FOUND).splitlines()]
    assert re.sub("-+", "-", "\n".join(lines)) == re.sub("-+", "-", re.sub(r" +", " ", MARKDOWN.strip()))


def test_lines_of_a_markdown_table_are_equally_long():
    lines = [line for line in analyses.markdown(FOUND).splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1


def test_markdown_without_what_is_not_known():
    bare = replace(FOUND, grids=(), notes=(), provenance={"code": {"version": "0.1", "commit": None, "dirty": None}})
    assert analyses.markdown(bare) == "# Energy of updates\n\nLoDA, Figure 2\n\nlodarepro 0.1\n"


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (None, 2, "–"),
        (1234567, 2, "1,234,567"),
        (0.125, 1, "0.1"),
        (-0.04, 1, "0.0"),
        (12.0, 0, "12"),
        (1e-9, 2, "0.00"),
        ("two\nlines", 2, "two lines"),
        ("1234", 2, "1234"),
    ],
)
def test_cells_as_they_are_shown(value: findings.Value, decimals: int, expected: str):
    assert analyses.shown(value, decimals) == expected


def test_csv_has_all_digits_and_gives_back_what_it_was_given():
    head, *rows = csv.reader(analyses.as_csv(GRID).splitlines(keepends=True))
    assert head == ["block", "parameters", "share_percent"]
    assert rows == [
        ["first", "1048576", "12.345678901234567"],
        ["second", "", "-0.001"],
        [HOSTILE, "7", ""],
    ]
    assert [float(row[2]) for row in rows[:2]] == [row[2] for row in GRID.rows[:2]]


# the folder -------------------------------------------------------------------------------------

NAMES = {"analysis.json", "analysis.md", "all.csv", "share.csv", "settings.yaml"} | {
    f"{key}.{ending}" for key in ("phi", "lines") for ending in ("png", "svg")
}


def test_an_analysis_has_its_files(written: Path):
    assert written.name == FOUND.name and written.parent.name == "analyses"
    assert {path.name for path in written.iterdir()} == NAMES
    assert (written / "analysis.md").read_text(encoding="utf-8") == analyses.markdown(FOUND)
    assert (written / "share.csv").read_text(encoding="utf-8") == analyses.as_csv(GRID)
    assert (written / "settings.yaml").read_text() == "rank: 4\n"
    assert (written / "phi.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (written / "lines.svg").read_bytes()


def test_what_was_written_is_read_back(written: Path):
    assert findings.read(written / "analysis.json") == FOUND
    assert findings.all_below(written.parent.parent) == [FOUND]


def test_a_file_elsewhere_is_not_removed_whatever_an_old_analysis_names(tmp_path: Path):
    folder = analyses.write(FOUND, tmp_path)
    (tmp_path / "mine.csv").write_text("x\n")
    findings.write(tmp_path, replace(FOUND, files={"../../mine.csv": ""}))
    analyses.write(FOUND, tmp_path)
    assert (tmp_path / "mine.csv").exists()
    assert folder.is_dir()


def test_files_may_be_in_folders(tmp_path: Path):
    folder = analyses.write(replace(FOUND, files={"sweep/one.yaml": "x: 1\n"}), tmp_path)
    assert (folder / "sweep" / "one.yaml").read_text() == "x: 1\n"
    analyses.write(FOUND, tmp_path)
    assert not (folder / "sweep" / "one.yaml").exists()


def test_writing_again_changes_nothing_and_leaves_nothing_of_before(written: Path):
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    (written / "my-notes.txt").write_text("x\n")
    root = written.parent.parent
    assert analyses.write(FOUND, root) == written
    (written / "my-notes.txt").unlink()  # which is no business of the analysis's
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    fewer = replace(FOUND, plots=(), grids=FOUND.grids[:1], files={})
    analyses.write(fewer, root)
    assert {path.name for path in written.iterdir()} == {"analysis.json", "analysis.md", "share.csv"}
    assert findings.all_below(root) == [fewer]
    analyses.write(FOUND, root)


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path):
    folder = analyses.write(replace(FOUND, plots=(), notes=("half \ud83c",)), tmp_path)
    assert "- half ?" in (folder / "analysis.md").read_text(encoding="utf-8")
    assert findings.read(folder / "analysis.json").notes == ("half ?",)


def test_a_place_that_can_not_be_written(tmp_path: Path):
    (tmp_path / "analyses").write_text("a file")
    with pytest.raises(BadInput, match=r"can't be \w+ \(.*\); .*"):
        analyses.write(replace(FOUND, plots=()), tmp_path)


# reading ----------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    tree = json.loads(json.dumps(asdict(FOUND)))
    change(tree)
    return json.dumps(tree)


DAMAGES = {
    "no JSON": ('{"schema": 1', r" is not an analysis \(.*\); delete its folder"),
    "no tree": ("[1]", r" is not an analysis \(.*\); delete its folder"),
    "empty": ("{}", r" is not an analysis \('schema'\); delete its folder"),
    "another schema": (
        changed(lambda tree: tree.update(schema=2)),
        r" has schema 2, this version reads 1; do the analysis again or delete it",
    ),
    "no title": (changed(lambda tree: tree.pop("title")), r" is not an analysis \(title: .*\); delete its folder"),
    "a plot of no kind": (
        changed(lambda tree: tree["plots"][0].update(kind="pie")),
        r" is not an analysis \(plots\.0\..*\); delete its folder",
    ),
    "a row of no values": (
        changed(lambda tree: tree["grids"][0].update(rows=[[{"a": 1}]])),
        r" is not an analysis \(grids\.0\.rows.*\); delete its folder",
    ),
}


@pytest.mark.parametrize(("text", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_findings_are_told_in_a_line(tmp_path: Path, text: str, message: str):
    path = tmp_path / "analysis.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        findings.read(path)
    (line,) = caught.value.faults
    assert re.fullmatch(re.escape(str(path)) + message, line), line


def test_findings_that_are_not_text_are_told(tmp_path: Path):
    path = tmp_path / "analysis.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"is not an analysis \(.*\); delete its folder"):
        findings.read(path)


def test_findings_that_are_not_there_are_told(tmp_path: Path):
    with pytest.raises(BadInput, match=r"can't be used \(No such file or directory\); check the path"):
        findings.read(tmp_path / "analysis.json")
