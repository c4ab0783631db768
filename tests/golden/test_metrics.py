"""The suites against figures of the official scorers: on invented sentences, and on real systems' outputs."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodarepro.metrics import score
from lodarepro.scores import Score, SuiteScores

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("LODAREPRO_SHARED") or HERE.parents[1] / ".." / "shared")
GOLDEN = SHARED / "golden" / "metrics"

needs_shared = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no reference material at {SHARED} (LODAREPRO_SHARED names another place)"
)


@pytest.fixture(scope="module")
def invented() -> dict[str, Any]:
    return json.loads((HERE / "metrics_invented.json").read_text(encoding="utf-8"))


def of_invented(invented: dict[str, Any], suite: str) -> SuiteScores:
    segments = invented["segments"]
    return score(
        [segment["hypothesis"] for segment in segments],
        [segment["references"] for segment in segments],
        suite=suite,
        subsets=[segment["subset"] for segment in segments],
        per_segment=True,
    )


def per_segment(scores: dict[str, Score], key: str) -> tuple[float, ...]:
    segments = scores[key].segments
    assert segments is not None
    return segments


def values(scores: dict[str, Score]) -> dict[str, float]:
    return {key: each.value for key, each in scores.items()}


def test_e2e_on_invented_sentences(invented: dict[str, Any]) -> None:
    scored = of_invented(invented, "e2e")
    assert values(scored.scores) == pytest.approx(invented["official"]["e2e"]["all"], abs=1e-12)
    assert {key: each.unit for key, each in scored.scores.items()} == {
        "bleu": "fraction",
        "nist": "points",
        "meteor": "fraction",
        "rouge_l": "fraction",
        "cider": "points",
    }
    assert all(each.higher_is_better for each in scored.scores.values())
    assert list(scored.subsets) == ["seen", "unseen"]
    assert scored.segments == 8
    # The unseen segments begin with the empty hypothesis.
    for key in ("meteor", "rouge_l", "cider"):
        assert len(per_segment(scored.scores, key)) == 8
        assert len(per_segment(scored.subsets["unseen"], key)) == 3
        assert per_segment(scored.subsets["unseen"], key)[0] == 0.0
    # A mean of segments, in the subset as over all.
    rouge_l = per_segment(scored.subsets["seen"], "rouge_l")
    assert scored.subsets["seen"]["rouge_l"].value == pytest.approx(sum(rouge_l) / 3)
    assert rouge_l == tuple(per_segment(scored.scores, "rouge_l")[i] for i in (0, 1, 5))


def test_webnlg_on_invented_sentences(invented: dict[str, Any]) -> None:
    scored = of_invented(invented, "webnlg")
    official = invented["official"]["webnlg"]
    for name, scores in {"all": scored.scores, **scored.subsets}.items():
        found = values(scores)
        assert found.pop("bleu") == pytest.approx(official[name].pop("bleu"), abs=0.005)
        assert found == pytest.approx(official[name], abs=1e-12)
    assert list(scored.subsets) == ["seen", "unseen"]
    assert {key: (each.unit, each.higher_is_better) for key, each in scored.scores.items()} == {
        "bleu": ("percent", True),
        "meteor": ("fraction", True),
        "ter": ("fraction", False),
        "chrf_pp": ("fraction", True),
    }
    assert scored.scores["bleu"].segments is None
    assert per_segment(scored.scores, "ter")[2] == 1.0  # the empty hypothesis
    assert scored.scores["ter"].signature == scored.subsets["seen"]["ter"].signature


def read_e2e(path: Path) -> list[list[str]]:
    """Rows of a table of the E2E challenge, read as its scorer reads them: stripped, without empty lines."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    lines = [line for line in lines if line]
    return list(csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ","))[1:]


@needs_shared
@pytest.mark.needs_mount
@pytest.mark.slow
def test_e2e_systems_of_the_challenge() -> None:
    references: dict[str, list[str]] = {}
    for meaning, reference in read_e2e(SHARED / "data" / "e2e" / "original" / "testset_w_refs.csv"):
        references.setdefault(meaning, []).append(reference)
    official = json.loads((GOLDEN / "e2e" / "official.json").read_text(encoding="utf-8"))
    # The three systems are the subsets of one call, which starts METEOR once.
    rows = [
        (system, meaning, output)
        for system in official
        for meaning, output in read_e2e(GOLDEN / "e2e" / f"{system}.tsv")
    ]
    scored = score(
        [output for _, _, output in rows],
        [references[meaning] for _, meaning, _ in rows],
        suite="e2e",
        subsets=[system for system, _, _ in rows],
    )
    assert scored.segments == 3 * 630
    for system, figures in official.items():
        for key, each in scored.subsets[system].items():
            assert f"{each.value:.4f}" == f"{figures[key]:.4f}", (system, key)


def check_generation_eval(suite: str, subset_of: Callable[[dict[str, Any]], str | None]) -> None:
    folder = GOLDEN / suite
    with gzip.open(folder / "system.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    official = json.loads((folder / "official.json").read_text(encoding="utf-8"))
    scored = score(
        [row["hypothesis"] for row in rows],
        [row["references"] for row in rows],
        suite=suite,
        subsets=[subset_of(row) for row in rows],
        per_segment=True,
    )
    segments = official.pop("ter_segments")
    found = {"all": scored.scores, **scored.subsets}
    assert found.keys() == official.keys()
    for name, scores in found.items():
        assert f"{scores['bleu'].value:.2f}" == f"{official[name]['bleu']:.2f}"
        assert scores["meteor"].value == pytest.approx(official[name]["meteor"], abs=1e-9)
        assert scores["ter"].value == pytest.approx(official[name]["ter"], abs=1e-9)
        assert scores["chrf_pp"].value == pytest.approx(official[name]["chrf_pp_total"], abs=1e-9)
    ter = per_segment(scored.scores, "ter")
    assert {index: ter[int(index)] for index in segments} == segments  # to the last bit
    chrf_pp = per_segment(scored.scores, "chrf_pp")
    assert sum(chrf_pp) / len(chrf_pp) == pytest.approx(official["all"]["chrf_pp_average"], abs=1e-9)


@needs_shared
@pytest.mark.needs_mount
@pytest.mark.slow
def test_webnlg_system() -> None:
    check_generation_eval("webnlg", lambda row: "seen" if row["seen"] else "unseen")


@needs_shared
@pytest.mark.needs_mount
@pytest.mark.slow
def test_dart_system() -> None:
    check_generation_eval("dart", lambda row: None)
