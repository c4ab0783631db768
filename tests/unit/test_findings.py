"""What an analysis leaves: read as it was written, named by what decides it, and one line where it is damaged."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import findings
from lodarepro.errors import BadInput
from lodarepro.findings import Column, Curves, Findings, Grid, HeatMap, Line, Panel, labels, named, readable
from lodarepro.records import Record

FOUND = Findings(
    analysis="subspace",
    name="subspace_mini_0123456789ab",
    title="Shared “directions”, φ",
    source="nowhere",
    settings={"runs": [{"run": "a"}], "seed": 1, "budget": None},
    provenance={"device": "cpu"},
    grids=(
        Grid("one", "One", (Column("a", "A"), Column("b", "B", 4)), (("x | y\n", 1), (None, 0.1), (-3, 1e300))),
        Grid("none", "None", (Column("a", "A"),), (), shown=False),
    ),
    plots=(
        HeatMap("map", "M", "c", "x", "y", "v", (((Panel("p", ("1",), ("a", "b"), ((0.5,), (None,)))),),), low=0.0),
        Curves(
            "lines", "L", "c", "x", "y", (Line("l", (1.0,), (2.0,), (0.5,), role="print", notes=("n",)),), log_y=True
        ),
    ),
    notes=("A note.",),
    files={"sweep/x.yaml": "a: 1\n"},
)


def written(root: Path, found: Findings = FOUND) -> Path:
    folder = findings.folder_of(root, found)
    folder.mkdir(parents=True)
    findings.write(root, found)
    return folder / findings.FILE


def fault(path: Path) -> str:
    with pytest.raises(BadInput) as e:
        findings.read(path)
    (line,) = e.value.faults
    assert "\n" not in line
    return line


# files ------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path):
    path = written(tmp_path)
    assert path == tmp_path / "analyses" / FOUND.name / "analysis.json"
    assert findings.read(path) == FOUND
    assert json.loads(path.read_text(encoding="utf-8"))["title"] == FOUND.title
    assert [type(plot) for plot in findings.read(path).plots] == [HeatMap, Curves]


def test_half_a_surrogate_pair_is_no_hindrance(tmp_path: Path):
    assert findings.read(written(tmp_path, replace(FOUND, title="a\ud800b"))).title == "a?b"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_json_is_not_written(value: float, tmp_path: Path):
    bad = replace(FOUND, grids=(Grid("one", "One", (Column("a", "A"),), ((value,),)),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(tmp_path, bad)
    assert not (tmp_path / "analyses" / FOUND.name / "analysis.json").exists()


def test_all_below_a_folder_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b_2", "a_1", "c_3"):
        written(tmp_path, replace(FOUND, name=name))
    (tmp_path / "analyses" / "unfinished").mkdir()
    (tmp_path / "analyses" / "a file").write_text("")
    assert [found.name for found in findings.all_below(tmp_path)] == ["a_1", "b_2", "c_3"]
    assert findings.all_below(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "{} has schema 2, this version reads 1; do the analysis again or delete it"),
        ({"grids": 3}, "{} is not an analysis (grids: "),
        ({"plots": [{"kind": "pie"}]}, "{} is not an analysis (plots.0"),
        ({"title": None}, "{} is not an analysis (title: "),
    ],
)
def test_a_file_of_another_form(change: dict[str, Any], said: str, tmp_path: Path):
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert fault(path).startswith(said.format(path))
    assert "delete" in fault(path)


@pytest.mark.parametrize("key", ["schema", "grids", "name"])
def test_a_file_that_lacks_a_key(key: str, tmp_path: Path):
    path = written(tmp_path)
    tree = json.loads(path.read_text())
    del tree[key]
    path.write_text(json.dumps(tree))
    assert fault(path).startswith(f"{path} is not an analysis (")
    assert key in fault(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'"text"', b"null", b"\xff\xfe\x00", b'{"schema": 1}'])
def test_a_file_that_is_none(content: bytes, tmp_path: Path):
    path = written(tmp_path)
    path.write_bytes(content)
    assert fault(path).startswith(f"{path} is not an analysis (")
    with pytest.raises(BadInput):
        findings.all_below(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path):
    assert (
        fault(tmp_path / "x.json")
        == f"{tmp_path / 'x.json'}: can't be used (No such file or directory); check the path"
    )


# names ------------------------------------------------------------------------------------------


def test_a_name_follows_from_the_settings():
    settings = {"runs": ["a", "b"], "seed": 1}
    name = named("errors", "mini", settings)
    assert name.startswith("errors_mini_")
    assert len(name.rpartition("_")[2]) == 12
    assert name == named("errors", "mini", {"seed": 1, "runs": ["a", "b"]})  # in whichever order
    others: list[dict[str, Any]] = [
        {**settings, "seed": 2},
        {**settings, "runs": ["b", "a"]},
        {**settings, "more": None},
        {"seed": 1},
        {},
    ]
    assert len({name, *(named("errors", "mini", other) for other in others)}) == 6


def record(
    method: str = "lora", rank: int | None = 4, seed: int = 1, dataset: str = "e2e", run_id: str | None = None
) -> Record:
    config = {
        "method": {"name": method, **({} if rank is None else {"rank": rank})},
        "seed": seed,
        "dataset": {"name": dataset},
        "model": {"name": "gpt2-nano"},
    }
    run_id = run_id or f"{dataset}_{method}-r{rank}_s{seed}_0123456789ab"
    return Record(run_id, config, {}, {}, {}, {}, ())


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record()], ["lora r=4"]),
        ([record(), record(rank=8)], ["lora r=4", "lora r=8"]),
        ([record(), record("ft", None)], ["lora r=4", "ft"]),
        ([record(), record(seed=2)], ["lora r=4 s1", "lora r=4 s2"]),
        ([record(), record(dataset="dart")], ["lora r=4 e2e", "lora r=4 dart"]),
        ([record(), record(seed=2), record(rank=8)], ["lora r=4 s1", "lora r=4 s2", "lora r=8 s1"]),
        (
            [record(run_id="x_aaaaaaaaaaaa"), record(run_id="x_bbbbbbbbbbbb")],
            ["lora r=4 aaaaaaaaaaaa", "lora r=4 bbbbbbbbbbbb"],
        ),
        ([record(), record()], ["lora r=4 1", "lora r=4 2"]),
    ],
)
def test_labels_say_what_tells_runs_apart(records: list[Record], expected: list[str]):
    assert labels(records) == expected


def test_labels_are_all_different():
    """Of any three of runs that are equal in some of what is looked at."""
    some = [
        record(),
        record(seed=2),
        record(dataset="dart"),
        record(seed=2, dataset="dart"),
        record(run_id="other_ffffffffffff"),
        record("ft", None),
        record("lora", 4, 1, "e2e", "same last digits_0123456789ab"),
    ]
    for records in itertools.product(some, repeat=3):
        assert len(set(labels(records))) == 3


def test_runs_in_a_folders_name():
    assert readable([record(), record(rank=8)]) == "e2e-gpt2-nano-lora-r4-lora-r8"
    assert len(readable([record(seed=i) for i in range(40)])) == findings.LONGEST
    assert not set(readable([record(seed=i) for i in range(3)])) & set(" =/|")
