"""Scores from what runs left: brought up to date, compared, and refused where the segments are not all there.

(Through the command line, on the folder of a run that was trained: tests/integration/test_pipeline.py.)
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lodarepro import records, rescore
from lodarepro.errors import BadInput, RunFailed
from lodarepro.metrics import SUITES, suites
from lodarepro.metrics.segments import Figure, Group, Segments, mean_figures
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import Score

LAST = "evaluations/last-test.jsonl"


@pytest.fixture(autouse=True)
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suites whose one metric needs no Java: the mean length of the hypotheses."""

    def compute(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        return mean_figures([len(text) for text in segments.hypotheses], groups)

    metric = suites.Metric("length", "points", "raw", compute, lambda: "version:1")
    for name in ("lengths", "widths"):
        monkeypatch.setitem(SUITES, name, suites.Suite(lambda raw: {"raw": raw}, (metric,)))


def decoded(*hypotheses: str, subsets: Sequence[str | None] | None = None) -> list[Decoded]:
    return [
        Decoded(f"context {i}", (f"reference {i}", "another"), text, subset, -0.5, True)
        for i, (text, subset) in enumerate(zip(hypotheses, subsets or [None] * len(hypotheses), strict=True))
    ]


def evaluation(subset: str, segments: int, value: float, file: str = LAST, beam: int = 10) -> Evaluation:
    score = Score("length", value, "points", True, "metric:length|version:1|refs:2")
    return Evaluation("last", {"beam": beam}, "test", subset, file, segments, {"length": score}, 1.5)


def run(folder: Path, segments: Sequence[Decoded], *evaluations: Evaluation, suite: str = "lengths") -> Path:
    """A finished run's folder, with what its first evaluation names."""
    folder.mkdir()
    config: dict[str, Any] = {"dataset": {"name": "mini", "suite": suite}, "seed": 1}
    record = Record(folder.name, config, {}, {}, {"trainable": 1, "total": 2}, {}, evaluations)
    records.write(folder, record)
    records.write_decoded(folder / LAST, segments)
    return folder


def values(record: Record) -> list[tuple[str, float]]:
    return [(one.subset, one.scores["length"].value) for one in record.evaluations]


def fails(call: Any, message: str, error: type[Exception] = BadInput) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def compare(a: Path, b: Path) -> Any:
    return rescore.compare_runs(a, b, samples=99, seed=3)


# scores anew ------------------------------------------------------------------------------------


def test_every_evaluation_is_brought_up_to_date(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    segments = decoded("a", "bb", "cccccc", subsets=["seen", "unseen", None])
    other = "evaluations/last-test-2.jsonl"
    stale = [evaluation("all", 3, 9.0), evaluation("seen", 1, 9.0), evaluation("unseen", 1, 2.0)]
    folder = run(tmp_path / "run", segments, *stale, evaluation("all", 2, 9.0, other, beam=2))
    records.write_decoded(folder / other, decoded("xxxx", "yy"))
    found = rescore.rescore(folder)
    assert values(found) == [("all", 3.0), ("seen", 1.0), ("unseen", 2.0), ("all", 3.0)]
    assert records.read(folder) == found
    assert replace(found, evaluations=()) == replace(records.finished(folder), evaluations=())
    assert [one.decode["beam"] for one in found.evaluations] == [10, 10, 10, 2]
    (warning,) = caplog.messages
    assert warning == "run: the scores differ from the record's, which is brought up to date"


def test_a_record_that_is_right_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = run(tmp_path / "run", decoded("a", "bbb"), evaluation("all", 2, 2.0))
    before = (folder / "record.json").stat().st_mtime_ns
    assert rescore.rescore(folder) == records.read(folder)
    assert (folder / "record.json").stat().st_mtime_ns == before
    assert caplog.messages == []


def test_a_folder_that_is_none_of_a_run_is_left_as_it_is(tmp_path: Path):
    fails(lambda: rescore.rescore(tmp_path), f"{tmp_path} holds no record.json: not the folder of a finished run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_looked_into(tmp_path: Path):
    folder = tmp_path / ("x" * 300)
    message = f"{folder / 'record.json'}: can't be used (File name too long); check the path"
    fails(lambda: rescore.rescore(folder), message)
    fails(lambda: compare(folder, tmp_path), message)


@pytest.mark.parametrize(
    ("stale", "message"),
    [
        ([evaluation("all", 3, 1.0)], "has 2 segments (subset: all) of the 3 that were scored"),
        ([evaluation("all", 1, 1.0)], "has 2 segments (subset: all) of the 1 that were scored"),
        (
            [evaluation("all", 2, 1.5), evaluation("seen", 1, 1.0)],
            "has 0 segments (subset: seen) of the 1 that were scored",
        ),
    ],
    ids=["fewer", "more", "subset"],
)
def test_segments_that_are_not_all_there(tmp_path: Path, stale: list[Evaluation], message: str):
    folder = run(tmp_path / "run", decoded("a", "bb"), *stale)
    before = (folder / "record.json").read_bytes()
    message = f"{folder / LAST} {message}; delete it and decode the run again"
    fails(lambda: rescore.rescore(folder), message)
    fails(lambda: compare(folder, folder), message)
    assert (folder / "record.json").read_bytes() == before


def test_lost_and_damaged_hypotheses(tmp_path: Path):
    folder = run(tmp_path / "run", decoded("a"), evaluation("all", 1, 1.0))
    (folder / LAST).write_text('{"context": "cut o')
    with pytest.raises(BadInput, match=r"last-test.jsonl, line 1 is not a decoded segment \(.*; decode the run again$"):
        rescore.rescore(folder)
    (folder / LAST).unlink()
    message = f"{folder / LAST} can't be read (No such file or directory); decode the run again"
    fails(lambda: rescore.rescore(folder), message)


def test_a_run_that_another_process_works_on(tmp_path: Path):
    folder = run(tmp_path / "run", decoded("a"), evaluation("all", 1, 1.0))
    with records.locked(folder):
        message = f"another process is at work on {folder}; try again when it has ended"
        fails(lambda: rescore.rescore(folder), message, RunFailed)


# two runs ---------------------------------------------------------------------------------------


def test_two_runs_are_compared_on_their_first_evaluations(tmp_path: Path):
    labels = ["seen", "unseen", "seen", None]
    stale = [evaluation("all", 4, 9.0), evaluation("seen", 2, 9.0), evaluation("unseen", 1, 9.0)]
    a = run(tmp_path / "a", decoded("a", "b", "c", "d", subsets=labels), *stale)
    b = run(tmp_path / "b", decoded("aa", "b", "cc", "dd", subsets=labels), *stale)
    before = (a / "record.json").read_bytes(), (b / "record.json").read_bytes()
    found = compare(a, b)
    shown = {group: (c["length"].a.value, c["length"].b.value, c["length"].p) for group, c in found.items()}
    assert shown.pop("all")[:2] == (1, 1.75)
    assert shown == {"seen": (1, 2, 0.01), "unseen": (1, 1, 1)}
    assert (found["all"]["length"].samples, found["all"]["length"].seed) == (99, 3)
    # Nothing is written, though the records' scores are others.
    assert ((a / "record.json").read_bytes(), (b / "record.json").read_bytes()) == before


def test_a_run_does_not_differ_from_itself(tmp_path: Path):
    folder = run(tmp_path / "run", decoded("a", "bb"), evaluation("all", 2, 1.5))
    found = compare(folder, folder)["all"]["length"]
    assert (found.difference, found.p) == (0, 1)


def test_runs_with_other_suites_are_not_compared(tmp_path: Path):
    a = run(tmp_path / "a", decoded("a"), evaluation("all", 1, 1.0))
    b = run(tmp_path / "b", decoded("a"), evaluation("all", 1, 1.0), suite="widths")
    fails(
        lambda: compare(a, b),
        f"{a} is scored with the suite lengths, {b} with widths; compare runs on one dataset",
    )


def test_nor_with_other_numbers_of_segments(tmp_path: Path):
    a = run(tmp_path / "a", decoded("a", "b"), evaluation("all", 2, 1.0))
    b = run(tmp_path / "b", decoded("a"), evaluation("all", 1, 1.0))
    fails(lambda: compare(a, b), f"{a} has 2 segments, {b} has 1; compare runs on the same ones")


@pytest.mark.parametrize("change", [{"context": "elsewhere"}, {"references": ("reference 1",)}], ids=str)
def test_nor_on_other_segments(tmp_path: Path, change: dict[str, Any]):
    segments = decoded("a", "b")
    a = run(tmp_path / "a", segments, evaluation("all", 2, 1.0))
    b = run(tmp_path / "b", [segments[0], replace(segments[1], **change)], evaluation("all", 2, 1.0))
    fails(lambda: compare(a, b), f"segment 2 of {a} is not that of {b}; compare runs on the same test file")


def test_nor_with_other_subsets(tmp_path: Path):
    a = run(tmp_path / "a", decoded("a", "b", subsets=["seen", None]), evaluation("all", 2, 1.0))
    b = run(tmp_path / "b", decoded("a", "b", subsets=[None, "seen"]), evaluation("all", 2, 1.0))
    with pytest.raises(BadInput, match=r"not measured alike \(suite, segments, subsets or references differ\)"):
        compare(a, b)


def test_nor_before_both_are_finished(tmp_path: Path):
    a = run(tmp_path / "a", decoded("a"), evaluation("all", 1, 1.0))
    b = run(tmp_path / "b", decoded("a"), evaluation("all", 1, 1.0))
    (b / "record.json").unlink()
    fails(lambda: compare(a, b), f"{b} holds no record.json: not the folder of a finished run")
    fails(lambda: compare(b, a), f"{b} holds no record.json: not the folder of a finished run")
