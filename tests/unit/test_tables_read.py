"""Tables as they are read: figures with their digits, rows with their runs, and everything that may be wrong."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lodarepro import compose, tables
from lodarepro.archive import Archive
from lodarepro.errors import BadInput
from lodarepro.report import aggregate
from lodarepro.report.aggregate import Counts
from lodarepro.tables import Figure, Reruns, Row

KNOWN = (
    "(valid: loda-1, loda-1-nano, loda-2, loda-3, loda-3-nano, lora-13, lora-14, lora-18, lora-3, mini), nor a YAML "
    "file of one"
)
ELSEWHERE = (
    "would make other cells than the table's; for all its rows only what is no part of a run's identity can be given: "
    "data.*, results.*, runtime.*, logger, logger.*, model.path, dataset.files.*, hydra/launcher, hydra.*"
)
NANO = """\
title: Ours
cell: [protocol=lora, model=gpt2-nano, dataset=mini]
columns: {bleu: percent, nist: points}
"""
FT = "groups: [{rows: [{label: A, cell: [method=ft]}]}]\n"
METHOD = """\
from dataclasses import dataclass


@dataclass(frozen=True)
class Nothing:
    name: str = "nothing"
    depth: int = 2


def attach(model, config, generator):
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.yaml"


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(name: str, **given: Any) -> list[str]:
    with pytest.raises(BadInput) as e:
        tables.read(name, **given)
    assert all("\n" not in fault for fault in e.value.faults)
    return list(e.value.faults)


def faults_of(path: Path, text: str, **given: Any) -> list[str]:
    """The faults of a file without the words that name it."""
    found = faults(written(path, text), **given)
    assert all(fault.startswith(f"table {path}") for fault in found)
    return [fault.removeprefix(f"table {path}").removeprefix(", ").removeprefix(": ") for fault in found]


def rows_of(*rows: str) -> str:
    return "groups:\n  - rows:\n" + "".join(f"      - {{{row}}}\n" for row in rows)


# figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "spread", "decimals", "half_digit"),
    [
        ("69.0 ± 0.7", 69.0, 0.7, 1, 0.05),
        ("68.2", 68.2, None, 1, 0.05),
        ("2.40", 2.4, None, 2, 0.005),
        ("2.4", 2.4, None, 1, 0.05),
        ("36.0 ± 0.0", 36.0, 0.0, 1, 0.05),
        ("8.7215", 8.7215, None, 4, 0.00005),
        ("0.480 ± 0.000", 0.48, 0.0, 3, 0.0005),
        ("7", 7.0, None, 0, 0.5),
    ],
)
def test_a_figure_keeps_its_digits(text: str, value: float, spread: float | None, decimals: int, half_digit: float):
    figure = Figure.of(text)
    assert figure == Figure(text, value, spread, decimals)
    assert figure is not None and figure.half_digit == pytest.approx(half_digit, rel=1e-12)


def test_a_figure_that_can_not_be_read():
    assert Figure.of("?") is None


@pytest.mark.parametrize("text", ["", "69.0±0.7", "69.0 +- 0.7", "-1.0", "1e3", "69.", ".5", "??", "69.0 ± ", " 69.0"])
def test_what_is_no_figure(text: str):
    with pytest.raises(ValueError, match=f"^'{re.escape(text)}' is no printed figure; write 69.0, 69.0 ± 0.7 or [?]$"):
        Figure.of(text)


def row(params: str | None, million: int = 10**6) -> Row:
    return Row("A", (), None, params, million, None, (), ("last",), ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "million", "trainable", "disagrees"),
    [
        ("0.38M", 2**20, 393_216, False),  # 0.375 x 2^20: half the last digit
        ("0.37M", 2**20, 393_216, False),
        ("0.36M", 2**20, 393_216, True),
        ("0.39M", 10**6, 393_216, False),
        ("0.35M", 10**6, 393_216, True),
        ("355M", 10**6, 354_500_000, False),
        ("355M", 10**6, 354_499_999, True),
        ("355M", 10**6, 355_500_001, True),
        (None, 10**6, 1, False),
    ],
)
def test_a_label_disagrees_where_a_count_rounds_to_another(
    params: str | None, million: int, trainable: int, disagrees: bool
):
    assert row(params, million).disagrees(trainable) == disagrees


# a good file ------------------------------------------------------------------------------------

GOOD = """\
title: Ours & theirs
source: none
paper: me
cell: [protocol=lora, model=gpt2-nano]
columns: {bleu: percent, bleu/seen: percent, val_loss: nats}
million: 2**20
seeds: [4, 9]
footnotes: [about]
notes: {about: of all, odd: of one}
groups:
  - title: First
    cell: [dataset=mini]
    rows:
      - label: FT
        cell: [method=ft, train.lr=1e-3, train.epochs=9, "train.keep=[epoch-5,last]"]
        params: 0.38M
        million: 10**6
        macs: 1.0M
        print: [2.40, "?", 1.0 ± 0.10]
        checkpoints: [epoch-5, last]
        notes: [odd]
  - rows: [{label: BitFit, cell: [method=bitfit, dataset=mini]}]
"""


def test_a_table_of_ones_own(own: Path):
    table = tables.read(written(own, GOOD))
    assert (table.name, table.title, table.source, table.paper) == ("own", "Ours & theirs", "none", "me")
    assert [(c.key, c.metric, c.subset, c.unit) for c in table.columns] == [
        ("bleu", "bleu", "all", "percent"),
        ("bleu/seen", "bleu", "seen", "percent"),
        ("val_loss", "val_loss", "all", "nats"),
    ]
    assert table.seeds == (4, 9)
    assert (table.notes, table.footnotes) == ({"about": "of all", "odd": "of one"}, ("about",))
    assert [group.title for group in table.groups] == ["First", None]
    assert (table.suite, table.printed) == ("e2e", True)
    ft, bitfit = table.rows
    kept = ("train.epochs=9", "train.keep=[epoch-5,last]")
    assert ft.overrides == ("protocol=lora", "model=gpt2-nano", "dataset=mini", "method=ft", "train.lr=1e-3", *kept)
    assert (ft.params, ft.million, ft.macs, ft.checkpoints, ft.notes) == (
        "0.38M",
        10**6,
        "1.0M",
        ("epoch-5", "last"),
        ("odd",),
    )
    assert ft.printed == (Figure("2.40", 2.4, None, 2), None, Figure("1.0 ± 0.10", 1.0, 0.1, 1))
    assert (ft.run.method.name, ft.run.train.lr, ft.run.seed, ft.run.model.name) == ("ft", 1e-3, 4, "gpt2-nano")
    assert [run.seed for run in ft.cells((7, 8))] == [7, 8]
    assert (bitfit.params, bitfit.million, bitfit.macs) == (None, 2**20, None)
    assert (bitfit.printed, bitfit.checkpoints, bitfit.notes) == ((), ("last",), ())


def test_checkpoints_of_all_rows_and_of_one(own: Path):
    table = tables.read(written(own, GOOD.replace("seeds: [4, 9]", "seeds: [4, 9]\ncheckpoints: [best]")))
    assert [row.checkpoints for row in table.rows] == [("epoch-5", "last"), ("best",)]


def test_other_seeds_than_the_tables(own: Path):
    table = tables.read(written(own, NANO + FT), seeds=[5, 3])
    assert (table.seeds, table.rows[0].run.seed) == ((5, 3), 5)
    assert tables.read(str(own)).seeds == (1, 2, 3)


def test_places_are_those_of_all_rows_and_leave_the_cells_as_they_are(own: Path):
    text = NANO + rows_of("label: A, cell: [method=ft]", "label: B, cell: [method=bitfit]")
    places = [
        "data.root=/data",
        "data.cache=/cache",
        "model.path=/model",
        "dataset.files.train=/t.txt",
        "results.root=there",
        "runtime.device=cpu",
        "runtime.threads=2",
        "hydra/launcher=parallel",
        "hydra.launcher.n_jobs=4",
    ]
    plain, placed = tables.read(written(own, text)), tables.read(str(own), places=places)
    for one, other in zip(plain.rows, placed.rows, strict=True):
        assert one.overrides == other.overrides
        assert one.run != other.run
        assert compose.identity(one.run, {}) == compose.identity(other.run, {})
        run = other.run
        assert (run.data.root, run.data.cache, run.model.path) == ("/data", "/cache", "/model")
        assert (run.dataset.files.train, run.results.root) == ("/t.txt", "there")
        assert (run.runtime.device, run.runtime.threads) == ("cpu", 2)


def test_a_row_of_a_users_own_method(own: Path, tmp_path: Path):
    file = tmp_path / "nothing.py"
    file.write_text(METHOD, encoding="utf-8")
    method = compose.own_method(file)
    text = NANO + rows_of("label: Mine, cell: [method=nothing, method.depth=3]", "label: FT, cell: [method=ft]")
    mine, ft = tables.read(written(own, text), own=method).rows
    assert (mine.run.method.name, mine.run.method.depth) == ("nothing", 3)
    assert mine.run.method_file == method.file and method.file.path == str(file)
    assert ft.run.method_file is None
    (fault,) = faults_of(own, text)
    assert fault.startswith("row 'Mine': method=nothing: no such method (valid: adapter-drop, ")


# faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("loda1", "; did you mean 'loda-1'?"),
        ("lora-3.", "; did you mean 'lora-3'?"),
        ("xyz", ""),
        ("none/such.yaml", ""),
        ("none/such.yml", ""),
    ],
)
def test_an_unknown_table(name: str, hint: str):
    assert faults(name) == [f"{name}: no such table{hint} {KNOWN}"]


def test_overrides_that_make_other_cells_and_seeds_that_are_none():
    places = [
        "train.epochs=1",
        "model=gpt2-nano",
        "method.rank=8",
        "seed=2",
        "decode.beam=1",
        "dataset.limit.test=3",
        "model.n_layer=2",
        "data=elsewhere",
        "hydra/job_logging=default",
        "+data.root=/data",
        "method_file.path=x.py",
        "sweep=loda-3",
    ]
    expected = [f"{place}: {ELSEWHERE}" for place in places]
    assert faults("mini", places=["data.root=/data", *places]) == expected
    assert faults("mini", places=["seed=2"], seeds=[]) == [
        f"seed=2: {ELSEWHERE}",
        "--seeds : name at least one seed, each once",
    ]
    assert faults("mini", seeds=[1, 2, 1]) == ["--seeds 1,2,1: name at least one seed, each once"]


@pytest.mark.parametrize("seeds", ["[]", "[1, 1]"])
def test_seeds_of_a_file_that_are_none_or_twice_the_same(own: Path, seeds: str):
    (fault,) = faults_of(own, f"{NANO}seeds: {seeds}\n{FT}")
    assert "name at least one seed, each once" in fault


WORDS = "input should be 'fraction', 'percent', 'points' or 'nats'"
WHOLE = "input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NANO + "colour: red\n" + FT, ["colour: unexpected keyword argument"]),
        (NANO.replace("percent", "per cent") + FT, [f"columns.bleu: {WORDS}"]),
        (NANO + "seeds: [one]\n" + FT, [f"seeds.0: {WHOLE}"]),
        (NANO, ["groups: field required"]),
        (
            NANO + rows_of("lable: A, cell: [method=ft]", "label: B, cell: method=ft"),
            [
                "groups.0.rows.0.label: field required",
                "groups.0.rows.0.lable: unexpected keyword argument",
                "groups.0.rows.1.cell: input should be a valid list",
            ],
        ),
    ],
)
def test_a_file_of_another_form(own: Path, text: str, expected: list[str]):
    assert faults_of(own, text) == expected


@pytest.mark.parametrize("text", ["", "- title\n", "title\n"])
def test_a_file_that_is_no_table_at_all(own: Path, text: str):
    assert faults_of(own, text) == ["holds no keys; give title, cell, columns and groups"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"title: [\n", "while parsing a flow node expected the node content, but found '<stream end>' "),
        (b"title: a: b\n", "mapping values are not allowed here "),
        (b"title: \xff\n", "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte"),
    ],
)
def test_a_file_that_is_no_yaml(own: Path, content: bytes, reason: str):
    own.write_bytes(content)
    (fault,) = faults(str(own))
    assert fault.startswith(f"table {own}: is no YAML ({reason}") and fault.endswith(")")


def test_faults_of_several_rows_are_told_at_once(own: Path):
    text = (
        NANO
        + "footnotes: [nowhere]\nnotes: {here: there}\n"
        + rows_of(
            "label: A, cell: [method=ft], print: [1.0], million: 10**3, notes: [why, here]",
            "label: B, cell: [method=lra, train.epoch=1], print: ['1.0±', 2.0 +- 1]",
            "label: C, cell: [method=lora, method.rank=x, seed=3]",
            "label: D, cell: ['method=ft,lora', decode.beam=1, seed=1]",
        )
    )
    found = faults_of(own, text)
    lra = [fault for fault in found if "method=lra" in fault]
    assert len(lra) == 1
    assert lra[0].startswith("row 'B': method=lra: no such method; did you mean 'lora'? (valid: adapter-drop, ")
    found.remove(lra[0])
    epoch = "train.epoch=1: no such key 'epoch' in 'train'; did you mean 'epochs'? (valid: "
    (given,) = [fault for fault in found if epoch in fault]
    assert given.startswith(f"row 'B': {epoch}")
    found.remove(given)
    assert found == [
        "row 'A': million: 10**3 is none of 10**6, 2**20",
        "row 'A': print: 1 figures for 2 columns",
        "row 'B': print: '1.0±' is no printed figure; write 69.0, 69.0 ± 0.7 or ?",
        "row 'B': print: '2.0 +- 1' is no printed figure; write 69.0, 69.0 ± 0.7 or ?",
        "row 'C': cell: the seeds are the table's; leave seed out",
        "row 'C': method.rank=x: input should be a valid integer",
        "row 'D': cell: the seeds are the table's; leave seed out",
        "row 'D': method=ft,lora: several values for one key need -m (a sweep), as in: lodarepro run -m method=ft,lora",
        "note 'nowhere' is not among its notes",
        "note 'why' is not among its notes",
    ]


def test_places_are_no_part_of_a_cell_and_checkpoints_have_names(own: Path):
    text = NANO + rows_of(
        "label: A, cell: [method=ft, results.root=elsewhere, dataset.files.train=x.txt]",
        "label: B, cell: [method=lora], checkpoints: [last, lst, epoch-5, epoch-x]",
    )
    assert faults_of(own, text) == [
        "row 'A': cell: results.root=elsewhere: is no part of a cell; give it on the command line",
        "row 'A': cell: dataset.files.train=x.txt: is no part of a cell; give it on the command line",
        "row 'B': checkpoints: lst is none of last, best and epoch-N",
        "row 'B': checkpoints: epoch-x is none of last, best and epoch-N",
        "row 'B': checkpoints: epoch-5 is not among those that its cell keeps; add it to train.keep",
    ]


def test_a_table_without_rows(own: Path):
    assert faults_of(own, NANO + "groups: []\n") == ["it has no rows"]
    assert faults_of(own, NANO + "groups: [{rows: []}]\n") == ["it has no rows"]


def test_rows_that_can_not_stand_in_one_table(own: Path):
    """The same cell under two labels, the embedded model beside a paper's, and suites without common columns."""
    text = NANO + rows_of(
        "label: A, cell: [method=ft]",
        "label: B, cell: [method=ft, train.lr=2e-4]",
        "label: C, cell: [method=ft, model=gpt2-medium]",
        "label: D, cell: [method=ft, model=gpt2-large, dataset=dart]",
        "label: E, cell: [method=lora, decode.beam=3]",
        "label: F, cell: [method=lora, decode.beam=4]",
    )
    learning_rate = compose.cells(["protocol=lora", "model=gpt2-nano", "dataset=mini", "method=ft"])[0].run.train.lr
    assert faults_of(own, text.replace("2e-4", str(learning_rate))) == [
        "its rows are scored by unlike suites (dart, e2e), which have no common columns",
        "figures of gpt2-nano show that the pipeline works and never share a table with those of gpt2-large, "
        "gpt2-medium",
        "rows 'A' and 'B' are the same cell",
    ]


def test_rows_of_one_label_in_a_group(own: Path):
    (fault,) = faults_of(own, NANO + rows_of("label: A, cell: [method=ft]", "label: A, cell: [method=bitfit]"))
    assert "'A'" in fault


def filled(path: Path, columns: str) -> Sequence[str]:
    table = tables.read(written(path, re.sub("columns: .*", f"columns: {{{columns}}}", NANO) + FT))
    with pytest.raises(BadInput) as e:
        aggregate.fill(table, Archive(path.parent), {"A": Counts(1, ())}, Reruns("", ()))
    return e.value.faults


METRICS = "bleu, nist, meteor, rouge_l, cider, val_loss"


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        (
            "blue: percent",
            f"column blue: blue is no metric of the suite e2e, which has {METRICS}",
        ),
        (
            "ter/seen: fraction",
            f"column ter/seen: ter is no metric of the suite e2e, which has {METRICS}",
        ),
        ("nist: percent", "column nist: nist: no conversion from points to percent"),
        ("bleu: points", "column bleu: bleu: no conversion from percent to points"),
        ("val_loss: fraction", "column val_loss: val_loss: no conversion from nats to fraction"),
    ],
)
def test_columns_that_the_suite_has_not(own: Path, columns: str, fault: str):
    assert filled(own, columns) == (f"table own: {fault}",)
