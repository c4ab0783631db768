"""Guard: every cell of every table composes and is counted, and what stands beside it is what the papers print."""

import json
from collections import Counter
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from lodarepro import compose, cost, tables
from lodarepro.archive import Archive
from lodarepro.config import Run
from lodarepro.report import aggregate
from lodarepro.report import table as shown
from lodarepro.report.aggregate import Counts, row_key
from lodarepro.tables import Row, Table

PAPERS = ["loda-1", "loda-2", "loda-3", "lora-13", "lora-14", "lora-18", "lora-3"]
NAMES = [*PAPERS, "loda-1-nano", "loda-3-nano", "mini"]
WITH_SWEEP = ["loda-3", "lora-18"]
NOT_OF_CELLS = {"lora-1"}  # times of forward passes

# Counts by hand: blocks, width d, and what stands in each.
FT_MEDIUM = 50257 * 1024 + 1024 * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024
ADAPTER_H = 24 * 2 * (2 * 1024 * 112 + 112 + 1024)
TOP_2 = 2 * (12 * 1024**2 + 13 * 1024)
PREFIX_MEDIUM, PREFIX_LARGE = 24 * 2 * 5 * 1024, 36 * 2 * 5 * 1280
LORA_MEDIUM, LORA_LARGE = 24 * 2 * 2 * 4 * 1024, 36 * 2 * 2 * 4 * 1280
DISAGREEING = {
    "loda-1": {
        "FT": ("354.92M", FT_MEDIUM),
        "Adapter-H": ("11.09M", ADAPTER_H),
        "PreLayer": ("0.35M", PREFIX_MEDIUM),
    },
    "lora-3": {
        "GPT-2 Medium: FT": ("354.92M", FT_MEDIUM),
        "GPT-2 Medium: Adapter-H": ("11.09M", ADAPTER_H),
        "GPT-2 Medium: PreLayer": ("0.35M", PREFIX_MEDIUM),
        "GPT-2 Medium: LoRA r=4": ("0.35M", LORA_MEDIUM),
        "GPT-2 Large: PreLayer": ("0.77M", PREFIX_LARGE),
        "GPT-2 Large: LoRA r=4": ("0.77M", LORA_LARGE),
    },
    "lora-13": {
        "GPT-2 Medium: FT": ("354M", FT_MEDIUM),
        "GPT-2 Medium: FT-Top2": ("24M", TOP_2),
        "GPT-2 Medium: PreLayer": ("0.35M", 2 * PREFIX_MEDIUM),  # on DART twice as long a prefix
        "GPT-2 Medium: LoRA r=4": ("0.35M", LORA_MEDIUM),
        "GPT-2 Large: PreLayer": ("0.77M", 2 * PREFIX_LARGE),
        "GPT-2 Large: LoRA r=4": ("0.77M", LORA_LARGE),
    },
    "lora-14": {
        "GPT-2 Medium: FT": ("354M", FT_MEDIUM),
        "GPT-2 Medium: FT-Top2": ("24M", TOP_2),
        "GPT-2 Medium: PreLayer": ("0.35M", PREFIX_MEDIUM),
        "GPT-2 Medium: LoRA r=4": ("0.35M", LORA_MEDIUM),
        "GPT-2 Large: PreLayer": ("0.77M", PREFIX_LARGE),
        "GPT-2 Large: LoRA r=4": ("0.77M", LORA_LARGE),
    },
}
"""rows whose printed number of trainable parameters is not what counting gives: both"""


@cache
def read(name: str) -> Table:
    return tables.read(name)


def rows(name: str) -> dict[str, Row]:
    """The rows of a table by their names within it."""
    named = [(row_key(group.title, row), row) for group in read(name).groups for row in group.rows]
    assert len(dict(named)) == len(named)
    return dict(named)


COUNTS: dict[str, cost.Count] = {}


def counted(name: str) -> dict[str, cost.Count]:
    found = {}
    for key, row in rows(name).items():
        what = repr((row.run.model, row.run.method))
        if what not in COUNTS:
            COUNTS[what] = cost.count(row.run.model, row.run.method)
        found[key] = COUNTS[what]
    return found


def identity(run: Run) -> str:
    return json.dumps(compose.identity(run, {}), sort_keys=True)


def test_the_tables_are_those_that_this_guard_looks_at():
    assert tables.names() == sorted(NAMES)
    assert {name for name in NAMES if read(name).paper} == set(PAPERS)


# every cell -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_table_is_valid_with_every_seed(name: str):
    table = read(name)
    assert table.seeds == (1, 2, 3)
    cells = [run for row in table.rows for run in row.cells(table.seeds)]
    assert [run.seed for run in cells] == [1, 2, 3] * len(table.rows)
    assert all(compose.from_plain(compose.plain(run)) == run for run in cells)
    assert len({identity(run) for run in cells}) == len(cells)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_counted(name: str):
    for key, row in rows(name).items():
        count = counted(name)[key]
        assert 0 <= count.trainable <= count.total, key
        assert (count.trainable == 0) == (row.run.method.name == "one-shot"), key


@pytest.mark.parametrize("name", NAMES)
def test_printed_numbers_of_parameters_agree_but_for_those_known(name: str):
    found = {
        key: (row.params, counted(name)[key].trainable)
        for key, row in rows(name).items()
        if row.disagrees(counted(name)[key].trainable)
    }
    assert found == DISAGREEING.get(name, {})


@pytest.mark.parametrize("name", PAPERS)
def test_a_label_agrees_where_its_count_rounds_to_it(name: str):
    known = DISAGREEING.get(name, {})
    for key, row in rows(name).items():
        if row.params is not None:
            label = Decimal(row.params.removesuffix("M"))
            assert row.params.endswith("M")
            exponent = label.as_tuple().exponent
            assert isinstance(exponent, int)
            off = abs(Decimal(counted(name)[key].trainable) / row.million - label)
            assert (off > Decimal(10) ** exponent / 2) == (key in known), key


def test_loda_2_prints_its_rounded_multiply_accumulates():
    for key, row in rows("loda-2").items():
        count = counted("loda-2")[key]
        both = [count.qkv_macs] if count.qkv_macs_merged is None else [count.qkv_macs_merged, count.qkv_macs]
        assert row.macs == " / ".join(f"{macs / 10**6:.1f}M" for macs in both), key
    lora = counted("loda-2")["LoRA r=4"]
    dense = 24 * 1024 * 3 * 1024
    assert (lora.qkv_macs_merged, lora.qkv_macs) == (dense, dense + LORA_MEDIUM)
    assert {name for name in NAMES if any(row.macs for row in read(name).rows)} == {"loda-2"}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_without_runs_is_filled_and_shown(name: str, tmp_path: Path):
    table = read(name)
    counts = {key: Counts(count.trainable, (count.qkv_macs,)) for key, count in counted(name).items()}
    filled = aggregate.fill(table, Archive(tmp_path), counts, tables.reruns())
    assert all(cell.n == 0 and cell.verdict is None for row in filled.rows for cell in row.cells)
    figures = [figure for row in table.rows for figure in row.printed if figure is not None]
    assert shown.verdicts(filled) == {
        "within print": 0,
        "within reruns": 0,
        "outside": 0,
        "not run": len(figures),
        "failed": 0,
    }
    text = shown.markdown(filled, check=True)
    assert all(row.label in text for row in table.rows)
    assert len(shown.as_csv(filled).splitlines()) == 1 + len(table.rows) * len(table.columns)
    assert [len(group["rows"]) for group in json.loads(shown.as_json(filled))["groups"]] == [
        len(group.rows) for group in table.groups
    ]
    disagree = {row_key(g.title, r.row) for g in filled.groups for r in g.rows if "counting gives" in str(r.notes)}
    assert disagree == set(DISAGREEING.get(name, {}))
    assert shown.latex(filled, check=True).count(r"\textbf") == 0


# what the papers print --------------------------------------------------------------------------


def printed(shared: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((shared / "paper" / f"{name}.yaml").read_text(encoding="utf-8"))


def numbers(row: Row) -> list[list[float | None] | None]:
    return [None if figure is None else [figure.value, figure.spread] for figure in row.printed]


@pytest.mark.needs_mount
def test_every_table_of_cells_that_the_papers_print_is_here(shared: Path):
    found = {path.stem for path in (shared / "paper").glob("lo?a-*.yaml")}
    assert found == set(PAPERS) | NOT_OF_CELLS


@pytest.mark.needs_mount
@pytest.mark.parametrize("name", PAPERS)
def test_figures_and_columns_are_those_of_the_paper_in_its_order(shared: Path, name: str):
    table, paper = read(name), printed(shared, name)
    keys = [column.metric if name != "lora-14" else f"{column.metric}_{column.subset}" for column in table.columns]
    assert keys == paper["metrics"]
    assert [numbers(row) for row in table.rows] == [[row[key] for key in keys] for row in paper["rows"]]
    assert table.source is not None
    assert table.source.replace(",", "") == paper["source"].replace(",", "")


@pytest.mark.needs_mount
@pytest.mark.parametrize("name", PAPERS)
def test_the_cells_are_those_of_the_paper_in_its_order(shared: Path, name: str):
    paper = printed(shared, name)
    found = [
        (row.run.dataset.name, row.run.model.name, row.run.method.name.removesuffix("-wide"), row.params)
        for row in read(name).rows
    ]
    wanted = [
        (
            paper["dataset"],
            row.get("model", paper.get("model")),
            row.get("method", paper.get("method")),
            row.get("params"),
        )
        for row in paper["rows"]
    ]
    assert found == wanted
    for row, other in zip(read(name).rows, paper["rows"], strict=True):
        if "rank" in other:
            assert (row.run.method.rank, row.label.split("=")[-1]) == (other["rank"], str(other["rank"]))
        macs = other.get("qkv_macs_per_token", "").replace(" merged", "").replace(" unmerged", "")
        assert (row.macs or "") == macs
    names = [row.run.method.name for row in read(name).rows if row.run.method.name.startswith("adapter-l")]
    assert names == ["adapter-l", "adapter-l-wide"] * (len(names) // 2)


@pytest.mark.needs_mount
@pytest.mark.parametrize("name", ["loda-1", "loda-2"])
def test_approximations_and_millions_are_those_of_the_paper(shared: Path, name: str):
    """M is 2^20 in what the LoDA authors counted themselves, 10^6 in what they copied."""
    for row, other in zip(read(name).rows, printed(shared, name)["rows"], strict=True):
        assert row.million == (10**6 if other.get("published_elsewhere") else 2**20), row.label
        kind, _, size = other.get("approx", "").partition(" ")
        if kind == "keep":
            assert row.run.method.base.kind == "sparse" and row.run.method.base.keep == int(size.rstrip("%")) / 100
        elif kind == "rank":
            assert row.run.method.base.kind == "low-rank" and row.run.method.base.rank == int(size)
        else:
            assert "base" not in vars(row.run.method) or row.run.method.base.kind == "dense"


def test_m_is_ten_to_the_six_in_the_lora_papers_tables():
    names = [name for name in PAPERS if name.startswith("lora")]
    assert {row.million for name in names for row in read(name).rows} == {10**6}


@pytest.mark.needs_mount
def test_the_reruns_are_those_that_were_collected(shared: Path):
    paper = printed(shared, "reruns")
    file = yaml.load(tables.reruns_file().read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    found = []
    for row in [*file["reruns"], *file["others"]]:
        figures = [text.split(" ± ") for text in row["figures"]]
        cell = dict(text.split("=") for text in row["cell"])
        found.append((cell["model"], cell["method"], cell.get("method.rank"), [[float(x) for x in f] for f in figures]))
    wanted = []
    for row in [*paper["rows"], *paper["other_methods"]]:
        values = [row[key] for key in ("bleu", "nist", "meteor", "rouge_l", "cider")]
        figures = [[x for x in v if x is not None] if isinstance(v, list) else [v] for v in values]
        rank = str(row["rank"]) if "rank" in row else None
        wanted.append((row["model"], row["method"], rank, figures))
    assert sorted(found, key=str) == sorted(wanted, key=str)


# what stands beside them ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_note_is_used(name: str):
    table = read(name)
    assert set(table.notes) == {*table.footnotes, *(key for row in table.rows for key in row.notes)}


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_unique_within_a_group(name: str):
    for group in read(name).groups:
        assert max(Counter(row.label for row in group.rows).values()) == 1
    titles = [group.title for group in read(name).groups]
    assert len(set(titles)) == len(titles)


def test_every_rerun_stands_beside_a_row_of_some_table():
    every = [row.run for name in PAPERS for row in read(name).rows]
    found = tables.reruns().rows
    assert len(found) == 9
    for rerun in found:
        assert any(rerun.fits(run) for run in every), rerun


def test_reruns_stand_beside_the_cells_that_they_are_of_and_no_others():
    found = tables.reruns().rows
    beside = {
        (name, key): fitting
        for name in PAPERS
        for key, row in rows(name).items()
        if (fitting := sum(rerun.fits(row.run) for rerun in found))
    }
    medium, large = "GPT-2 Medium: ", "GPT-2 Large: "
    assert beside == {
        **{("loda-1", label): count for label, count in {"FT": 1, "PreLayer": 1, "LoRA r=4": 6}.items()},
        **{("lora-3", medium + label): count for label, count in {"FT": 1, "PreLayer": 1, "LoRA r=4": 6}.items()},
        ("lora-3", large + "LoRA r=4"): 1,
        ("loda-3", "LoRA: LoRA r=4"): 6,
        ("lora-18", "LoRA r=4"): 6,
    }


@pytest.mark.parametrize("name", WITH_SWEEP)
def test_a_sweep_of_a_tables_name_has_its_very_cells(name: str):
    """So that `run -m sweep=NAME` and `table --run NAME` share their runs. One seed stands for all: it is slow."""
    table = read(name)
    swept = [identity(cell.run) for cell in compose.cells([f"sweep={name}", "seed=3"], multirun=True)]
    assert sorted(swept) == sorted(identity(run) for row in table.rows for run in row.cells([3]))
    file = yaml.safe_load((compose.config_folder() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert file["hydra"]["sweeper"]["params"]["seed"] == ",".join(map(str, table.seeds))


def test_these_are_all_the_sweeps_that_are_called_as_tables():
    assert sorted(set(compose.groups()["sweep"]) & set(NAMES)) == WITH_SWEEP
