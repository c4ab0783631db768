"""The records that the repository keeps give the tables that it keeps, byte for byte."""

import shutil
from pathlib import Path

import pytest

from lodarepro import records
from lodarepro.cli import main
from tests.script import script

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "results" / "mini"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The kept records alone."""
    shutil.copytree(KEPT / "runs", tmp_path / "runs")
    return tmp_path


def test_the_kept_records_are_whole_and_of_clean_code(results):
    found = [records.finished(folder) for folder in records.runs(results)]
    assert len(found) == 7 * 3
    assert {record.config["seed"] for record in found} == {1, 2, 3}
    assert not any(record.provenance["code"]["dirty"] for record in found)
    assert len({record.provenance["code"]["commit"] for record in found}) == 1


def test_they_render_to_the_same_bytes(results, capsys):
    assert main(["table", "mini", f"results.root={results}"]) == 0
    for kept in (KEPT / "tables").iterdir():
        assert (results / "tables" / kept.name).read_bytes() == kept.read_bytes(), kept.name
    assert capsys.readouterr().out.startswith((KEPT / "tables" / "mini.md").read_text(encoding="utf-8"))


def test_the_readme_has_the_demos_table(results, capsys):
    readme_table = script("readme_table")
    assert main(["table", "mini", f"results.root={results}", "--seeds", "1"]) == 0
    table = readme_table.demo_table((results / "tables" / "mini.md").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_table.with_table(readme, table) == readme
    assert "not run" not in table
