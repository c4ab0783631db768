"""What BLEU hides: which facts texts lose, make up or get wrong, and where scores come from.

Data with slots (E2E, `configs/slots/`) are judged fact by fact, by rules (`slots.py`). Data of triples (WebNLG, DART)
are scored apart by category, by number of triples, and seen against unseen, by the official metrics.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lodarepro import compose, config, records, units
from lodarepro.analysis import slots
from lodarepro.data import PARSERS, webnlg
from lodarepro.data.sources import Source, download_url, locate
from lodarepro.errors import BadInput, nearest
from lodarepro.findings import Column, Findings, Grid, HeatMap, Panel, Value, labels, named, provenance, readable
from lodarepro.metrics import ALL, measure
from lodarepro.records import Decoded, Record

logger = logging.getLogger(__name__)

OF_SLOTS = "slot error rate: Wen et al. 2015 (arXiv 1508.01745), Dušek et al. 2019 (arXiv 1911.03905)"
OF_GROUPS = "groups: the WebNLG challenge's own (Gardent et al. 2017)"
KINDS = ("missing", "added", "wrong")
REFERENCES = "references"
OTHERS = ("train", "valid")  # splits, beside the one that texts are of
SEPARATOR = " | "  # between triples


@dataclass(frozen=True)
class Texts:
    """What a finished run wrote.

    Attributes:
        label: its name among others.
        record: what it left.
        file: of its texts, in its folder.
        decoded: the texts.
    """

    label: str
    record: Record
    file: str
    decoded: list[Decoded]


def errors(folders: Sequence[Path], overrides: Sequence[str] = (), *, checkpoint: str | None = None) -> Findings:
    """Compare what finished runs wrote for one test set.

    Args:
        folders: of the runs.
        overrides: `data.*` where this machine has the data elsewhere: WebNLG's categories are in them, and the names
            that a model may have learnt. Nothing is downloaded.
        checkpoint: `last`, `best` or `epoch-N`; None: the first that was evaluated.

    Raises:
        BadInput: not finished runs of one test set, or one did not keep that checkpoint.
    """
    found = []
    for folder in folders:
        record = records.finished(folder)
        if not record.evaluations:
            raise BadInput(f"the record of {record.id} holds no evaluation; decode the run again")
        found.append((record, _file(record, checkpoint)))
    first = found[0][0]
    for record, _ in found[1:]:
        if record.identity["checksums"]["test"] != first.identity["checksums"]["test"]:
            raise BadInput(
                f"{first.id} was tested on {first.config['dataset']['name']}, {record.id} on other texts "
                f"({record.config['dataset']['name']}); give runs of one test set"
            )
    names = labels([record for record, _ in found])
    texts = [
        Texts(name, record, file, records.read_decoded(folder / file))
        for name, folder, (record, file) in zip(names, folders, found, strict=True)
    ]
    contexts = [decoded.context for decoded in texts[0].decoded]
    for one in texts[1:]:
        if [decoded.context for decoded in one.decoded] != contexts:
            raise BadInput(
                f"{one.record.id} has texts for other contexts than {first.id}; give runs with one dataset.limit.test"
            )
    dataset = first.config["dataset"]["name"]
    # another selection of a dataset's files has that one's facts
    rules = slots.read(dataset) or slots.read(first.config["dataset"]["remote"] or dataset)
    of_all = {
        "dataset": dataset,
        "test_sha256": first.identity["checksums"]["test"],
        "runs": [{"run": one.record.id, "texts": one.file} for one in texts],
    }
    run = compose.changed(compose.from_plain(first.config), overrides)
    grids, plots, notes = _groups(texts, run) if rules is None else _slots(texts, run, rules)
    return Findings(
        analysis="errors",
        name=named("errors", readable([record for record, _ in found]), of_all),
        title=f"Errors on {dataset}: {', '.join(names)}",
        source=OF_GROUPS if rules is None else OF_SLOTS,
        settings=of_all,
        provenance=provenance(),
        grids=tuple(grids),
        plots=tuple(plots),
        notes=tuple(notes),
    )


def _file(record: Record, checkpoint: str | None) -> str:
    if checkpoint is None:
        return record.evaluations[0].hypotheses
    files = {e.checkpoint: e.hypotheses for e in reversed(record.evaluations)}  # of several decodings the first
    if checkpoint not in files:
        raise BadInput(f"{record.id} has no checkpoint '{checkpoint}'{nearest(checkpoint, files)}")
    return files[checkpoint]


Found = tuple[list[Grid], list[HeatMap], list[str]]
"""tables, figures, notes"""


# slots ------------------------------------------------------------------------------------------


def _slots(texts: Sequence[Texts], run: config.Run, rules: slots.Rules) -> Found:
    contexts = [decoded.context for decoded in texts[0].decoded]
    others, splits = _other_contexts(run, texts[0].record)
    known = slots.vocabulary([*contexts, *others], rules)
    verdicts = {one.label: [slots.compare(d.context, d.hypothesis, rules, known) for d in one.decoded] for one in texts}
    # Of people's texts, so that what the rules take for errors there can be seen beside.
    of_references = [
        slots.compare(d.context, reference, rules, known) for d in texts[0].decoded for reference in d.references
    ]
    if not any(verdict.facts for verdict in of_references):
        raise BadInput(
            f"configs/slots/{rules.dataset}.yaml knows no slot of the contexts of {texts[0].record.id}: they are no "
            f"{rules.dataset} contexts"
        )
    unknown = Counter(key for verdict in verdicts[texts[0].label] for key in verdict.unknown)
    bleu = {one.label: _bleu(one) for one in texts}
    every = {**verdicts, REFERENCES: of_references}
    shares = {label: {slot.name: _shares(found, slot.name) for slot in rules.slots} for label, found in every.items()}
    rows: list[tuple[Value, ...]] = [(label, *_counts(found), bleu.get(label)) for label, found in every.items()]
    grids = [
        Grid(
            "slot-errors",
            "Slot errors",
            (
                *(Column("run", "run"), Column("texts", "texts"), Column("slots", "slots")),
                *(Column(kind, kind) for kind in KINDS),
                *(Column("slot_error_rate", "slot error rate (%)"), Column("with_error", "texts with an error (%)")),
                Column("bleu", "BLEU ↑"),
            ),
            tuple(rows),
        ),
        _by_slot(shares),
        _by_slot_and_run(shares),
        _flagged(texts, verdicts),
    ]
    notes = [
        "missing: no value of a slot of the context; wrong: another value instead; added: a value of a slot that the "
        "context does not have, or one that contradicts it beside the right one",
        "slot error rate: errors by slots of the contexts; of a slot: missing and wrong by contexts that have it, "
        "added by texts",
        f"{REFERENCES}: people's texts for the same contexts, which leave facts out too; found by rules "
        f"(configs/slots/{rules.dataset}.yaml), which now and then are wrong",
        f"names that a text may take for another's: those of the contexts of {', '.join(['test', *splits])}"
        + ("" if len(splits) == len(OTHERS) else "; the other splits are not here (data.root=FOLDER)"),
    ]
    if unknown:
        notes.append(f"not judged, as the rules don't know them: {', '.join(unknown)}")
    return grids, [_slot_map(shares)], notes


def _other_contexts(run: config.Run, record: Record) -> tuple[list[str], list[str]]:
    """The contexts of the splits that a model learnt names from, where the run's own files are here; and which."""
    contexts: list[str] = []
    found = []
    for split in OTHERS:
        if (source := _here(run, record, split)) is not None:
            contexts += dict.fromkeys(example.context for example in PARSERS[run.dataset.format](source.path))
            found.append(split)
    return contexts, found


def _here(run: config.Run, record: Record, split: str) -> Source | None:
    """A split's file, if it is on this machine and the one that the run had."""
    if download_url(run.dataset, run.data, split) is not None:
        return None
    try:
        source = locate(run.dataset, run.data, split)
    except BadInput as e:
        logger.warning("%s", e)
        return None
    return source if source.sha256 == record.identity["checksums"].get(split) else None


def _bleu(one: Texts) -> float:
    evaluation = one.record.evaluation_of(one.file)
    score, suite = evaluation.scores["bleu"], one.record.config["dataset"]["suite"]
    return units.in_unit(score.value, score.unit, units.COLUMNS[suite]["bleu"].unit, metric="bleu")


def _counts(found: Sequence[slots.Verdicts]) -> tuple[Value, ...]:
    kinds = [sum(len(getattr(verdict, kind)) for verdict in found) for kind in KINDS]
    flagged = sum(verdict.errors > 0 for verdict in found)
    return (
        *(len(found), sum(len(verdict.facts) for verdict in found), *kinds),
        *(100 * slots.slot_error_rate(found), 100 * flagged / len(found)),
    )


@dataclass(frozen=True)
class _Shares:
    """Errors of one slot in the texts of one run.

    Attributes:
        having: contexts that have the slot.
        per_cent: kind of error to its share; None: no context has it.
    """

    having: int
    per_cent: dict[str, float | None]


def _shares(found: Sequence[slots.Verdicts], slot: str) -> _Shares:
    having = sum(slot in verdict.facts for verdict in found)
    counts = {kind: sum(slot in getattr(verdict, kind) for verdict in found) for kind in KINDS}
    out_of = {"missing": having, "wrong": having, "added": len(found)}
    return _Shares(having, {kind: 100 * counts[kind] / out_of[kind] if out_of[kind] else None for kind in KINDS})


BySlot = Mapping[str, Mapping[str, _Shares]]
"""run to slot to its errors"""


def _slot_names(shares: BySlot) -> tuple[str, ...]:
    return tuple(next(iter(shares.values())))


def _by_slot(shares: BySlot) -> Grid:
    """A row a slot, to look at."""
    rows: list[tuple[Value, ...]] = []
    for slot in _slot_names(shares):
        cells = []
        for of_run in shares.values():
            values = (of_run[slot].per_cent[kind] for kind in KINDS)
            cells.append(" / ".join("–" if value is None else f"{value:.1f}" for value in values))
        rows.append((slot, *cells))
    return Grid(
        "slot-errors-by-slot",
        f"Slot errors by slot (%): {' / '.join(KINDS)}",
        (Column("slot", "slot"), *(Column(label, label) for label in shares)),
        tuple(rows),
    )


def _by_slot_and_run(shares: BySlot) -> Grid:
    return Grid(
        "slot-errors-by-slot-and-run",
        "Slot errors by slot and run (%)",
        (
            *(Column("slot", "slot"), Column("run", "run"), Column("contexts", "contexts that have it")),
            *(Column(f"{kind}_per_cent", kind) for kind in KINDS),
        ),
        tuple(
            (slot, label, of_run[slot].having, *(of_run[slot].per_cent[kind] for kind in KINDS))
            for slot in _slot_names(shares)
            for label, of_run in shares.items()
        ),
        shown=False,
    )


def _flagged(texts: Sequence[Texts], verdicts: Mapping[str, Sequence[slots.Verdicts]]) -> Grid:
    """The texts themselves, to look at."""
    rows: list[tuple[Value, ...]] = []
    for one in texts:
        for decoded, verdict in zip(one.decoded, verdicts[one.label], strict=True):
            if verdict.errors:
                kinds = (", ".join(getattr(verdict, kind)) for kind in KINDS)
                rows.append((one.label, *kinds, decoded.context, decoded.hypothesis))
    return Grid(
        "texts-with-errors",
        "Texts with errors",
        (
            *(Column("run", "run"), *(Column(kind, kind) for kind in KINDS)),
            *(Column("context", "context"), Column("text", "text")),
        ),
        tuple(rows),
        shown=False,
    )


def _slot_map(shares: BySlot) -> HeatMap:
    names = _slot_names(shares)
    panels = []
    for kind in KINDS:
        values = tuple(tuple(of_run[name].per_cent[kind] for of_run in shares.values()) for name in names)
        panels.append(Panel(kind, tuple(shares), names, values))
    return HeatMap(
        key="slot-errors",
        title="Slot errors by slot",
        caption="Per cent: missing and wrong of the contexts that have the slot, added of all texts.",
        x_title="",
        y_title="",
        value_title="texts (%)",
        panels=(tuple(panels),),
        low=0.0,
        decimals=1,
    )


# groups of triples ------------------------------------------------------------------------------


def _groups(texts: Sequence[Texts], run: config.Run) -> Found:
    decoded = texts[0].decoded
    notes = ["BLEU and its like can't be averaged over groups: each is of the group's texts together"]
    kinds: dict[str, list[str | None]] = {"subset": [d.subset for d in decoded]}
    if (category := _categories(run, texts[0].record)) is not None:
        kinds["category"] = [_with_subset(category.get(d.context), d.subset) for d in decoded]
    elif run.dataset.format == "webnlg":
        notes.append("categories are in the test file, which is not here (data.root=FOLDER): left out")
    sizes = [_triples(d.context) for d in decoded]
    kinds["triples"] = list(sizes)
    groups = {
        f"{kind}: {label}": [i for i, other in enumerate(labels) if other == label]
        for kind, labels in kinds.items()
        for label in sorted({label for label in labels if label is not None}, key=_ordered)
    }
    suite = run.dataset.suite
    columns = units.COLUMNS[suite]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for one in texts:
        measured = measure(
            [d.hypothesis for d in one.decoded], [d.references for d in one.decoded], suite=suite, groups=groups
        ).scores()
        values[one.label] = {
            group: {
                key: units.in_unit(scores[key].value, scores[key].unit, column.unit, metric=key)
                for key, column in columns.items()
            }
            for group, scores in [(ALL, measured.scores), *measured.subsets.items()]
        }
    every = {ALL: list(range(len(decoded))), **groups}
    plots = [_group_map(values, list(groups), columns["bleu"])]
    return [_by_group(values, every, columns["bleu"]), _whole(values, every, columns)], plots, notes


def _ordered(label: str) -> tuple[int, str]:
    """Numbers as numbers."""
    return (int(label), "") if label.isdecimal() else (0, label)


def _triples(context: str) -> str:
    return str(context.count(SEPARATOR) + 1)


def _with_subset(category: str | None, subset: str | None) -> str | None:
    return category if category is None or subset is None else f"{category} ({subset})"


def _categories(run: config.Run, record: Record) -> dict[str, str] | None:
    """Context to category; None where the data have none, or the file that the run was tested on is not here."""
    if run.dataset.format != "webnlg" or (source := _here(run, record, "test")) is None:
        return None
    return webnlg.categories(source.path)


def _by_group(
    values: Mapping[str, Mapping[str, Mapping[str, float]]], groups: Mapping[str, Sequence[int]], bleu: units.Column
) -> Grid:
    return Grid(
        "groups",
        f"{bleu.title} of each group of contexts",
        (
            *(Column("group", "group"), Column("segments", "segments")),
            *(Column(label, label) for label in values),
        ),
        tuple(
            (group, len(of_group), *(one[group]["bleu"] for one in values.values()))
            for group, of_group in groups.items()
        ),
    )


def _whole(
    values: Mapping[str, Mapping[str, Mapping[str, float]]],
    groups: Mapping[str, Sequence[int]],
    columns: Mapping[str, units.Column],
) -> Grid:
    return Grid(
        "groups-all",
        "All metrics of each group of contexts",
        (
            *(Column("run", "run"), Column("group", "group"), Column("segments", "segments")),
            *(Column(key, column.title, column.decimals) for key, column in columns.items()),
        ),
        tuple(
            (label, group, len(groups[group]), *(of_group[key] for key in columns))
            for label, of_run in values.items()
            for group, of_group in of_run.items()
        ),
        shown=False,
    )


def _group_map(
    values: Mapping[str, Mapping[str, Mapping[str, float]]], groups: Iterable[str], bleu: units.Column
) -> HeatMap:
    kinds: dict[str, list[str]] = {}
    for group in groups:
        kinds.setdefault(group.partition(": ")[0], []).append(group)
    panels = [
        Panel(
            kind,
            tuple(values),
            tuple(group.partition(": ")[2] for group in of_kind),
            tuple(tuple(round(one[group]["bleu"], 3) for one in values.values()) for group in of_kind),
        )
        for kind, of_kind in kinds.items()
    ]
    return HeatMap(
        key="groups",
        title=f"{bleu.title} of groups of contexts",
        caption="By what is in the context: seen or unseen in training, category, number of triples.",
        x_title="",
        y_title="",
        value_title=bleu.title,
        panels=(tuple(panels),),
        decimals=1,
    )
