"""Units as printed, aligned Markdown, a row for each evaluation."""

from dataclasses import replace
from typing import Any

import pytest

from lodarepro.records import Evaluation, Record
from lodarepro.report.summary import markdown, summary
from lodarepro.scores import Score, Unit
from lodarepro.units import COLUMNS, Column, printed


def score(metric: str, value: float, unit: Unit) -> Score:
    return Score(metric, value, unit, metric != "ter", "s")


SCORES: dict[str, dict[str, Score]] = {
    "e2e": {
        "bleu": score("bleu", 0.70412, "fraction"),
        "nist": score("nist", 8.8512, "points"),
        "meteor": score("meteor", 0.4681, "fraction"),
        "rouge_l": score("rouge_l", 0.71806, "fraction"),
        "cider": score("cider", 2.53449, "points"),
    },
    "webnlg": {
        "bleu": score("bleu", 55.3, "percent"),
        "meteor": score("meteor", 0.40555, "fraction"),
        "ter": score("ter", 39.2, "percent"),
        "chrf_pp": score("chrf_pp", 61.0, "percent"),
    },
}


def record(suite: str, *, subsets: tuple[str, ...] = ("all",), **changes: Any) -> Record:
    config = {
        "dataset": {"name": suite, "suite": suite},
        "model": {"name": "gpt2-medium"},
        "method": {"name": "lora", "rank": 4},
        "seed": 3,
        **changes,
    }
    evaluations = tuple(
        Evaluation("last", {}, "test", subset, "f", 1, SCORES[suite], val_loss=1.23456) for subset in subsets
    )
    return Record("id", config, config, {}, {"trainable": 393216, "total": 355216384}, {}, evaluations)


@pytest.mark.parametrize(
    ("value", "unit", "column", "text"),
    [
        (0.70412, "fraction", Column("", "percent", 2), "70.41"),
        (70.412, "percent", Column("", "percent", 2), "70.41"),
        (39.2, "percent", Column("", "fraction", 3), "0.392"),
        (0.4055, "fraction", Column("", "fraction", 3), "0.406"),
        (8.8512, "points", Column("", "points", 3), "8.851"),
        (0.0, "fraction", Column("", "percent", 2), "0.00"),
    ],
)
def test_a_score_in_its_columns_unit(value: float, unit: Unit, column: Column, text: str):
    assert printed(score("x", value, unit), column) == text


@pytest.mark.parametrize(("unit", "wanted"), [("points", "percent"), ("fraction", "points"), ("percent", "points")])
def test_units_that_have_nothing_to_do_with_each_other(unit: Unit, wanted: Unit):
    with pytest.raises(ValueError, match=f"nist: no conversion from {unit} to {wanted}"):
        printed(score("nist", 1.0, unit), Column("", wanted, 2))


def test_every_suite_has_its_columns_and_their_arrows():
    assert COLUMNS.keys() == {"e2e", "dart", "webnlg"}
    for columns in COLUMNS.values():
        for key, column in columns.items():
            assert column.title.endswith("↓" if key == "ter" else "↑")


def test_markdown_is_aligned_numbers_to_the_right():
    assert markdown([["method", "n"], ["ft", "1,000"], ["lora r=4", "-2.5"]]) == (
        "| method   |     n |\n"
        "|----------|------:|\n"
        "| ft       | 1,000 |\n"
        "| lora r=4 |  -2.5 |"
    )  # fmt: skip


def test_a_column_with_one_text_is_to_the_left():
    assert markdown([["x"], ["1"], ["none"]]).splitlines()[1:] == ["|------|", "| 1    |", "| none |"]


def test_a_row_for_a_run():
    head, rule, row = summary([record("e2e")]).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "dataset", "model", "method", "trainable", "seed", "val loss",
        "BLEU ↑", "NIST ↑", "METEOR ↑", "ROUGE-L ↑", "CIDEr ↑",
    ]  # fmt: skip
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "e2e", "gpt2-medium", "lora r=4", "393,216", "3", "1.235", "70.41", "8.851", "46.81", "71.81", "2.534",
    ]  # fmt: skip
    assert len(head) == len(rule) == len(row)


def test_a_row_for_each_subset():
    rows = summary([record("webnlg", subsets=("all", "seen", "unseen"))]).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["webnlg", "webnlg (seen)", "webnlg (unseen)"]
    assert [cell.strip() for cell in rows[1].strip("|").split("|")][-4:] == ["55.30", "0.406", "0.392", "0.610"]


def test_a_table_for_each_suite_in_the_order_of_the_runs():
    first, second = summary([record("webnlg"), record("e2e"), record("webnlg", seed=4)]).split("\n\n")
    assert "TER ↓" in first and "CIDEr ↑" not in first and len(first.splitlines()) == 4
    assert "CIDEr ↑" in second and len(second.splitlines()) == 3


def test_a_method_without_rank():
    row = summary([record("e2e", method={"name": "ft"})]).splitlines()[2]
    assert row.split("|")[3].strip() == "ft"


def test_no_runs():
    assert summary([]) == ""


def test_a_score_that_is_missing_is_not_passed_over():
    run = record("e2e")
    lacking = {key: s for key, s in SCORES["e2e"].items() if key != "cider"}
    with pytest.raises(KeyError, match="cider"):
        summary([replace(run, evaluations=(replace(run.evaluations[0], scores=lacking),))])


def head(text: str) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[0].strip("|").split("|")]


def cells(text: str, title: str) -> list[str]:
    at = head(text).index(title)
    return [row.strip("|").split("|")[at].strip() for row in text.splitlines()[2:]]


def test_checkpoints_of_the_same_texts_share_a_row():
    run = record("e2e")
    (last,) = run.evaluations
    best = replace(last, checkpoint="best")
    fifth = replace(last, checkpoint="epoch-5", hypotheses="g")
    shown = summary([replace(run, evaluations=(last, best, fifth))])
    assert cells(shown, "checkpoint") == ["last = best", "epoch-5"]
    assert len(summary([replace(run, evaluations=(last, best))]).splitlines()) == 3


def test_a_setting_in_which_rows_differ_gets_a_column():
    slow = record("e2e", train={"lr": 1e-4, "epochs": 5}, checksums={"train": "a"})
    fast = record("e2e", train={"lr": 1e-3, "epochs": 5}, checksums={"train": "b"})
    text = summary([slow, fast])
    assert cells(text, "train.lr") == ["0.0001", "0.001"]
    assert not {"train.epochs", "checksums.train"} & set(head(text))
    assert "train.lr" not in head(summary([fast, fast]))


def test_a_run_on_part_of_the_data_does_not_look_like_one_on_all():
    whole = record("e2e", dataset={"name": "e2e", "suite": "e2e", "limit": {"train": None}})
    cut = record("e2e", dataset={"name": "e2e", "suite": "e2e", "limit": {"train": 9}})
    assert cells(summary([whole, cut]), "dataset.limit.train") == ["None", "9"]


def test_two_decodings_of_a_run_are_told_apart():
    one = record("e2e")
    (evaluation,) = one.evaluations
    wide, narrow = replace(evaluation, decode={"beam": 10}), replace(evaluation, decode={"beam": 2})
    assert cells(summary([replace(one, evaluations=(wide, narrow))]), "decode.beam") == ["10", "2"]
