"""METEOR 1.5 (Denkowski and Lavie, 2014): the official jar, run as the official scorers run it."""

from __future__ import annotations

from collections.abc import Sequence

from lodarepro.errors import RunFailed
from lodarepro.metrics import java
from lodarepro.metrics.segments import Figure, Group, Segments

VERSION = "1.5"


def meteor(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """METEOR of each group, a fraction, with the values of its segments: `-l en -norm`, all references.

    The jar is asked on its standard input (`-stdio`): a line of statistics for each segment, then the figures
    of each group from its statistics; one Java process for all. Both `tuetschek/e2e-metrics` at 1b9c4d87
    (COCO caption tools) and `WebNLG/GenerationEval` at 80678494 (`-r 6`) come to this.

    Raises:
        BadInput: no Java runtime, or no jar.
        RunFailed: METEOR failed.
    """
    arguments = ("-jar", java.jar("meteor/meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en", "-norm")
    questions = [_question(*segment) for segment in zip(segments.hypotheses, segments.references, strict=True)]
    figures = []
    with java.conversation("METEOR", arguments) as conversation:
        statistics = conversation.ask(questions, answers=len(questions))
        for group in groups:
            line = " ||| ".join(["EVAL", *(statistics[i] for i in group)])
            # One answer for each segment, then that of the group.
            *values, total = map(_number, conversation.ask([line], answers=len(group) + 1))
            figures.append(Figure(total, tuple(values)))
    return figures


def _question(hypothesis: str, references: Sequence[str]) -> str:
    # An equal reference changes nothing (the first best one counts) but takes its time: once is enough.
    texts = [*dict.fromkeys(references), hypothesis]
    return " ||| ".join(["SCORE", *(java.one_line(text).replace("|||", " ") for text in texts)])


def _number(answer: str) -> float:
    try:
        return float(answer)
    except ValueError:
        raise RunFailed(f"METEOR answered {answer!r} where a score was due; fix: score again") from None
