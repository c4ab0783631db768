"""The report page: one file made from records, which asks nothing of any network.

Whatever a model or a file wrote gets into the page in two ways only: through the template, which escapes it, and as
JSON, which the page's script shows as text. The page's own policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from lodarepro import __version__, findings, units
from lodarepro.compose import without_places
from lodarepro.findings import Findings
from lodarepro.metrics import ALL
from lodarepro.records import Failure, Record, method_of
from lodarepro.report import analyses
from lodarepro.report import table as shown
from lodarepro.report.aggregate import FilledTable
from lodarepro.report.drawing import WIDTH, Figure
from lodarepro.report.summary import counted
from lodarepro.report.texts import SideBySide

FIRST_SHOWN = "bleu"
"""metric whose figures a table shows until another is chosen"""
KINDS = {
    "print": "Print against ours",
    "rank": "Rank against score",
    "size": "Parameters against score",
    "training": "Training loss",
    "validation": "Validation loss",
}
"""kinds of figures and what stands above them"""
VERDICTS = {"within print": "✓", "within reruns": "◐", "outside": "✗"}
"""signs of the verdicts, so that they are told apart without colour"""
PLACE = re.compile(r"""(?:^|(?<=[\s="',(\[]))(?:file://)?(?:~[^/\s"']*/|/[^/\s"',\]][^/"',\]]*/)(?:[^/"',\]]+/)*""")
"""folders before the name of a file, where a text begins with them or they follow upon a space, sign or bracket"""


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    Attributes:
        root: name of the results folder.
        tables: filled.
        figures: of each of them.
        finished: all runs.
        failures: why others failed.
        texts: of each test file.
        analyses: what they found.
        plots: of each of them.
    """

    root: str
    tables: Sequence[FilledTable]
    figures: Sequence[Sequence[Figure]]
    finished: Sequence[Record]
    failures: Sequence[Failure]
    texts: Sequence[SideBySide]
    analyses: Sequence[Findings]
    plots: Sequence[Sequence[Figure]]


def render(contents: Contents) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lodarepro.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _file("page.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    )
    return environment.get_template("page.html").render(
        policy=policy,
        style=_file("page.css"),
        script=script,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        root=contents.root,
        counted=counted,
        kinds=KINDS,
        signs=VERDICTS,
        tables=[_table(*both) for both in zip(contents.tables, contents.figures, strict=True)],
        analyses=[_analysis(*both) for both in zip(contents.analyses, contents.plots, strict=True)],
        suites=_suites(contents.finished),
        failures=contents.failures,
        texts=[
            {"name": test.name, "segments": len(test.contexts), "packed": _packed(_texts(test))}
            for test in contents.texts
        ],
        data=_json_in_html(
            {
                "tables": [_tree(filled) for filled in contents.tables],
                "runs": {record.id: _run(record) for record in contents.finished},
            }
        ),
    )


def _file(name: str) -> str:
    return resources.files("lodarepro.report").joinpath("page", name).read_text(encoding="utf-8")


def _json(tree: Any) -> str:
    return json.dumps(tree, allow_nan=False, separators=(",", ":"))


def _json_in_html(tree: Any) -> str:
    """JSON that holds nothing that a parser of HTML would take for the end of it."""
    return _json(tree).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _packed(tree: Any) -> str:
    """JSON in gzip in base64: texts of one context are much alike, and pack to a tenth."""
    return base64.b64encode(gzip.compress(_json(tree).encode(), compresslevel=6, mtime=0)).decode()


def _texts(test: SideBySide) -> dict[str, Any]:
    return {
        "name": test.name,
        "metrics": [
            {
                "key": key,
                "title": column.title,
                "decimals": column.decimals,
                "higher": units.higher_is_better(test.suite, key),
            }
            for key, column in test.columns.items()
        ],
        "contexts": test.contexts,
        "references": test.references,
        "subsets": test.subsets if any(test.subsets) else None,
        "systems": [
            {
                "label": system.label,
                "run": system.run,
                "hypotheses": system.hypotheses,
                "unfinished": system.unfinished,
                "values": {
                    key: [round(value, column.decimals + 1) for value in system.values[key]]
                    for key, column in test.columns.items()
                },
            }
            for system in test.systems
        ],
    }


def _run(record: Record) -> dict[str, Any]:
    """What stands behind a run's numbers."""
    return {
        "config": without_places(record.config),
        "provenance": record.provenance,
        "checksums": record.identity["checksums"],
        "protocol_version": record.identity["protocol_version"],
        "parameters": record.parameters,
        "training": record.training,
        "evaluations": [
            {
                "checkpoint": e.checkpoint,
                "subset": e.subset,
                "segments": e.segments,
                "decode": e.decode,
                "hypotheses": e.hypotheses,
                "val_loss": e.val_loss,
                "scores": {key: [score.value, score.unit, score.signature] for key, score in e.scores.items()},
            }
            for e in record.evaluations
        ],
    }


def _tree(filled: FilledTable) -> dict[str, Any]:
    """A table's figures for the page's script, its columns with their titles."""
    tree = shown.as_tree(filled)
    for column, shown_as in zip(tree["columns"], filled.columns, strict=True):
        column["title"] = shown_as.title
    return tree


def _table(filled: FilledTable, figures: Sequence[Figure]) -> dict[str, Any]:
    """A table as the template wants it: its lines, each row's together, and its figures by kind."""
    (head, *lines), notes = shown.lines_of(filled, check=False)
    blocks: list[dict[str, Any]] = []
    rows = enumerate(filled.rows)
    for line in lines:
        if line.kind == "group":
            blocks.append({"group": line.texts[0]})
        elif line.kind == "ours":
            number, row = next(rows)
            blocks.append(
                {
                    "group": None,
                    "number": number,
                    "left": line.texts[: -len(row.cells)],
                    "cells": [
                        {"ours": text, "run": bool(cell.n), "best": cell.best, "verdict": cell.verdict}
                        for text, cell in zip(line.texts[-len(row.cells) :], row.cells, strict=True)
                    ],
                    "print": None,
                    "difference": None,
                    "reruns": None,
                }
            )
        else:
            blocks[-1][line.kind] = line.texts
    metrics = list(dict.fromkeys(figure.metric for figure in figures if figure.metric is not None))
    titles = {column.key: shown_as.title for column, shown_as in zip(filled.table.columns, filled.columns, strict=True)}
    verdicts = shown.verdicts(filled)
    return {
        "name": filled.table.name,
        "title": shown.titled(filled),
        "printed": filled.table.printed,
        "head": head.texts,
        "texts": len(head.texts) - len(filled.columns),
        "blocks": blocks,
        "notes": notes,
        "about": shown.explanations(filled, check=filled.table.printed),
        "verdicts": {name: count for name, count in verdicts.items() if count},
        "metrics": [(key, titles[key]) for key in metrics],
        "first": FIRST_SHOWN if FIRST_SHOWN in metrics else next(iter(metrics), None),
        "figures": {kind: found for kind in KINDS if (found := [f for f in figures if f.kind == kind])},
    }


def _analysis(found: Findings, plots: Sequence[Figure]) -> dict[str, Any]:
    """An analysis as the template wants it."""
    folder = f"{findings.FOLDER}/{found.name}"
    return {
        "title": found.title,
        "source": found.source,
        "grids": [
            {
                "title": grid.title,
                "lines": analyses.lines_of(grid),
                "numbers": [
                    all(not isinstance(row[place], str) for row in grid.rows) for place in range(len(grid.columns))
                ],
            }
            for grid in found.grids
            if grid.shown
        ],
        "plots": [
            {"title": plot.title, "file": f"{folder}/{plot.key}", "figure": figure, "wide": figure.width > WIDTH}
            for plot, figure in zip(found.plots, plots, strict=True)
        ],
        "notes": found.notes,
        "files": [f"{folder}/{name}" for name in [*(f"{grid.key}.csv" for grid in found.grids), *found.files]],
        "origin": analyses.origin(found),
        "behind": json.dumps(
            _without_folders({"settings": found.settings, "provenance": found.provenance}), indent=2, ensure_ascii=False
        ),
    }


def _without_folders(tree: Any) -> Any:
    """A tree as others may see it: of paths, which tell of this machine, the last name alone."""
    if isinstance(tree, dict):
        return {_without_folders(key): _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(one) for one in tree]
    return PLACE.sub("", tree) if isinstance(tree, str) else tree


def _suites(finished: Sequence[Record]) -> list[dict[str, Any]]:
    """All runs, those that are scored alike together."""
    found = []
    for suite in dict.fromkeys(record.config["dataset"]["suite"] for record in finished):
        columns = units.COLUMNS[suite]
        rows = []
        for record in finished:
            if record.config["dataset"]["suite"] != suite:
                continue
            evaluation = next(e for e in record.evaluations if e.subset == ALL)
            rows.append(
                {
                    "id": record.id,
                    "texts": [
                        record.config["dataset"]["name"],
                        record.config["model"]["name"],
                        method_of(record),
                        record.config["protocol"]["name"],
                    ],
                    "numbers": [
                        str(record.config["seed"]),
                        f"{record.parameters['trainable']:,}",
                        f"{evaluation.val_loss:.3f}",
                        *(units.printed(evaluation.scores[key], column) for key, column in columns.items()),
                    ],
                }
            )
        found.append({"suite": suite, "columns": [column.title for column in columns.values()], "rows": rows})
    return found
