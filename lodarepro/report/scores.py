"""What `lodarepro score` shows of texts that are no run's: scores, comparisons, values of segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lodarepro.metrics import ALL, Measurement
from lodarepro.report.summary import markdown
from lodarepro.scores import Comparison, Interval, Score, SuiteScores, Unit
from lodarepro.units import COLUMNS

DECIMALS: dict[Unit, int] = {"fraction": 4, "points": 4, "nats": 4, "percent": 2}
"""Decimals that the official scorers print."""

TESTED_AT = 0.05  # p-value below which a difference is marked


def table(scores: SuiteScores) -> str:
    """Scores in the official scorers' units, a row for each metric, of subsets too; signatures below."""
    groups = {ALL: (scores.segments, scores.scores)}
    groups |= {label: (scores.subset_segments[label], subset) for label, subset in scores.subsets.items()}
    measured = any(score.interval for score in scores.scores.values())
    rows = [["metric", *(["subset"] if scores.subsets else []), "score", *(["95 % interval"] if measured else [])]]
    for label, (_, found) in groups.items():
        for key, score in found.items():
            subset = [label] if scores.subsets else []
            interval = [_interval(score.interval, score.unit)] if score.interval else []
            rows.append([_title(scores.suite, key, score.unit), *subset, _number(score.value, score.unit), *interval])
    sizes = ", ".join(f"{label} {size:,}" for label, (size, _) in groups.items())
    signatures = [score.signature for score in scores.scores.values()]
    return "\n".join([markdown(rows), "", f"suite {scores.suite}; segments: {sizes}", *signatures])


def comparison_table(suite: str, found: Mapping[str, Mapping[str, Comparison]]) -> str:
    """Comparisons, a row for each metric, of subsets too; how they were tested below."""
    rows = [["metric", *(["subset"] if len(found) > 1 else []), "A", "B", "B - A", "95 % interval", "p"]]
    for label, comparisons in found.items():
        for key, compared in comparisons.items():
            unit = compared.a.unit
            rows.append(
                [
                    _title(suite, key, unit),
                    *([label] if len(found) > 1 else []),
                    _number(compared.a.value, unit),
                    _number(compared.b.value, unit),
                    f"{compared.difference:+.{DECIMALS[unit]}f}",
                    _interval(compared.interval, unit),
                    f"{compared.p:.4f}{' *' if compared.p < TESTED_AT else ''}",
                ]
            )
    some = next(iter(found[ALL].values()))
    return "\n".join(
        [
            markdown(rows),
            "",
            f"paired bootstrap, two-sided: n={some.samples}, seed={some.seed}; * marks p < {TESTED_AT}",
            *(compared.a.signature for compared in found[ALL].values()),
        ]
    )


def as_json(scores: SuiteScores) -> dict[str, Any]:
    """Scores as `--json` gives them."""
    return {
        "suite": scores.suite,
        "segments": scores.segments,
        "scores": _of_group(scores.scores),
        "subsets": {label: _of_group(subset) for label, subset in scores.subsets.items()},
        "subset_segments": scores.subset_segments,
    }


def comparison_as_json(suite: str, found: Mapping[str, Mapping[str, Comparison]]) -> dict[str, Any]:
    """Comparisons as `--json` gives them."""
    groups = {
        label: {
            key: {
                "a": compared.a.value,
                "b": compared.b.value,
                "difference": compared.difference,
                "interval": compared.interval,
                "p": compared.p,
                "unit": compared.a.unit,
                "higher_is_better": compared.a.higher_is_better,
                "signature": compared.a.signature,
            }
            for key, compared in comparisons.items()
        }
        for label, comparisons in found.items()
    }
    some = next(iter(found[ALL].values()))
    return {
        "suite": suite,
        "test": {"name": "paired bootstrap, two-sided", "n": some.samples, "seed": some.seed},
        "scores": groups.pop(ALL),
        "subsets": groups,
    }


def _of_group(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        key: {
            "value": score.value,
            "unit": score.unit,
            "higher_is_better": score.higher_is_better,
            "signature": score.signature,
            **({"interval": score.interval} if score.interval else {}),
        }
        for key, score in scores.items()
    }


def segments_table(measurement: Measurement) -> str:
    """Tab-separated values of each segment, a line each, in the order of the hypotheses.

    A metric that is the mean of its segments has its value there; one that is not has the statistics that add
    up to what it is computed from (`bleu.hits_1`), and its value where it gives a segment one.
    """
    columns: dict[str, list[str]] = {}
    for key, figure in measurement.figures[ALL].items():
        if figure.segments is not None:
            columns[key] = [repr(value) for value in figure.segments]
        if not figure.is_mean:
            for name, values in zip(figure.columns, figure.statistics.T.tolist(), strict=True):
                columns[f"{key}.{name}"] = [f"{value:.17g}" for value in values]
    labels = {i: label for label, group in measurement.groups.items() if label != ALL for i in group}
    lines = ["\t".join(["segment", *(["subset"] if labels else []), *columns])]
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        subset = [labels.get(i, "")] if labels else []
        lines.append("\t".join([str(i + 1), *subset, *values]))
    return "\n".join(lines) + "\n"


def _title(suite: str, key: str, unit: Unit) -> str:
    return COLUMNS[suite][key].title + (" (%)" if unit == "percent" else "")


def _number(value: float, unit: Unit) -> str:
    return f"{value:.{DECIMALS[unit]}f}"


def _interval(interval: Interval, unit: Unit) -> str:
    return f"{_number(interval[0], unit)} to {_number(interval[1], unit)}"
