"""METEOR on the Java that the wheel carries, in a hostile environment, with the paraphrases that it needs."""

import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lodarepro.errors import RunFailed
from lodarepro.metrics import java, meteor
from lodarepro.metrics.segments import Figure, Segments

SEGMENTS = {
    "identical": ("the cat sat on the mat", ["the cat sat on the mat"]),
    "partial": ("red house", ["red wooden house"]),
    "best of three": ("red house", ["blue sea", "red house", "red wooden house"]),
    "empty": ("", ["red wooden house"]),
    "line break": ("red\nhouse", ["red wooden\u2028house"]),
    "bars": ("red ||| house", ["red ||| wooden ||| house"]),
    "letters": ("CAFÉ Zoë", ["café ZOË"]),
    "last": ("blue sea", ["blue sea"]),
}


@pytest.fixture(scope="module")
def figures() -> Iterator[list[Figure]]:
    segments = Segments(
        tuple(hypothesis for hypothesis, _ in SEGMENTS.values()),
        tuple(tuple(references) for _, references in SEGMENTS.values()),
    )
    meteor._scorer.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setenv("LC_ALL", "POSIX")
        # Decimal commas: METEOR would not read its own statistics.
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
        yield meteor.meteor(segments, [range(len(segments)), [1], [1, 7]])
    meteor._scorer.cache_clear()


# Denkowski and Lavie (2014), English weights: alpha 0.85, beta 0.2, gamma 0.6. Two of two words match two of
# three, in two chunks: F = PR / (0.85 P + 0.15 R), and the penalty is 0.6 (2 chunks / 2 matches) ** 0.2.
PARTIAL = (1 - 0.6) * (2 / 3) / (0.85 + 0.15 * 2 / 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("identical", 1.0),
        ("partial", PARTIAL),
        ("best of three", 1.0),
        ("empty", 0.0),
        ("line break", PARTIAL),
        ("bars", PARTIAL),
        ("letters", 1.0),
        ("last", 1.0),
    ],
)
def test_segments(figures: list[Figure], name: str, value: float) -> None:
    found = dict(zip(SEGMENTS, figures[0].segments or (), strict=True))
    assert found[name] == pytest.approx(value, abs=1e-12)


def test_groups(figures: list[Figure]) -> None:
    whole, partial, pair = figures
    assert len(whole.segments or ()) == len(SEGMENTS)
    assert partial.value == pytest.approx(PARTIAL, abs=1e-12)
    # From the statistics of both, not the mean: P = 4/4, R = 4/5, and two chunks for four matches, as a
    # segment that is wholly right adds none.
    expected = (1 - 0.6 * (2 / 4) ** 0.2) * 0.8 / (0.85 + 0.15 * 0.8)
    assert pair.segments == pytest.approx((PARTIAL, 1.0))
    assert pair.value == pytest.approx(expected, abs=1e-12)


def test_paraphrases_count(figures: list[Figure]) -> None:
    # No reference of the fixture has a paraphrase of this kind: the process starts again and reads more.
    segments = Segments(("in the middle of town", "red town"), (("centre town",), ("centre town",)))
    (figure,) = meteor.meteor(segments, [[0, 1]])
    column = meteor.COLUMNS.index("paraphrase_content")
    assert figure.statistics[:, column].tolist() == [1, 0]


def random_segments(count: int) -> Segments:
    chance = random.Random(1)
    words = "the a in city centre middle of town cheap inexpensive food U.S. us don't isn't family-friendly , . café it"

    def text() -> str:
        return " ".join(chance.choices(words.split(), k=chance.randrange(12)))

    return Segments(
        tuple(text() for _ in range(count)),
        tuple(tuple(text() for _ in range(chance.randrange(1, 5))) for _ in range(count)),
    )


@pytest.mark.slow
def test_the_whole_table_and_one_process_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = random_segments(400)
    jar = java.jar("meteor/meteor-1.5.jar")
    whole = java.Program("METEOR", lambda: ("-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"))
    questions = list(map(meteor._question, segments.hypotheses, segments.references))
    lines = whole.ask(questions, lambda answers: list(itertools.islice(answers, len(questions))))
    groups = [range(400), range(0, 400, 3), [5]]
    # The jar answers the values of the segments, then that of all.
    asked = [" ||| ".join(["EVAL", *(lines[i] for i in group)]) for group in groups]
    answers = whole.ask(asked, lambda answers: list(itertools.islice(answers, sum(map(len, groups)) + len(groups))))
    official = iter(map(float, answers))
    monkeypatch.setattr(meteor, "SHARE", 100)
    figures = meteor.meteor(segments, groups)
    for figure in figures:
        values = list(itertools.islice(official, len(figure.segments or ())))
        assert figure.segments == pytest.approx(values, abs=1e-15)
        assert figure.value == pytest.approx(next(official), abs=1e-15)
    assert figures[0].statistics[:, meteor.COLUMNS.index("paraphrase_content")].sum() > 10


def test_sums_that_mean_nothing() -> None:
    # No segment drawn, or only empty ones: no score, no warning.
    assert meteor.of_sums(np.zeros((2, len(meteor.COLUMNS)))).tolist() == [0, 0]


@pytest.fixture
def fresh() -> Iterator[None]:
    meteor._scorer.cache_clear()
    yield
    meteor._scorer.cache_clear()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("nonsense", "answered 'nonsense' where 23 counts were due"),
        ("1.0 2.0", "answered '1.0 2.0' where 23 counts were due"),
        ("0.0 " * 23, "has not read its paraphrases"),
        ("Error: specify SCORE or EVAL", "answered 'Error: specify SCORE or EVAL' where 23 counts were due"),
    ],
)
def test_nonsense_is_no_score(fake_java: Callable[..., Path], fresh: None, answer: str, fault: str) -> None:
    fake_java(f"while read -r line; do echo '{answer}'; done")
    with pytest.raises(RunFailed, match=f"^METEOR {re.escape(fault)}; it said last: nothing, twice; fix: "):
        meteor.meteor(Segments(("a",), (("b",),)), [[0]])


def test_processes_are_kept(fake_java: Callable[..., Path], fresh: None, tmp_path: Path) -> None:
    one = "0.0 " * 16 + "1.0 " + "0.0 " * 6
    fake_java(f"echo start >> {tmp_path}/starts; while read -r line; do echo '{one}'; done")
    for _ in range(3):
        meteor.meteor(Segments(("a",), (("b",),)), [[0]])
    assert (tmp_path / "starts").read_text() == "start\n"
    # Any hypothesis will do, but another reference may need paraphrases that it has not read.
    meteor.meteor(Segments(("inexpensive",), (("b",),)), [[0]])
    assert (tmp_path / "starts").read_text() == "start\n"
    meteor.meteor(Segments(("a",), (("cheap",),)), [[0]])
    meteor.meteor(Segments(("a",), (("b",),)), [[0]])
    assert (tmp_path / "starts").read_text() == "start\n" * 2
