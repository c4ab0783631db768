"""METEOR 1.5 (Denkowski and Lavie, 2014): the official jar, run as the official scorers run it."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lodarepro.errors import RunFailed
from lodarepro.metrics import java, paraphrases
from lodarepro.metrics.beside import beside
from lodarepro.metrics.segments import Figure, Group, Segments

VERSION = "1.5"

STAGES = ("exact", "stem", "synonym", "paraphrase")
COLUMNS = (
    "length",
    "reference_length",
    "function_words",
    "reference_function_words",
    *(f"{stage}_{side}{kind}" for stage in STAGES for kind in ("content", "function") for side in ("", "reference_")),
    "chunks",
    "matches",
    "reference_matches",
)
"""What METEOR counts in a segment with the best of its references, in the order of its answer."""

# For English, of `-t rank`, the default: Denkowski and Lavie (2014), and the jar's own.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of the stages

WORKERS = min(4, len(os.sched_getaffinity(0)))
SHARE = 1000  # pairs of hypothesis and reference that make another worker worth its start

PROBE = (b"lodareproprobe", b"lodareproecho")
"""A pair of phrases that no text holds."""


def begin() -> None:
    """Starts what can be done before the texts are there."""
    paraphrases.begin()


def meteor(segments: Segments, groups: Sequence[Group]) -> list[Figure]:
    """METEOR of each group, a fraction, with the values of its segments: `-l en -norm`, all references.

    Both `tuetschek/e2e-metrics` at 1b9c4d87 (COCO caption tools) and `WebNLG/GenerationEval` at 80678494
    (`-r 6`) come to this. The jar counts (`-stdio`); the score follows from the counts here, so that it can be
    had for any weights of the segments.

    Raises:
        BadInput: no Java runtime, or no jar.
        RunFailed: METEOR failed.
    """
    statistics = _scorer().statistics(segments)
    figures = []
    for group in groups:
        rows = statistics[list(group)]
        figures.append(Figure(rows, of_sums, COLUMNS, tuple(of_sums(rows).tolist())))
    return figures


def of_sums(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR from the counts of a segment or their sums over segments, (..., 23) -> (...).

    Source: `cmu-mtlab/meteor`, MeteorScorer.computeMetrics (the jar's `EVAL` gives the same).
    """
    lengths, function_words = sums[..., 0:2], sums[..., 2:4]  # of hypothesis and reference
    content, function = sums[..., [[4, 8, 12, 16], [5, 9, 13, 17]]], sums[..., [[6, 10, 14, 18], [7, 11, 15, 19]]]
    chunks, matches = sums[..., 20], sums[..., 21] + sums[..., 22]
    weighted = sum(
        kind[..., stage] * weight * factor
        for kind, factor in ((content, DELTA), (function, 1 - DELTA))
        for stage, weight in enumerate(WEIGHTS)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        precision_recall = weighted / (DELTA * (lengths - function_words) + (1 - DELTA) * function_words)
        precision, recall = precision_recall[..., 0], precision_recall[..., 1]
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = np.where(_perfect(sums), 0.0, chunks / (matches / 2))
        score = mean * (1 - GAMMA * fragmentation**BETA)
    return np.where(np.isnan(score), 0.0, np.maximum(score, 0.0))


def _perfect(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether every word is matched, in one chunk: there is no penalty then, and the chunk does not count."""
    matched = np.stack([sums[..., 4:20:2].sum(axis=-1), sums[..., 5:20:2].sum(axis=-1)], axis=-1)
    return (matched == sums[..., 0:2]).all(axis=-1) & (sums[..., 20] == 1)


class _Scorer:
    """METEOR in some processes, which have all read the same paraphrases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references: set[str] = set()  # those seen so far
        self._pairs: dict[bytes, None] = {}  # all pairs of the table that have a phrase of theirs
        self._folder: Path | None = None  # of a call
        self._workers = [java.Program("METEOR", self._arguments) for _ in range(WORKERS)]

    def statistics(self, segments: Segments) -> NDArray[np.float64]:
        """The counts of each segment, (segments, 23)."""
        texts = zip(segments.hypotheses, segments.references, strict=True)
        questions = [_question(hypothesis, references) for hypothesis, references in texts]
        number = max(1, min(WORKERS, sum(map(len, segments.references)) // SHARE))
        with self._lock, _temporary_folder() as folder:
            self._folder = folder
            self._learn(set().union(*segments.references))
            waiting = [
                beside(functools.partial(_ask, worker, questions[i::number]))
                for i, worker in enumerate(self._workers[:number])
            ]
            shares = [share.result() for share in waiting]
        rows = np.empty((len(questions), len(COLUMNS)))
        for i, share in enumerate(shares):
            rows[i::number] = share
        rows[_perfect(rows), COLUMNS.index("chunks")] = 0
        return rows

    def _learn(self, references: set[str]) -> None:
        """Has the workers start anew if they have not read the paraphrases of all these references."""
        if unseen := references - self._references:
            known = len(self._pairs)
            phrases = paraphrases.phrases(unseen)  # before the table, which may still be on its way
            self._pairs.update(dict.fromkeys(paraphrases.table().pairs(phrases)))
            self._references |= unseen
            if len(self._pairs) > known:
                for worker in self._workers:
                    worker.restart()

    def _arguments(self) -> tuple[str | Path, ...]:
        assert self._folder is not None  # workers start in a call
        file = Path(tempfile.mkdtemp(dir=self._folder)) / "paraphrases.gz"
        # Read before the first answer, so that the folder may go when the call ends.
        paraphrases.write(file, [*self._pairs, b"%s\n%s\n" % PROBE])
        return ("-jar", java.jar("meteor/meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en", "-norm", "-a", file)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as e:
        raise RunFailed(
            f"METEOR's paraphrases can't be written to {tempfile.gettempdir()} ({e.strerror or e}); "
            "make room, or set TMPDIR"
        ) from None


@functools.cache
def _scorer() -> _Scorer:
    return _Scorer()


os.register_at_fork(after_in_child=_scorer.cache_clear)  # its lock may be held, its processes are not the child's


def _question(hypothesis: str, references: Iterable[str]) -> str:
    # An equal reference changes nothing (the first best one counts) but takes its time: once is enough.
    texts = [*dict.fromkeys(references), hypothesis]
    return " ||| ".join(["SCORE", *(java.one_line(text).replace("|||", " ") for text in texts)])


def _ask(worker: java.Program, questions: Sequence[str]) -> list[list[float]]:
    """The answers to questions, after one to which METEOR knows the answer only if it has read its paraphrases.

    METEOR goes on without paraphrases that it could not read; the probe is the last of them.
    """

    def read(answers: Iterator[str]) -> list[list[float]]:
        if _counts(next(answers))[COLUMNS.index("paraphrase_content")] != 1:
            raise java.Broken("has not read its paraphrases")
        return [_counts(answer) for answer in itertools.islice(answers, len(questions))]

    return worker.ask([_question(PROBE[0].decode(), [PROBE[1].decode()]), *questions], read)


def _counts(answer: str) -> list[float]:
    try:
        counts = [float(number) for number in answer.split()]
    except ValueError:
        counts = []
    if len(counts) != len(COLUMNS):
        raise java.Broken(f"answered {answer[:200]!r} where {len(COLUMNS)} counts were due")
    return counts
