"""Odd texts through a whole suite: each counts as what the official scorers take it for, and none is dropped."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lodarepro import metrics
from lodarepro.metrics import Measurement, measure

REFERENCES = ["The kettle on the stove whistles at noon .", "At noon the kettle whistles ."]
SUITES = ["e2e", "webnlg"]  # dart is webnlg under another name: tested below

TEXTS = {
    "plain": "The kettle whistles at noon.",
    "question": "The kettle ? whistles at noon.",
    "spaced bars": "The kettle | | | whistles at noon.",
    "empty": "",
    "blank": " \t\u2003 ",
    "line feed alone": "\n",
    "tab": "The kettle\twhistles at noon.",
    "spaces": "  The  kettle whistles at noon. ",
    "line feed": "The kettle\nwhistles at noon.\n",
    "carriage return": "The kettle\rwhistles at noon.\r\n",
    "line separator": "The kettle\u2028whistles at noon.",
    "form feed": "The kettle\x0cwhistles at noon.",
    "bars": "The kettle ||| whistles at noon.",
    "bars alone": "|||",
    "emoji": "The kettle 🫖 whistles at noon.",
    "emoji of several": "The kettle 👩‍👩‍👧 whistles at noon.",
    "lone surrogate": "The kettle \ud800 whistles at noon.",
    "nul": "The kettle \0 whistles at noon.",
    "command": "SCORE ||| the kettle ||| whistles",
    "markers": "Begin0Texts End0Texts",
}


def values(measurement: Measurement) -> list[dict[str, float]]:
    """Each segment's value of each metric: the figure of the segment alone, where the metric has no other."""
    figures = measurement.figures["all"]
    rows = {
        key: figure.segments or tuple(figure.of_sums(figure.statistics).tolist()) for key, figure in figures.items()
    }
    return [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]


def scored(hypotheses: Mapping[str, str], references: Sequence[str], suite: str) -> dict[str, dict[str, float]]:
    found = values(measure([*hypotheses.values()], [references] * len(hypotheses), suite=suite))
    assert np.isfinite([[*row.values()] for row in found]).all()
    return dict(zip(hypotheses, found, strict=True))


@pytest.fixture(scope="module", params=SUITES)
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, float]]:
    """Of each text the value of each metric of a suite."""
    return scored(TEXTS, REFERENCES, request.param)


def test_dart_is_scored_as_webnlg_is():
    assert metrics.SUITES["dart"] is metrics.SUITES["webnlg"]


def test_every_text_has_its_figures(found: dict[str, dict[str, float]]):
    assert list(found) == list(TEXTS)
    assert found["plain"]["meteor"] > 0.4


@pytest.mark.parametrize("name", ["tab", "spaces", "line feed", "carriage return", "line separator", "form feed"])
def test_what_separates_words_is_a_space(found: dict[str, dict[str, float]], name: str):
    assert found[name] == found["plain"]


@pytest.mark.parametrize("name", ["empty", "blank", "line feed alone"])
def test_an_empty_hypothesis_scores_nothing(found: dict[str, dict[str, float]], name: str):
    worst = {key: 1.0 if key == "ter" else 0.0 for key in found[name]}
    # The official E2E scorer's BLEU is never quite 0.
    assert found[name] == pytest.approx(worst, abs=1e-9)


def test_bars_are_three_tokens_and_no_border_of_texts(found: dict[str, dict[str, float]]):
    assert found["bars"] == found["spaced bars"]
    assert 0 < found["bars"]["meteor"] < found["plain"]["meteor"]
    assert found["bars alone"]["meteor"] == 0


def test_a_lone_surrogate_or_nul_is_one_unknown_token(found: dict[str, dict[str, float]]):
    for name in ("lone surrogate", "nul"):
        for key, value in found[name].items():
            # The PTB tokenizer drops both, as it does the question mark; NLTK makes an unknown word of them.
            if not (name == "nul" and key == "meteor"):
                assert value == found["question"][key]
        assert 0 < found[name]["meteor"] <= found["plain"]["meteor"]


@pytest.mark.parametrize("name", ["emoji", "emoji of several"])
def test_an_emoji_is_a_word_but_to_the_ptb_tokenizer(found: dict[str, dict[str, float]], name: str):
    plain, odd = found["plain"], found[name]
    if "rouge_l" in plain:
        assert (odd["meteor"], odd["rouge_l"]) == (plain["meteor"], plain["rouge_l"])
        assert 0 < odd["bleu"] < plain["bleu"]
    else:
        assert odd["ter"] > plain["ter"]
        assert 0 < odd["meteor"] < plain["meteor"]


def test_what_looks_like_our_protocols_is_text(found: dict[str, dict[str, float]]):
    assert 0 < found["command"]["meteor"] < found["plain"]["meteor"]
    assert found["markers"]["meteor"] == 0


@pytest.mark.parametrize("suite", SUITES)
def test_odd_references(suite: str):
    odd = [
        ["", "  "],
        ["", REFERENCES[0]],
        ["The\tkettle ||| on\nthe stove 🫖", "\0", "\ud800"],
        REFERENCES,
    ]
    measurement = measure([TEXTS["plain"]] * 4, odd, suite=suite)
    empty, one, strange, plain = values(measurement)
    # TER is 1 there, as GenerationEval has it; the official E2E scorer's BLEU is never quite 0.
    assert empty == pytest.approx({key: 1.0 if key == "ter" else 0.0 for key in empty}, abs=1e-9)
    # The best reference counts; another that is empty changes nothing.
    alone = values(measure([TEXTS["plain"]], [REFERENCES[:1]], suite=suite))[0]
    for key in ("meteor", "rouge_l", "ter", "chrf_pp"):
        assert one.get(key) == alone.get(key)
    assert 0 < strange["meteor"] < 1
    assert plain["meteor"] > strange["meteor"]
    assert all(np.isfinite(figure.value) for figure in measurement.figures["all"].values())


@pytest.mark.parametrize("suite", SUITES)
def test_a_thousand_words_take_seconds(suite: str):
    distinct = " ".join(f"word{i}" for i in range(1000))
    again = " ".join(["the kettle on the stove whistles at noon and"] * 112)
    began = time.monotonic()
    found = scored({"distinct": distinct, "again": again, "the": "the " * 1000, "one": "k" * 10_000}, REFERENCES, suite)
    assert time.monotonic() - began < 20  # less than one, but on a busy machine
    assert found["distinct"]["meteor"] == found["one"]["meteor"] == 0
    assert 0 < found["the"]["meteor"] < found["again"]["meteor"] < 0.05
    if suite != "e2e":
        # 1,000 words where 9 are, none of which is right: as many edits.
        assert found["distinct"]["ter"] == pytest.approx(1000 / 9)


@pytest.mark.parametrize("suite", SUITES)
def test_nothing_but_empty_hypotheses(suite: str):
    measurement = measure(["", " "], [REFERENCES, REFERENCES[:1]], suite=suite)
    scores = {key: score.value for key, score in measurement.scores().scores.items()}
    assert scores == pytest.approx({key: 1.0 if key == "ter" else 0.0 for key in scores}, abs=1e-9)
