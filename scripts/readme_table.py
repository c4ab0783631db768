"""Render the tables of `results/mini` and the README's table from the records there.

    lodarepro table mini --run results.root=results/mini hydra/launcher=parallel    # makes the records
    python scripts/readme_table.py

Only the records are kept in git, without the texts and what was trained.
"""

from __future__ import annotations

from pathlib import Path

from lodarepro.cli import main

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "results.root=results/mini"
BEGIN, END = "<!-- table mini: written by scripts/readme_table.py -->\n", "<!-- end of table mini -->\n"


def demo_table(markdown: str) -> str:
    """The table alone of a rendered file."""
    parts = markdown.split("\n\n")
    return next(part for part in parts if part.startswith("|"))


def with_table(readme: str, table: str) -> str:
    """A README with another table between its marks."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table}\n{END}{after}"


def run() -> None:
    """Write `results/mini/tables/` and the README's table, which is that of the demo: of the first seed."""
    folder = ROOT / "results" / "mini" / "tables"
    assert main(["table", "mini", RESULTS, "--seeds", "1"]) == 0
    readme = ROOT / "README.md"
    table = demo_table((folder / "mini.md").read_text(encoding="utf-8"))
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    assert main(["table", "mini", RESULTS]) == 0


if __name__ == "__main__":
    run()
