"""Results folders of invented finished runs, of any size: what a page is tested on without training anything.

Records, steps and texts have the form that runs leave. Figures lie near the printed ones or, for some rows, far off, so
that all verdicts occur; names and texts are made up. Everything follows from the arguments alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import lodarepro
from lodarepro import compose, config, records, tables, units
from lodarepro.cost import count
from lodarepro.files import write_atomically
from lodarepro.metrics import ALL, SUITES
from lodarepro.metrics.suites import REFERENCES
from lodarepro.records import Decoded, Evaluation, Record
from lodarepro.scores import Score
from lodarepro.tables import Column, Figure, Row, Table
from lodarepro.train.optim import learning_rate

STEPS = 2000
"""of a training, about: as many a pass"""
FAR, BETTER = 0.3, 0.25
"""share of the rows whose figures are far off print, and of these the share that is better than print"""
JITTER = 0.003
"""standard deviation over seeds where no spread is printed, of the value"""
WITHOUT_SEGMENTS = ("bleu", "nist")
"""metrics that have no value of a segment"""

Plausible = Mapping[str, Mapping[str, tuple[float, float]]]
SCORES: Plausible = {
    "e2e": {
        "bleu": (0.680, 0.008),
        "nist": (8.60, 0.07),
        "meteor": (0.455, 0.004),
        "rouge_l": (0.700, 0.006),
        "cider": (2.42, 0.04),
    },
    "webnlg": {"bleu": (53.0, 1.2), "meteor": (0.400, 0.006), "ter": (0.410, -0.012), "chrf_pp": (0.660, 0.010)},
    "dart": {"bleu": (45.0, 0.9), "meteor": (0.380, 0.005), "ter": (0.480, -0.010), "chrf_pp": (0.620, 0.008)},
}
"""suite to metric to its value at 10^6 trained parameters and what each tenfold adds, in the metric's own unit: what
a row has where nothing is printed"""
SUBSET_FACTORS = {ALL: 1.0, "seen": 1.1, "unseen": 0.85}

ODD = (
    "The <script>window.hacked=1</script> is open .",
    '</script><img src=x onerror="window.hacked=2">',
    "Fish &amp; <b>bold</b> chips",
    "",
    "מלון קטן ליד הים \N{ROASTED SWEET POTATO} טעים מאוד",
    "x" * 600,
    "one line\N{LINE SEPARATOR}and another",
)
"""hypotheses that every texts file has once each, as far as it has segments"""


def results(
    root: Path,
    table: str,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    segments: int = 40,
    leave_out: Collection[str] = (),
    texts: bool = True,
    data_seed: int = 0,
    suite_scores: Plausible = SCORES,
) -> list[Record]:
    """Write a finished run for every row and seed of a table into a results folder.

    Tables that have cells in common, such as loda-1 and loda-3, may share a folder: the cells get the same figures
    where the tables print the same. Else the last call counts.

    Args:
        root: the results folder.
        table: name of a table, or the path of a YAML file of one.
        seeds: one run each.
        segments: of the test set.
        leave_out: labels of rows that stay empty, or of one of several with a label, `GROUP: LABEL`.
        texts: write the decoded texts and the values of their segments too.
        data_seed: of all that is random; other data, so that runs of two seeds don't compare.
        suite_scores: instead of `SCORES`.

    Returns:
        The records, by row, then seed.
    """
    read = tables.read(table, seeds=seeds)
    reruns = tables.reruns().rows
    tests: dict[str, _TestSet] = {}
    found: list[Record] = []
    for label, row in read.keyed_rows:
        if {label, row.label} & set(leave_out):
            continue
        name = row.run.dataset.name
        if name not in tests:
            tests[name] = _test_set(row.run.dataset, segments, data_seed)
        others = [r for r in reruns if r.fits(row.run) and (r.paper is None or r.paper != read.paper)]
        cell = _Cell(read, row, others if row.printed else [], data_seed, suite_scores, tests[name])
        for seed in seeds:
            run = replace(row.run, seed=seed, results=config.Results(str(root)))
            found.append(_written(root, cell, run, texts=texts, number=len(found)))
    return found


# test sets --------------------------------------------------------------------------------------

FIRST = ("Zorbin", "Ostrel", "Quillen", "Marrowby", "Tavisk", "Brennoch", "Ulmere", "Dappel", "Feyrick", "Collifax")
ODD_FIRST = ("Ærvik", "Pell & Sons", "O'Harrow", "Snåsel", "Grüntal", 'The "Old" Imbrey')
SECOND = ("Hall", "Kettle", "Table", "Larder", "Hearth", "Spoon", "Terrace", "Corner", "Lantern", "Galley")
FOODS = ("Mirish", "Tolvan", "Pashti", "Keldine", "Ombrian", "Sarrow", "Veltish", "Dunnic")
AREAS = ("quayside", "old mill", "upper town", "lake front", "north gate", "glass market", "harbour steps")
PRICES = ("under 12 crowns", "about 20 crowns", "over 35 crowns")
RATINGS = ("1 of 5", "3 of 5", "4 of 5", "5 of 5")
TOWNS = ("Quay Town", "Ulmstead", "Port Ferrin", "Nether Vale", "Castelbrigg", "Sundrey", "Øksnes", "Tarn's End")
PEOPLE = ("Ilda Verrin", "Corvan Tesk", "Maro Quill", "Jette Ostrow", "Bram Halloway-Orr", "Sefa Lindrun")
YEARS = tuple(str(year) for year in range(1702, 1998, 7))
METRES = tuple(f"{metres}.{metres % 10}" for metres in range(12, 640, 13))
STYLES = ("Late Ferric", "Tidal", "New Vernal", "Plain Hanseric")

SLOTS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "food": (FOODS, ("{name} serves {x} food .", "At {name} you eat {x} dishes .", "{name} is a {x} place .")),
    "area": (AREAS, ("It stands in the {x} .", "You find it in the {x} .", "Look for it in the {x} .")),
    "price": (PRICES, ("A meal costs {x} .", "Expect to pay {x} .", "Dinner there is {x} .")),
    "rating": (RATINGS, ("Guests give it {x} .", "It is rated {x} .", "Its guests say {x} .")),
    "beside": (
        FIRST,
        ("{x} Square is next door .", "It is close to {x} Square .", "From {x} Square it is a short walk ."),
    ),
}
"""key to values, and to sentences of it"""
RELATIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "location": (TOWNS, ("{name} is located in {x}.", "{x} is where {name} stands.", "{name} is a building in {x}.")),
    "builder": (PEOPLE, ("It was built by {x}.", "Its builder was {x}.", "{x} built it.")),
    "openingYear": (YEARS, ("It opened in {x}.", "Since {x} it has been open.", "It was opened in {x}.")),
    "lengthInMetres": (
        METRES,
        ("It is {x} metres long.", "Its length is {x} metres.", "From end to end it has {x} metres."),
    ),
    "architecturalStyle": (STYLES, ("It is in the {x} style.", "Its style is {x}.", "It was made in the {x} manner.")),
}
FILLERS = ("Many guests come back for it", "It is open until late in the evening", "There is room for a large party")
COMMON = ("and", "the", "with", "near", "not", "its", "very", "cheap", "a", "of", "in", "old")
WORDS = (*COMMON, *FOODS, *SECOND, *STYLES)

SHORTEST, LONGEST = 60, 160  # characters of a reference


@dataclass(frozen=True)
class _TestSet:
    checksum: str
    contexts: list[str]
    references: list[tuple[str, ...]]
    subsets: list[str | None]

    @property
    def groups(self) -> dict[str, int]:
        """`all` and each subset to its number of segments."""
        labels = sorted({label for label in self.subsets if label is not None})
        return {ALL: len(self.subsets), **{label: self.subsets.count(label) for label in labels}}


def _test_set(dataset: config.Dataset, segments: int, data_seed: int) -> _TestSet:
    rng = Random(f"{data_seed} {dataset.name}")
    make = _slots if dataset.format == "e2e" else _triples
    found: dict[str, tuple[str, ...]] = {}
    while len(found) < segments:
        context, references = make(rng)
        found.setdefault(context, references)
    labels: list[str | None] = [None] * segments
    if dataset.suite == "webnlg":
        labels = [("seen", "unseen")[i if i < 2 else rng.random() < 0.48] for i in range(segments)]
    checksum = _sha256(f"{data_seed} {dataset.name} test {segments}")
    return _TestSet(checksum, list(found), list(found.values()), labels)


def _slots(rng: Random) -> tuple[str, tuple[str, ...]]:
    """A segment of the form `name : Zorbin Hall | food : Mirish | ...`."""
    name = f"{rng.choice(FIRST + ODD_FIRST)} {rng.choice(SECOND)}"
    keys = ["food", *(key for key in list(SLOTS)[1:] if rng.random() < 0.7)]
    chosen = {key: rng.choice(SLOTS[key][0]) for key in keys}
    context = " | ".join(f"{key} : {value}" for key, value in {"name": name, **chosen}.items())
    return context, _references(rng, name, chosen, SLOTS, end=" .")


def _triples(rng: Random) -> tuple[str, tuple[str, ...]]:
    """A segment of the form `Zorbin_Hall : location : Quay Town | ...`."""
    name = f"{rng.choice(FIRST + ODD_FIRST)} {rng.choice(SECOND)}"
    keys = ["location", *(key for key in list(RELATIONS)[1:] if rng.random() < 0.6)]
    chosen = {key: rng.choice(RELATIONS[key][0]) for key in keys}
    subject = name.replace(" ", "_")
    context = " | ".join(f"{subject} : {key} : {value}" for key, value in chosen.items())
    return context, _references(rng, name, chosen, RELATIONS, end=".")


def _references(
    rng: Random,
    name: str,
    chosen: Mapping[str, str],
    sentences: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    *,
    end: str,
) -> tuple[str, ...]:
    wanted = rng.randint(1, 5)
    found: dict[str, None] = {}
    for _ in range(4 * wanted):
        first, *rest = (rng.choice(sentences[key][1]).format(name=name, x=value) for key, value in chosen.items())
        rng.shuffle(rest)
        text = first
        for sentence in (*rest, *(filler + end for filler in rng.sample(FILLERS, len(FILLERS)))):
            if sentence.startswith(FILLERS) and len(text) >= SHORTEST:
                break
            if len(text) + 1 + len(sentence) <= LONGEST:
                text += f" {sentence}"
        found[text] = None
        if len(found) == wanted:
            break
    return tuple(found)


# runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """What the runs of a row have in common."""

    table: Table
    row: Row
    reruns: Sequence[tables.Rerun]
    data_seed: int
    suite_scores: Plausible
    test: _TestSet

    @property
    def key(self) -> str:
        # Not the group's title: other tables have the same cells in other groups.
        return f"{self.data_seed} {self.row.run.model.name} {self.row.label}"


@dataclass(frozen=True)
class _State:
    """A checkpoint as it is evaluated: its names, its epoch, and how far its scores are off those that count."""

    names: tuple[str, ...]
    epoch: dict[str, Any]
    factor: float

    @property
    def adapter(self) -> str:
        return records.ADAPTER if "last" in self.names else f"adapter-{self.names[0]}.safetensors"

    @property
    def hypotheses(self) -> str:
        return f"{records.EVALUATIONS}/{self.names[0]}-test.jsonl"


def _written(root: Path, cell: _Cell, run: config.Run, *, texts: bool, number: int) -> Record:
    rng = Random(f"{cell.key} {run.seed}")
    counted = count(run.model, run.method)
    data, base = _data(cell, run), _base_model(cell, run)
    checksums = {split: source["sha256"] for split, source in data.items()}
    checksums |= {"model": base["sha256"], "tokenizer": base["tokenizer_sha256"]}
    name = compose.run_id(run, checksums)
    folder = root / records.RUNS / name
    folder.mkdir(parents=True, exist_ok=True)

    epochs = _epochs(cell, run, rng, counted.trainable)
    steps = epochs[-1]["step"]
    lowest = min(epoch["val_loss"] for epoch in epochs)
    losses = [max(0.01, lowest * 1.05 + 3 * math.exp(-i / 120) + rng.gauss(0, 0.15)) for i in range(steps)]
    records.write_steps(folder / records.STEPS, [learning_rate(run.train, i, steps) for i in range(steps)], losses)

    states = _states(cell, run, epochs, rng)
    signatures = _signatures(cell)
    scores = {group: _scores(cell, run, group, counted.trainable, signatures) for group in cell.test.groups}
    decode = compose.plain(run)["decode"]
    evaluations = []
    for state in states:
        if texts:
            _write_texts(folder / state.hypotheses, cell, run, state, signatures)
        evaluations += [
            Evaluation(
                checkpoint=checkpoint,
                decode=decode,
                split="test",
                subset=group,
                hypotheses=state.hypotheses,
                segments=segments,
                scores={key: _worse(score, state.factor) for key, score in scores[group].items()},
                val_loss=state.epoch["val_loss"],
            )
            for checkpoint in state.names
            for group, segments in cell.test.groups.items()
        ]
    began = datetime(2026, 3, 2, 8, tzinfo=UTC) + timedelta(minutes=47 * number)
    seconds = {"train": round(rng.uniform(900, 2400), 1), "decode": round(rng.uniform(60, 300), 1), "score": 7.5}
    origin = _origin(run, cell.table.name)
    record = Record(
        id=name,
        config=compose.plain(run),
        identity=compose.identity(run, checksums),
        provenance={
            **origin,
            "data": data,
            "base_model": base,
            "started": began.isoformat(timespec="seconds"),
            "finished": (began + timedelta(seconds=sum(seconds.values()))).isoformat(timespec="seconds"),
        },
        parameters={"trainable": counted.trainable, "total": counted.total},
        training={
            "steps": steps,
            "epochs": epochs,
            "checkpoints": {
                name: {**state.epoch, "adapter": state.adapter} for state in states for name in state.names
            },
            "stretches": [
                {
                    "from_step": 0,
                    "code": origin["code"],
                    "device": origin["device"],
                    "torch": origin["packages"]["torch"],
                }
            ],
            "seconds": seconds,
        },
        evaluations=tuple(evaluations),
    )
    records.write(folder, record)
    return record


def _epochs(cell: _Cell, run: config.Run, rng: Random, trainable: int) -> list[dict[str, Any]]:
    """Validation losses that fall to the last epoch; where another epoch is kept, the lowest may be before the last."""
    lowest = _val_loss(cell, run, trainable)
    if not trainable:
        return [{"epoch": 0, "step": 0, "val_loss": lowest}]
    last = run.train.epochs
    kept = [int(name.removeprefix("epoch-")) for name in run.train.keep if name.startswith("epoch-")]
    best = rng.choice([*kept, min(max(kept) + 2, last), last]) if kept else last
    high, fall = rng.uniform(0.15, 0.4), rng.uniform(0.6, 1.0)
    return [
        {
            "epoch": epoch,
            "step": epoch * (STEPS // last),
            "val_loss": lowest
            + high * (math.exp(-fall * (min(epoch, best) - 1)) - math.exp(-fall * (best - 1)))
            + 0.006 * max(0, epoch - best),
        }
        for epoch in range(1, last + 1)
    ]


def _states(cell: _Cell, run: config.Run, epochs: Sequence[dict[str, Any]], rng: Random) -> list[_State]:
    """The checkpoints that are evaluated, the last epoch's first; the best of those that the row names counts."""
    of = {"best": min(epochs, key=lambda epoch: epoch["val_loss"]), "last": epochs[-1]}
    of |= {f"epoch-{epoch['epoch']}": epoch for epoch in epochs}
    names: dict[int, list[str]] = {}
    for name in sorted({"last", *run.train.keep}, key=lambda name: (name != "last", name != "best", name)):
        names.setdefault(of.get(name, epochs[-1])["epoch"], []).append(name)
    counts = of.get(rng.choice(cell.row.checkpoints), epochs[-1])["epoch"]
    return [
        _State(tuple(found), of[found[0]], 1.0 if epoch == counts else 1 - rng.uniform(0.005, 0.015))
        for epoch, found in names.items()
        if set(found) & set(run.train.keep)
    ]


# figures ----------------------------------------------------------------------------------------


def _scores(
    cell: _Cell, run: config.Run, group: str, trainable: int, signatures: Mapping[str, str]
) -> dict[str, Score]:
    """The scores of a group of segments at the checkpoint that counts."""
    found = {}
    for metric in SUITES[run.dataset.suite].metrics:
        figure, column = _printed(cell, metric.key, group)
        if figure is None or column is None:
            at_million, gain = cell.suite_scores[run.dataset.suite][metric.key]
            value = at_million + gain * (math.log10(max(trainable, 1)) - 6)
            factor = SUBSET_FACTORS[group]
            value *= factor if metric.higher_is_better else 1 / factor
            value *= 1 + _normal(cell, run, metric.key, group) * JITTER
        else:
            seen = _near(cell, run, figure, column, higher_is_better=metric.higher_is_better)
            value = units.in_unit(seen, column.unit, metric.unit, metric=metric.key)
        found[metric.key] = Score(metric.key, value, metric.unit, metric.higher_is_better, signatures[metric.key])
    return found


def _val_loss(cell: _Cell, run: config.Run, trainable: int) -> float:
    """The lowest of a run, in nats a token."""
    figure, column = _printed(cell, units.VAL_LOSS, ALL)
    if figure is not None and column is not None:
        return _near(cell, run, figure, column, higher_is_better=False)
    value = 1.9 - 0.1 * math.log10(max(trainable, 1)) + Random(f"{cell.key} loss").uniform(0, 0.05)
    return value * (1 + _normal(cell, run, units.VAL_LOSS, ALL) * JITTER)


def _printed(cell: _Cell, metric: str, group: str) -> tuple[Figure | None, Column | None]:
    for figure, column in zip(cell.row.printed, cell.table.columns, strict=False):
        if (column.metric, column.subset) == (metric, group):
            return figure, column
    return None, None


def _near(cell: _Cell, run: config.Run, figure: Figure, column: Column, *, higher_is_better: bool) -> float:
    """A value near a printed figure, near what others measured, or far off, in the column's unit."""
    noise = _normal(cell, run, column.metric, column.subset)
    others = [r.figures[column.metric] for r in cell.reruns if column.metric in r.figures and column.subset == ALL]
    if others:
        values = [(units.in_unit(f.value, unit, column.unit, metric=column.metric), f, unit) for f, unit in others]
        value, other, unit = max(values, key=lambda found: abs(found[0] - figure.value))
        return value + noise * units.in_unit(other.half_digit, unit, column.unit, metric=column.metric) / 4
    rng = Random(f"{cell.key} place")
    far, better, way = rng.random() < FAR, rng.random() < BETTER, rng.uniform(0.025, 0.07)
    shift = 0.0 if not far else way if better == higher_is_better else -way
    return figure.value * (1 + shift) + noise * (figure.spread / 2 if figure.spread else JITTER * figure.value)


def _normal(cell: _Cell, run: config.Run, metric: str, group: str) -> float:
    return Random(f"{cell.key} {run.seed} {metric}/{group}").gauss(0, 1)


def _worse(score: Score, factor: float) -> Score:
    return replace(score, value=score.value * factor if score.higher_is_better else score.value / factor)


def _signatures(cell: _Cell) -> dict[str, str]:
    suite = cell.row.run.dataset.suite
    counts = {len(references) for references in cell.test.references} if suite == "e2e" else {REFERENCES}
    number = str(counts.pop()) if len(counts) == 1 else "var"
    return {m.key: f"metric:{m.key}|{m.signature()}|refs:{number}" for m in SUITES[suite].metrics}


# texts ------------------------------------------------------------------------------------------


def _write_texts(path: Path, cell: _Cell, run: config.Run, state: _State, signatures: Mapping[str, str]) -> None:
    """Write the texts of a checkpoint, and beside them the values of their segments."""
    test = cell.test
    rng = Random(f"{cell.key} {run.seed} {state.names[0]}")
    changes = Random(f"{cell.key} changes").randint(0, 7) + (state.factor < 1)
    hypotheses = [_changed(rng, rng.choice(references), rng.randint(0, 2) + changes) for references in test.references]
    places = rng.sample(range(len(hypotheses)), min(len(ODD), len(hypotheses)))
    for place, text in zip(places, ODD, strict=False):
        hypotheses[place] = text
    rows = zip(test.contexts, test.references, hypotheses, test.subsets, strict=True)
    records.write_decoded(
        path,
        (
            Decoded(context, references, hypothesis, subset, -rng.uniform(0.2, 2.5), len(hypothesis) < 300)
            for context, references, hypothesis, subset in rows
        ),
    )
    metrics = [key for key in signatures if key not in WITHOUT_SEGMENTS]
    tree = {
        "texts": hashlib.sha256(path.read_bytes()).hexdigest(),
        "signatures": signatures,
        "values": values_of(hypotheses, test.references, metrics),
    }
    write_atomically(path.with_suffix(".values.json"), f"{json.dumps(tree)}\n".encode())


def _changed(rng: Random, text: str, times: int) -> str:
    """A text after so many words of it were dropped, doubled, swapped or replaced."""
    words = text.split()
    for _ in range(times):
        i, what = int(rng.random() * len(words)), rng.random()
        if what < 0.25 and len(words) > 3:
            del words[i]
        elif what < 0.4:
            words.insert(i, words[i])
        elif what < 0.6 and i:
            words[i - 1], words[i] = words[i], words[i - 1]
        else:
            words[i] = WORDS[int(rng.random() * len(WORDS))]
    return " ".join(words)


@dataclass(frozen=True)
class _Overlap:
    """Of a hypothesis with a reference: shares of the words and of the pairs of words that they have in common."""

    precision: float
    recall: float
    pairs: float
    """of the reference's"""
    odd_words: float
    """words of either that the other has not, for each of the reference's"""

    def f(self, weight: float) -> float:
        """Their weighted mean; a high weight is recall's."""
        below = weight * self.precision + self.recall
        return (1 + weight) * self.precision * self.recall / below if below else 0.0


VALUES: dict[str, Callable[[_Overlap], float]] = {
    "meteor": lambda o: 0.6 * o.f(9.0) * (0.5 + 0.5 * o.pairs),
    "rouge_l": lambda o: o.f(1.44) * (0.6 + 0.4 * o.pairs),
    "cider": lambda o: 10 * o.pairs * o.f(1.0),
    "ter": lambda o: 0.7 * o.odd_words + 0.2 * (1 - o.pairs),
    "chrf_pp": lambda o: o.f(4.0) ** 0.8,
}
"""metric to an invented value, in the metric's own unit"""


def values_of(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], metrics: Iterable[str]
) -> dict[str, list[float]]:
    """An invented value of each segment for each metric, from the words in common with the first reference.

    Raises:
        KeyError: a metric has no values of segments.
    """
    overlaps = [_overlap(hypothesis, texts[0]) for hypothesis, texts in zip(hypotheses, references, strict=True)]
    return {metric: [round(VALUES[metric](overlap), 5) for overlap in overlaps] for metric in metrics}


def _overlap(hypothesis: str, reference: str) -> _Overlap:
    ours, theirs = hypothesis.split(), reference.split()
    a, b = set(ours), set(theirs)
    pairs = set(pairwise(theirs))
    common = pairs.intersection(pairwise(ours))
    both = len(a & b)
    return _Overlap(
        precision=both / max(len(a), 1),
        recall=both / max(len(b), 1),
        pairs=len(common) / max(len(pairs), 1),
        odd_words=(len(a) + len(b) - 2 * both) / max(len(b), 1),
    )


# where they are from ----------------------------------------------------------------------------


def _origin(run: config.Run, table: str) -> dict[str, Any]:
    return {
        "code": {"version": lodarepro.__version__, "commit": _sha256("code")[:40], "dirty": False},
        "packages": {
            "torch": "2.13.0+cu130",
            "numpy": "2.4.6",
            "tokenizers": "0.23.3",
            "datasets": "5.2.0",
            "hydra-core": "1.3.8",
            "sacrebleu": "2.6.0",
            "nltk": "3.10.4",
            "pycocoevalcap": "1.2",
        },
        "machine": {
            "processor": "Invented Processor 9",
            "cores": 16,
            "memory_gib": 125.6,
            "system": "Linux 6.18.44 x86_64 glibc 2.36",
            "python": "3.11.7",
        },
        "argv": ["table", table, "--run"],
        "device": "cpu" if run.model.hub is None else "Invented GPU 40GB",
        "threads": 1 if run.model.hub is None else 16,
    }


def _data(cell: _Cell, run: config.Run) -> dict[str, dict[str, Any]]:
    """As the papers' files where the dataset names them, else as the package's own."""
    found = {}
    for split, examples in {"train": 2000, "valid": 200, "test": sum(map(len, cell.test.references))}.items():
        file = getattr(run.dataset.files, split)
        pin = run.dataset.pins.get(file)
        invented = _sha256(f"{cell.data_seed} {run.dataset.name} {split}")
        found[split] = {
            "file": file,
            "sha256": cell.test.checksum if split == "test" else invented,
            "blob": pin.blob if pin else invented[:40],
            "pinned": pin is not None,
            "origin": "download" if pin else "embedded",
            "examples": pin.examples if pin else examples,
        }
    return found


def _base_model(cell: _Cell, run: config.Run) -> dict[str, str]:
    return {
        "name": run.model.name,
        "sha256": _sha256(f"{cell.data_seed} {run.model.name}"),
        "tokenizer_sha256": _sha256(f"tokenizer of {run.model.vocab_size}"),
        "origin": "embedded" if run.model.hub is None else "hub",
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
