"""The records that the repository keeps give the tables that it keeps, byte for byte."""

import re
import shutil
from pathlib import Path

import pytest

from lodarepro import records
from lodarepro.cli import main
from tests.script import script

ROOT = Path(__file__).resolve().parent.parent.parent
MINI, NANO = ROOT / "results" / "mini", ROOT / "results" / "nano"

# The rows of rank 4 are in both tables of nano.
RUNS = {MINI: 7 * 3, NANO: (15 + 16 - 3) * 3}


@pytest.fixture
def results(kept: Path, tmp_path: Path) -> Path:
    """The kept records alone."""
    shutil.copytree(kept / "runs", tmp_path / "runs")
    return tmp_path


@pytest.mark.parametrize("kept", RUNS, ids=lambda folder: folder.name)
def test_the_kept_records_are_whole_and_of_clean_code(kept, results):
    found = [records.finished(folder) for folder in records.runs(results)]
    assert len(found) == RUNS[kept]
    assert {record.config["seed"] for record in found} == {1, 2, 3}
    assert not any(record.provenance["code"]["dirty"] for record in found)


@pytest.mark.parametrize("kept", RUNS, ids=lambda folder: folder.name)
def test_the_kept_records_name_no_place_of_the_machine_that_made_them(kept, results):
    for folder in records.runs(results):
        assert [path.name for path in folder.iterdir()] == [records.RECORD]
        absolute = re.compile(r'"([\w.]+=)?/')
        assert not absolute.search((folder / records.RECORD).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kept", "names"), [(MINI, ["mini"]), (NANO, ["loda-1-nano", "loda-3-nano"])])
def test_they_render_to_the_same_bytes(kept, names, results, capsys):
    assert main(["table", *names, f"results.root={results}"]) == 0
    assert {path.stem for path in (kept / "tables").iterdir()} == set(names)
    for table in (kept / "tables").iterdir():
        assert (results / "tables" / table.name).read_bytes() == table.read_bytes(), table.name
    assert capsys.readouterr().out.startswith((kept / "tables" / f"{names[0]}.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kept", [MINI])
def test_the_readme_has_the_demos_table(kept, results, capsys):
    readme_table = script("readme_table")
    assert main(["table", "mini", f"results.root={results}", "--seeds", "1"]) == 0
    table = readme_table.demo_table((results / "tables" / "mini.md").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_table.with_table(readme, table) == readme
    assert "not run" not in table
