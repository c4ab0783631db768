"""Groups of segments that are scored together, beside the subsets: each as if it were alone."""

import pytest

from lodarepro.metrics import ALL, measure, score, suites
from lodarepro.scores import Score

HYPOTHESES = [
    "The Mill is a cheap pub near Café Lune .",
    "Ovenna Tal is a Thai place .",
    "There is a pub by the riverside .",
    "The Mill serves Thai food .",
    "A cheap place is The Mill .",
]
REFERENCES = [
    ["The Mill is a cheap pub near Café Lune .", "A cheap pub near Café Lune is The Mill ."],
    ["Ovenna Tal is a Thai place by the riverside ."],
    ["Near the riverside there is a pub called The Mill ."],
    ["Ovenna Tal serves Thai food ."],
    ["The Mill is a place that is cheap ."],
]
GROUPS = {"first": [0, 1, 2], "odd": [1, 3], "again": [1, 2, 3, 4], "single": [4], "whole": [0, 1, 2, 3, 4]}


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites without METEOR, which needs Java."""
    for name, suite in suites.SUITES.items():
        metrics = tuple(metric for metric in suite.metrics if metric.begin is None)
        raw = suites.Suite(lambda segments: {"mteval": segments, "ptb": segments}, metrics)
        monkeypatch.setitem(suites.SUITES, name, raw if name == "e2e" else suites.Suite(suite.prepare, metrics))


def alone(group: list[int], suite: str) -> dict[str, Score]:
    return score([HYPOTHESES[i] for i in group], [REFERENCES[i] for i in group], suite=suite).scores


def check(found: dict[str, dict[str, Score]], suite: str) -> None:
    for label, group in GROUPS.items():
        for key, expected in alone(group, suite).items():
            assert found[label][key].value == pytest.approx(expected.value, rel=1e-12), (label, key)


@pytest.mark.parametrize("suite", ["webnlg", "e2e"])
def test_overlapping_groups_are_scored_as_if_alone(suite: str, cheap: None):
    found = measure(HYPOTHESES, REFERENCES, suite=suite, groups=GROUPS).scores()
    check(found.subsets, suite)
    assert found.subset_segments == {label: len(group) for label, group in GROUPS.items()}
    assert found.subsets["whole"] == found.scores
    assert len({scores["bleu"].value for scores in found.subsets.values()}) == 5  # figures that can be told apart


def test_groups_stand_beside_subsets(cheap: None):
    subsets = ["seen", "seen", "unseen", "unseen", None]
    measured = measure(HYPOTHESES, REFERENCES, suite="webnlg", subsets=subsets, groups=GROUPS)
    assert list(measured.groups) == [ALL, "seen", "unseen", *GROUPS]
    assert measured.groups["seen"] == [0, 1]
    without = measure(HYPOTHESES, REFERENCES, suite="webnlg", subsets=subsets)
    for label in (ALL, "seen", "unseen"):
        assert measured.figures[label]["bleu"].value == without.figures[label]["bleu"].value
    assert measured.references == without.references


def test_no_groups_change_nothing(cheap: None):
    assert measure(HYPOTHESES, REFERENCES, groups={}).scores() == measure(HYPOTHESES, REFERENCES).scores()


def test_meteor_too():
    """Which another program computes."""
    groups = {"first": GROUPS["first"], "odd": GROUPS["odd"]}
    found = measure(HYPOTHESES, REFERENCES, suite="webnlg", groups=groups).scores().subsets
    for label, group in groups.items():
        assert found[label]["meteor"].value == pytest.approx(alone(group, "webnlg")["meteor"].value, rel=1e-12)
    assert found["first"]["meteor"].value != found["odd"]["meteor"].value
