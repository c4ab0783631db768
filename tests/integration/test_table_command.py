"""`lodarepro table` and `lodarepro plan` on a table of the user's own, with real runs."""

import csv
import importlib
import json
import re
from pathlib import Path

import pytest

from lodarepro.cli import main

TABLE = """\
title: A table of ours
source: Nowhere (2026), Table 9
cell: [model=gpt2-nano, dataset=mini, {settings}]
columns: {{val_loss: nats, bleu: percent}}
notes: {{why: Because of this.}}
groups:
  - title: Few
    rows:
      - {{label: LoRA r=2, cell: [method=lora, method.rank=2], params: 0.26M, print: [5.70 ± 0.30, 0.1], notes: [why]}}
  - title: Many
    rows:
      - {{label: FT, cell: [method=ft{ft}], print: [1.00, "?"]}}
"""


@pytest.fixture
def table(settings: list[str], tmp_path: Path) -> list[str]:
    """The arguments of the command on a table of two rows that take a second each; results of this test's own."""
    own = [text for text in settings if text.partition(".")[0] in ("train", "decode") or "dataset.limit" in text]
    own += [text for text in settings if re.match(r"model\.n_|model\.vocab", text)]
    file = tmp_path / "mine.yaml"
    file.write_text(TABLE.format(settings=", ".join(own), ft=""))
    places = [text for text in settings if text.startswith("model.path")]
    return [str(file), *places, f"results.root={tmp_path / 'results'}"]


def sweeps(root: Path) -> list[Path]:
    return sorted((root / "results" / "sweeps").glob("*"))


def test_a_table_is_filled_by_what_is_missing_and_only_that(table, tmp_path, capsys):
    assert main(["table", *table]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not run") == 4
    assert "| **Many**" in shown
    assert not (tmp_path / "results" / "runs").exists()

    assert main(["table", *table, "--run", "--seeds", "1,2"]) == 0
    shown = capsys.readouterr()
    assert "4 runs left, 0 done; about" in shown.out
    assert "Rate measured on this CPU (fp32, 1 thread)" in shown.out
    assert shown.out.index("4 runs left") < shown.out.index("## A table of ours: Nowhere (2026), Table 9")
    assert "cells: 4 of 4 done" in shown.err
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in shown.out.splitlines() if "| ours" in line
    ]
    assert [row[3] for row in rows if row[1] == "ours"] == ["2", "2"]
    assert "±" not in rows[0][4], "two seeds are no spread"
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 4
    assert len(sweeps(tmp_path)) == 1

    assert main(["table", *table, "--run", "--seeds", "1,2"]) == 0
    shown = capsys.readouterr()
    assert "mine: no cell is missing" in shown.err
    assert "runs left" not in shown.out
    assert len(sweeps(tmp_path)) == 1

    assert main(["table", *table, "--run"]) == 0  # the table's own three seeds
    shown = capsys.readouterr()
    assert "2 runs left, 4 done" in shown.out
    assert "cells: 2 of 2 done" in shown.err
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 6
    assert "±: sample standard deviation over n seeds." in shown.out

    folder = tmp_path / "results" / "tables"
    assert sorted(path.name for path in folder.iterdir()) == ["mine.csv", "mine.json", "mine.md", "mine.tex"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["table", *table, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "the same records, the same bytes"
    assert len(tree["groups"][0]["rows"][0]["runs"]) == 3
    lines = list(csv.DictReader((folder / "mine.csv").read_text().splitlines()))
    assert [line["n"] for line in lines] == ["3"] * 4

    assert main(["table", *table, "--check"]) == 1
    shown = capsys.readouterr().out
    verdicts = {"within print": 1, "within reruns": 0, "outside": 2, "not run": 0, "failed": 0}
    assert ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) in shown
    (line, _) = [line for line in shown.splitlines() if "verdict" in line and line.startswith("|")]
    assert "within print" in line and "outside" in line


def test_a_failed_cell_is_said_in_the_table_and_by_the_status(table, settings, tmp_path, capsys):
    file = Path(table[0])
    file.write_text(file.read_text().replace("method=ft", "method=ft, train.lr=1e30"))
    # The last of equal keys counts, so that the row's learning rate is its own.
    assert main(["table", *table, "--run", "--seeds", "1"]) == 1
    shown = capsys.readouterr()
    assert "training diverged" in shown.err
    assert re.search(r"\| FT \[\w\] +\| ours +\| +[\d,]+ \| 0 \| +failed \| +failed \|", shown.out)
    assert "Seed 1 failed: the loss is" in shown.out
    assert main(["table", *table, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert main(["table", *table, "--run", "--seeds", "1"]) == 1
    shown = capsys.readouterr()
    assert "it failed before: runtime.retry=true tries again" in shown.err
    assert "runs left" not in shown.out, "there is nothing to plan"


def test_a_plan_of_a_table_and_of_a_sweep(table, settings, tmp_path, capsys):
    assert main(["plan", *table, "--gpu", "a100", "--utilisation", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in shown.splitlines()[2:4]] == ["Few: LoRA r=2", "Many: FT"]
    assert "6 runs left, 0 done" in shown
    assert "Rate stated: 50 % of the 19.5 TFLOP/s (fp32) of one a100." in shown
    root = f"results.root={tmp_path / 'results'}"
    assert main(["plan", *settings, root, "seed=1,2", "--gpu", "a100", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [cell["left"] for cell in tree] == [1, 1]
    assert tree[0]["sizes"] == "counted"
    assert not (tmp_path / "results").exists()


def test_json_stays_json_whatever_runs_before(table, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(Path(table[0]).read_text())
    assert main(["table", *table, str(other), "--run", "--seeds", "1", "--json"]) == 0
    shown = capsys.readouterr()
    first, second = json.loads(shown.out)
    assert (first["table"], second["table"]) == ("mine", "other")
    assert first["groups"] == second["groups"]
    assert "2 runs left, 0 done" in shown.err


def test_a_job_that_cannot_leave_its_status_is_no_cell_that_was_not_run(table, monkeypatch, capsys):
    def full(folder: Path, status: object) -> None:
        raise OSError(28, "No space left on device", str(folder))

    # The package's name `job` is the function.
    monkeypatch.setattr(importlib.import_module("lodarepro.launch.job"), "write_status", full)
    assert main(["table", *table, "--run", "--seeds", "1"]) == 2
    assert "can't be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"schema": 1, "evaluations": []}', "is not a record"),
        ("{", "is not a record"),
        ("null", "is not a record"),
    ],
)
def test_a_damaged_record_is_one_line(table, tmp_path, content, part, capsys):
    folder = tmp_path / "results" / "runs" / "some_run"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(content)
    for command in (["table", *table], ["table", *table, "--run"], ["plan", *table, "--gpu", "a100"]):
        assert main(command) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("lodarepro:")]
        assert part in line and str(folder / "record.json") in line


def test_records_that_cannot_be_read_do_not_pass_for_not_run(table, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "results" / "runs"
    runs.mkdir(parents=True)
    iterdir = Path.iterdir

    def barred(path: Path):
        if path == runs:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", barred)
    for command in (["table", *table], ["plan", *table, "--gpu", "a100"]):
        assert main(command) == 2
        assert capsys.readouterr().err == f"lodarepro: {runs}: can't be used (Permission denied); check the path\n"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["table"],
            "which table? (valid: loda-1, loda-1-nano, loda-2, loda-3, loda-3-nano, lora-13, lora-14, lora-18, lora-3, "
            "mini, or a YAML file)",
        ),
        (["table", "loda1"], "loda1: no such table; did you mean 'loda-1'?"),
        (["table", "mini", "train.epochs=3"], "train.epochs=3: would make other cells than the table's"),
        (["plan", "mini", "--utilisation", "0.5"], "--utilisation: means nothing for a measured rate"),
        (["plan", "mini", "--gpu", "h1000"], "--gpu h1000: no such GPU; did you mean 'h100'?"),
        (["plan", "metod=lora"], "metod=lora: no such key or choice; did you mean 'method'?"),
    ],
)
def test_bad_input_is_one_line(arguments, fault, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lodarepro: {fault}")


def test_what_is_out_of_reach_is_said_once_before_anything_starts(tmp_path, capsys):
    status = main(
        ["table", "lora-3", "--run", "data.base_url=http://127.0.0.1:9", f"results.root={tmp_path / 'results'}"]
    )
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one for each model
    assert "openai-community/gpt2-medium" in lines[0] and "openai-community/gpt2-large" in lines[1]
    assert not (tmp_path / "results").exists()
