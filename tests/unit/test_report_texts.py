"""The texts of several runs side by side: which runs, in which order, with which figures, and what is left out."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import compose, metrics, records, rescore, tables, units
from lodarepro.config import Run
from lodarepro.errors import BadInput
from lodarepro.metrics import SUITES, suites
from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.report.aggregate import FilledGroup, FilledRow, FilledTable
from lodarepro.report.texts import Chosen, choose, side_by_side
from lodarepro.scores import Score

LAST = "evaluations/last-test.jsonl"
VALUES = "evaluations/last-test.values.json"
SIGNATURES = {"length": "metric:length|version:1|refs:2", "share": "metric:share|version:1|refs:2"}


@pytest.fixture(autouse=True)
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that needs no Java: lengths of the hypotheses in characters, as they are and as a part of 100."""

    def compute(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([len(text) for text in segments.hypotheses], groups)

    def shares(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([len(text) / 100 for text in segments.hypotheses], groups)

    found = (
        suites.Metric("length", "points", "raw", compute, lambda: "version:1"),
        suites.Metric("share", "fraction", "raw", shares, lambda: "version:1"),
    )
    monkeypatch.setitem(SUITES, "lengths", suites.Suite(lambda raw: {"raw": raw}, found))
    columns = {"length": units.Column("Length ↑", "points", 1), "share": units.Column("Share ↓", "percent", 2)}
    monkeypatch.setitem(units.COLUMNS, "lengths", columns)


@pytest.fixture(scope="module")
def cell() -> Run:
    (found,) = compose.cells(["model=gpt2-nano", "dataset=mini", "protocol=lora", "method=ft"])
    return found.run


def record(
    name: str,
    *,
    seed: int = 1,
    method: str = "ft",
    rank: int | None = None,
    test: str = "3" * 64,
    model: str = "gpt2-nano",
    segments: int = 3,
    file: str = LAST,
) -> Record:
    options: dict[str, Any] = {"name": method} | ({} if rank is None else {"rank": rank})
    shared = {"model": {"name": model}, "method": options, "seed": seed}
    scores = {
        "length": Score("length", 2.0, "points", True, SIGNATURES["length"]),
        "share": Score("share", 0.02, "fraction", True, SIGNATURES["share"]),
    }
    return Record(
        id=name,
        config={**shared, "dataset": {"name": "mini", "suite": "lengths"}},
        identity={**shared, "checksums": {"test": test, "model": "4" * 64}},
        provenance={},
        parameters={"trainable": 1, "total": 2},
        training={},
        evaluations=(Evaluation("last", {"beam": 10}, "test", "all", file, segments, scores, 1.5),),
    )


def decoded(*hypotheses: str, cut: Sequence[int] = (), subsets: Sequence[str | None] = (None,) * 9) -> list[Decoded]:
    return [
        Decoded(f"context {i}", (f"reference {i}", "another"), text, subset, -0.5, i not in cut)
        for i, (text, subset) in enumerate(zip(hypotheses, subsets, strict=False))
    ]


def put(root: Path, one: Record, segments: Sequence[Decoded]) -> Path:
    folder = root / records.RUNS / one.id
    folder.mkdir(parents=True)
    records.write_decoded(folder / one.evaluations[0].hypotheses, segments)
    return folder


def table(cell: Run, *groups: tuple[str | None, Mapping[str, Sequence[Record]]]) -> FilledTable:
    """A filled table of nothing but what choosing looks at."""

    def row(label: str, found: Sequence[Record]) -> FilledRow:
        described = tables.Row(label, (), cell, None, 10**6, None, (), ("last",), ())
        files = tuple(one.evaluations[0].hypotheses for one in found)
        return FilledRow(described, (), 1, None, tuple(found), files, {}, ())

    filled = tuple(FilledGroup(title, tuple(row(*one) for one in rows.items())) for title, rows in groups)
    described = tables.Table("own", "Own", None, None, (), (1, 2, 3), {}, (), ())
    return FilledTable(described, filled, (), (), {}, {}, "")


def shown(chosen: Sequence[Chosen]) -> list[tuple[str, str]]:
    return [(one.label, one.record.id) for one in chosen]


# which runs -------------------------------------------------------------------------------------


def test_of_each_row_the_first_seed_is_shown_in_the_order_of_the_rows(cell: Run):
    rows: dict[str, list[Record]] = {
        "B": [record(f"b_s{seed}", seed=seed, method="bitfit") for seed in (3, 1, 2)],
        "Not run": [],
        "A": [record(f"a_s{seed}", seed=seed, file=f"evaluations/{seed}.jsonl") for seed in (2, 5)],
    }
    found = [one for of_row in rows.values() for one in of_row]
    chosen = choose([table(cell, (None, rows))], found)
    assert shown(chosen) == [("B", "b_s1"), ("A", "a_s2")]
    assert chosen[1].file == "evaluations/2.jsonl"


def test_the_file_is_that_of_the_checkpoint_that_counts(cell: Run):
    one = record("a")
    filled = table(cell, (None, {"A": [one]}))
    (group,) = filled.groups
    rows = (replace(group.rows[0], texts=("evaluations/best-test.jsonl",)),)
    (chosen,) = choose([replace(filled, groups=(replace(group, rows=rows),))], [one])
    assert chosen.file == "evaluations/best-test.jsonl"


def test_a_row_of_two_tables_is_shown_once_under_the_first_label(cell: Run):
    one, other = record("a"), record("b", method="lora", rank=4)
    first = table(cell, (None, {"FT": [one]}))
    second = table(cell, (None, {"LoRA": [other], "Fine-tuning": [one]}))
    assert shown(choose([first, second], [one, other])) == [("FT", "a"), ("LoRA", "b")]


def test_runs_in_no_table_come_last_one_of_each_cell_under_the_name_of_their_method(cell: Run):
    inside = [record(f"a_s{seed}", seed=seed) for seed in (1, 2)]
    lora = [record(f"l_s{seed}", seed=seed, method="lora", rank=4) for seed in (3, 2)]
    more = record("bitfit", method="bitfit", seed=9)
    another_seed = record("a_s7", seed=7)  # of a row's cell, though the table has not this seed
    chosen = choose([table(cell, (None, {"FT": inside}))], [*lora, another_seed, more, *inside])
    assert shown(chosen) == [("FT", "a_s1"), ("lora r=4", "l_s2"), ("bitfit", "bitfit")]
    assert shown(choose([], [lora[0]])) == [("lora r=4", "l_s3")]
    assert choose([], []) == []


def test_equal_labels_are_told_apart_by_their_group(cell: Run):
    rows = [record(f"run_{i}", method=f"m{i}") for i in range(3)]
    groups = [("Medium", {"FT": rows[:1], "LoRA": rows[1:2]}), ("Large", {"FT": rows[2:]})]
    chosen = choose([table(cell, *groups)], rows)
    assert shown(chosen) == [("FT (Medium)", "run_0"), ("LoRA", "run_1"), ("FT (Large)", "run_2")]


def test_then_by_the_hash_of_their_id(cell: Run):
    rows = [record("x_y_0ab", method="m0"), record("x_y_1cd", method="m1"), record("x_y_2ef", method="m2")]
    first = table(cell, ("Medium", {"FT": rows[:1]}))
    second = table(cell, ("Medium", {"FT": rows[1:2]}))
    third = table(cell, (None, {"FT": rows[2:]}))
    assert [label for label, _ in shown(choose([first, second, third], rows))] == [
        "FT (Medium) (0ab)",
        "FT (Medium) (1cd)",
        "FT (gpt2-nano)",
    ]


def test_equal_labels_on_other_test_sets_stay(cell: Run):
    rows = [record("a", method="m0"), record("b", method="m1", test="9" * 64)]
    chosen = choose([table(cell, ("One", {"FT": rows[:1]}), ("Two", {"FT": rows[1:]}))], rows)
    assert [one.label for one in chosen] == ["FT", "FT"]


# side by side -----------------------------------------------------------------------------------


def test_texts_of_one_test_file_stand_side_by_side_with_figures_in_the_units_of_the_page(tmp_path: Path):
    a, b, other = record("a"), record("b", method="lora"), record("c", test="9" * 64, segments=1)
    subsets = ["seen", None, "unseen"]
    put(tmp_path, a, decoded("x", "yy", "", cut=[1], subsets=subsets))
    put(tmp_path, b, decoded("four", "<b>", "e", subsets=subsets))
    put(tmp_path, other, decoded("elsewhere"))
    chosen = [Chosen("A", a, LAST), Chosen("C", other, LAST), Chosen("B", b, LAST)]
    first, second = side_by_side(chosen, tmp_path)
    assert (first.name, second.name) == ("mini", "mini")
    assert first.contexts == ("context 0", "context 1", "context 2")
    assert first.references[2] == ("reference 2", "another")
    assert first.subsets == ("seen", None, "unseen")
    assert [(s.label, s.run, s.hypotheses, s.unfinished) for s in first.systems] == [
        ("A", "a", ("x", "yy", ""), (1,)),
        ("B", "b", ("four", "<b>", "e"), ()),
    ]
    assert list(first.columns) == ["length", "share"]
    assert first.systems[0].values == {"length": [1, 2, 0], "share": [1, 2, 0]}
    assert first.systems[1].values == {"length": [4, 3, 1], "share": [4, 3, 1]}
    assert [system.label for system in second.systems] == ["C"]


def test_runs_without_their_texts_are_left_out_in_silence(tmp_path: Path, log: pytest.LogCaptureFixture):
    a, b = record("a"), record("b")
    put(tmp_path, b, decoded("x", "y", "z"))
    (found,) = side_by_side([Chosen("A", a, LAST), Chosen("B", b, LAST)], tmp_path)
    assert [system.label for system in found.systems] == ["B"]
    assert side_by_side([Chosen("A", a, LAST)], tmp_path) == []
    assert log.messages == []


CHANGES: list[Callable[[Decoded], Decoded]] = [
    lambda one: replace(one, context="elsewhere"),
    lambda one: replace(one, references=("another",)),
]


@pytest.mark.parametrize("change", CHANGES, ids=["context", "references"])
def test_other_segments_than_the_first_runs_are_left_out_with_a_warning(
    tmp_path: Path, log: pytest.LogCaptureFixture, change: Callable[[Decoded], Decoded]
):
    a, b, c = record("a"), record("b"), record("c")
    segments = decoded("x", "y", "z")
    put(tmp_path, a, segments)
    folder = put(tmp_path, b, [*segments[:2], change(segments[2])])
    put(tmp_path, c, decoded("1", "2", "3"))
    (found,) = side_by_side([Chosen(one.id, one, LAST) for one in (a, b, c)], tmp_path)
    assert [system.label for system in found.systems] == ["a", "c"]
    (warning,) = log.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == f"{folder / LAST}: its segments are not those of other runs; left out of the report"


def test_damaged_texts_are_left_out_with_a_warning(tmp_path: Path, log: pytest.LogCaptureFixture):
    damaged, short, whole = record("damaged"), record("short"), record("whole")
    folder = put(tmp_path, damaged, [])
    (folder / LAST).write_text('{"context": "cut o')
    put(tmp_path, short, decoded("x", "y"))
    put(tmp_path, whole, decoded("x", "y", "z"))
    chosen = [Chosen(one.id, one, LAST) for one in (damaged, short, whole)]
    (found,) = side_by_side(chosen, tmp_path)
    assert [system.label for system in found.systems] == ["whole"]
    first, second = log.messages
    assert first.startswith(f"{folder / LAST}, line 1 is not a decoded segment (")
    assert first.endswith("; decode the run again; its texts are left out of the report")
    assert "short/evaluations/last-test.jsonl has 2 segments (subset: all) of the 3 that were scored" in second
    assert {one.levelno for one in log.records} == {logging.WARNING}
    assert side_by_side(chosen[:1], tmp_path) == []


# figures of segments ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run whose figures are kept."""
    found = put(tmp_path, record("run"), decoded("a", "bb", "cccccc"))
    assert rescore.segment_values(found, record("run"), LAST) == EXPECTED
    return found


EXPECTED = {"length": [1, 2, 6], "share": [0.01, 0.02, 0.06]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are measured from here on."""
    files: list[str] = []
    measure_file = rescore.measure_file

    def counted(folder: Path, record: Record, file: str) -> metrics.Measurement:
        files.append(file)
        return measure_file(folder, record, file)

    monkeypatch.setattr(rescore, "measure_file", counted)
    return files


def test_figures_are_measured_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(rescore, "measure_file", fails)
    assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED
    tree = json.loads((folder / VALUES).read_text())
    assert tree["values"] == EXPECTED and tree["signatures"] == SIGNATURES
    assert side_by_side([Chosen("A", record("run"), LAST)], folder.parent.parent)[0].systems[0].values["share"] == [
        1,
        2,
        6,
    ]


def test_they_are_measured_again_when_the_texts_are_others(folder: Path, measured: list[str]):
    records.write_decoded(folder / LAST, decoded("a", "bb", "c"))
    for _ in range(2):
        assert rescore.segment_values(folder, record("run"), LAST)["length"] == [1, 2, 1]
    assert measured == [LAST]


def test_they_are_measured_again_when_the_scorers_are_others(folder: Path, measured: list[str]):
    path = folder / VALUES
    path.write_text(path.read_text().replace("version:1", "version:0").replace("0.06", "0.07"))
    for _ in range(2):
        assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED
    assert measured == [LAST]


def without(key: str) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != key}).encode()


def with_values(values: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), "values": values}).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[:-9],
    "no UTF-8": lambda content: content.replace(b"0.06", b"\xff\xfe"),
    "a list": lambda _: b"[1]",
    "null": lambda _: b"null",
    "no texts": without("texts"),
    "no signatures": without("signatures"),
    "no values": without("values"),
    "values null": with_values(None),
    "too few values": with_values({**EXPECTED, "length": [1, 2]}),
    "no numbers": with_values({**EXPECTED, "length": ["1", "2", "6"]}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_figures_is_derived_again(
    folder: Path, measured: list[str], damage: Callable[[bytes], bytes]
):
    path = folder / VALUES
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED
    assert measured == [LAST]


def test_a_folder_in_its_place_is_no_fault(folder: Path):
    (folder / VALUES).unlink()
    (folder / VALUES).mkdir()
    assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED


def test_figures_that_can_not_be_kept_are_given_all_the_same(
    folder: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (folder / VALUES).unlink()
    monkeypatch.setattr(rescore, "write_atomically", fails)
    for _ in range(2):
        assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED
    assert measured == [LAST, LAST]
    assert not (folder / VALUES).exists()


def test_a_file_of_figures_that_can_not_be_read_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read_text = Path.read_text

    def fails(self: Path, *args: Any, **kwargs: Any) -> str:
        if self.name.endswith(".values.json"):
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", fails)
    assert rescore.segment_values(folder, record("run"), LAST) == EXPECTED


def test_texts_that_are_gone_have_no_figures_though_some_are_kept(folder: Path):
    (folder / LAST).unlink()
    with pytest.raises(BadInput, match=r"last-test.jsonl can't be read \(No such file or directory\)"):
        rescore.segment_values(folder, record("run"), LAST)


def test_bringing_scores_up_to_date_keeps_the_figures_too(folder: Path, measured: list[str]):
    one = record("run")
    records.write(folder, one)
    records.write_decoded(folder / LAST, decoded("aaa", "b", "c"))
    rescore.rescore(folder)
    assert measured == [LAST]
    assert rescore.segment_values(folder, records.finished(folder), LAST)["length"] == [3, 1, 1]
    assert measured == [LAST]


HYPOTHESES = (
    "Ashen Ridge is an easy trail in Morrow Vale .",
    "The 12.4 km Dunlin Loop is hard ; dogs must be on a lead .",
    "",
    "Pell & Sons Path leads to a waterfall , best in autumn .",
)
REFERENCES = (
    ("Ashen Ridge is an easy trail in Morrow Vale .", "In Morrow Vale , Ashen Ridge is an easy trail ."),
    ("Dunlin Loop is a hard trail of 12.4 km where dogs are kept on a lead .",),
    ("The Old Causeway has no climb .", "There is no climb on the Old Causeway ."),
    ("Pell & Sons Path goes to a waterfall and is best in autumn .", "See the waterfall on Pell & Sons Path ."),
)


def test_the_figures_are_those_that_the_scores_are_made_of(tmp_path: Path):
    scored = metrics.score(HYPOTHESES, REFERENCES, "e2e", per_segment=True).scores
    segments = [
        Decoded(f"name : {i}", references, text, None, -1.0, True)
        for i, (text, references) in enumerate(zip(HYPOTHESES, REFERENCES, strict=True))
    ]
    one = record("run", segments=4)
    (evaluation,) = one.evaluations
    bare = {key: replace(score, segments=None) for key, score in scored.items()}
    config = {**one.config, "dataset": {"name": "mini", "suite": "e2e"}}
    one = replace(one, config=config, evaluations=(replace(evaluation, scores=bare),))
    put(tmp_path, one, segments)
    found = rescore.segment_values(tmp_path / records.RUNS / "run", one, LAST)
    assert list(found) == [key for key in units.COLUMNS["e2e"] if key not in ("bleu", "nist")]
    for key, values in found.items():
        assert values == pytest.approx(scored[key].segments, rel=5.1e-6, abs=1e-12)
        assert values == [float(f"{value:.6g}") for value in scored[key].segments or ()]
        assert scored[key].value == pytest.approx(sum(values) / 4, rel=1e-5) or key == "meteor"
    # What was kept is read as it was given.
    (test,) = side_by_side([Chosen("A", one, LAST)], tmp_path)
    assert test.systems[0].values["meteor"] == pytest.approx([100 * value for value in found["meteor"]])
    assert test.systems[0].values["cider"] == found["cider"]


def test_every_metric_that_has_figures_has_a_column():
    for suite in ("e2e", "webnlg", "dart"):
        assert set(units.COLUMNS[suite]) == {metric.key for metric in SUITES[suite].metrics}
