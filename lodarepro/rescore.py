"""Scores from kept hypotheses: what runs left is measured again, and two runs are compared."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lodarepro import metrics, records
from lodarepro.errors import BadInput
from lodarepro.files import write_atomically
from lodarepro.metrics import Measurement
from lodarepro.records import Decoded, Record
from lodarepro.scores import Comparison

logger = logging.getLogger(__name__)


def measured(decoded: Sequence[Decoded], suite: str) -> Measurement:
    """Decoded segments as the metrics of a suite see them, with the subsets that they name."""
    subsets = [d.subset for d in decoded]
    return metrics.measure(
        [d.hypothesis for d in decoded],
        [d.references for d in decoded],
        suite=suite,
        subsets=subsets if any(subsets) else None,
    )


def measure_file(folder: Path, record: Record, file: str) -> Measurement:
    """Measure the hypotheses in a file of a run anew.

    Raises:
        BadInput: they are missing, corrupt or not all there.
    """
    return measured(_decoded(folder, record, file), record.config["dataset"]["suite"])


DIGITS = 6  # significant, of a kept segment's figure: to sort by and to look at


def keep_values(texts: Path, found: Measurement) -> None:
    """Write each segment's figures beside the file of texts that they were measured on, for `segment_values`.

    Raises:
        OSError: they can't be written.
    """
    tree = {"texts": _sha256(texts), "signatures": found.signatures, "values": _values(found)}
    write_atomically(_values_file(texts), json.dumps(tree).encode())


def segment_values(folder: Path, record: Record, file: str) -> dict[str, list[float]]:
    """Each segment's figures in a file of a run's hypotheses: metric key to a value a segment, in the metric's unit.

    BLEU and NIST have none. They are measured, and kept, unless they were before on the same texts by the same scorers.

    Raises:
        BadInput: as `measure_file`.
    """
    texts = folder / file
    evaluation = record.evaluation_of(file)
    damaged = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with suppress(OSError, *damaged):  # or not there: derived again
        tree = json.loads(_values_file(texts).read_text(encoding="ascii"))
        signatures = {key: score.signature for key, score in evaluation.scores.items()}
        fitting = tree["texts"] == _sha256(texts) and tree["signatures"] == signatures
        if fitting and tree["values"].keys() <= signatures.keys() and _whole(tree["values"], evaluation.segments):
            return dict(tree["values"])
    found = measure_file(folder, record, file)
    with suppress(OSError):  # a folder of results may be there to be read only
        keep_values(texts, found)
    return _values(found)


def _whole(values: Mapping[str, Sequence[float]], segments: int) -> bool:
    return all(len(figures) == segments and all(map(math.isfinite, figures)) for figures in values.values())


def _values(found: Measurement) -> dict[str, list[float]]:
    figures = found.figures[metrics.ALL]
    return {
        key: [float(f"{value:.{DIGITS}g}") for value in figure.segments]
        for key, figure in figures.items()
        if figure.segments is not None
    }


def _values_file(texts: Path) -> Path:
    return texts.with_suffix(".values.json")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rescore(folder: Path) -> Record:
    """Derive a finished run's scores again from the hypotheses and references in its folder.

    Returns:
        The record with the new scores, which has been written if they differ.

    Raises:
        BadInput: no finished run there, or its hypotheses are missing, corrupt or not all there.
    """
    with records.disk_faults(folder):
        records.finished(folder)  # before a lock file is made in a folder that is none of a run
    with records.disk_faults(folder), records.locked(folder):
        record = records.finished(folder)
        found = {}
        for file in dict.fromkeys(evaluation.hypotheses for evaluation in record.evaluations):
            again = measure_file(folder, record, file)
            keep_values(folder / file, again)
            found[file] = again.scores()
        evaluations = []
        for evaluation in record.evaluations:
            scored = found[evaluation.hypotheses]
            scores = scored.scores if evaluation.subset == metrics.ALL else scored.subsets[evaluation.subset]
            evaluations.append(replace(evaluation, scores=scores))
        new = replace(record, evaluations=tuple(evaluations))
        if new != record:
            logger.warning("%s: the scores differ from the record's, which is brought up to date", record.id)
            records.write(folder, new)
    return new


def compare_runs(a: Path, b: Path, *, samples: int, seed: int) -> dict[str, dict[str, Comparison]]:
    """Paired bootstrap test between the first evaluations of two finished runs (`metrics.compare`).

    Args:
        a: folder of the one run, the baseline.
        b: folder of the other.
        samples: number of resamples.
        seed: of their drawing.

    Returns:
        Subset (`all` first) to metric key to comparison.

    Raises:
        BadInput: they are not finished runs, not on the same segments, or their hypotheses as in `rescore`.
    """
    runs = []
    for folder in (a, b):
        with records.disk_faults(folder):
            runs.append(records.finished(folder))
    suites = [record.config["dataset"]["suite"] for record in runs]
    if suites[0] != suites[1]:
        raise BadInput(f"{a} is scored with the suite {suites[0]}, {b} with {suites[1]}; compare runs on one dataset")
    decoded = [
        _decoded(folder, record, record.evaluations[0].hypotheses) for folder, record in zip((a, b), runs, strict=True)
    ]
    if len(decoded[0]) != len(decoded[1]):
        raise BadInput(f"{a} has {len(decoded[0])} segments, {b} has {len(decoded[1])}; compare runs on the same ones")
    for number, (one, other) in enumerate(zip(*decoded, strict=True), start=1):
        if (one.context, one.references) != (other.context, other.references):
            raise BadInput(f"segment {number} of {a} is not that of {b}; compare runs on the same test file")
    of_a, of_b = (measured(segments, suites[0]) for segments in decoded)
    return metrics.compare(of_a, of_b, samples=samples, seed=seed)


def _decoded(folder: Path, record: Record, file: str) -> list[Decoded]:
    """The segments in a file of a run, as many as were scored: fewer would give other scores without a word."""
    decoded = records.read_decoded(folder / file)
    for evaluation in record.evaluations:
        found = sum(evaluation.subset in (metrics.ALL, one.subset) for one in decoded)
        if evaluation.hypotheses == file and found != evaluation.segments:
            raise BadInput(
                f"{folder / file} has {found} segments (subset: {evaluation.subset}) of the {evaluation.segments} that "
                "were scored; delete it and decode the run again"
            )
    return decoded
