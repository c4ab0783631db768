"""METEOR on the Java that the wheel carries, in a hostile environment; one start for all sentences."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lodarepro.errors import RunFailed
from lodarepro.metrics.meteor import meteor
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
def figures() -> list[Figure]:
    segments = Segments(
        tuple(hypothesis for hypothesis, _ in SEGMENTS.values()),
        tuple(tuple(references) for _, references in SEGMENTS.values()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setenv("LC_ALL", "POSIX")
        # Decimal commas: METEOR would not read its own statistics.
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
        return meteor(segments, [range(len(segments)), [1], [1, 7]])


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


def test_an_answer_that_is_no_number(fake_java: Callable[..., Path]) -> None:
    fake_java("while read -r line; do echo nonsense; echo nonsense; done")
    message = "METEOR answered 'nonsense' where a score was due; fix: score again"
    with pytest.raises(RunFailed, match=f"^{re.escape(message)}$"):
        meteor(Segments(("a",), (("b",),)), [[0]])
