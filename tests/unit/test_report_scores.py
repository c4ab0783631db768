"""What `score` shows: tables in the official units, objects for `--json`, values of segments that add up."""

import json

import numpy as np
import pytest

from lodarepro.metrics import Measurement
from lodarepro.metrics.segments import Figure, mean_figures
from lodarepro.report.scores import as_json, comparison_as_json, comparison_table, segments_table, table
from lodarepro.scores import Comparison, Interval, Score, SuiteScores, Unit


def score(metric: str, value: float, unit: Unit, interval: Interval | None = None) -> Score:
    return Score(metric, value, unit, metric != "ter", f"metric:{metric}|refs:2", interval=interval)


def scores(*, subset: bool = False, interval: bool = False) -> SuiteScores:
    bleu, ter = ((20.0, 40.25), (0.5, 1.75)) if interval else (None, None)
    found = {"bleu": score("bleu", 34.5678, "percent", bleu), "ter": score("ter", 1.23456, "fraction", ter)}
    seen = {"bleu": score("bleu", 100.0, "percent", bleu), "ter": score("ter", 0.0, "fraction", ter)}
    return SuiteScores("webnlg", 1234, found, {"seen": seen} if subset else {}, {"seen": 1000} if subset else {})


def comparison(key: str, a: float, b: float, p: float, unit: Unit = "fraction") -> Comparison:
    return Comparison(score(key, a, unit), score(key, b, unit), b - a, (b - a - 0.01, b - a + 0.01), p, 500, 7)


COMPARED = {
    "all": {
        "bleu": comparison("bleu", 0.5, 0.75, 0.002),
        "cider": comparison("cider", 2.5, 2.25, 0.05, "points"),
    }
}


def test_a_table_has_the_figures_of_the_official_scorers():
    assert table(scores()) == (
        "| metric     |  score |\n"
        "|------------|-------:|\n"
        "| BLEU ↑ (%) |  34.57 |\n"
        "| TER ↓      | 1.2346 |\n"
        "\n"
        "suite webnlg; segments: all 1,234\n"
        "metric:bleu|refs:2\n"
        "metric:ter|refs:2"
    )


def test_a_table_with_subsets_and_intervals():
    assert table(scores(subset=True, interval=True)).splitlines()[:8] == [
        "| metric     | subset |  score | 95 % interval    |",
        "|------------|--------|-------:|------------------|",
        "| BLEU ↑ (%) | all    |  34.57 | 20.00 to 40.25   |",
        "| TER ↓      | all    | 1.2346 | 0.5000 to 1.7500 |",
        "| BLEU ↑ (%) | seen   | 100.00 | 20.00 to 40.25   |",
        "| TER ↓      | seen   | 0.0000 | 0.5000 to 1.7500 |",
        "",
        "suite webnlg; segments: all 1,234, seen 1,000",
    ]


def test_an_interval_at_zero_is_one():
    found = SuiteScores("e2e", 1, {"bleu": score("bleu", 0.0, "fraction", (0.0, 0.0))}, {}, {})
    assert "| BLEU ↑ | 0.0000 | 0.0000 to 0.0000 |" in table(found)


def test_a_comparison():
    assert comparison_table("e2e", COMPARED) == (
        "| metric  |      A |      B | B - A   | 95 % interval      | p        |\n"
        "|---------|-------:|-------:|---------|--------------------|----------|\n"
        "| BLEU ↑  | 0.5000 | 0.7500 | +0.2500 | 0.2400 to 0.2600   | 0.0020 * |\n"
        "| CIDEr ↑ | 2.5000 | 2.2500 | -0.2500 | -0.2600 to -0.2400 | 0.0500   |\n"
        "\n"
        "paired bootstrap, two-sided: n=500, seed=7; * marks p < 0.05\n"
        "metric:bleu|refs:2\n"
        "metric:cider|refs:2"
    )


def test_a_comparison_of_subsets():
    found = {**COMPARED, "seen": {"bleu": comparison("bleu", 0.25, 0.25, 1)}}
    assert comparison_table("e2e", found).splitlines()[:5] == [
        "| metric  | subset |      A |      B | B - A   | 95 % interval      | p        |",
        "|---------|--------|-------:|-------:|---------|--------------------|----------|",
        "| BLEU ↑  | all    | 0.5000 | 0.7500 | +0.2500 | 0.2400 to 0.2600   | 0.0020 * |",
        "| CIDEr ↑ | all    | 2.5000 | 2.2500 | -0.2500 | -0.2600 to -0.2400 | 0.0500   |",
        "| BLEU ↑  | seen   | 0.2500 | 0.2500 | +0.0000 | -0.0100 to 0.0100  | 1.0000   |",
    ]


def test_scores_as_an_object():
    ter = {"unit": "fraction", "higher_is_better": False, "signature": "metric:ter|refs:2"}
    bleu = {"unit": "percent", "higher_is_better": True, "signature": "metric:bleu|refs:2"}
    assert as_json(scores(subset=True)) == {
        "suite": "webnlg",
        "segments": 1234,
        "scores": {"bleu": {"value": 34.5678, **bleu}, "ter": {"value": 1.23456, **ter}},
        "subsets": {"seen": {"bleu": {"value": 100.0, **bleu}, "ter": {"value": 0.0, **ter}}},
        "subset_segments": {"seen": 1000},
    }
    measured = as_json(scores(subset=True, interval=True))
    assert measured["scores"]["ter"]["interval"] == (0.5, 1.75)
    assert measured["subsets"]["seen"]["bleu"]["interval"] == (20.0, 40.25)
    json.dumps(measured, allow_nan=False)


def test_a_comparison_as_an_object():
    found = comparison_as_json("e2e", {**COMPARED, "seen": {"ter": comparison("ter", 0.25, 0.75, 1)}})
    assert found["suite"] == "e2e"
    assert found["test"] == {"name": "paired bootstrap, two-sided", "n": 500, "seed": 7}
    assert list(found["scores"]) == ["bleu", "cider"]
    assert found["subsets"] == {
        "seen": {
            "ter": {
                "a": 0.25,
                "b": 0.75,
                "difference": 0.5,
                "interval": (0.49, 0.51),
                "p": 1,
                "unit": "fraction",
                "higher_is_better": False,
                "signature": "metric:ter|refs:2",
            }
        }
    }
    json.dumps(found, allow_nan=False)


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def measurement(groups: dict[str, list[int]]) -> Measurement:
    """Three metrics: one that is a mean, one that is of sums, and one of sums that has values of segments too."""
    rows = np.array([[1 / 3, 1.0], [0.1 + 0.2, 3.0], [-2.0, 1e17]])
    (mean,) = mean_figures([1 / 3, 0.1 + 0.2, 1e-17], [[0, 1, 2]])
    corpus = Figure(rows, ratio, ("own", "reference"))
    both = Figure(rows, ratio, ("own", "reference"), tuple(ratio(rows).tolist()))
    figures = {"mean": mean, "corpus": corpus, "both": both}
    return Measurement("e2e", groups, {"all": figures}, {}, "")


def test_the_values_of_segments_rebuild_the_figures_to_the_last_bit():
    given = measurement({"all": [0, 1, 2]})
    head, *lines = (line.split("\t") for line in segments_table(given).splitlines())
    assert head == ["segment", "mean", "corpus.own", "corpus.reference", "both", "both.own", "both.reference"]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    columns = {name: [float(line[i]) for line in lines] for i, name in enumerate(head)}
    for key, figure in given.figures["all"].items():
        if figure.segments is not None:
            assert tuple(columns[key]) == figure.segments
    for key in ("corpus", "both"):
        sums = np.array([columns[f"{key}.own"], columns[f"{key}.reference"]]).cumsum(axis=1)[:, -1]
        assert ratio(sums) == given.figures["all"][key].value
    assert sum(columns["mean"]) / 3 == given.figures["all"]["mean"].value


def test_a_count_is_a_whole_number():
    assert segments_table(measurement({"all": [0, 1, 2]})).splitlines()[3].split("\t")[2:4] == ["-2", "1e+17"]


@pytest.mark.parametrize(
    ("groups", "column"),
    [({}, []), ({"unseen": [2], "seen": [0]}, ["subset", "seen", "", "unseen"])],
    ids=["none", "two"],
)
def test_the_segments_subsets_stand_beside_them(groups: dict[str, list[int]], column: list[str]):
    text = segments_table(measurement({"all": [0, 1, 2], **groups}))
    lines = [line.split("\t") for line in text.splitlines()]
    assert text.endswith("\n")
    assert {len(line) for line in lines} == {len(lines[0])}
    if column:
        assert [line[1] for line in lines] == column
    else:
        assert "subset" not in lines[0]
